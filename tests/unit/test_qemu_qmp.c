/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/scope.h"
#include "vmm/qemu/qmp.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>

/*
 * A QEMU that plays a script: it greets, and then answers each command with the next step, word for word.
 */
#define GREETING                                                                                             \
    "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, \"major\": 7}, \"package\": "          \
    "\"Debian\"}, \"capabilities\": [\"oob\"]}}\r\n"
#define NEGOTIATED "{\"return\": {}, \"id\": 1}\r\n"

static struct {
    char directory[64], path[96];
    int listener;
    pthread_t thread;
    const char *const *script; /* greeting, then one step for each command; NULL: hang up */
    atomic_bool done;
    char heard[4096]; /* the latest command */
    char all[8192];   /* all of them */
    int got_fd;
    char events[512];
} t;

static void *play(void *argument)
{
    (void)argument;
    int fd = accept(t.listener, NULL, NULL);
    for (const char *const *step = t.script; *step; step++) {
        if (step != t.script) { /* a command is one line and arrives at once */
            char control[CMSG_SPACE(sizeof(int))];
            struct iovec vector = {t.heard, sizeof t.heard - 1};
            struct msghdr message = {.msg_iov = &vector,
                                     .msg_iovlen = 1,
                                     .msg_control = control,
                                     .msg_controllen = sizeof control};
            ssize_t got = recvmsg(fd, &message, 0);
            if (got <= 0)
                break;
            t.heard[got] = '\0';
            size_t used = strlen(t.all);
            snprintf(t.all + used, sizeof t.all - used, "%s", t.heard);
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            if (header)
                memcpy(&t.got_fd, CMSG_DATA(header), sizeof t.got_fd);
        }
        const char *text = *step;
        for (size_t left = strlen(text); left > 0;) {
            ssize_t put = send(fd, text, left, MSG_NOSIGNAL);
            if (put < 0)
                break;
            text += put;
            left -= (size_t)put;
        }
    }
    /* A script that ends with "" goes on listening, in silence. */
    while (!t.done) {
        bool silent = false;
        for (const char *const *step = t.script; *step; step++)
            silent |= **step == '\0';
        if (!silent)
            break;
        usleep(1000);
    }
    close(fd);
    return NULL;
}

static void start(const char *const *script)
{
    t.script = script;
    t.done = false;
    t.got_fd = -1;
    t.events[0] = t.all[0] = '\0';
    strcpy(t.directory, "/tmp/understudy-qmp-XXXXXX");
    assert_non_null(mkdtemp(t.directory));
    snprintf(t.path, sizeof t.path, "%s/qmp", t.directory);
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    strcpy(address.sun_path, t.path);
    t.listener = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(t.listener, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(t.listener, 1), 0);
    assert_int_equal(pthread_create(&t.thread, NULL, play, NULL), 0);
}
#define START(...) start((const char *const[]){__VA_ARGS__, NULL})

static void end(struct qmp *qmp)
{
    t.done = true;
    qmp_close(qmp);
    pthread_join(t.thread, NULL);
    close(t.listener);
    unlink(t.path);
    rmdir(t.directory);
}

static void on_event(void *ctx, const char *event, const json_t *data)
{
    (void)data;
    assert_ptr_equal(ctx, &t);
    strcat(t.events, event);
    strcat(t.events, " ");
}

static void test_greeting(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START(GREETING, NEGOTIATED);
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    assert_string_equal(qmp_version(qmp), "7.2.22");
    assert_string_equal(qmp_package(qmp), "Debian");
    assert_int_equal(qmp_pid(qmp), getpid());
    assert_string_equal(t.heard, "{\"execute\":\"qmp_capabilities\",\"id\":1}\n"); /* no "oob": qmp.h */
    end(qmp);
}

/* What a helper that serves the other end of a pair says; see vmm/libvirt. */
static int open_pair(struct qmp **ret_qmp, const char *greeting)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    assert_int_equal(send(pair[1], greeting, strlen(greeting), 0), (ssize_t)strlen(greeting));
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) { /* ends when its other end does */
        char sink[64];
        close(pair[0]);
        while (read(pair[1], sink, sizeof sink) > 0)
            ;
        _exit(0);
    }
    close(pair[1]);
    int r = qmp_open_stream(ret_qmp, pair[0], child, "domain web", 300);
    if (r == 0) {
        assert_int_equal(qmp_pid(*ret_qmp), 77);
        qmp_close(*ret_qmp);
    }
    assert_int_equal(kill(child, 0), -1); /* waited for */
    return r;
}

