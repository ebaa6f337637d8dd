/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/fault.h"
#include "bench/bench.h"
#include "replicator/command.h"
#include "watch/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name;
    int (*run)(int argc, char **argv);
    const char *what;
} commands[] = {
    {"protect", command_protect, "keep a standby of the QEMU that runs on this host"},
    {"standby", command_standby, "be the standby: receive checkpoints, take over"},
    {"run", command_run, "protect or standby, whichever fits what runs on this host"},
    {"status", command_status, "what the daemon of this host says of the machine"},
    {"events", command_events, "what happened to the machine, and what happens to it"},
    {"top", command_top, "all machines of this host, live"},
    {"metrics", command_metrics, "serve figures of all machines of this host to Prometheus"},
    {"takeover", command_takeover, "run the machine here, from its last committed checkpoint"},
    {"migrate", command_migrate, "move the guest to the standby, on purpose"},
    {"switchback", command_switchback, "move the guest back to its home host, on purpose"},
    {"reprotect", command_reprotect, "change this host's role now, where the guest has changed hosts"},
    {"continue", command_continue, "let a guest that is held run on, unprotected"},
    {"stop", command_stop, "end the daemon of this host in order"},
    {"verify", command_verify, "compare the memory of both sides at checkpoints"},
    {"check", command_check, "can this running QEMU be protected?"},
    {"pki", command_pki, "make and check a CA and host certificates"},
    {"bench", command_bench, "measure the engine on this machine"},
    {"fault-points", command_fault_points, "list the fault points that tests can arm"},
};

static void usage(FILE *to)
{
    fputs("Usage: understudy COMMAND [ARGUMENTS]\n\n"
          "A hot standby for virtual machines: streams consistent checkpoints of a running QEMU guest to a "
          "second host,\n"
          "which resumes it when the first host fails.\n\n",
          to);
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        fprintf(to, "  %-13s %s\n", commands[i].name, commands[i].what);
    fputs("\nunderstudy COMMAND --help says more; so does understudy(1).\n"
          "Exit codes: 0 done, 1 failed, 2 usage or configuration, 3 no daemon, 4 refused, 5 verify found a "
          "difference.\n",
          to);
}

int main(int argc, char **argv)
{
    const char *faults = getenv("UNDERSTUDY_FAULT");
    if (faults && fault_arm(faults) < 0) {
        fprintf(stderr, "understudy: UNDERSTUDY_FAULT: %s\n", error_text());
        return EXIT_USAGE;
    }
    if (argc < 2) {
        usage(stderr);
        return EXIT_USAGE;
    }
    if (!strcmp(argv[1], "--help") || !strcmp(argv[1], "help")) {
        usage(stdout);
        return EXIT_OK;
    }
    if (!strcmp(argv[1], "--version")) {
        puts("understudy " UNDERSTUDY_VERSION);
        return EXIT_OK;
    }
    for (size_t i = 0; i < sizeof commands / sizeof commands[0]; i++)
        if (!strcmp(argv[1], commands[i].name))
            return commands[i].run(argc - 1, argv + 1);
    fprintf(stderr, "understudy: '%s' is not a command (see understudy --help)\n", argv[1]);
    return EXIT_USAGE;
}
