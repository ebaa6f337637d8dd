/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "replicator/control.h"
#include "replicator/daemon.h"

#include <errno.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/*
 * Theory of operation
 *
 * The engine moves the guest; this command asks for it, shows how far it is, and takes the wish back when it
 * is interrupted. Where no engine runs, one is started for the purpose, as a child in a process group of its
 * own (so that Ctrl-C reaches only us), and ended in order afterwards: a guest that did not move goes on
 * untouched.
 */

#define POLL_MS        200
#define STARTING_MS    20000 /* for a child to open its control socket */
#define LOST_POLLS_MAX 10
#define DOWNTIME_MS    50

static volatile sig_atomic_t interrupted;

static void on_signal(int number)
{
    (void)number;
    interrupted = 1;
}

static void catch_signals(void)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

static void doze(unsigned ms)
{
    struct timespec rest = {ms / 1000, (long)(ms % 1000) * 1000000};
    nanosleep(&rest, NULL); /* cut short by a signal, which is welcome */
}

/* --- an engine of our own --- */

static pid_t start_engine(const struct command_line *line, struct config *config)
{
    pid_t self = getpid(), child = fork();
    if (child < 0)
        return error_errno(-errno, "start an engine");
    if (child > 0)
        return child;
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != self)
        _exit(EXIT_FAILED);
    if (line->json)
        log_set_level(LOG_LEVEL_WARNING);
    if (line->bandwidth_given) /* it begins to copy before it is asked */
        config->bandwidth = line->bandwidth;
    int r = daemon_protect(config);
    if (r < 0)
        fprintf(stderr, "understudy migrate: %s\n", error_text());
    _exit(r == 0 ? EXIT_OK : r == -EOPNOTSUPP || r == -EBUSY ? EXIT_REFUSED : EXIT_FAILED);
}

/* The child has ended: its exit code. */
static bool engine_ended(pid_t engine, int *ret_code)
{
    int status;
    if (engine <= 0 || waitpid(engine, &status, WNOHANG) != engine)
        return false;
    *ret_code = WIFEXITED(status) && WEXITSTATUS(status) ? WEXITSTATUS(status) : EXIT_FAILED;
    return true;
}

static void stop_engine(pid_t engine)
{
    if (engine <= 0)
        return;
    kill(engine, SIGTERM);
    while (waitpid(engine, NULL, 0) < 0 && errno == EINTR)
        ;
}

/* --- the request --- */

static json_t *migrate_request(const struct command_line *line, bool switchback)
{
    json_t *request =
        json_pack("{s:s, s:I, s:I, s:b, s:b, s:b}", "command", "migrate", "max_downtime_ms",
                  (json_int_t)line->max_downtime_ms, "timeout_ms", (json_int_t)line->timeout_s * 1000,
                  "switchover_at_timeout", line->switchover_at_timeout, "throttle_at_timeout",
                  line->throttle_at_timeout, "switchback", switchback);
    if (line->bandwidth_given)
        json_object_set_new(request, "bandwidth", json_integer((json_int_t)line->bandwidth));
    if (line->left)
        json_object_set_new(request, "left", json_string(line->left));
    return request;
}

static int call_status(const char *path)
{
    json_t *status;
    int r = control_call(path, json_pack("{s:s}", "command", "status"), COMMAND_CALL_MS, &status);
    if (r == 0)
        json_decref(status);
    return r;
}

