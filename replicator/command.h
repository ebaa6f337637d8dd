/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_COMMAND_H
#define UNDERSTUDY_REPLICATOR_COMMAND_H

#include <getopt.h>
#include <jansson.h>
#include <stdbool.h>

#include "replicator/config.h"

/* Exit codes of every command; documented in understudy(1). */
enum exit_code {
    EXIT_OK = 0,
    EXIT_FAILED = 1,  /* it was tried and failed */
    EXIT_USAGE = 2,   /* command line or configuration */
    EXIT_ABSENT = 3,  /* no daemon is running */
    EXIT_REFUSED = 4, /* preflight or policy says no */
    EXIT_DIFFERS = 5, /* verify found a difference */
};

/* The options that commands share; each command takes those it names in `accepted`. */
struct command_line {
    const char *config, *host, *probe, *slice;
    bool json, force, help;
    int log_level;
};

/* Parse `argv` (argv[0] is the command). `accepted`: letters of the long options permitted: h(ost) j(son)
 * f(orce) p(robe) s(lice) l(og-level). Returns EXIT_OK or EXIT_USAGE (said why on stderr), and sets ->help
 * when --help was given. */
int command_parse(int argc, char **argv, const char *accepted, struct command_line *ret_line);

int command_protect(int argc, char **argv);
int command_standby(int argc, char **argv);
int command_status(int argc, char **argv);
int command_takeover(int argc, char **argv);
int command_continue(int argc, char **argv);
int command_stop(int argc, char **argv);
int command_verify(int argc, char **argv);
int command_check(int argc, char **argv);
int command_pki(int argc, char **argv);
int command_fault_points(int argc, char **argv);

/* Print the object as JSON, indented, on standard output. */
void command_print_json(const json_t *object);

#endif
