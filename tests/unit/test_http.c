/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/clock.h"
#include "base/scope.h"
#include "transport/lane.h"
#include "watch/http.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <unistd.h>

/* The HTTP server of `understudy metrics`, and clients that do not behave. */

static struct http *http;
static struct sockaddr_in address;
static unsigned pages;
static bool broken;

static char *on_page(void *ctx)
{
    (void)ctx;
    pages++;
    return broken ? NULL : strdup("figure 1\n");
}

static int setup(void **state)
{
    (void)state;
    int fd;
    socklen_t length = sizeof address;
    pages = 0;
    broken = false;
    assert_int_equal(lane_listen("127.0.0.1:0", &fd), 0);
    getsockname(fd, (struct sockaddr *)&address, &length);
    return http_new(&http, fd, on_page, NULL);
}

static int teardown(void **state)
{
    (void)state;
    http_free(http);
    return 0;
}

static int client(void)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    connect(fd, (struct sockaddr *)&address, sizeof address);
    return fd;
}

/* Let the server work until the client has `wanted` in its answer or its connection has ended, for `ms` at
 * most. Returns the answer; `*ret_ended`: the connection did. */
static const char *answer(int fd, const char *wanted, unsigned ms, bool *ret_ended)
{
    static char text[65536];
    size_t used = 0;
    uint64_t until = clock_now_ns() + ms * NS_PER_MS;
    *ret_ended = false;
    text[0] = 0;
    while (clock_now_ns() < until && !*ret_ended && !(wanted && strstr(text, wanted))) {
        struct pollfd fds[] = {{.fd = http_fd(http), .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        poll(fds, 2, 10);
        http_step(http);
        ssize_t got = recv(fd, text + used, sizeof text - 1 - used, 0);
        if (got > 0)
            text[used += (size_t)got] = 0;
        *ret_ended = got == 0;
    }
    return text;
}

static const char *ask(const char *request)
{
    bool over;
    int fd cleanup_close = client();
    struct pollfd writable = {.fd = fd, .events = POLLOUT};
    poll(&writable, 1, 1000);
    send(fd, request, strlen(request), MSG_NOSIGNAL);
    return answer(fd, NULL, 3000, &over);
}

#define END "Connection: close\r\nHost: a\r\n\r\n"
#define assert_has(text, part)                                                                               \
    do {                                                                                                     \
        const char *text_ = text;                                                                            \
        if (!strstr(text_, part))                                                                            \
            fail_msg("'%s' lacks '%s'", text_, part);                                                        \
    } while (0)

static void test_what_there_is(void **state)
{
    (void)state;
    const char *text = ask("GET /metrics HTTP/1.1\r\n" END);
    assert_has(text, "HTTP/1.1 200 OK\r\n");
    assert_has(text, "Content-Type: text/plain; version=0.0.4; charset=utf-8\r\n");
    assert_has(text, "\r\n\r\nfigure 1\n");
    assert_has(ask("GET /metrics?match=x HTTP/1.1\r\n" END), " 200 OK");
    assert_int_equal(pages, 2);
    broken = true;
    assert_has(ask("GET /metrics HTTP/1.1\r\n" END), " 503 ");
}

static void test_what_there_is_not(void **state)
{
    (void)state;
    static const char *const paths[] = {"/",        "/metrics/", "/metrics/../metrics", "//metrics",
                                        "/METRICS", "/%2e",      "/api/v1/query"};
    static const char *const methods[] = {"HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW"};
    char request[200];
    for (unsigned i = 0; i < array_length(paths); i++) {
        snprintf(request, sizeof request, "GET %s HTTP/1.1\r\n" END, paths[i]);
        assert_has(ask(request), " 404 ");
    }
    for (unsigned i = 0; i < array_length(methods); i++) {
        snprintf(request, sizeof request, "%s /metrics HTTP/1.1\r\n" END, methods[i]);
        const char *text = ask(request);
        assert_has(text, " 405 ");
        assert_has(text, "Allow: GET\r\n");
    }
    /* A body is not waited for. */
    assert_has(ask("POST /metrics HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n"), " 405 ");
    assert_int_equal(pages, 0);
}

static void test_nonsense(void **state)
{
    (void)state;
    char longer[40000];
    memset(longer, 'x', sizeof longer - 1);
    memcpy(longer, "GET /metrics HTTP/1.1\r\nA: ", 26);
    longer[sizeof longer - 1] = 0;
    assert_has(ask(longer), " 431 ");
    ask("\x16\x03\x01 hello\r\n\r\n");
    assert_int_equal(pages, 0);
    assert_has(ask("GET /metrics HTTP/1.1\r\n" END), "figure 1");
}

/* Two requests on one connection, which scrapers keep. */
static void test_keep_alive(void **state)
{
    (void)state;
    static const char request[] = "GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n";
    int fd cleanup_close = client();
    for (unsigned i = 0; i < 2; i++) {
        bool over;
        struct pollfd writable = {.fd = fd, .events = POLLOUT};
        poll(&writable, 1, 1000);
        assert_int_equal(send(fd, request, sizeof request - 1, MSG_NOSIGNAL), sizeof request - 1);
        assert_has(answer(fd, "figure 1", 3000, &over), "figure 1");
        assert_false(over);
    }
    assert_int_equal(pages, 2);
}

/* Those beyond the bound wait in the backlog, and come in when others leave. */
static void test_too_many(void **state)
{
    (void)state;
    int fds[HTTP_CONNECTIONS_MAX + 1];
    bool over;
    for (unsigned i = 0; i < array_length(fds); i++) {
        fds[i] = client();
        answer(fds[i], "x", 30, &over);
        assert_false(over);
    }
    int last = fds[HTTP_CONNECTIONS_MAX];
    static const char request[] = "GET /metrics HTTP/1.1\r\n" END;
    assert_int_equal(send(last, request, sizeof request - 1, MSG_NOSIGNAL), sizeof request - 1);
    assert_string_equal(answer(last, "figure", 300, &over), "");
    assert_false(over);
    close(fds[0]);
    assert_has(answer(last, "figure", 3000, &over), "figure 1");
    for (unsigned i = 1; i < array_length(fds); i++)
        close(fds[i]);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_what_there_is), TEST(test_what_there_is_not), TEST(test_nonsense),
        TEST(test_keep_alive),    TEST(test_too_many),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
