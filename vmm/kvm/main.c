/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/kvm/boot.h"
#include "vmm/kvm/confine.h"
#include "vmm/kvm/devices.h"
#include "vmm/kvm/legacy.h"
#include "vmm/kvm/server.h"
#include "vmm/kvm/terminal.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define MEMORY_DEFAULT (256ull << 20)

enum { EXIT_RAN = 0, EXIT_BROKE = 1, EXIT_ARGUMENTS = 2 };

struct options {
    const char *kernel, *initrd, *command_line, *control, *serial;
    uint64_t memory_bytes;
    unsigned cpus;
    struct cpu_features features;
    struct devices_wanted devices;
    bool no_reboot, incoming;
    enum { LOG_BITMAP, LOG_RING, LOG_AUTO } log;
};

static const char help[] =
    "Usage: understudy run --kernel FILE [--initrd FILE] [--cmdline TEXT] [--memory SIZE] [--cpus N]\n"
    "                      [--cpu -NAME,...] [--control SOCKET] [--serial WHERE] [--console WHERE]\n"
    "                      [--net TAP[,MAC]]... [--rng] [--disk PATH[,ro][,id=NAME]]...\n"
    "                      [--dirty-log bitmap|ring|auto] [--no-reboot] [--incoming]\n\n"
    "Run a guest in a VMM of our own on /dev/kvm, until it ends. An engine protects it by way of SOCKET.\n\n"
    "  --kernel FILE     a Linux bzImage, or a 64-bit ELF with a PVH entry (a Linux vmlinux has one)\n"
    "  --initrd FILE     its initial RAM disk\n"
    "  --cmdline TEXT    its command line\n"
    "  --memory SIZE     of its memory, with K, M or G (default: 256M)\n"
    "  --cpus N          virtual CPUs (default: 1)\n"
    "  --cpu -NAME,...   hide these features of the processor, by their names in /proc/cpuinfo\n"
    "  --control SOCKET  where an engine connects: 'vmm = SOCKET' in its configuration\n"
    "  --serial WHERE    the guest's serial port: stdio (default), pty (its path is told), or the path of a\n"
    "                    file, which is appended to, of a FIFO, or of a terminal\n"
    "  --console WHERE   a console (virtio) in the same places\n"
    "  --net TAP[,MAC]   a network interface (virtio) on this tap; at most 4\n"
    "  --rng             a source of entropy (virtio)\n"
    "  --disk PATH[,ro][,id=NAME]\n"
    "                    a disk (virtio) on this raw file or block device; ro: the guest only reads it;\n"
    "                    NAME on both hosts (default: disk0, disk1 ...); at most 4\n"
    "  --dirty-log LOG   how KVM tells what the guest wrote: bitmap (default); ring, which must\n"
    "                    prove itself at the start; auto: ring if it does, else bitmap\n"
    "  --no-reboot       a guest that resets itself ends; without this it boots again\n"
    "  --incoming        wait for a guest's state instead of booting; the engine of a standby adds this\n\n"
    "SIGTERM ends the guest. SIGCONT lets a guest run on that an engine left stopped, and SIGUSR1 lets\n"
    "output out that an engine left held.\n"
    "Exit codes: 0 the guest ended, 1 it crashed or could not be started, 2 usage.\n";

static bool parse_size(const char *text, uint64_t *ret_bytes)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = *end == 'K' ? 10 : *end == 'M' ? 20 : *end == 'G' ? 30 : 0;
    if (shift)
        end++;
    if (*text < '0' || *text > '9' || errno || *end || number > UINT64_MAX >> 30)
        return false;
    *ret_bytes = number << shift;
    return true;
}

static bool parse_cpus(const char *text, unsigned *ret_cpus)
{
    char *end;
    unsigned long number = strtoul(text, &end, 10);
    if (*text < '0' || *text > '9' || *end || number < 1 || number > MACHINE_CPUS_MAX)
        return false;
    *ret_cpus = (unsigned)number;
    return true;
}

static bool parse_log(const char *text, struct options *options)
{
    static const char *const names[] = {[LOG_BITMAP] = "bitmap", [LOG_RING] = "ring", [LOG_AUTO] = "auto"};
    for (unsigned i = 0; i < array_length(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            options->log = i;
            return true;
        }
    }
    return false;
}

