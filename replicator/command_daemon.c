/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/spawn.h"
#include "replicator/daemon.h"

#include <errno.h>
#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* The commands that stay: protect, standby, run. */

static int end_of_daemon(const char *command, int r)
{
    if (r == 0)
        return EXIT_OK;
    if (r > 0) /* the machine said why already */
        return EXIT_FAILED;
    return command_fail(command, r == -EOPNOTSUPP || r == -EBUSY ? EXIT_REFUSED : EXIT_FAILED);
}

static int run_daemon(int argc, char **argv, const char *accepted, const char *help,
                      int (*daemon)(struct config *config))
{
    struct command_line line;
    struct config *config;
    int code;
    if (!command_begin(argc, argv, accepted, help, &line, &config, &code))
        return code;
    if (line.net_gate && config_parse_gate(line.net_gate, &config->gate) < 0) {
        fprintf(stderr, "understudy %s: --net-gate %s: %s\n", argv[0], line.net_gate, error_text());
        config_free(config);
        return EXIT_USAGE;
    }
    if (line.probe) {
        free(config->probe_block);
        config->probe_block = NULL;
        if (config_probe_parse(line.probe, &config->probe_block, &config->probe_offset) < 0) {
            config_free(config);
            return command_fail(argv[0], EXIT_USAGE);
        }
    }
    code = end_of_daemon(argv[0], daemon(config));
    config_free(config);
    return code;
}

int command_protect(int argc, char **argv)
{
    return run_daemon(
        argc, argv, "hplg",
        "Usage: understudy protect CONFIG [--host NAME] [--net-gate KIND] [--probe BLOCK:OFFSET]\n"
        "                          [--log-level LEVEL]\n\n"
        "Attach to the QEMU that runs on this host and keep a standby of it on the peer host. Runs in the "
        "foreground\n"
        "until stopped; the guest goes on, unprotected, when it ends.\n\n"
        "  CONFIG        a name (web: /etc/understudy/web.ini) or a path\n"
        "  --host NAME   which [host] of the configuration we are (default: this machine's host name)\n"
        "  --net-gate K  what holds the guest's output until its checkpoint is acknowledged: auto, plug,\n"
        "                nfqueue, relay or none (default: as the configuration says)\n"
        "  --probe B:O   report the guest's 8 bytes at offset O of RAM block B with every checkpoint\n",
        daemon_protect);
}

int command_standby(int argc, char **argv)
{
    return run_daemon(
        argc, argv, "hpl",
        "Usage: understudy standby CONFIG [--host NAME] [--probe BLOCK:OFFSET] [--log-level LEVEL]\n\n"
        "Wait for the primary, keep a waiting QEMU filled with its last committed checkpoint, and take over "
        "by policy or\n"
        "by command. Runs in the foreground; a guest that was taken over goes on when it ends.\n",
        daemon_standby);
}

/* A guest of our own VMM, whose program takes this one's place. */
static int become_vmm(char **argv)
{
    char program[PATH_MAX];
    if (spawn_find_helper("understudy-vmm", program, sizeof program) < 0)
        return command_fail(argv[0], EXIT_FAILED);
    execv(program, argv);
    error_errno(-errno, "%s", program);
    return command_fail(argv[0], EXIT_FAILED);
}

static bool wants_vmm(int argc, char **argv)
{
    for (int i = 1; i < argc; i++)
        if (!strncmp(argv[i], "--kernel", strlen("--kernel")))
            return true;
    return false;
}

int command_run(int argc, char **argv)
{
    if (wants_vmm(argc, argv))
        return become_vmm(argv);
    return run_daemon(
        argc, argv, "hplg",
        "Usage: understudy run CONFIG [--host NAME] [--net-gate KIND] [--probe BLOCK:OFFSET] [--log-level "
        "LEVEL]\n"
        "       understudy run --kernel FILE ... (a guest of our own VMM: see understudy run --kernel "
        "--help)\n\n"
        "As `understudy protect` if the guest runs on this host, else as `understudy standby`. For both "
        "hosts of a "
        "machine\n"
        "whose roles change, at boot above all. Options as for these.\n",
        daemon_run);
}
