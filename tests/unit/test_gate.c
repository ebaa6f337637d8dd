/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "gate/gate.h"
#include "gate/hold.h"
#include "gate/program.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#define BYTES_MAX (1u << 20)

static struct hold hold;

static int set_up(void **state)
{
    (void)state;
    hold_init(&hold, BYTES_MAX);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    hold_free(&hold);
    return 0;
}

static uint32_t next_id;

static int push(uint32_t bytes)
{
    uint32_t id = next_id++;
    return hold_push(&hold,
                     &(struct held_frame){.packet_id = id, .bytes = bytes, .arrived_ns = id * NS_PER_MS});
}

static void push_many(unsigned count)
{
    while (count--)
        assert_int_equal(push(100), 0);
}

/* Pops what may go; checks that it is in order; returns how many. */
static unsigned pop_all(void)
{
    unsigned count = 0;
    const struct held_frame *frame;
    static uint32_t expected;
    if (hold.frames_out == 0)
        expected = hold_ready(&hold) ? hold_ready(&hold)->packet_id : 0;
    for (; (frame = hold_ready(&hold)); count++) {
        assert_int_equal(frame->packet_id, expected++);
        hold_pop(&hold, frame->arrived_ns + 5 * NS_PER_MS);
    }
    return count;
}

static void passes_before_the_first_mark(void **state)
{
    (void)state;
    push_many(3);
    assert_int_equal(hold_take_events(&hold), 0);
    assert_int_equal(pop_all(), 3);
    assert_int_equal(hold.frames_out, 3);
    assert_int_equal(hold.bytes_out, 300);
    assert_int_equal(hold.delay_us.count, 0);
}

static void epochs_go_out_one_by_one(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 1), 0);
    push_many(3);
    assert_int_equal(pop_all(), 0);
    assert_int_equal(hold_mark(&hold, 2), 0);
    push_many(4);
    assert_int_equal(hold_mark(&hold, 3), 0);
    push_many(5);
    hold_release(&hold, 1);
    assert_int_equal(pop_all(), 0);
    hold_release(&hold, 2);
    assert_int_equal(pop_all(), 3);
    hold_release(&hold, 2);
    assert_int_equal(pop_all(), 0);
    hold_release(&hold, 3);
    assert_int_equal(pop_all(), 4);
    assert_int_equal(hold_frames(&hold), 5);
    assert_int_equal(hold.bytes, 500);
    assert_int_equal(hold.delay_us.count, 7);
    assert_int_equal(hold.delay_us.min, 5000);
    /* Far ahead: what is not marked still stays. */
    hold_release(&hold, 99);
    assert_int_equal(pop_all(), 0);
}

static void a_release_lets_out_earlier_epochs(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 10), 0);
    for (uint64_t epoch = 11; epoch < 15; epoch++) {
        push_many(2);
        assert_int_equal(hold_mark(&hold, epoch), 0);
    }
    hold_release(&hold, 13);
    assert_int_equal(pop_all(), 6);
}

static void frames_before_the_first_mark_are_not_held(void **state)
{
    (void)state;
    push_many(2); /* the way out is blocked */
    assert_int_equal(hold_mark(&hold, 1), 0);
    push_many(1);
    assert_int_equal(pop_all(), 2);
}

static void an_epoch_may_be_marked_again(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 4), 0);
    push_many(2);
    assert_int_equal(hold_mark(&hold, 5), 0);
    push_many(3);
    assert_int_equal(hold_mark(&hold, 5), 0);
    push_many(1);
    assert_int_equal(hold_mark(&hold, 4), -EINVAL);
    assert_text_has("epoch 4", "epoch 5");
    hold_release(&hold, 5);
    assert_int_equal(pop_all(), 5);
    /* An empty one, again with frames. */
    hold_release(&hold, 6);
    assert_int_equal(hold_mark(&hold, 6), 0);
    hold_release(&hold, 6);
    assert_int_equal(pop_all(), 1);
    assert_int_equal(hold_mark(&hold, 7), 0);
    push_many(1);
    assert_int_equal(hold_mark(&hold, 7), 0);
    hold_release(&hold, 7);
    assert_int_equal(pop_all(), 1);
}

/* More marks than there is room for: frames may go later, never earlier. */
static void too_many_marks_are_merged(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 0), 0);
    unsigned sent = 0, out = 0;
    for (uint64_t epoch = 1; epoch <= 3 * HOLD_MARKS_MAX; epoch++, sent++) {
        push_many(1);
        assert_int_equal(hold_mark(&hold, epoch), 0);
    }
    for (uint64_t epoch = 1; epoch <= 3 * HOLD_MARKS_MAX; epoch++) {
        hold_release(&hold, epoch);
        out += pop_all();
        assert_true(out <= epoch);
        if (epoch < HOLD_MARKS_MAX)
            assert_int_equal(out, epoch);
    }
    assert_int_equal(out, sent);
}