static int refuse(const char *option, const char *value, const char *allowed)
{
    fprintf(stderr, "understudy run: --%s %s: allowed are %s\n", option, value, allowed);
    return EXIT_ARGUMENTS;
}

/* -1: go on. */
static int parse(int argc, char **argv, struct options *ret_options)
{
    static const struct option names[] = {
        {"kernel", required_argument, NULL, 'k'},
        {"initrd", required_argument, NULL, 't'},
        {"cmdline", required_argument, NULL, 'a'},
        {"memory", required_argument, NULL, 'm'},
        {"cpus", required_argument, NULL, 'c'},
        {"cpu", required_argument, NULL, 'f'},
        {"control", required_argument, NULL, 's'},
        {"serial", required_argument, NULL, 'o'},
        {"console", required_argument, NULL, 'v'},
        {"net", required_argument, NULL, 'n'},
        {"rng", no_argument, NULL, 'r'},
        {"disk", required_argument, NULL, 'b'},
        {"dirty-log", required_argument, NULL, 'd'},
        {"no-reboot", no_argument, NULL, 'e'},
        {"incoming", no_argument, NULL, 'i'},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    struct options options = {
        .command_line = "", .serial = "stdio", .memory_bytes = MEMORY_DEFAULT, .cpus = 1};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'k':
            if (strcmp(optarg, "--help") == 0) { /* understudy run hands us on what begins with --kernel */
                fputs(help, stdout);
                return EXIT_RAN;
            }
            options.kernel = optarg;
            break;
        case 't':
            options.initrd = optarg;
            break;
        case 'a':
            options.command_line = optarg;
            break;
        case 'm':
            if (!parse_size(optarg, &options.memory_bytes))
                return refuse("memory", optarg, "sizes such as 256M");
            break;
        case 'c':
            if (!parse_cpus(optarg, &options.cpus))
                return refuse("cpus", optarg, "1 to 64");
            break;
        case 'f':
            if (!cpu_features_parse(&options.features, optarg))
                return refuse("cpu", optarg, "-NAME,-NAME... with names of features that /proc/cpuinfo has");
            break;
        case 's':
            options.control = optarg;
            break;
        case 'o':
            options.serial = optarg;
            break;
        case 'v':
            options.devices.console = optarg;
            break;
        case 'n':
            if (!devices_parse_net(&options.devices, optarg))
                return refuse("net", optarg, "4 of TAP and TAP,MAC with a MAC that is no group's");
            break;
        case 'r':
            options.devices.rng = true;
            break;
        case 'b':
            if (!images_parse(&options.devices.images, optarg))
                return refuse("disk", optarg,
                              "4 of PATH, with ,ro and ,id=NAME behind it, each name once and of at most 20 "
                              "letters, digits, '-', '_' and '.'");
            break;
        case 'd':
            if (!parse_log(optarg, &options))
                return refuse("dirty-log", optarg, "bitmap, ring and auto");
            break;
        case 'e':
            options.no_reboot = true;
            break;
        case 'i':
            options.incoming = true;
            break;
        case 'h':
            fputs(help, stdout);
            return EXIT_RAN;
        default:
            return EXIT_ARGUMENTS;
        }
    }
    if (optind != argc) {
        fprintf(stderr, "understudy run: '%s' is not an option (see understudy run --kernel --help)\n",
                argv[optind]);
        return EXIT_ARGUMENTS;
    }
    if (!options.incoming && !options.kernel) {
        fputs("understudy run: --kernel is missing\n", stderr);
        return EXIT_ARGUMENTS;
    }
    if (options.incoming && !options.control) {
        fputs("understudy run: --incoming needs --control, by which the state comes\n", stderr);
        return EXIT_ARGUMENTS;
    }
    *ret_options = options;
    return -1;
}

static int open_boot_files(const struct options *options, struct boot_files *files)
{
    files->kernel_path = options->kernel;
    files->initrd_path = options->initrd;
    if (options->kernel && (files->kernel = open(options->kernel, O_RDONLY | O_CLOEXEC)) < 0)
        return error_errno(-errno, "kernel %s", options->kernel);
    if (options->initrd && (files->initrd = open(options->initrd, O_RDONLY | O_CLOEXEC)) < 0)
        return error_errno(-errno, "initrd %s", options->initrd);
    return 0;
}

