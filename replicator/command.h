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
    const char *config, *host, *probe, *slice, *net_gate;
    bool json, force, follow, help, switchover_at_timeout, throttle_at_timeout;
    const char *left;                    /* "swap", "cold"; NULL: as the policy says */
    unsigned max_downtime_ms, timeout_s; /* 0: not given */
    bool bandwidth_given;
    uint64_t bandwidth;
    int log_level;
};

/* Parse `argv` (argv[0] is the command). `accepted`: letters of the long options permitted: h(ost) j(son)
 * f(orce) F(ollow) p(robe) s(lice) l(og-level) d: max-downtime t(imeout) a: timeout-action b(andwidth) S(wap)
 * C(old). Returns EXIT_OK or EXIT_USAGE (said why on stderr), and sets ->help when --help was given. */
int command_parse(int argc, char **argv, const char *accepted, struct command_line *ret_line);

#define COMMAND_CALL_MS 5000 /* for an answer that needs no waiting */

/* Parse, handle --help, load the configuration. False: exit with *ret_exit. */
bool command_begin(int argc, char **argv, const char *accepted, const char *help, struct command_line *line,
                   struct config **ret_config, int *ret_exit);
/* Ask this host's daemon (the reference to `request` is taken over). Returns an exit code, having said why it
 * is not EXIT_OK; *ret_reply is set on EXIT_OK only. */
int command_ask(const char *command, const struct config *config, json_t *request, unsigned timeout_ms,
                json_t **ret_reply);
/* Say error_text(); returns `code`. */
int command_fail(const char *command, int code);

int command_migrate(int argc, char **argv);
int command_switchback(int argc, char **argv);
int command_reprotect(int argc, char **argv);
int command_protect(int argc, char **argv);
int command_standby(int argc, char **argv);
int command_run(int argc, char **argv);
int command_status(int argc, char **argv);
int command_events(int argc, char **argv);
int command_takeover(int argc, char **argv);
int command_continue(int argc, char **argv);
int command_stop(int argc, char **argv);
int command_verify(int argc, char **argv);
int command_check(int argc, char **argv);
int command_pki(int argc, char **argv);
int command_fault_points(int argc, char **argv);

/* A member of an answer, to be printed: "" or 0 when there is none. */
static inline const char *words(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static inline double number(const json_t *object, const char *key)
{
    return json_number_value(json_object_get(object, key));
}

/* Print the object as JSON, indented, on standard output. */
void command_print_json(const json_t *object);

#endif
