/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/events_tell.h"
#include "replicator/loop.h"
#include "tests/unit/events_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

static char base[] = "/tmp/test_events.XXXXXX";

/* --- news: each kind from its transition, and nothing from a step without one --- */

struct want {
    const char *title;
    struct role_status before, after;
    struct role_event event;
    struct role_action action; /* type 0 (ACTION_SEND): of no interest */
    bool gated, passes;
    enum news_kind kinds[4];
    unsigned count;
    bool passes_after;
};

static void check_want(const struct want *want)
{
    struct role_actions actions = {.items = {want->action}, .count = 1};
    struct news_step step = {&want->before, &want->after, &want->event, &actions, want->gated};
    enum news_kind kinds[NEWS_STEP_MAX];
    bool passes = want->passes;
    unsigned count = news_derive(&step, &passes, kinds);
    bool same = count == want->count && passes == want->passes_after;
    for (unsigned i = 0; same && i < count; i++)
        same = kinds[i] == want->kinds[i];
    if (same)
        return;
    print_error("%s: output passes %d:", want->title, passes);
    for (unsigned i = 0; i < count; i++)
        print_error(" %s", news_name(kinds[i]));
    print_error("\n");
    fail();
}

#define STATE(value, number, is_protected)                                                                   \
    {                                                                                                        \
        .state = (value), .session = (number), .protected_now = (is_protected)                               \
    }

