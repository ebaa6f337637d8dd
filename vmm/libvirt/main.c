/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <getopt.h>
#include <libvirt/virterror.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>

#define ENGINE_FD STDIN_FILENO

/* Errors are reported where they are known to matter, not by libvirt. */
static void say_nothing(void *ctx, virErrorPtr error)
{
    (void)ctx;
    (void)error;
}

static int greet(struct bridge *bridge)
{
    json_t *version = NULL;
    int r = monitor_call(bridge, "{\"execute\":\"query-version\"}", -1, &version);
    if (r == 0)
        engine_tell(bridge, json_pack("{s:{s:o, s:[]}, s:i}", "QMP", "version", version, "capabilities",
                                      "pid", (int)bridge->pid));
    return r;
}

static int begin(struct bridge *bridge)
{
    if (virEventRegisterDefaultImpl() < 0)
        return error_set(-ENOMEM, "libvirt: no event loop");
    int r = connection_open(bridge);
    if (r == 0)
        r = bridge->start ? domain_start(bridge) : domain_find_running(bridge);
    if (r == 0)
        r = connection_watch(bridge);
    if (r == 0)
        r = domain_find_process(bridge);
    if (r == 0)
        r = monitor_watch_process(bridge);
    if (r == 0 && !bridge->start)
        r = monitor_catch_up(bridge);
    if (r == 0)
        r = greet(bridge);
    if (r == 0)
        r = engine_open(bridge);
    if (r == 0 && bridge->start)
        domain_mark(bridge, "standby");
    return r;
}

static void serve(struct bridge *bridge)
{
    while (!bridge->ended && !(bridge->hung_up && !engine_has_line(bridge))) {
        char *line cleanup_free = bridge->lost ? NULL : engine_line(bridge);
        if (bridge->lost)
            connection_again(bridge);
        else if (line)
            monitor_serve(bridge, line);
        else
            virEventRunDefaultImpl();
    }
}

static void end(struct bridge *bridge)
{
    bool there = bridge->domain && bridge->id && !bridge->ended && !bridge->lost;
    fdsets_end(bridge, there && !bridge->stopped);
    if (there) {
        if (bridge->start && !bridge->let_run)
            virDomainDestroy(bridge->domain); /* it holds no guest */
        else
            domain_unmark(bridge);
    }
    connection_close(bridge);
}

static int usage(void)
{
    fputs("Usage: understudy-libvirt --uri URI --domain NAME [--start] [--machine NAME --peer NAME]\n\n"
          "The monitor of a libvirt domain for the engine at standard input; started by understudy.\n",
          stderr);
    return 1;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"uri", required_argument, NULL, 'u'},  {"domain", required_argument, NULL, 'd'},
        {"start", no_argument, NULL, 's'},      {"machine", required_argument, NULL, 'm'},
        {"peer", required_argument, NULL, 'p'}, {0}};
    struct bridge bridge = {.engine = ENGINE_FD, .passed = -1, .process = -1, .peer = ""};
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        switch (option) {
        case 'u':
            bridge.uri = optarg;
            break;
        case 'd':
            bridge.name = optarg;
            break;
        case 's':
            bridge.start = true;
            break;
        case 'm':
            bridge.machine = optarg;
            break;
        case 'p':
            bridge.peer = optarg;
            break;
        default:
            return usage();
        }
    }
    if (!bridge.uri || !bridge.name || optind != argc)
        return usage();
    signal(SIGPIPE, SIG_IGN);
    prctl(PR_SET_NAME, "us-libvirt");
    virSetErrorFunc(NULL, say_nothing);
    int r = begin(&bridge);
    if (r < 0)
        engine_tell(&bridge, json_pack("{s:{s:i, s:s}}", "failure", "errno", -r, "text", error_text()));
    else
        serve(&bridge);
    end(&bridge);
    return r < 0;
}
