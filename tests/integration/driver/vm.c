/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/driver/vm.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "tests/unit/unit.h"
#include "vmm/qemu/qmp.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>

#define WAIT_S     90
#define COMMAND_MS 10000

const char *vm_image(void)
{
    static const char *image;
    const char *build = getenv("GUEST_BUILD"), *directory = getenv("GUEST_IMAGE");
    if (image)
        return image;
    if (!build || !directory) {
        print_message("skipped: GUEST_BUILD and GUEST_IMAGE are not set: run it through meson test\n");
        skip();
    }
    char command[1024];
    snprintf(command, sizeof command, "'%s' '%s'", build, directory);
    if (system(command) != 0) {
        print_message("skipped: the guest's image cannot be made (tests/guest/build.sh)\n");
        skip();
    }
    return image = directory;
}

void vm_need_userfaultfd(void)
{
    if (access("/dev/userfaultfd", R_OK | W_OK) == 0)
        return;
    print_message("skipped: no access to /dev/userfaultfd\n");
    skip();
}

void vm_init(struct vm *vm)
{
    memset(vm, 0, sizeof *vm);
    snprintf(vm->directory, sizeof vm->directory, "/tmp/understudy-driver-XXXXXX");
    assert_non_null(mkdtemp(vm->directory));
    snprintf(vm->qmp, sizeof vm->qmp, "%s/qmp", vm->directory);
    snprintf(vm->second, sizeof vm->second, "%s/second", vm->directory);
    snprintf(vm->serial, sizeof vm->serial, "%s/serial", vm->directory);
    snprintf(vm->log, sizeof vm->log, "%s/log", vm->directory);
    snprintf(vm->disk, sizeof vm->disk, "%s/disk", vm->directory);
}

void vm_make_disk(struct vm *vm, const char *bytes)
{
    char command[1024];
    snprintf(command, sizeof command, "'%s/guest-init' disk '%s' %s >/dev/null", vm_image(), vm->disk, bytes);
    assert_int_equal(system(command), 0);
}

static void await_monitor(const struct vm *vm, const char *path)
{
    uint64_t deadline = clock_now_ns() + 20 * NS_PER_S;
    struct qmp *qmp = NULL;
    int r;
    while ((r = qmp_open(&qmp, path, 5000)) < 0 && clock_now_ns() < deadline &&
           waitpid(vm->pid, NULL, WNOHANG) == 0)
        usleep(5000);
    if (r < 0) {
        FILE *log cleanup_fclose = fopen(vm->log, "re");
        char line[512];
        while (log && fgets(line, sizeof line, log))
            print_error("%s", line);
        fail_msg("QEMU did not start: %s", error_text());
    }
    qmp_close(qmp);
}

void vm_start(struct vm *vm, bool unprivileged, const char *arguments, const char *parameters)
{
    static const char nobody[] = "setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs ";
    static const char sandbox[] =
        " -sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny";
    char text[4096], *argv[128];
    int length = snprintf(
        text, sizeof text,
        "%sqemu-system-x86_64 -no-user-config -display none -qmp unix:%s,server=on,wait=off "
        "-qmp unix:%s,server=on,wait=off -serial file:%s %s%s",
        unprivileged ? nobody : "", vm->qmp, vm->second, vm->serial, arguments, unprivileged ? sandbox : "");
    assert_true(length > 0 && (size_t)length < sizeof text);
    unsigned argc = 0;
    char *save = NULL;
    for (char *word = strtok_r(text, " ", &save); word && argc < 120; word = strtok_r(NULL, " ", &save))
        argv[argc++] = word;
    char kernel[256], initrd[256], append[512];
    if (parameters) {
        snprintf(kernel, sizeof kernel, "%s/vmlinuz", vm_image());
        snprintf(initrd, sizeof initrd, "%s/initrd", vm_image());
        snprintf(append, sizeof append, "console=ttyS0 quiet panic=-1 no_timer_check %s", parameters);
        char *const more[] = {(char *)"-kernel", kernel, (char *)"-initrd", initrd,
                              (char *)"-append", append};
        memcpy(argv + argc, more, sizeof more);
        argc += 6;
    }
    argv[argc] = NULL;
    if (unprivileged) {
        assert_int_equal(chown(vm->directory, 65534, 65534), 0);
        assert_true(access(vm->disk, F_OK) != 0 || chown(vm->disk, 65534, 65534) == 0);
    }
    posix_spawn_file_actions_t actions;
    posix_spawn_file_actions_init(&actions);
    posix_spawn_file_actions_addopen(&actions, 0, "/dev/null", O_RDONLY, 0);
    posix_spawn_file_actions_addopen(&actions, 1, vm->log, O_WRONLY | O_CREAT | O_APPEND, 0644);
    posix_spawn_file_actions_adddup2(&actions, 1, 2);
    assert_int_equal(posix_spawnp(&vm->pid, argv[0], &actions, NULL, argv, environ), 0);
    posix_spawn_file_actions_destroy(&actions);
    await_monitor(vm, vm->qmp);
}