static void test_news(void **state)
{
    (void)state;
    static const struct want wants[] = {
        {"a tick", STATE(PRIMARY_PROTECTED, 3, true), STATE(PRIMARY_PROTECTED, 3, true), {EVENT_TICK}},
        {"a full copy begins",
         STATE(PRIMARY_DESCRIBING, 3, false),
         STATE(PRIMARY_COPYING, 3, false),
         {EVENT_ACCEPT},
         {.type = ACTION_BEGIN, .full = true},
         .kinds = {NEWS_SESSION_ESTABLISHED, NEWS_COPYING},
         .count = 2},
        {"only changes are copied",
         STATE(PRIMARY_DESCRIBING, 3, false),
         STATE(PRIMARY_COPYING, 3, false),
         {EVENT_LANES_UP},
         {.type = ACTION_BEGIN},
         .kinds = {NEWS_SESSION_ESTABLISHED, NEWS_RESYNCHRONISING},
         .count = 2},
        {"the first commit",
         STATE(PRIMARY_COPYING, 3, false),
         STATE(PRIMARY_PROTECTED, 3, true),
         {EVENT_ACK},
         .kinds = {NEWS_PROTECTED},
         .count = 1},
        {"the link breaks",
         STATE(PRIMARY_PROTECTED, 3, true),
         STATE(PRIMARY_DISCONNECTED, 0, false),
         {EVENT_LINK_DOWN},
         .kinds = {NEWS_SESSION_LOST, NEWS_DEGRADED},
         .count = 2},
        {"it stalls",
         STATE(PRIMARY_PROTECTED, 3, true),
         STATE(PRIMARY_STALLED, 0, false),
         {EVENT_LINK_DOWN},
         {.type = ACTION_HOLD},
         .kinds = {NEWS_SESSION_LOST, NEWS_DEGRADED, NEWS_GUEST_HELD},
         .count = 3},
        {"output passes",
         STATE(PRIMARY_DISCONNECTED, 0, false),
         STATE(PRIMARY_DISCONNECTED, 0, false),
         {EVENT_TICK},
         {.type = ACTION_PASS},
         .gated = true,
         .kinds = {NEWS_OUTPUT_PASSED},
         .count = 1,
         .passes_after = true},
        {"no gate, no output to speak of",
         STATE(PRIMARY_DISCONNECTED, 0, false),
         STATE(PRIMARY_DISCONNECTED, 0, false),
         {EVENT_TICK},
         {.type = ACTION_PASS},
         .passes_after = true},
        {"a live round holds nothing",
         STATE(PRIMARY_COPYING, 3, false),
         STATE(PRIMARY_COPYING, 3, false),
         {EVENT_ROUND},
         .gated = true,
         .passes = true,
         .passes_after = true},
        {"a capture that failed holds nothing",
         STATE(PRIMARY_COPYING, 3, false),
         STATE(PRIMARY_COPYING, 3, false),
         {EVENT_ROUND, .captured = true, .code = -ETIME},
         .gated = true,
         .passes = true,
         .passes_after = true},
        {"a capture holds",
         STATE(PRIMARY_COPYING, 3, false),
         STATE(PRIMARY_COPYING, 3, false),
         {EVENT_ROUND, .captured = true},
         .gated = true,
         .passes = true,
         .kinds = {NEWS_OUTPUT_HELD},
         .count = 1},
        {"the arbiter is asked",
         STATE(PRIMARY_DISCONNECTED, 0, false),
         STATE(PRIMARY_ARBITRATING, 0, false),
         {EVENT_TICK},
         {.type = ACTION_ARBITRATE},
         .kinds = {NEWS_ARBITRATING},
         .count = 1},
        {"won",
         STATE(PRIMARY_ARBITRATING, 0, false),
         STATE(PRIMARY_DISCONNECTED, 0, false),
         {EVENT_ARBITER, .arbiter = ARBITER_WON},
         {.type = ACTION_RELEASE},
         .kinds = {NEWS_GUEST_RELEASED, NEWS_ARBITRATION_WON},
         .count = 2},
        {"lost",
         STATE(PRIMARY_ARBITRATING, 0, false),
         STATE(PRIMARY_YIELDED, 0, false),
         {EVENT_ARBITER, .arbiter = ARBITER_LOST},
         {.type = ACTION_YIELD},
         .kinds = {NEWS_ARBITRATION_LOST, NEWS_YIELDED},
         .count = 2},
        {"unreachable",
         STATE(STANDBY_ARBITRATING, 0, false),
         STATE(STANDBY_LOST, 0, false),
         {EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE},
         .kinds = {NEWS_ARBITER_UNREACHABLE},
         .count = 1},
        {"not fenced",
         STATE(STANDBY_ARBITRATING, 0, false),
         STATE(STANDBY_LOST, 0, false),
         {EVENT_ARBITER, .arbiter = ARBITER_UNFENCED},
         .kinds = {NEWS_FENCE_FAILED},
         .count = 1},
        {"the guest is to move",
         STATE(PRIMARY_PROTECTED, 3, true),
         STATE(PRIMARY_SWITCHING, 3, true),
         {EVENT_ACK},
         .kinds = {NEWS_SWITCHING},
         .count = 1},
        {"and does, which is no yielding",
         STATE(PRIMARY_SWITCHING, 3, true),
         STATE(PRIMARY_MOVED, 0, false),
         {EVENT_TICK},
         {.type = ACTION_YIELD},
         .kinds = {NEWS_SESSION_LOST, NEWS_DEGRADED, NEWS_MOVED},
         .count = 3},
        {"a late answer of the arbiter",
         STATE(STANDBY_ACTIVE, 0, false),
         STATE(STANDBY_ACTIVE, 0, false),
         {EVENT_ARBITER, .arbiter = ARBITER_LOST}},
        {"the primary is silent",
         STATE(STANDBY_RECEIVING, 9, true),
         STATE(STANDBY_LOST, 0, false),
         {EVENT_TICK},
         .kinds = {NEWS_SESSION_LOST, NEWS_DEGRADED, NEWS_PRIMARY_LOST},
         .count = 3},
        {"a takeover begins",
         STATE(STANDBY_LOST, 0, false),
         STATE(STANDBY_TAKING_OVER, 0, false),
         {EVENT_TICK},
         .kinds = {NEWS_TAKEOVER_BEGUN},
         .count = 1},
        {"and succeeds",
         STATE(STANDBY_TAKING_OVER, 0, false),
         STATE(STANDBY_ACTIVE, 0, false),
         {EVENT_RUNNING},
         .kinds = {NEWS_TAKEOVER_DONE},
         .count = 1},
        {"and fails",
         STATE(STANDBY_TAKING_OVER, 0, false),
         STATE(STANDBY_FAILED, 0, false),
         {EVENT_RUNNING, .code = -EIO},
         .kinds = {NEWS_TAKEOVER_FAILED},
         .count = 1},
        {"and the engine was to stop behind it",
         STATE(STANDBY_TAKING_OVER, 0, false),
         STATE(STANDBY_ENDED, 0, false),
         {EVENT_RUNNING},
         .kinds = {NEWS_TAKEOVER_DONE, NEWS_STOPPED},
         .count = 2},
        {"who took the guest over changes its role, which is no stop",
         STATE(STANDBY_ACTIVE, 0, false),
         STATE(STANDBY_ENDED, 0, false),
         {EVENT_TICK},
         {.type = ACTION_TURN},
         .kinds = {NEWS_REPROTECTING},
         .count = 1},
        {"and so does who left it behind",
         STATE(PRIMARY_YIELDED, 0, false),
         STATE(PRIMARY_ENDED, 0, false),
         {EVENT_HELLO},
         {.type = ACTION_TURN},
         .kinds = {NEWS_REPROTECTING},
         .count = 1},
        {"the guest ends",
         STATE(PRIMARY_PROTECTED, 3, true),
         STATE(PRIMARY_ENDED, 0, false),
         {EVENT_GUEST, .guest = VMM_EVENT_ENDED},
         .kinds = {NEWS_SESSION_LOST, NEWS_DEGRADED, NEWS_GUEST_ENDED, NEWS_STOPPED},
         .count = 4},
    };
    for (unsigned i = 0; i < array_length(wants); i++)
        check_want(&wants[i]);
}