static void events_come_once(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 1), 0);
    assert_int_equal(hold_take_events(&hold), 0);
    push_many(1);
    assert_int_equal(hold_take_events(&hold), HOLD_WAITING);
    push_many(1);
    assert_int_equal(hold_take_events(&hold), 0);
    assert_int_equal(hold_mark(&hold, 2), 0);
    assert_int_equal(hold_take_events(&hold), 0);
    assert_int_equal(push(BYTES_MAX / 2), 0);
    assert_int_equal(hold_take_events(&hold), HOLD_WAITING | HOLD_FULL);
    assert_int_equal(push(1), 0);
    assert_int_equal(hold_take_events(&hold), 0);
    /* Released, and half is used still. */
    hold_release(&hold, 2);
    assert_int_equal(pop_all(), 2);
    assert_int_equal(hold_take_events(&hold), HOLD_FULL);
}

static void the_bound_holds(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 1), 0);
    assert_int_equal(push(BYTES_MAX + 1), -ENOBUFS);
    assert_int_equal(push(BYTES_MAX - 10), 0);
    assert_int_equal(push(11), -ENOBUFS);
    assert_int_equal(push(10), 0);
    assert_int_equal(hold.dropped, 2);
    assert_int_equal(hold.bytes_peak, BYTES_MAX);
    hold_pass(&hold);
    while (hold_ready(&hold))
        hold_pop(&hold, 0);
    /* Small frames are bounded by number. */
    assert_int_equal(hold_mark(&hold, 1), 0);
    unsigned count = 0;
    while (!push(1))
        count++;
    assert_int_equal(count, BYTES_MAX / HOLD_FRAME_COST);
    assert_true(hold_take_events(&hold) & HOLD_FULL);
}

static void pass_and_hold_again(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 100), 0);
    push_many(5);
    hold_pass(&hold);
    assert_int_equal(pop_all(), 5);
    push_many(1);
    assert_int_equal(pop_all(), 1);
    /* Epochs may begin anew: another standby. */
    assert_int_equal(hold_mark(&hold, 1), 0);
    push_many(1);
    assert_int_equal(pop_all(), 0);
    assert_int_equal(hold_mark(&hold, 2), 0);
    hold_release(&hold, 2);
    assert_int_equal(pop_all(), 1);
}

static void shut_for_good(void **state)
{
    (void)state;
    assert_int_equal(hold_mark(&hold, 1), 0);
    push_many(4);
    assert_int_equal(hold_mark(&hold, 2), 0);
    hold_release(&hold, 2); /* may go, but has not */
    hold_shut(&hold);
    assert_null(hold_ready(&hold));
    struct held_frame frame;
    unsigned count = 0;
    while (hold_drop(&hold, &frame))
        count++;
    assert_int_equal(count, 4);
    assert_int_equal(push(1), -ENOBUFS);
    assert_int_equal(hold.dropped, 5);
    assert_int_equal(hold_mark(&hold, 3), -ESHUTDOWN);
    hold_pass(&hold);
    assert_true(hold.shut && !hold.passing);
    assert_int_equal(hold_take_events(&hold), 0);
}

/* Against a model that keeps each frame's epoch: nothing early, nothing out of order, nothing lost. */
static void random_walk(void **state)
{
    (void)state;
    enum { FRAMES = 20000 };
    static uint64_t epoch_of[FRAMES];
    srand(7);
    next_id = 0;
    uint64_t open = 1, released = 0;
    unsigned out = 0;
    assert_int_equal(hold_mark(&hold, open), 0);
    while (next_id < FRAMES) {
        switch (rand() % 8) {
        case 0:
            assert_int_equal(hold_mark(&hold, ++open), 0);
            break;
        case 1:
            if (released < open)
                hold_release(&hold, ++released);
            break;
        default:
            epoch_of[next_id] = open + 1;
            push(1 + rand() % 90);
        }
        for (unsigned tries = rand() % 4; tries && hold_ready(&hold); tries--) {
            assert_int_equal(hold_ready(&hold)->packet_id, out);
            assert_true(epoch_of[out++] <= released);
            hold_pop(&hold, 0);
        }
    }
    hold_mark(&hold, ++open);
    hold_release(&hold, open);
    for (; hold_ready(&hold); out++)
        hold_pop(&hold, 0);
    assert_int_equal(out + hold.dropped, FRAMES);
    assert_int_equal(hold.bytes, 0);
}

static void the_newest_is_extended_in_its_epoch(void **state)
{
    (void)state;
    push_many(1);
    assert_null(hold_newest(&hold)); /* it may go at any time */
    hold_mark(&hold, 1);
    assert_null(hold_newest(&hold));
    assert_int_equal(push(100), 0);
    assert_int_equal(hold_newest(&hold)->packet_id, next_id - 1);
    assert_false(hold_extend(&hold, BYTES_MAX));
    assert_true(hold_extend(&hold, 50));
    assert_true(hold_newest(&hold)->bytes == 150 && hold.bytes == 250 && hold.bytes_peak == 250);
    hold_mark(&hold, 2);
    assert_null(hold_newest(&hold));
    hold_release(&hold, 2);
    assert_int_equal(pop_all(), 2);
    assert_int_equal(hold.bytes, 0);
}