static void test_stream_of_a_helper(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    assert_int_equal(open_pair(&qmp, "{\"QMP\": {\"version\": {\"qemu\": {\"micro\": 22, \"minor\": 2, "
                                     "\"major\": 7}}, \"capabilities\": []}, \"pid\": 77}\n"
                                     "{\"return\": {}, \"id\": 1}\n"),
                     0);
    qmp = NULL;
    assert_int_equal(
        open_pair(&qmp, "{\"failure\": {\"errno\": 3, \"text\": \"domain web does not run\"}}\n"), -ESRCH);
    assert_text_has("domain web does not run");
    assert_null(qmp);
    assert_int_equal(open_pair(&qmp, "{\"failure\": {\"errno\": -3, \"text\": \"x\"}}\n"), -EPROTO);
    assert_int_equal(open_pair(&qmp, ""), -EBUSY);
}

static void test_silence_is_another_client(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START("");
    assert_int_equal(qmp_open(&qmp, t.path, 50), -EBUSY);
    assert_text_has("another client holds the monitor", t.path);
    assert_null(qmp);
    end(NULL);
}

static void test_not_qmp(void **state)
{
    (void)state;
    static const char *const greetings[] = {"SSH-2.0-OpenSSH\r\n", "[]\r\n", "{\"QMP\": 3}\r\n",
                                            "{\"return\": {}}\r\n"};
    for (unsigned i = 0; i < array_length(greetings); i++) {
        struct qmp *qmp = NULL;
        START(greetings[i], "");
        assert_int_equal(qmp_open(&qmp, t.path, 5000), -EPROTO);
        assert_null(qmp);
        end(NULL);
    }
}

static void test_calls(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START(
        GREETING, NEGOTIATED,
        "{\"timestamp\": {}, \"event\": \"STOP\"}\r\n{\"return\": {\"value\": 3}, \"id\": 2}\r\n{\"event\": "
        "\"RESUME\", \"data\": {}}\r\n",
        "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"no such thing\"}}\r\n",
        "{\"id\": 4, \"error\": {\"class\": \"CommandNotFound\", \"desc\": \"unknown\"}}\r\n",
        "{\"id\": 5, \"return\": \"text\\r\\n\"}\r\n");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    qmp_on_event(qmp, on_event, &t);
    json_t *result = NULL;
    int null cleanup_close = open("/dev/null", O_RDONLY);
    assert_int_equal(qmp_call_fd(qmp, 5000, &result, null, "getfd", "{s:s}", "fdname", "quo\"te"), 0);
    assert_int_equal(json_integer_value(json_object_get(result, "value")), 3);
    json_decref(result);
    assert_string_equal(t.heard,
                        "{\"execute\":\"getfd\",\"arguments\":{\"fdname\":\"quo\\\"te\"},\"id\":2}\n");
    assert_true(t.got_fd >= 0);
    close(t.got_fd);
    assert_string_equal(t.events, "STOP ");

    result = NULL;
    assert_int_equal(qmp_call(qmp, 5000, &result, "qom-get", NULL), -EREMOTEIO);
    assert_text_has("qom-get", "no such thing");
    assert_null(result);
    assert_string_equal(t.events, "STOP RESUME ");
    assert_int_equal(qmp_call(qmp, 5000, NULL, "x", NULL), -ENOSYS);
    char *text cleanup_free = NULL;
    assert_int_equal(qmp_human(qmp, 5000, "info ramblock", &text), 0);
    assert_string_equal(text, "text\r\n");
    assert_int_equal(qmp_call(qmp, 5000, NULL, "y", NULL), -ECONNRESET);
    assert_int_equal(qmp_call(qmp, 5000, NULL, "y", NULL), -ECONNRESET);
    assert_int_equal(qmp_drain(qmp), -ECONNRESET);
    end(qmp);
}

static const char *heard(void)
{
    for (unsigned i = 0; i < 5000 && !t.heard[0]; i++)
        usleep(1000);
    return t.heard;
}

