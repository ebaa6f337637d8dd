/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/switchover_kit.h"

#include <errno.h>

/* A planned switchover whose last checkpoint is not acknowledged in time. */

/* The final epoch of a switchover for which 40 ms were allowed; `after_ms` of them are wanted after the ACK.
 */
static void final_capture(uint64_t timeout_ms, bool anyway, uint64_t after_ms)
{
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(timeout_ms, anyway);
    if (anyway) { /* an epoch that did not fit, until the time is up */
        answer_round(false);
        run_ms(timeout_ms);
        say(EVENT_ACK, .epoch = status().epoch);
        next_round();
        assert_true(find(ACTION_ROUND)->final);
    }
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .final = true,
        .pause_ns = MS(2), .state_bytes = 5, .state_sum = 6, .after_ns = MS(after_ms));
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    expect_send(WIRE_COMMIT);
}

/* What the next round that may be the last must fit into. */
static uint64_t attempt_after_ordinary_epochs(void)
{
    for (;;) {
        next_round();
        if (find(ACTION_ROUND)->downtime_ns)
            return find(ACTION_ROUND)->downtime_ns;
        answer_round(false);
        later_ms(1);
        say(EVENT_ACK, .epoch = status().epoch);
    }
}

/* 40 ms and a tenth, 14 of them for what follows: 30 ms for the checkpoint, of which the pause took 2. */
static void test_late_checkpoint_is_taken_back(void **state)
{
    (void)state;
    final_capture(0, false, 14);
    run_ms(27);
    expect_no(ACTION_RELEASE);
    assert_int_equal(status().migration, MIGRATION_SWITCHING);
    run_ms(2);
    expect(ACTION_RELEASE);
    assert_int_equal(status().migration, MIGRATION_COPYING);
    assert_int_equal(status().migration_taken_back, 1);
    /* Epochs like any other, and then the next attempt, which must fit into less. */
    say(EVENT_ACK, .epoch = status().epoch);
    assert_null(find_send(WIRE_SWITCH));
    expect_state(PRIMARY_PROTECTED);
    next_round();
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, 0);
    assert_int_equal(attempt_after_ordinary_epochs(), MS(36));
    answer_round(true);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_send(WIRE_SWITCH);
    run_ms(60); /* from here there is nothing to take back any more */
    expect_state(PRIMARY_SWITCHING);
    assert_int_equal(status().migration_taken_back, 1);
}

/* A guest whose every last checkpoint is late runs most of the time all the same, and moves when one is not.
 */
static void test_late_again_and_again(void **state)
{
    (void)state;
    final_capture(0, false, 14);
    uint64_t began_ns = kit.now_ns, downtime_ns = MS(40);
    for (unsigned i = 1; i <= 9; i++) {
        uint64_t stopped_ns = kit.now_ns;
        run_ms(50);
        assert_int_equal(status().migration_taken_back, i);
        say(EVENT_ACK, .epoch = status().epoch);
        uint64_t next_ns = attempt_after_ordinary_epochs();
        assert_true(next_ns <= downtime_ns && next_ns >= MS(20));
        downtime_ns = next_ns;
        assert_true(kit.now_ns - stopped_ns >= MS(100));
        answer_round(true);
    }
    assert_int_equal(downtime_ns, MS(20));
    assert_true(status().migration_lost_ns < (kit.now_ns - began_ns) / 10);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_send(WIRE_SWITCH);
}

/* The standby is as slow as that for any epoch then, and not lost for it. */
static void test_taken_back_waits_as_for_any(void **state)
{
    (void)state;
    final_capture(0, false, 14);
    run_ms(40);
    for (unsigned i = 0; i < 40; i++) {
        say(EVENT_HEARTBEAT);
        run_ms(100);
    }
    expect_state(PRIMARY_PROTECTED);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_state(PRIMARY_PROTECTED);
}

/* Nothing of it was sent yet. */
static void test_taken_back_while_it_is_sent(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(0, false);
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .final = true,
        .pause_ns = MS(2), .state_bytes = 5, .state_sum = 6);
    run_ms(50);
    assert_int_equal(status().migration_taken_back, 1);
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    expect_send(WIRE_COMMIT);
    say(EVENT_ACK, .epoch = status().epoch);
    assert_null(find_send(WIRE_SWITCH));
    /* An ACK that was read too late does not help either. */
    attempt_after_ordinary_epochs();
    answer_round(true);
    kit.now_ns += MS(60);
    say(EVENT_ACK, .epoch = status().epoch);
    assert_null(find_send(WIRE_SWITCH));
    assert_int_equal(status().migration_taken_back, 2);
    /* And then the session is lost: it runs here. */
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect_no(ACTION_RELEASE);
    assert_true(status().guest_here);
    assert_int_equal(status().migration, MIGRATION_FAILED);
}

static void test_time_runs_on_while_a_checkpoint_is_late(void **state)
{
    (void)state;
    final_capture(25, false, 14);
    run_ms(40);
    assert_int_equal(status().migration, MIGRATION_FAILED);
    assert_non_null(strstr(status().migration_text, "did not fit"));
    say(EVENT_ACK, .epoch = status().epoch);
    assert_null(find_send(WIRE_SWITCH));
}

static void test_overdue_waits_for_its_checkpoint(void **state)
{
    (void)state;
    final_capture(100, true, 14);
    run_ms(100);
    expect_no(ACTION_RELEASE);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_send(WIRE_SWITCH);
    assert_int_equal(status().migration_taken_back, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_late_checkpoint_is_taken_back, kit_end),
        cmocka_unit_test_teardown(test_late_again_and_again, kit_end),
        cmocka_unit_test_teardown(test_taken_back_waits_as_for_any, kit_end),
        cmocka_unit_test_teardown(test_taken_back_while_it_is_sent, kit_end),
        cmocka_unit_test_teardown(test_time_runs_on_while_a_checkpoint_is_late, kit_end),
        cmocka_unit_test_teardown(test_overdue_waits_for_its_checkpoint, kit_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