static void test_names_are_distinct(void **state)
{
    (void)state;
    for (unsigned i = 0; i < NEWS_KINDS; i++) {
        assert_non_null(news_name(i));
        assert_int_equal(strlen(news_message_id(i)), 32);
        assert_int_equal(strspn(news_message_id(i), "0123456789abcdef"), 32);
        for (unsigned j = 0; j < i; j++) {
            assert_string_not_equal(news_name(i), news_name(j));
            assert_string_not_equal(news_message_id(i), news_message_id(j));
        }
    }
}

/* --- the ring --- */

static void test_ring(void **state)
{
    (void)state;
    struct events *events;
    uint64_t cursor = 1;
    config.hooks = NULL;
    assert_int_equal(events_open(&events, &config, NULL), 0);
    assert_null(events_next(events, &cursor));
    publish(events, 1);
    json_t *one = events_next(events, &cursor);
    static const char *const texts[][2] = {{"event", "protected"}, {"vm", "web"},
                                           {"host", "alpha"},      {"role", "primary"},
                                           {"reason", "it?s ?"},   {"state", "protected"}};
    for (unsigned i = 0; i < array_length(texts); i++)
        assert_string_equal(json_string_value(json_object_get(one, texts[i][0])), texts[i][1]);
    assert_int_equal(json_integer_value(json_object_get(one, "generation")), 4);
    assert_int_equal(json_integer_value(json_object_get(one, "committed_epoch")), 7);
    assert_int_equal(json_integer_value(json_object_get(one, "sequence")), 1);
    json_decref(one);
    assert_null(events_next(events, &cursor));

    /* A reader that sleeps for 44 events more than are kept is told of those that it missed. */
    publish(events, EVENTS_KEPT + 44);
    json_t *lost = events_next(events, &cursor);
    assert_string_equal(json_string_value(json_object_get(lost, "event")), "dropped");
    assert_int_equal(json_integer_value(json_object_get(lost, "count")), 44);
    json_decref(lost);
    for (unsigned i = 0; i < EVENTS_KEPT; i++) {
        json_t *entry = events_next(events, &cursor);
        assert_int_equal(json_integer_value(json_object_get(entry, "sequence")), 46 + i);
        json_decref(entry);
    }
    assert_null(events_next(events, &cursor));
    events_close(events);
}

static void test_time(void **state)
{
    (void)state;
    char text[32];
    events_format_time(1709210096UL * NS_PER_S + 7 * NS_PER_MS + 999999, text, sizeof text);
    assert_string_equal(text, "2024-02-29T12:34:56.007Z");
}

/* --- streams: one who does not read keeps nobody --- */

static struct events *streamed;

static void on_request(void *ctx, uint64_t client, const char *command, json_t *request)
{
    struct control **control = ctx;
    if (!strcmp(command, "events"))
        events_request(streamed, client, request);
    else
        control_reply(*control, client, json_pack("{s:b}", "well", 1));
}

