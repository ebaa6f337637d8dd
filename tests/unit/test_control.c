/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/scope.h"
#include "replicator/control.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

/* The control socket between a daemon and commands that do not behave: either of them hangs, is interrupted,
 * or says more than it should. Streams themselves are in test_events.c. */

#define WAIT_MS 300

static char directory[] = "/tmp/test_control.XXXXXX", path[64];

static int connect_to(void)
{
    struct sockaddr_un address;
    assert_int_equal(control_address(path, &address), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

/* A daemon that hangs: it listens, and takes nobody in. */
static int listen_only(void)
{
    struct sockaddr_un address;
    unlink(path);
    assert_int_equal(control_address(path, &address), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, 1), 0);
    return fd;
}

static void on_alarm(int number)
{
    (void)number;
}

static void test_silence_is_bounded(void **state)
{
    (void)state;
    json_t *reply = NULL;
    int listener cleanup_close = listen_only();
    assert_true(listener >= 0);
    struct sigaction action = {.sa_handler = on_alarm};
    struct itimerval once = {.it_value.tv_usec = WAIT_MS * 1000 / 3};
    sigaction(SIGALRM, &action, NULL); /* without SA_RESTART, as a command's handlers are */
    setitimer(ITIMER_REAL, &once, NULL);
    assert_int_equal(control_call(path, json_pack("{s:s}", "command", "status"), WAIT_MS, &reply),
                     -ETIMEDOUT);
    assert_text_has(path, "no answer within 300 ms");
    assert_null(reply);
}

static void test_full_backlog(void **state)
{
    (void)state;
    json_t *reply = NULL;
    int waiting[16], count = 0;
    int listener cleanup_close = listen_only();
    assert_true(listener >= 0);
    while (count < 16 && (waiting[count] = connect_to()) >= 0)
        count++;
    assert_true(count < 16);
    assert_int_equal(control_call(path, json_pack("{s:s}", "command", "status"), WAIT_MS, &reply),
                     -ETIMEDOUT);
    assert_text_has(path, "heard nobody within 300 ms");
    while (count > 0)
        close(waiting[--count]);
}

static void test_nobody_there(void **state)
{
    (void)state;
    json_t *reply = NULL;
    unlink(path);
    assert_int_equal(control_call(path, json_pack("{s:s}", "command", "status"), WAIT_MS, &reply), -ENOENT);
    close(listen_only());
    assert_int_equal(control_call(path, json_pack("{s:s}", "command", "status"), WAIT_MS, &reply),
                     -ECONNREFUSED);
    assert_text_has("no daemon answers at", path);
}

/* --- the daemon's half --- */

static struct control *control;
static unsigned lines;

static json_t *next(void *ctx, uint64_t *cursor)
{
    (void)ctx;
    return *cursor < lines ? json_pack("{s:I}", "line", (json_int_t)(*cursor)++) : NULL;
}

static void on_request(void *ctx, uint64_t client, const char *command, json_t *request)
{
    (void)ctx;
    (void)request;
    if (!strcmp(command, "follow"))
        control_stream(control, client, next, NULL, 0, true);
    else
        control_reply(control, client, json_pack("{s:s}", "answered", command));
}

static const char *exchange(struct loop *loop, int fd, const char *requests)
{
    static char text[1024];
    assert_int_equal(send(fd, requests, strlen(requests), 0), strlen(requests));
    for (unsigned i = 0; i < 8; i++)
        assert_int_equal(loop_once(loop, clock_now_ns() + NS_PER_MS), 0);
    ssize_t got = recv(fd, text, sizeof text - 1, 0);
    text[got > 0 ? got : 0] = 0;
    return text;
}

#define REQUEST(word) "{\"command\":\"" word "\"}\n"

static void test_requests_in_one_packet(void **state)
{
    (void)state;
    struct loop *loop;
    assert_int_equal(loop_new(&loop), 0);
    assert_int_equal(control_new(&control, loop, path, on_request, NULL), 0);
    int fd = connect_to();
    assert_string_equal(exchange(loop, fd, REQUEST("a") REQUEST("b")),
                        "{\"answered\":\"a\"}\n{\"answered\":\"b\"}\n");
    assert_string_equal(exchange(loop, fd, "{\"command\":7}\n"),
                        "{\"error\":\"control request: no \\\"command\\\"\"}\n");
    /* What comes behind the request for a stream is not answered between its lines. */
    lines = 2;
    assert_string_equal(exchange(loop, fd, REQUEST("follow") REQUEST("c")), "{\"line\":0}\n{\"line\":1}\n");
    lines = 3;
    control_wake(control);
    char text[32] = "";
    assert_true(recv(fd, text, sizeof text - 1, 0) > 0);
    assert_string_equal(text, "{\"line\":2}\n");
    close(fd);
    control_free(control);
    loop_free(loop);
}

static int set_up(void **state)
{
    (void)state;
    signal(SIGPIPE, SIG_IGN);
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/sock", directory);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    unlink(path);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_silence_is_bounded),
        cmocka_unit_test(test_full_backlog),
        cmocka_unit_test(test_nobody_there),
        cmocka_unit_test(test_requests_in_one_packet),
    };
    return cmocka_run_group_tests_name("control", tests, set_up, tear_down);
}
