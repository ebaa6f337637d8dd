/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/target/machine.h"

#include "base/clock.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

const char *machine_image(const char **ret_why)
{
    static const char *image;
    const char *build = getenv("GUEST_BUILD"), *directory = getenv("GUEST_IMAGE");
    if (image)
        return image;
    if (!build || !directory) {
        *ret_why = "GUEST_BUILD and GUEST_IMAGE are not set: run it through meson test";
        return NULL;
    }
    char command[1024];
    snprintf(command, sizeof command, "'%s' '%s'", build, directory);
    if (system(command) != 0) {
        *ret_why = "the guest's image cannot be made (tests/guest/build.sh)";
        return NULL;
    }
    return image = directory;
}

void machine_arg(struct machine *machine, const char *text)
{
    assert_true(machine->argc + 1 < sizeof machine->argv / sizeof machine->argv[0]);
    machine->argv[machine->argc] = strdup(text);
    assert_non_null(machine->argv[machine->argc++]);
}

static void args(struct machine *machine, const char *option, const char *format, ...)
{
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    machine_arg(machine, option);
    machine_arg(machine, text);
}

static bool has_vmx(void)
{
    return system("grep -qwE 'vmx|svm' /proc/cpuinfo && [ -w /dev/kvm ]") == 0;
}

void machine_init(struct machine *machine, const char *image, const struct machine_kind *kind)
{
    memset(machine, 0, sizeof *machine);
    snprintf(machine->directory, sizeof machine->directory, "/tmp/understudy-target-XXXXXX");
    assert_non_null(mkdtemp(machine->directory));
    snprintf(machine->qmp, sizeof machine->qmp, "%s/qmp", machine->directory);
    snprintf(machine->serial, sizeof machine->serial, "%s/serial", machine->directory);
    snprintf(machine->log, sizeof machine->log, "%s/log", machine->directory);
    snprintf(machine->pid_file, sizeof machine->pid_file, "%s/pid", machine->directory);
    machine_arg(machine, "qemu-system-x86_64");
    /* A /dev/kvm without hardware behind it interprets, and a Linux kernel hangs in it. */
    args(machine, "-accel", has_vmx() ? "kvm" : "tcg");
    args(machine, "-M", kind->shared ? "%s,memory-backend=ram" : "%s", kind->machine);
    args(machine, "-m", "%u", kind->megabytes);
    if (kind->shared)
        args(machine, "-object", "memory-backend-memfd,id=ram,size=%uM,share=on", kind->megabytes);
    args(machine, "-smp", "%u", kind->cpus);
    machine_arg(machine, "-nodefaults");
    machine_arg(machine, "-no-user-config");
    args(machine, "-display", "none");
    args(machine, "-kernel", "%s/vmlinuz", image);
    args(machine, "-initrd", "%s/initrd", image);
    /* Without a PM timer a kernel can only measure its clock against the PIT, which fails on a busy host, and
     * then it hangs. Any value near the truth will do. */
    args(machine, "-append", "console=ttyS0 quiet panic=-1 no_timer_check%s %s",
         strcmp(kind->machine, "microvm") == 0 ? " tsc_early_khz=2500000" : "", kind->append);
    args(machine, "-serial", "file:%s", machine->serial);
    args(machine, "-qmp", "unix:%s,server=on,wait=off", machine->qmp);
}

void machine_start(struct machine *machine)
{
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, machine->log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    assert_int_equal(posix_spawnp(&machine->pid, machine->argv[0], &actions, NULL, machine->argv, environ),
                     0);
    posix_spawn_file_actions_destroy(&actions);
}

void machine_free(struct machine *machine)
{
    if (machine->pid > 0) {
        kill(machine->pid, SIGKILL);
        waitpid(machine->pid, NULL, 0);
    }
    for (unsigned i = 0; i < machine->argc; i++)
        free(machine->argv[i]);
    const char *const files[] = {machine->qmp, machine->serial, machine->log, machine->pid_file};
    for (unsigned i = 0; i < 4 && machine->directory[0]; i++)
        unlink(files[i]);
    if (machine->directory[0])
        rmdir(machine->directory);
    memset(machine, 0, sizeof *machine);
}

static char output[1 << 20];

static unsigned read_output(const struct machine *machine)
{
    FILE *file = fopen(machine->serial, "re");
    size_t got = file ? fread(output, 1, sizeof output - 1, file) : 0;
    if (file)
        fclose(file);
    output[got] = '\0';
    return (unsigned)got;
}

unsigned machine_printed(const struct machine *machine)
{
    return read_output(machine);
}

const char *machine_await(const struct machine *machine, const char *word, unsigned from, unsigned seconds)
{
    uint64_t deadline = clock_now_ns() + seconds * NS_PER_S;
    size_t length = strlen(word);
    do {
        unsigned printed = read_output(machine);
        for (char *line = output + (from < printed ? from : printed); line; line = strchr(line, '\n')) {
            line += *line == '\n';
            if (strncmp(line, "CORRUPT", 7) == 0 || strncmp(line, "FATAL", 5) == 0)
                fail_msg("the guest says: %s", line);
            if (strncmp(line, word, length) == 0 && strchr(line, '\n'))
                return line + length;
        }
        usleep(5000);
    } while (clock_now_ns() < deadline);
    fail_msg("no line \"%s...\" from the guest within %u s; its output: %s", word, seconds,
             output + (strlen(output) > 500 ? strlen(output) - 500 : 0));
    return NULL;
}