/* The first answer; an engine of our own may need a moment to be there. */
static int ask_first(const struct command_line *line, struct config *config, pid_t *ret_engine,
                     json_t **ret_reply)
{
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    int code;
    if (config_file(config, config->self.run_dir, "sock", path, sizeof path) < 0)
        return command_fail("migrate", EXIT_USAGE);
    int r = call_status(path);
    if ((r == -ENOENT || r == -ECONNREFUSED) && line->left && !strcmp(line->left, "swap")) {
        fprintf(stderr,
                "understudy migrate: --swap needs an engine that stays: start `understudy protect` first\n");
        return EXIT_ABSENT;
    }
    if (r == -ENOENT || r == -ECONNREFUSED) {
        *ret_engine = start_engine(line, config);
        if (*ret_engine < 0)
            return command_fail("migrate", EXIT_FAILED);
        uint64_t until = clock_now_ns() + STARTING_MS * NS_PER_MS;
        while ((r = call_status(path)) < 0) {
            if (engine_ended(*ret_engine, &code)) {
                *ret_engine = 0;
                return code;
            }
            if (interrupted || clock_now_ns() > until)
                return command_fail("migrate", EXIT_FAILED);
            doze(POLL_MS / 4);
        }
    }
    return command_ask("migrate", config, migrate_request(line, false), COMMAND_CALL_MS, ret_reply);
}

/* --- what the operator sees --- */

static void show(const json_t *status)
{
    const json_t *m = json_object_get(status, "migration");
    const json_t *eta = json_object_get(m, "eta_s");
    char when[32] = "not at this pace";
    if (json_is_number(eta))
        snprintf(when, sizeof when, "%.0f s", json_number_value(eta));
    fprintf(
        stderr,
        "\r\033[K%s: %s, %.0f MiB copied, %.1f MiB remaining, dirtied %.1f MiB/s, expected downtime %.0f of "
        "%.0f ms, ETA %s",
        words(status, "vm"), words(m, "state"), number(m, "copied_bytes") / 1048576,
        number(m, "remaining_bytes") / 1048576, number(m, "dirty_bytes_per_s") / 1048576,
        number(m, "expected_downtime_ms"), number(m, "max_downtime_ms"), when);
}

/* What is left here. */
static const char *left_here(const struct command_line *line, const json_t *status)
{
    bool swap = line->left ? !strcmp(line->left, "swap") : !strcmp(words(status, "reprotect"), "auto");
    if (!swap)
        return "The guest here is stopped for good; its QEMU may be ended.";
    return !strcmp(words(status, "reprotect"), "auto")
               ? "This host becomes its standby."
               : "This host becomes its standby when `understudy reprotect` was said there.";
}

static void print_summary(const struct command_line *line, pid_t engine, const json_t *status)
{
    const json_t *m = json_object_get(status, "migration");
    if (strcmp(words(m, "state"), "moved") != 0) {
        printf("%s stays on %s: %s\n", words(status, "vm"), words(status, "host"), words(m, "reason"));
        return;
    }
    printf("%s moved to %s, generation %.0f\n", words(status, "vm"), words(m, "to"), number(m, "generation"));
    printf("  total time     %.2f s\n", number(m, "seconds"));
    printf(
        "  downtime       %.1f ms (by this host's clock: from the guest's stop here to the word that it runs "
        "there)\n",
        number(m, "downtime_ms"));
    printf("  copied         %.1f MiB of the guest's, %.1f MiB as sent, in %.0f rounds\n",
           number(m, "copied_bytes") / 1048576, number(m, "payload_bytes") / 1048576, number(m, "rounds"));
    if (number(m, "taken_back") > 0)
        printf(
            "  taken back     %.0f last checkpoints that were late; the guest stood still %.1f ms for them\n",
            number(m, "taken_back"), number(m, "taken_back_ms"));
    if (number(m, "stopped_percent_max") > 0)
        printf("  slowed         the guest was stopped for up to %.0f %% of the time\n",
               number(m, "stopped_percent_max"));
    puts(engine > 0 ? "The guest here is stopped for good; its QEMU may be ended." : left_here(line, status));
}

