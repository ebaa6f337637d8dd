/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"
#include "tests/unit/watch_kit.h"

#include "base/clock.h"
#include "base/scope.h"
#include "replicator/control.h"
#include "watch/collect.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* Asking daemons that answer, and those that do not behave. The test is the daemon: it answers between steps.
 */

#define LIMIT_MS 200

static char directory[] = "/tmp/test_collect.XXXXXX";
static struct collect *collect;
static struct {
    unsigned count;
    enum collect_outcome outcome;
    char path[FIND_PATH_MAX], why[200], machine[SAMPLE_NAME_MAX];
} told;

static void on_told(void *ctx, const struct collect_answer *answer)
{
    (void)ctx;
    told.count++;
    told.outcome = answer->outcome;
    snprintf(told.path, sizeof told.path, "%s", answer->path);
    snprintf(told.why, sizeof told.why, "%s", answer->why ? answer->why : "");
    snprintf(told.machine, sizeof told.machine, "%s", answer->sample ? answer->sample->machine : "");
    assert_int_equal(answer->outcome == COLLECT_ANSWERED, answer->status && answer->sample && !answer->why);
}

static int setup(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/test_collect.XXXXXX");
    memset(&told, 0, sizeof told);
    return mkdtemp(directory) ? collect_new(&collect, LIMIT_MS, on_told, NULL) : -1;
}

static int teardown(void **state)
{
    (void)state;
    char command[64];
    collect_free(collect);
    snprintf(command, sizeof command, "rm -r %s", directory);
    return system(command);
}

static const char *path_of(const char *name)
{
    static char path[FIND_PATH_MAX];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    return path;
}

