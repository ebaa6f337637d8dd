/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/environment.h"

#include "base/error.h"
#include "base/scope.h"
#include "base/spawn.h"
#include "bench/bench.h"
#include "bench/noise.h"
#include "transport/tls_gcm.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <openssl/crypto.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/utsname.h>
#include <sys/wait.h>

#define QEMU_PATIENCE_MS 5000

/* What follows "NAME\t: " in /proc/cpuinfo, of the first processor; empty when it is not there. */
static void cpuinfo(const char *name, char *ret_text, size_t room)
{
    cleanup_fclose FILE *file = fopen("/proc/cpuinfo", "re");
    cleanup_free char *line = NULL;
    size_t length = 0;
    ret_text[0] = '\0';
    while (file && getline(&line, &length, file) > 0) {
        char *colon = strchr(line, ':');
        if (!colon || strncmp(line, name, strlen(name)) != 0 || colon[1] != ' ')
            continue;
        snprintf(ret_text, room, "%.*s", (int)strcspn(colon + 2, "\n"), colon + 2);
        return;
    }
}

static bool has_flag(const char *flags, const char *flag)
{
    size_t length = strlen(flag);
    for (const char *at = strstr(flags, flag); at; at = strstr(at + 1, flag))
        if ((at == flags || at[-1] == ' ') && (at[length] == ' ' || !at[length]))
            return true;
    return false;
}

static void first_line_of(const char *path, char *ret_text, size_t room)
{
    cleanup_fclose FILE *file = fopen(path, "re");
    if (!file || !fgets(ret_text, (int)room, file))
        ret_text[0] = '\0';
    ret_text[strcspn(ret_text, "\n")] = '\0';
}

/* The first line of `qemu-system-x86_64 --version`; empty when there is none. */
static void qemu_version(char *ret_text, size_t room)
{
    char *argv[] = {(char[]){"qemu-system-x86_64"}, (char[]){"--version"}, NULL};
    int ends[2];
    ret_text[0] = '\0';
    if (pipe2(ends, O_CLOEXEC) < 0)
        return;
    pid_t pid;
    struct spawn spawn = {.argv = argv, .input = -1, .output = ends[1], .errors = ends[1], .search = true};
    int r = spawn_start(&pid, &spawn);
    close(ends[1]);
    cleanup_fclose FILE *said = fdopen(ends[0], "r");
    struct pollfd waiting = {.fd = ends[0], .events = POLLIN};
    if (r < 0)
        return;
    if (said && poll(&waiting, 1, QEMU_PATIENCE_MS) == 1 && fgets(ret_text, (int)room, said))
        ret_text[strcspn(ret_text, "\n")] = '\0';
    kill(pid, SIGKILL);
    waitpid(pid, NULL, 0);
}

static json_t *describe_kvm(const char *flags)
{
    char why[96] = "";
    cleanup_close int kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    cleanup_close int vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
    if (vm < 0)
        snprintf(why, sizeof why, "%s: %s", kvm < 0 ? "/dev/kvm" : "KVM_CREATE_VM", strerror(errno));
    return json_pack("{s:b, s:s, s:b}", "usable", vm >= 0, "why", why, "cpu_virtualises",
                     has_flag(flags, "vmx") || has_flag(flags, "svm"));
}

static json_t *load_average(void)
{
    double loads[3] = {0};
    getloadavg(loads, 3);
    return json_pack("[f, f, f]", loads[0], loads[1], loads[2]);
}

static json_t *percentiles_us(const struct histogram *histogram)
{
    return json_pack("{s:I, s:f, s:f, s:f, s:f}", "count", (json_int_t)histogram->count, "p50",
                     (double)histogram_percentile(histogram, 50) / 1e3, "p90",
                     (double)histogram_percentile(histogram, 90) / 1e3, "p99",
                     (double)histogram_percentile(histogram, 99) / 1e3, "max", (double)histogram->max / 1e3);
}

static json_t *describe_noise(void)
{
    cleanup_free struct noise *noise = malloc(sizeof *noise);
    if (!noise) {
        error_errno(-ENOMEM, "noise");
        return NULL;
    }
    if (noise_measure(noise) < 0)
        return NULL;
    return json_pack("{s:i, s:f, s:f, s:o, s:o}", "threads", (int)noise->threads, "seconds", noise->seconds,
                     "stolen_share", noise->stolen_share, "gaps_us", percentiles_us(&noise->gaps), "late_us",
                     percentiles_us(&noise->late));
}

static int count_cores(void)
{
    cpu_set_t set;
    CPU_ZERO(&set);
    return sched_getaffinity(0, sizeof set, &set) < 0 ? 1 : CPU_COUNT(&set);
}

json_t *environment_new(void)
{
    char cpu[256], flags[8192], qemu[256], clock[64], kernel[sizeof(struct utsname)];
    struct utsname name;
    uname(&name);
    snprintf(kernel, sizeof kernel, "%s %s", name.sysname, name.release);
    cpuinfo("model name", cpu, sizeof cpu);
    cpuinfo("flags", flags, sizeof flags);
    qemu_version(qemu, sizeof qemu);
    first_line_of("/sys/devices/system/clocksource/clocksource0/current_clocksource", clock, sizeof clock);
    json_t *noise = describe_noise();
    if (!noise)
        return NULL;
    json_t *environment = json_pack(
        "{s:s, s:i, s:I, s:b, s:s, s:s, s:s, s:s, s:s, s:s, s:o, s:o, s:{s:o}}", "cpu", cpu, "cores",
        count_cores(), "memory_bytes", (json_int_t)sysconf(_SC_PHYS_PAGES) * sysconf(_SC_PAGESIZE), "virtual",
        has_flag(flags, "hypervisor"), "kernel", kernel, "clock", clock, "qemu", qemu, "openssl",
        OpenSSL_version(OPENSSL_VERSION), "aes", tls_gcm_get(NULL) ? "IPsec-MB" : "OpenSSL", "liburing",
        UNDERSTUDY_LIBURING, "kvm", describe_kvm(flags), "load_average_before", load_average(), "noise",
        "before", noise);
    if (!environment)
        error_errno(-ENOMEM, "environment");
    return environment;
}

int environment_finish(json_t *environment)
{
    json_t *noise = describe_noise();
    if (!noise)
        return error_add(-EIO, "noise after the run");
    if (json_object_set_new(json_object_get(environment, "noise"), "after", noise) < 0 ||
        json_object_set_new(environment, "load_average_after", load_average()) < 0)
        return error_errno(-ENOMEM, "environment");
    return 0;
}

int bench_environment(int argc, char **argv)
{
    if (argc > 1) {
        bool help = !strcmp(argv[1], "--help");
        fputs("Usage: understudy bench environment\n\nPrints what results say of this machine, as JSON; "
              "takes 0.3 "
              "seconds of all cores.\n",
              help ? stdout : stderr);
        return help ? 0 : 2;
    }
    json_t *environment = environment_new();
    if (!environment) {
        fprintf(stderr, "understudy: bench environment: %s\n", error_text());
        return 1;
    }
    int r = json_dumpf(environment, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(10));
    putchar('\n');
    json_decref(environment);
    return r < 0;
}