static void close_boot_files(struct boot_files *files)
{
    if (files->kernel >= 0)
        close(files->kernel);
    if (files->initrd >= 0)
        close(files->initrd);
}

struct vmm_parts {
    const struct options *options;
    struct boot_files files;
    struct terminal serial;
    struct server *server;
    struct devices *devices;
    struct machine *machine;
};

static void announce(void *ctx)
{
    devices_announce(((struct vmm_parts *)ctx)->devices);
}

static int boot(void *ctx)
{
    struct vmm_parts *parts = ctx;
    char command_line[BOOT_COMMAND_LINE_MAX];
    if (snprintf(command_line, sizeof command_line, "%s", parts->options->command_line) >=
        (int)sizeof command_line)
        return error_set(-EINVAL, "the kernel's command line is longer than %zu characters",
                         sizeof command_line - 1);
    int r = devices_command_line(parts->devices, command_line, sizeof command_line);
    return r < 0 ? r : machine_boot(parts->machine, &parts->files, command_line);
}

/* A ring that does not prove itself is not used, whatever was said. */
static int choose_log(const struct options *options, struct machine_config *config)
{
    int r = options->log == LOG_BITMAP ? -EOPNOTSUPP : machine_prove_ring();
    config->dirty_ring = r == 0;
    if (r == 0)
        log_notice("dirty log: ring");
    else if (options->log == LOG_AUTO)
        log_notice("dirty log: bitmap; %s", error_text());
    return options->log == LOG_RING ? r : 0;
}

/* What is opened comes first, then threads, and then nothing of either any more. */
static int make(const struct options *options, struct vmm_parts *parts)
{
    struct machine_config config = {
        .memory_bytes = options->memory_bytes, .cpus = options->cpus, .features = options->features};
    int r = server_new(&parts->server, options->control, &config);
    if (r == 0)
        r = terminal_open(&parts->serial, "serial port", options->serial);
    if (r == 0)
        r = open_boot_files(options, &parts->files);
    if (r == 0 && options->kernel && !options->no_reboot)
        server_reboots(parts->server, &config, boot, parts);
    if (r == 0) {
        const struct output_events events = server_output_events(parts->server);
        r = devices_open(&parts->devices, &options->devices, &events);
    }
    if (r == 0)
        r = confine_capabilities();
    if (r == 0) {
        config.description = devices_description(parts->devices);
        r = choose_log(options, &config);
    }
    if (r == 0)
        r = machine_new(&parts->machine, &config);
    if (r == 0)
        r = serial_add(parts->machine, devices_io(parts->devices), devices_output(parts->devices),
                       parts->serial.in, parts->serial.out);
    if (r == 0)
        r = reset_add(parts->machine);
    if (r == 0)
        r = power_add(parts->machine);
    if (r == 0)
        r = devices_add(parts->devices, parts->machine);
    if (r == 0 && !options->incoming)
        r = boot(parts);
    if (r == 0)
        server_attach_images(parts->server, devices_images(parts->devices));
    if (r == 0)
        r = server_attach(parts->server, parts->machine, devices_output(parts->devices), options->incoming,
                          announce, parts);
    return r < 0 ? r : confine_calls();
}

int main(int argc, char **argv)
{
    struct options options;
    struct vmm_parts parts = {
        .options = &options, .files = {.kernel = -1, .initrd = -1}, .serial = TERMINAL_NONE};
    enum machine_end end = MACHINE_CRASHED;
    int code = parse(argc, argv, &options);
    if (code >= 0)
        return code;
    signal(SIGTTIN, SIG_IGN); /* in the background there is no input: the guest must not be stopped for it */
    prctl(PR_SET_NAME, "understudy-vmm");
    if (make(&options, &parts) == 0)
        end = server_run(parts.server);
    else
        fprintf(stderr, "understudy run: %s\n", error_text());
    if (parts.machine)
        machine_pause(parts.machine);
    uint64_t lost = devices_stop(parts.devices);
    if (lost)
        log_notice("%llu bytes of the guest's last output are not let out: no standby knows of them",
                   (unsigned long long)lost);
    machine_free(parts.machine);
    devices_free(parts.devices);
    terminal_close(&parts.serial);
    close_boot_files(&parts.files);
    server_free(parts.server);
    return end == MACHINE_ENDED ? EXIT_RAN : EXIT_BROKE;
}