void vm_free(struct vm *vm)
{
    if (vm->pid > 0) {
        kill(vm->pid, SIGKILL);
        waitpid(vm->pid, NULL, 0);
    }
    const char *const files[] = {vm->qmp, vm->second, vm->serial, vm->log, vm->disk};
    for (unsigned i = 0; i < array_length(files) && vm->directory[0]; i++)
        unlink(files[i]);
    if (vm->directory[0])
        rmdir(vm->directory);
    memset(vm, 0, sizeof *vm);
}

static char output[1 << 20];

unsigned vm_printed(const struct vm *vm)
{
    FILE *file cleanup_fclose = fopen(vm->serial, "re");
    size_t got = file ? fread(output, 1, sizeof output - 1, file) : 0;
    output[got] = '\0';
    return (unsigned)got;
}

void vm_await(const struct vm *vm, const char *word, unsigned from)
{
    uint64_t deadline = clock_now_ns() + WAIT_S * NS_PER_S;
    do {
        unsigned printed = vm_printed(vm);
        for (char *line = output + (from < printed ? from : printed); line; line = strchr(line, '\n')) {
            line += *line == '\n';
            if (strncmp(line, "CORRUPT", 7) == 0 || strncmp(line, "FATAL", 5) == 0)
                fail_msg("the guest says: %s", line);
            if (strncmp(line, word, strlen(word)) == 0 && strchr(line, '\n'))
                return;
        }
        usleep(5000);
    } while (clock_now_ns() < deadline);
    fail_msg("no line \"%s...\" from the guest within %d s; its output: %s", word, WAIT_S,
             output + (strlen(output) > 500 ? strlen(output) - 500 : 0));
}

static json_t *ask(const struct vm *vm, const char *command)
{
    struct qmp *qmp = NULL;
    json_t *result = NULL;
    if (qmp_open(&qmp, vm->second, COMMAND_MS) < 0 || qmp_call(qmp, COMMAND_MS, &result, command, NULL) < 0)
        fail_msg("%s: %s", command, error_text());
    qmp_close(qmp);
    return result;
}

void vm_command(const struct vm *vm, const char *command)
{
    json_decref(ask(vm, command));
}

void vm_balloon(const struct vm *vm, uint64_t bytes)
{
    struct qmp *qmp = NULL;
    if (qmp_open(&qmp, vm->second, COMMAND_MS) < 0 ||
        qmp_call(qmp, COMMAND_MS, NULL, "balloon", "{s:I}", "value", (json_int_t)bytes) < 0)
        fail_msg("balloon: %s", error_text());
    qmp_close(qmp);
}

void vm_panic(const struct vm *vm)
{
    struct qmp *qmp = NULL;
    if (qmp_open(&qmp, vm->second, COMMAND_MS) < 0 ||
        qmp_call(qmp, COMMAND_MS, NULL, "human-monitor-command", "{s:s}", "command-line", "o/b 0x505 1") < 0)
        fail_msg("panic: %s", error_text());
    qmp_close(qmp);
}

const char *vm_status(const struct vm *vm)
{
    static char status[32];
    json_t *answer = ask(vm, "query-status");
    snprintf(status, sizeof status, "%s", json_string_value(json_object_get(answer, "status")));
    json_decref(answer);
    return status;
}

uint64_t vm_registered_bytes(const struct vm *vm)
{
    char path[64], *line cleanup_free = NULL;
    snprintf(path, sizeof path, "/proc/%d/smaps", vm->pid);
    FILE *smaps cleanup_fclose = fopen(path, "re");
    assert_non_null(smaps);
    size_t room = 0;
    uint64_t start = 0, end = 0, bytes = 0;
    while (getline(&line, &room, smaps) > 0) {
        uint64_t a, b;
        char permissions[5];
        if (sscanf(line, "%" SCNx64 "-%" SCNx64 " %4[rwxps-]", &a, &b, permissions) == 3) {
            start = a;
            end = b;
        } else if (strncmp(line, "VmFlags:", 8) == 0 && (strstr(line, " uw") || strstr(line, " um")))
            bytes += end - start;
    }
    return bytes;
}

unsigned vm_userfaultfds(const struct vm *vm)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", vm->pid);
    DIR *directory cleanup_closedir = opendir(path);
    assert_non_null(directory);
    unsigned found = 0;
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        char target[64];
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = '\0';
        found += strstr(target, "userfaultfd") != NULL;
    }
    return found;
}
