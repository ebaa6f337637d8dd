/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/kvm/confine.h"
#include "vmm/kvm/legacy.h"
#include "vmm/kvm/server.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>

#define MEMORY_DEFAULT (256ull << 20)

enum { EXIT_RAN = 0, EXIT_BROKE = 1, EXIT_ARGUMENTS = 2 };

struct options {
    const char *kernel, *command_line, *control, *serial;
    uint64_t memory_bytes;
    unsigned cpus;
    bool incoming;
};

static const char help[] =
    "Usage: understudy run --kernel ELF [--cmdline TEXT] [--memory SIZE] [--cpus N] [--control SOCKET]\n"
    "                      [--serial FILE|stdio] [--incoming]\n\n"
    "Run a guest in a VMM of our own on /dev/kvm, until it ends. An engine protects it by way of SOCKET.\n\n"
    "  --kernel ELF      a 64-bit ELF with a PVH entry (a Linux vmlinux has one)\n"
    "  --cmdline TEXT    its command line\n"
    "  --memory SIZE     of its memory, with K, M or G (default: 256M)\n"
    "  --cpus N          virtual CPUs (default: 1)\n"
    "  --control SOCKET  where an engine connects: 'vmm = SOCKET' in its configuration\n"
    "  --serial FILE     append what the guest says at its serial port; stdio: to standard output (default)\n"
    "  --incoming        wait for a guest's state instead of booting; the engine of a standby adds this\n\n"
    "SIGTERM ends the guest. SIGCONT lets a guest run on that an engine left stopped.\n"
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

static int refuse(const char *option, const char *value, const char *allowed)
{
    fprintf(stderr, "understudy run: --%s %s: allowed are %s\n", option, value, allowed);
    return EXIT_ARGUMENTS;
}

/* -1: go on. */
static int parse(int argc, char **argv, struct options *ret_options)
{
    static const struct option names[] = {{"kernel", required_argument, NULL, 'k'},
                                          {"cmdline", required_argument, NULL, 'a'},
                                          {"memory", required_argument, NULL, 'm'},
                                          {"cpus", required_argument, NULL, 'c'},
                                          {"control", required_argument, NULL, 's'},
                                          {"serial", required_argument, NULL, 'o'},
                                          {"incoming", no_argument, NULL, 'i'},
                                          {"help", no_argument, NULL, 'h'},
                                          {0}};
    struct options options = {
        .command_line = "", .serial = "stdio", .memory_bytes = MEMORY_DEFAULT, .cpus = 1};
    for (int option; (option = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (option) {
        case 'k':
            options.kernel = optarg;
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
        case 's':
            options.control = optarg;
            break;
        case 'o':
            options.serial = optarg;
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

struct files {
    int kernel, serial;
};

static int open_files(const struct options *options, struct files *files)
{
    if (strcmp(options->serial, "stdio") == 0)
        files->serial = STDOUT_FILENO;
    else
        files->serial =
            open(options->serial, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOCTTY | O_NONBLOCK, 0640);
    if (files->serial < 0)
        return error_errno(-errno, "serial %s", options->serial);
    if (options->incoming)
        return 0;
    files->kernel = open(options->kernel, O_RDONLY | O_CLOEXEC);
    return files->kernel < 0 ? error_errno(-errno, "kernel %s", options->kernel) : 0;
}

static int make(const struct options *options, const struct machine_config *config, struct server *server,
                struct machine **ret_machine)
{
    struct files files = {.kernel = -1};
    int r = open_files(options, &files);
    if (r == 0)
        r = confine_capabilities();
    if (r == 0)
        r = machine_new(ret_machine, config);
    if (r == 0)
        r = serial_add(*ret_machine, files.serial);
    if (r == 0)
        r = reset_add(*ret_machine);
    if (r == 0 && !options->incoming)
        r = machine_boot(*ret_machine, files.kernel, options->kernel, options->command_line);
    if (files.kernel >= 0)
        close(files.kernel);
    if (r == 0)
        r = server_attach(server, *ret_machine, options->incoming);
    return r < 0 ? r : confine_calls();
}

int main(int argc, char **argv)
{
    struct options options;
    int code = parse(argc, argv, &options);
    if (code >= 0)
        return code;
    prctl(PR_SET_NAME, "understudy-vmm");
    struct machine_config config = {.memory_bytes = options.memory_bytes, .cpus = options.cpus};
    struct server *server = NULL;
    struct machine *machine = NULL;
    enum machine_end end = MACHINE_CRASHED;
    int r = server_new(&server, options.control, &config);
    if (r == 0)
        r = make(&options, &config, server, &machine);
    if (r == 0)
        end = server_run(server);
    else
        fprintf(stderr, "understudy run: %s\n", error_text());
    machine_free(machine);
    server_free(server);
    return r == 0 && end == MACHINE_ENDED ? EXIT_RAN : EXIT_BROKE;
}
