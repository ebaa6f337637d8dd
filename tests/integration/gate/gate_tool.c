/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate.h"

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>

/*
 * gate-tool KIND closed|open BYTES TAP[,guest=TAP][,from=PATH,to=PATH]...
 *
 * Opens a gate, says "open KIND" or "refused ERRNO TEXT", then obeys lines: mark N, release N, pass, shut,
 * stats, close, die. Each is answered by "ok", "error ERRNO TEXT" or a line of JSON. Events are lines "event
 * NAME".
 *
 * gate-tool taps PID: the taps of a process, a line each.
 */

static pthread_mutex_t output = PTHREAD_MUTEX_INITIALIZER;

static void __attribute__((format(printf, 1, 2))) say(const char *format, ...)
{
    scope_lock(&output);
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    putchar('\n');
    fflush(stdout);
}

static void on_waiting(void *ctx)
{
    (void)ctx;
    say("event waiting");
}

static void on_full(void *ctx)
{
    (void)ctx;
    say("event full");
}

static void on_failed(void *ctx, const char *text)
{
    (void)ctx;
    say("event failed %s", text);
}

static int parse_port(char *text, struct gate_port *port)
{
    char *rest;
    char *word = strtok_r(text, ",", &rest);
    snprintf(port->tap, sizeof port->tap, "%s", word);
    while ((word = strtok_r(NULL, ",", &rest))) {
        if (!strncmp(word, "guest=", 6))
            snprintf(port->guest_tap, sizeof port->guest_tap, "%s", word + 6);
        else if (!strncmp(word, "from=", 5))
            snprintf(port->guest_socket, sizeof port->guest_socket, "%s", word + 5);
        else if (!strncmp(word, "to=", 3))
            snprintf(port->own_socket, sizeof port->own_socket, "%s", word + 3);
        else
            return -1;
    }
    return 0;
}

static void show_stats(struct gate *gate)
{
    struct gate_stats stats;
    gate_get_stats(gate, &stats);
    say("{\"holding\": %s, \"held_frames\": %" PRIu64 ", \"held_bytes\": %" PRIu64
        ", \"held_bytes_peak\": %" PRIu64 ", \"frames_out\": %" PRIu64 ", \"bytes_out\": %" PRIu64
        ", \"frames_in\": %" PRIu64 ", \"dropped\": %" PRIu64 ", \"delays\": %" PRIu64
        ", \"delay_p50_us\": %" PRIu64 "}",
        stats.holding ? "true" : "false", stats.held_frames, stats.held_bytes, stats.held_bytes_peak,
        stats.frames_out, stats.bytes_out, stats.frames_in, stats.dropped, stats.delay_us.count,
        histogram_percentile(&stats.delay_us, 50));
}

static void obey(struct gate *gate, const char *line)
{
    uint64_t epoch;
    int rc;
    if (sscanf(line, "mark %" SCNu64, &epoch) == 1) {
        rc = gate_mark_begin(gate, epoch);
        rc = rc ? rc : gate_mark_end(gate);
    } else if (sscanf(line, "release %" SCNu64, &epoch) == 1) {
        rc = gate_release(gate, epoch);
    } else if (!strcmp(line, "pass")) {
        rc = gate_pass(gate);
    } else if (!strcmp(line, "shut")) {
        rc = gate_shut(gate);
    } else if (!strcmp(line, "stats")) {
        show_stats(gate);
        return;
    } else {
        rc = error_set(-EINVAL, "'%s' is no order", line);
    }
    if (rc)
        say("error %d %s", -rc, error_text());
    else
        say("ok");
}

static int show_taps(int pid)
{
    struct gate_port ports[GATE_PORTS_MAX];
    int count = gate_find_taps(pid, ports, GATE_PORTS_MAX);
    for (int i = 0; i < count; i++)
        say("%s", ports[i].tap);
    return count < 0;
}

int main(int argc, char **argv)
{
    if (argc == 3 && !strcmp(argv[1], "taps"))
        return show_taps(atoi(argv[2]));
    if (argc < 4 || argc - 4 > GATE_PORTS_MAX)
        return 2;
    struct gate_config config = {.failure = strcmp(argv[2], "open") ? GATE_FAIL_CLOSED : GATE_FAIL_OPEN,
                                 .held_bytes_max = strtoull(argv[3], NULL, 10)};
    while (strcmp(gate_kind_name(config.kind), argv[1]) != 0)
        if (++config.kind > GATE_NONE)
            return 2;
    for (int i = 4; i < argc; i++)
        if (parse_port(argv[i], &config.ports[config.port_count++]))
            return 2;
    struct gate *gate;
    int rc = gate_open(&gate, &config,
                       &(struct gate_events){.waiting = on_waiting, .full = on_full, .failed = on_failed});
    if (rc) {
        say("refused %d %s", -rc, error_text());
        return 1;
    }
    say("open %s", gate_kind_name(gate_kind_of(gate)));
    char line[256];
    while (fgets(line, sizeof line, stdin)) {
        line[strcspn(line, "\n")] = 0;
        if (!strcmp(line, "die"))
            raise(SIGKILL);
        if (!strcmp(line, "close"))
            break;
        obey(gate, line);
    }
    gate_close(gate);
    say("closed");
    return 0;
}