/* Until it is decided. Returns an exit code; *ret_status is the last status. */
static int follow(struct config *config, pid_t engine, json_t **status)
{
    bool terminal = isatty(STDERR_FILENO), cancelled = false;
    int code = EXIT_OK;
    for (unsigned lost = 0;;) {
        json_t *fresh = NULL;
        const char *state = words(json_object_get(*status, "migration"), "state");
        if (!strcmp(state, "moved"))
            break;
        if (strcmp(state, "copying") != 0 && strcmp(state, "switching") != 0) {
            code = EXIT_FAILED;
            break;
        }
        if (terminal)
            show(*status);
        bool cancel = interrupted && !cancelled;
        if (!cancel)
            doze(POLL_MS);
        code = command_ask("migrate", config,
                           json_pack("{s:s}", "command", cancel ? "migrate-cancel" : "status"),
                           COMMAND_CALL_MS, &fresh);
        cancelled |= cancel;
        if (code == EXIT_OK) {
            json_decref(*status);
            *status = fresh;
            lost = 0;
        } else if (engine_ended(engine, &code) || ++lost == LOST_POLLS_MAX || code == EXIT_ABSENT) {
            fprintf(stderr,
                    "understudy migrate: the engine ended; `understudy status` on both hosts says who runs "
                    "the guest\n");
            return EXIT_FAILED;
        }
    }
    if (terminal)
        fprintf(stderr, "\r\033[K");
    if (interrupted && code == EXIT_OK)
        fprintf(stderr,
                "understudy migrate: too late to cancel, the standby had been told to run the guest\n");
    return code;
}

/* From the first answer to the end; returns an exit code. */
static int finish(struct command_line *line, struct config *config, int code, pid_t engine, json_t *status)
{
    if (code == EXIT_OK)
        code = follow(config, engine, &status);
    stop_engine(engine);
    if (status && line->json)
        command_print_json(json_object_get(status, "migration"));
    else if (status)
        print_summary(line, engine, status);
    json_decref(status);
    config_free(config);
    return code;
}

static int order(int argc, char **argv, const char *help, bool switchback)
{
    struct command_line line;
    struct config *config;
    json_t *status = NULL;
    pid_t engine = 0;
    int code;
    if (!command_begin(argc, argv, "hjdtabSC", help, &line, &config, &code))
        return code;
    if (!line.max_downtime_ms)
        line.max_downtime_ms = DOWNTIME_MS;
    catch_signals();
    code = switchback ? command_ask(argv[0], config, migrate_request(&line, true), COMMAND_CALL_MS, &status)
                      : ask_first(&line, config, &engine, &status);
    return finish(&line, config, code, engine, status);
}

int command_migrate(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy migrate CONFIG [--host NAME] [--max-downtime MS] [--timeout S]\n"
        "                          [--timeout-action abort|switchover|throttle] [--bandwidth RATE]\n"
        "                          [--swap|--cold] [--json]\n\n"
        "Move the running guest to the standby, on purpose. For the primary's host. If no engine protects "
        "the guest "
        "here,\n"
        "one runs for as long as it takes. Ctrl-C, and every failure before the guest runs there, leave it "
        "running "
        "here.\n\n"
        "  --max-downtime MS      move when the guest is expected to be down for at most MS (default 50)\n"
        "  --timeout S            how long to wait for that, in seconds (default 0: for ever)\n"
        "  --timeout-action WHAT  then: abort (default); or switchover, however long the guest is down; or "
        "throttle: slow\n"
        "                         the guest until it fits, and abort after 5 times as long\n"
        "  --bandwidth RATE       send no more than that, in bytes a second (100M, 2G; 0: no bound; default: "
        "as "
        "configured)\n"
        "  --swap                 afterwards this host is the standby of the guest (default with reprotect = "
        "auto)\n"
        "  --cold                 afterwards the guest stays here, stopped, and this host does nothing "
        "(default "
        "else)\n";
    return order(argc, argv, help, false);
}

int command_switchback(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy switchback CONFIG [--host NAME] [--max-downtime MS] [--timeout S]\n"
        "                             [--timeout-action abort|switchover|throttle] [--bandwidth RATE]\n"
        "                             [--swap|--cold] [--json]\n\n"
        "Move the guest back to its home host ('home' in the configuration), on purpose. To be said where it "
        "runs,\n"
        "once home protects it; else it is refused, with the reason. Options as for `understudy migrate`.\n";
    return order(argc, argv, help, true);
}