static int listen_at(const char *name, int backlog)
{
    struct sockaddr_un address;
    assert_int_equal(control_address(path_of(name), &address), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

/* Takes the client in, and its request. */
static int accept_request(int listener)
{
    char request[64] = "";
    int fd = accept(listener, NULL, NULL);
    assert_true(fd >= 0);
    assert_true(read(fd, request, sizeof request - 1) > 0);
    assert_string_equal(request, "{\"command\":\"status\"}\n");
    return fd;
}

static void say(int fd, const char *text)
{
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    collect_step(collect, clock_now_ns());
}

static char *status_line(const char *machine)
{
    json_t *status = kit_status(machine, "alpha", "protected");
    char *text = json_dumps(status, JSON_COMPACT);
    json_decref(status);
    return text;
}

static void test_an_answer(void **state)
{
    (void)state;
    int listener cleanup_close = listen_at("a.sock", 8);
    uint64_t now = clock_now_ns();
    collect_ask(collect, path_of("a.sock"), now);
    collect_ask(collect, path_of("a.sock"), now); /* one request at a time */
    int daemon cleanup_close = accept_request(listener);
    struct pollfd another = {.fd = listener, .events = POLLIN},
                  ready = {.fd = collect_fd(collect), .events = POLLIN};
    assert_int_equal(poll(&another, 1, 0), 0);
    assert_int_equal(collect_deadline_ns(collect), now + LIMIT_MS * NS_PER_MS);
    assert_int_equal(poll(&ready, 1, 0), 0);
    /* In parts. */
    char *line cleanup_free = status_line("web");
    say(daemon, "");
    char first = line[0];
    assert_int_equal(write(daemon, &first, 1), 1);
    assert_int_equal(poll(&ready, 1, 0), 1);
    collect_step(collect, now);
    say(daemon, line + 1);
    assert_int_equal(told.count, 0);
    say(daemon, "\n");
    assert_int_equal(told.count, 1);
    assert_int_equal(told.outcome, COLLECT_ANSWERED);
    assert_string_equal(told.machine, "web");
    assert_string_equal(told.path, path_of("a.sock"));
    assert_int_equal(collect_deadline_ns(collect), UINT64_MAX);
}

static void test_nobody(void **state)
{
    (void)state;
    collect_ask(collect, path_of("a.sock"), 0);
    assert_int_equal(told.outcome, COLLECT_ABSENT);
    close(listen_at("b.sock", 8));
    collect_ask(collect, path_of("b.sock"), 0);
    assert_int_equal(told.outcome, COLLECT_ABSENT);
    assert_int_equal(told.count, 2);
    char longer[200];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    collect_ask(collect, longer, 0);
    assert_int_equal(told.outcome, COLLECT_BROKEN);
}

static void test_silence(void **state)
{
    (void)state;
    int listener cleanup_close = listen_at("a.sock", 8);
    uint64_t now = clock_now_ns(), late = now + LIMIT_MS * NS_PER_MS;
    collect_ask(collect, path_of("a.sock"), now);
    int daemon cleanup_close = accept_request(listener);
    collect_step(collect, late - 1);
    assert_int_equal(told.count, 0);
    collect_step(collect, late);
    assert_int_equal(told.count, 1);
    assert_int_equal(told.outcome, COLLECT_SILENT);
    assert_non_null(strstr(told.why, "no answer within 200 ms"));
    /* Told once, asked no more; and a late answer counts. */
    collect_step(collect, late + NS_PER_S);
    collect_ask(collect, path_of("a.sock"), late + NS_PER_S);
    assert_int_equal(told.count, 1);
    struct pollfd another = {.fd = listener, .events = POLLIN};
    assert_int_equal(poll(&another, 1, 0), 0);
    char *line cleanup_free = status_line("web");
    say(daemon, line);
    say(daemon, "\n");
    assert_int_equal(told.count, 2);
    assert_int_equal(told.outcome, COLLECT_ANSWERED);
}

/* One whose backlog is full does not stop anybody. */
static void test_full_backlog(void **state)
{
    (void)state;
    int listener cleanup_close = listen_at("a.sock", 0), waiting cleanup_close = -1;
    struct sockaddr_un address;
    assert_true(listener >= 0);
    assert_int_equal(control_address(path_of("a.sock"), &address), 0);
    waiting = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    assert_int_equal(connect(waiting, (struct sockaddr *)&address, sizeof address), 0);
    collect_ask(collect, path_of("a.sock"), 0);
    assert_int_equal(told.outcome, COLLECT_SILENT);
    assert_non_null(strstr(told.why, "too many"));
}

static void test_nonsense(void **state)
{
    (void)state;
    static const struct {
        const char *said, *why;
    } cases[] = {
        {"hello\n", "nonsense"},
        {"\n", "nonsense"},
        {"{\"vm\":\"a\",\"vm\":\"b\"}\n", "nonsense"},
        {"[1,2,3]\n", "no \"vm\""},
        {"{\"error\":\"not\\u001b[31m now\"}\n", "refused: not?[31m now"},
        {"{\"vm\":\"web\"}\n", "no \"host\""},
        {NULL, "ended before it answered"},
    };
    int listener cleanup_close = listen_at("a.sock", 8);
    for (unsigned i = 0; i < array_length(cases); i++) {
        collect_ask(collect, path_of("a.sock"), clock_now_ns());
        int daemon = accept_request(listener);
        if (cases[i].said)
            say(daemon, cases[i].said);
        close(daemon);
        collect_step(collect, clock_now_ns());
        assert_int_equal(told.count, i + 1);
        assert_int_equal(told.outcome, COLLECT_BROKEN);
        if (!strstr(told.why, cases[i].why))
            fail_msg("'%s' lacks '%s'", told.why, cases[i].why);
    }
}

static void test_endless_line(void **state)
{
    (void)state;
    char block[1024];
    memset(block, ' ', sizeof block);
    int listener cleanup_close = listen_at("a.sock", 8);
    collect_ask(collect, path_of("a.sock"), clock_now_ns());
    int daemon cleanup_close = accept_request(listener);
    for (unsigned i = 0; i < 64; i++) {
        assert_int_equal(told.count, 0);
        assert_int_equal(send(daemon, block, sizeof block, MSG_NOSIGNAL), sizeof block);
        collect_step(collect, clock_now_ns());
    }
    assert_int_equal(told.outcome, COLLECT_BROKEN);
    assert_non_null(strstr(told.why, "more than 65536"));
    assert_int_equal(send(daemon, block, sizeof block, MSG_NOSIGNAL), -1);
}

/* A nested answer is refused by the parser's own bound, not by the end of our stack. */
static void test_deep_answer(void **state)
{
    (void)state;
    char deep[60000];
    memset(deep, '[', sizeof deep - 2);
    strcpy(deep + sizeof deep - 2, "\n");
    int listener cleanup_close = listen_at("a.sock", 8);
    collect_ask(collect, path_of("a.sock"), clock_now_ns());
    int daemon cleanup_close = accept_request(listener);
    say(daemon, deep);
    collect_step(collect, clock_now_ns());
    assert_int_equal(told.outcome, COLLECT_BROKEN);
}

static void test_all_at_once(void **state)
{
    (void)state;
    static struct find_list list;
    int listeners[4];
    for (unsigned i = 0; i < 4; i++)
        listeners[i] = listen_at((const char[]){(char)('a' + i), '.', 's', 'o', 'c', 'k', 0}, 8);
    close(listeners[0]);
    assert_int_equal(find_sockets(directory, &list), 0);
    assert_int_equal(list.count, 4);
    uint64_t began = clock_now_ns();
    collect_all(collect, &list); /* nobody answers: all are waited for at the same time */
    assert_int_equal(told.count, 4);
    assert_true(clock_now_ns() - began >= LIMIT_MS * NS_PER_MS);
    assert_int_equal(collect_deadline_ns(collect), UINT64_MAX);
    for (unsigned i = 1; i < 4; i++)
        close(listeners[i]);
}

static void test_finding(void **state)
{
    (void)state;
    static struct find_list list;
    list.count = 7;
    assert_int_equal(find_sockets(path_of("missing"), &list), 0);
    assert_int_equal(list.count, 0);
    close(listen_at("web.alpha.sock", 1));
    close(listen_at("db.alpha.sock", 1));
    close(listen_at("web.alpha.qmp", 1));
    close(listen_at(".sock", 1));
    close(open(path_of("file.sock"), O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_int_equal(symlink("web.alpha.sock", path_of("link.sock")), 0);
    assert_int_equal(find_sockets(directory, &list), 0);
    assert_int_equal(list.count, 2);
    assert_string_equal(find_name(list.paths[0]), "db.alpha.sock");
    assert_string_equal(find_name(list.paths[1]), "web.alpha.sock");
    assert_false(list.more);
    assert_int_equal(find_sockets(path_of("file.sock"), &list), -ENOTDIR);
    assert_text_has("runtime directory", "file.sock");
    for (unsigned i = 0; i <= FIND_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "n%u.sock", i);
        close(listen_at(name, 1));
    }
    assert_int_equal(find_sockets(directory, &list), 0);
    assert_int_equal(list.count, FIND_MAX);
    assert_true(list.more);
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_an_answer),    TEST(test_nobody),      TEST(test_silence),
        TEST(test_full_backlog), TEST(test_nonsense),    TEST(test_endless_line),
        TEST(test_deep_answer),  TEST(test_all_at_once), TEST(test_finding),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