static void what_is_shut_opens_empty(void **state)
{
    (void)state;
    struct held_frame frame;
    hold_mark(&hold, 9);
    push_many(3);
    hold_shut(&hold);
    while (hold_drop(&hold, &frame))
        ;
    hold_reopen(&hold);
    push_many(2);
    assert_int_equal(pop_all(), 2);
    assert_int_equal(hold_mark(&hold, 1), 0);
}

static void a_lower_bound_keeps_what_is_held(void **state)
{
    (void)state;
    hold_mark(&hold, 1);
    push_many(1000);
    hold_set_bound(&hold, 1000);
    assert_int_equal(push(100), -ENOBUFS);
    assert_int_equal(hold_frames(&hold), 1000);
}

/* Opening */

static void refusals_say_what_is_wrong(void **state)
{
    (void)state;
    struct gate *gate = NULL;
    struct gate_config config = {.kind = GATE_NFQUEUE, .held_bytes_max = 1 << 20};
    assert_int_equal(gate_open(&gate, &config, NULL), -EINVAL);
    assert_text_has("nfqueue", "without an interface");
    config.port_count = 1;
    static const char *const bad[] = {"", "tap+", "tap*", "a b", "x\"y", "a/b", "..", "a;b"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        strcpy(config.ports[0].tap, bad[i]);
        assert_int_equal(gate_open(&gate, &config, NULL), -EINVAL);
        assert_text_has("no name of an interface");
    }
    strcpy(config.ports[0].tap, "tap0");
    config.held_bytes_max = 10;
    assert_int_equal(gate_open(&gate, &config, NULL), -EINVAL);
    assert_text_has("bound");
    config.held_bytes_max = 1 << 20;
    config.port_count = 2;
    strcpy(config.ports[1].tap, "tap0");
    assert_int_equal(gate_open(&gate, &config, NULL), -EINVAL);
    assert_text_has("twice");
    config.port_count = GATE_PORTS_MAX + 1;
    assert_int_equal(gate_open(&gate, &config, NULL), -E2BIG);
    config.port_count = 1;
    config.failure = GATE_FAIL_OPEN;
    config.kind = GATE_RELAY;
    assert_int_equal(gate_open(&gate, &config, NULL), -EOPNOTSUPP);
    assert_text_has("relay", "fail open");
    config.kind = GATE_PLUG;
    assert_int_equal(gate_open(&gate, &config, NULL), -EOPNOTSUPP);
    assert_null(gate);
}

static void no_gate_does_nothing(void **state)
{
    (void)state;
    struct gate *gate;
    assert_int_equal(gate_open(&gate, &(struct gate_config){.kind = GATE_AUTO}, NULL), 0);
    assert_int_equal(gate_kind_of(gate), GATE_NONE);
    assert_string_equal(gate_kind_name(gate_kind_of(gate)), "none");
    assert_int_equal(gate_mark_begin(gate, 1), 0);
    assert_int_equal(gate_mark_end(gate), 0);
    assert_int_equal(gate_release(gate, 1), 0);
    assert_int_equal(gate_shut(gate), 0);
    struct gate_stats stats;
    gate_get_stats(gate, &stats);
    assert_false(stats.holding);
    gate_close(gate);
    gate_close(NULL);
}

static void a_process_without_taps(void **state)
{
    (void)state;
    struct gate_port ports[2];
    assert_int_equal(gate_find_taps((int)getpid(), ports, 2), 0);
    assert_true(gate_find_taps(0x7ffffffe, ports, 2) < 0);
}

/* Programs */

static void programs_are_run(void **state)
{
    (void)state;
    char *output = NULL;
    assert_int_equal(program_run((const char *const[]){"cat", NULL}, "one\ntwo\n", &output), 0);
    assert_string_equal(output, "one\ntwo\n");
    free(output);
    assert_int_equal(program_run((const char *const[]){"no-such-program", NULL}, NULL, NULL), -ENOENT);
    assert_text_has("no-such-program");
    assert_int_equal(program_run((const char *const[]){"ls", "/no/such/place", NULL}, NULL, NULL), -EIO);
    assert_text_has("'ls' failed", "/no/such/place");
}

#define HOLD_TEST(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        HOLD_TEST(passes_before_the_first_mark),
        HOLD_TEST(epochs_go_out_one_by_one),
        HOLD_TEST(a_release_lets_out_earlier_epochs),
        HOLD_TEST(frames_before_the_first_mark_are_not_held),
        HOLD_TEST(an_epoch_may_be_marked_again),
        HOLD_TEST(too_many_marks_are_merged),
        HOLD_TEST(events_come_once),
        HOLD_TEST(the_bound_holds),
        HOLD_TEST(pass_and_hold_again),
        HOLD_TEST(shut_for_good),
        HOLD_TEST(the_newest_is_extended_in_its_epoch),
        HOLD_TEST(what_is_shut_opens_empty),
        HOLD_TEST(a_lower_bound_keeps_what_is_held),
        HOLD_TEST(random_walk),
        cmocka_unit_test(refusals_say_what_is_wrong),
        cmocka_unit_test(no_gate_does_nothing),
        cmocka_unit_test(a_process_without_taps),
        cmocka_unit_test(programs_are_run),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
