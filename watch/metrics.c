/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/command.h"
#include "transport/lane.h"
#include "watch/collect.h"
#include "watch/exposition.h"
#include "watch/http.h"
#include "watch/options.h"
#include "watch/watch.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <systemd/sd-daemon.h>

/*
 * One thread: it sleeps on HTTP, and while a page is made on the daemons, at most --timeout. Clients that
 * come meanwhile wait, and are then given the page that was made for the first, so that how many there are
 * makes no difference to the daemons.
 */

#define LISTEN   "127.0.0.1:9877"
#define FRESH_NS (200 * NS_PER_MS) /* a page that is younger is served again */

struct server {
    struct watch_options options;
    struct find_list list;
    struct exposition exposition;
    char *page; /* made at page_ns; NULL: none yet */
    uint64_t page_ns;
    char why[ERROR_TEXT_MAX]; /* the daemons cannot be looked for; said once */
};

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

static void on_answer(void *ctx, const struct collect_answer *answer)
{
    struct server *server = ctx;
    for (unsigned i = 0; i < server->list.count; i++)
        if (answer->outcome == COLLECT_ANSWERED && !strcmp(server->list.paths[i], answer->path)) {
            server->exposition.daemons[i].up = true;
            server->exposition.daemons[i].sample = *answer->sample;
        }
}

static int gather(struct server *server)
{
    struct collect *collect;
    uint64_t began = clock_now_ns();
    int r = server->options.config_count ? 0 : find_sockets(server->options.run_dir, &server->list);
    if (r == 0)
        /* For each page anew: an answer that comes too late for this one is too old for the next. */
        r = collect_new(&collect, server->options.limit_ms, on_answer, server);
    if (r < 0)
        return r;
    memset(&server->exposition, 0, sizeof server->exposition);
    server->exposition.count = server->list.count;
    for (unsigned i = 0; i < server->list.count; i++)
        snprintf(server->exposition.daemons[i].socket, FIND_PATH_MAX, "%s", find_name(server->list.paths[i]));
    collect_all(collect, &server->list);
    collect_free(collect);
    server->exposition.seconds = (double)(clock_now_ns() - began) / NS_PER_S;
    return 0;
}

static char *on_page(void *ctx)
{
    struct server *server = ctx;
    if (server->page && clock_now_ns() - server->page_ns < FRESH_NS)
        return strdup(server->page);
    if (gather(server) < 0) {
        if (strcmp(server->why, error_text()) != 0)
            log_error("%s", error_text());
        snprintf(server->why, sizeof server->why, "%s", error_text());
        return NULL;
    }
    server->why[0] = 0;
    free(server->page);
    server->page = exposition_write(&server->exposition);
    server->page_ns = clock_now_ns();
    return server->page ? strdup(server->page) : NULL;
}

/* Says where, with the port that was chosen for port 0, and warns where others than this host can read. */
static int say_address(int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    char host[INET6_ADDRSTRLEN];
    if (getsockname(fd, (struct sockaddr *)&address, &length) < 0)
        return error_errno(-errno, "--listen: getsockname");
    const struct sockaddr_in *v4 = (const struct sockaddr_in *)&address;
    const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)&address;
    bool six = address.ss_family == AF_INET6;
    bool loopback = six ? IN6_IS_ADDR_LOOPBACK(&v6->sin6_addr) : ntohl(v4->sin_addr.s_addr) >> 24 == 127;
    inet_ntop(address.ss_family, six ? (const void *)&v6->sin6_addr : &v4->sin_addr, host, sizeof host);
    log_notice("http://%s%s%s:%u/metrics", six ? "[" : "", host, six ? "]" : "",
               ntohs(six ? v6->sin6_port : v4->sin_port));
    if (!loopback)
        log_warning(
            "%s is not loopback: whoever reaches it can read the figures; there is no TLS and no password",
            host);
    return 0;
}

static int serve(struct server *server)
{
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t blocked, before;
    struct http *http;
    int fd;
    int r = lane_listen(server->options.listen, &fd);
    if (r < 0)
        return r;
    r = say_address(fd);
    if (r < 0) {
        close(fd);
        return r;
    }
    r = http_new(&http, fd, on_page, server);
    if (r < 0)
        return r;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigaddset(&blocked, SIGTERM);
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    sd_notify(0, "READY=1");
    while (!ended) {
        int wait_ms = http_wait_ms(http);
        struct timespec timeout = {.tv_sec = wait_ms / 1000, .tv_nsec = wait_ms % 1000 * (long)NS_PER_MS};
        struct pollfd readable = {.fd = http_fd(http), .events = POLLIN};
        ppoll(&readable, 1, wait_ms < 0 ? NULL : &timeout, &before);
        http_step(http);
    }
    http_free(http);
    return 0;
}

int command_metrics(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy metrics [CONFIG...] [--host NAME] [--listen ADDRESS:PORT] [--run-dir DIR]\n"
        "                          [--timeout TIME]\n\n"
        "Serve the figures of all machines of this host to Prometheus, as http://ADDRESS:PORT/metrics, "
        "until\n"
        "SIGTERM. Without CONFIG: of every daemon whose control socket is in DIR.\n\n"
        "  --listen ADDRESS:PORT  numeric (default " LISTEN "; port 0: any, which is said)\n"
        "  --run-dir DIR          where the sockets are (default " FIND_RUN_DIR ")\n"
        "  --timeout TIME         a daemon that has not answered then is left out (default 1s; 10ms to "
        "60s)\n";
    struct server *server cleanup_free = calloc(1, sizeof *server);
    if (!server) {
        error_set(-ENOMEM, "out of memory");
        return command_fail(argv[0], EXIT_FAILED);
    }
    int code = watch_options_parse(argc, argv, "Lrht", &server->options);
    if (code != EXIT_OK)
        return code;
    if (server->options.help) {
        fputs(help, stdout);
        return EXIT_OK;
    }
    struct sockaddr_storage address;
    socklen_t length;
    if (!server->options.listen)
        server->options.listen = LISTEN;
    if (lane_resolve(server->options.listen, &address, &length) < 0 ||
        watch_options_find(&server->options, &server->list) < 0)
        return command_fail(argv[0], EXIT_USAGE);
    int r = serve(server);
    free(server->page);
    return r < 0 ? command_fail(argv[0], EXIT_FAILED) : EXIT_OK;
}