static int subscribe(const char *path, const char *request)
{
    struct sockaddr_un address;
    assert_int_equal(control_address(path, &address), 0);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0), small = 4096;
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof address), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &small, sizeof small);
    assert_int_equal(send(fd, request, strlen(request), 0), strlen(request));
    fcntl(fd, F_SETFL, O_NONBLOCK);
    return fd;
}

static void turn(struct loop *loop)
{
    for (unsigned i = 0; i < 24; i++) /* each accepts one connection */
        assert_int_equal(loop_once(loop, clock_now_ns() + NS_PER_MS), 0);
}

#define FOLLOW "{\"command\":\"events\",\"follow\":true}\n"

/* All that comes: lines, of which some say that others were dropped. */
static void read_all(struct loop *loop, int fd, unsigned *ret_events, unsigned *ret_dropped, bool *ret_end)
{
    static char text[1 << 20];
    size_t used = 0;
    *ret_events = *ret_dropped = 0;
    *ret_end = false;
    for (unsigned quiet = 0; quiet < 3 && !*ret_end;) {
        ssize_t got = read(fd, text + used, sizeof text - 1 - used);
        used += got > 0 ? (size_t)got : 0;
        quiet = got > 0 ? 0 : quiet + 1;
        *ret_end = got == 0;
        turn(loop);
    }
    text[used] = 0;
    char *save = NULL;
    for (char *line = strtok_r(text, "\n", &save); line; line = strtok_r(NULL, "\n", &save)) {
        json_t *object = json_loads(line, 0, NULL);
        assert_non_null(object);
        if (!strcmp(json_string_value(json_object_get(object, "event")), "dropped"))
            *ret_dropped += (unsigned)json_integer_value(json_object_get(object, "count"));
        else
            ++*ret_events;
        json_decref(object);
    }
}

static void test_stream(void **state)
{
    (void)state;
    char path[64];
    struct loop *loop;
    struct control *control;
    unsigned events, dropped;
    bool end;
    config.hooks = NULL;
    snprintf(path, sizeof path, "%s/sock", base);
    assert_int_equal(loop_new(&loop), 0);
    assert_int_equal(control_new(&control, loop, path, on_request, &control), 0);
    assert_int_equal(events_open(&streamed, &config, control), 0);
    publish(streamed, 3);

    int once = subscribe(path, "{\"command\":\"events\"}\n");
    turn(loop);
    read_all(loop, once, &events, &dropped, &end);
    assert_int_equal(events, 3);
    assert_true(end);
    close(once);

    int fast = subscribe(path, FOLLOW), slow = subscribe(path, FOLLOW);
    turn(loop);
    read_all(loop, fast, &events, &dropped, &end);
    assert_int_equal(events, 3);
    assert_false(end);
    unsigned total = 0;
    for (unsigned i = 0; i < 100; i++) {
        publish(streamed, 50);
        read_all(loop, fast, &events, &dropped, &end);
        assert_int_equal(dropped, 0);
        total += events;
    }
    assert_int_equal(total, 5000);
    read_all(loop, slow, &events, &dropped, &end);
    assert_true(dropped > 0);
    assert_int_equal(events + dropped, 5003);

    /* Places for requests are left, whoever follows. */
    int more[8];
    for (unsigned i = 0; i < 8; i++)
        more[i] = subscribe(path, FOLLOW);
    turn(loop);
    char answer[256] = "";
    assert_true(recv(more[7], answer, sizeof answer - 1, 0) > 0);
    assert_non_null(strstr(answer, "follow the events already"));
    int asking = subscribe(path, "{\"command\":\"well?\"}\n");
    turn(loop);
    assert_true(recv(asking, answer, sizeof answer - 1, 0) > 0);
    assert_non_null(strstr(answer, "well"));
    for (unsigned i = 0; i < 8; i++)
        close(more[i]);
    close(asking);
    close(fast);
    close(slow);
    control_free(control);
    events_close(streamed);
    loop_free(loop);
}

static int set_up(void **state)
{
    (void)state;
    log_set_level(LOG_LEVEL_ERROR);
    signal(SIGPIPE, SIG_IGN);
    return mkdtemp(base) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_news),   cmocka_unit_test(test_names_are_distinct),
        cmocka_unit_test(test_ring),   cmocka_unit_test(test_time),
        cmocka_unit_test(test_stream),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