/* A primed command costs its last byte; another one calls it off, and the refusal is nobody's answer. */
static void test_primed(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START(GREETING, NEGOTIATED, " ", "{\"id\": 2, \"return\": {}}\r\n", " ",
          "{\"id\": 3, \"error\": {\"class\": \"GenericError\", \"desc\": \"QMP input member '' is "
          "unexpected\"}}\r\n{\"id\": 4, \"return\": 7}\r\n",
          "");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    t.heard[0] = '\0';
    qmp_prime(qmp, "stop", NULL);
    assert_string_equal(heard(), "{\"execute\":\"stop\",\"id\":2");
    qmp_prime(qmp, "cont", NULL); /* one is enough */
    assert_int_equal(qmp_call(qmp, 5000, NULL, "stop", NULL), 0);
    assert_string_equal(t.heard, "}\n");

    t.heard[0] = '\0';
    qmp_prime(qmp, "x", "{s:i}", "a", 1);
    assert_string_equal(heard(), "{\"execute\":\"x\",\"arguments\":{\"a\":1},\"id\":3");
    json_t *result = NULL;
    assert_int_equal(qmp_call(qmp, 5000, &result, "x", "{s:i}", "a", 2), 0);
    assert_int_equal(json_integer_value(result), 7);
    json_decref(result);
    end(qmp);
    assert_non_null(strstr(t.all, ",\"\":0}\n{\"execute\":\"x\",\"arguments\":{\"a\":2},\"id\":4}\n"));
}

static void test_late_answer_is_dropped(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START(GREETING, NEGOTIATED, " ",
          "{\"id\": 2, \"return\": \"late\"}\r\n{\"id\": 3, \"return\": \"right\"}\r\n", "");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    assert_int_equal(qmp_call(qmp, 50, NULL, "slow", NULL), -ETIMEDOUT);
    assert_text_has("slow", "50 ms");
    json_t *result = NULL;
    assert_int_equal(qmp_call(qmp, 5000, &result, "fast", NULL), 0);
    assert_string_equal(json_string_value(result), "right");
    json_decref(result);
    end(qmp);
}

/* QEMU answers a command of a client that was killed to the one that connects next. */
static void test_answers_to_the_client_before(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START("{\"id\": 16, \"return\": {}}\r\n" GREETING,
          "{\"id\": 17, \"return\": \"old\"}\r\n{\"id\": 3, \"error\": {}}\r\n" NEGOTIATED NEGOTIATED,
          "{\"id\": 2, \"return\": \"new\"}\r\n", "");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    json_t *result = NULL;
    assert_int_equal(qmp_call(qmp, 5000, &result, "x", NULL), 0);
    assert_string_equal(json_string_value(result), "new");
    json_decref(result);
    end(qmp);
}

static void test_pipelined(void **state)
{
    (void)state;
    struct qmp *qmp = NULL;
    START(GREETING, NEGOTIATED, "{\"id\": 2, \"return\": 2}\r\n{\"id\": 3, ", "\"return\": 3}\r\n", "");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    uint64_t first, second;
    json_t *result = NULL;
    assert_int_equal(qmp_send(qmp, &first, -1, "one", NULL), 0);
    assert_int_equal(qmp_wait(qmp, 5000, first, NULL), 0);
    assert_int_equal(qmp_send(qmp, &second, -1, "two", NULL), 0);
    assert_int_equal(qmp_wait(qmp, 5000, second, &result), 0);
    assert_int_equal(json_integer_value(result), 3);
    json_decref(result);
    end(qmp);
}

static void test_nonsense_ends_it(void **state)
{
    (void)state;
    static const char *const answers[] = {"nonsense\r\n", "{\"id\": 2}\r\n",
                                          "{\"id\": 9, \"return\": {}}\r\n", "\xff\xfe\r\n"};
    for (unsigned i = 0; i < array_length(answers); i++) {
        struct qmp *qmp = NULL;
        START(GREETING, NEGOTIATED, answers[i], "");
        assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
        assert_int_equal(qmp_call(qmp, 5000, NULL, "stop", NULL), -EPROTO);
        end(qmp);
    }
}

static void test_endless_line(void **state)
{
    (void)state;
    size_t bytes = 9u << 20;
    char *line cleanup_free = malloc(bytes + 1);
    assert_non_null(line);
    memset(line, ' ', bytes);
    line[bytes] = '\0';
    struct qmp *qmp = NULL;
    START(GREETING, NEGOTIATED, line, "");
    assert_int_equal(qmp_open(&qmp, t.path, 5000), 0);
    assert_int_equal(qmp_call(qmp, 20000, NULL, "stop", NULL), -EMSGSIZE);
    end(qmp);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_greeting),
        cmocka_unit_test(test_stream_of_a_helper),
        cmocka_unit_test(test_silence_is_another_client),
        cmocka_unit_test(test_not_qmp),
        cmocka_unit_test(test_calls),
        cmocka_unit_test(test_primed),
        cmocka_unit_test(test_late_answer_is_dropped),
        cmocka_unit_test(test_answers_to_the_client_before),
        cmocka_unit_test(test_pipelined),
        cmocka_unit_test(test_nonsense_ends_it),
        cmocka_unit_test(test_endless_line),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
