/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/switchover_kit.h"

#include <errno.h>

/* A planned switchover, both machines step by step. What holds over whole lives is for tests/sim. */

static struct role_config arbitrated(void)
{
    struct role_config config = kit_config();
    config.arbiter = true;
    return config;
}

/* --- primary --- */

/* Up to the final epoch's ACK. */
static void switching(struct role_config config)
{
    protect(config, WIRE_FEATURES_KNOWN);
    ask(0, false);
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, MS(40));
    assert_false(find(ACTION_ROUND)->final);
    answer_round(true);
    expect_send(WIRE_COMMIT);
    later_ms(3);
    say(EVENT_ACK, .epoch = status().epoch);
    expect_send(WIRE_SWITCH);
    expect(ACTION_COMMITTED);
    expect_state(PRIMARY_SWITCHING);
}

static void handed(struct role_config config)
{
    switching(config);
    say(EVENT_LOADED, .epoch = status().epoch);
    expect(ACTION_KEEP);
    assert_null(find_send(WIRE_HANDOVER));
    say(EVENT_KEPT);
    expect_send(WIRE_HANDOVER);
}

static void test_moved(void **state)
{
    (void)state;
    handed(kit_config());
    later_ms(5);
    say(EVENT_STARTED, .epoch = status().epoch, .generation = 2);
    expect_state(PRIMARY_MOVED);
    expect(ACTION_YIELD);
    expect_no(ACTION_RELEASE);
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_false(find(ACTION_STORE)->active);
    assert_int_equal(status().migration, MIGRATION_MOVED);
    assert_int_equal(status().downtime_ns, MS(10));
    assert_false(status().guest_here);
    assert_non_null(strstr(status().reason, "moved to there"));
    run_ms(5000);
    expect_state(PRIMARY_MOVED);
}

/* The first try comes at once; one that did not fit is an epoch, after which the guest runs for its share. */
static void test_first_try_at_once(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    expect_no(ACTION_ROUND);
    say(EVENT_MIGRATE, .downtime_ns = MS(40));
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, MS(40));
    answer_round(false);
    say(EVENT_ACK, .epoch = status().epoch);
    uint64_t acked_ns = kit.now_ns; /* 2 ms after the guest was stopped: a quarter of 8 */
    expect_no(ACTION_ROUND);
    next_round();
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, MS(40));
    assert_int_equal(kit.now_ns, acked_ns + MS(6));
}

/* What is in flight when the move is ordered goes on, and the try comes with its ACK. */
static void test_first_try_after_what_is_in_flight(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    next_round();
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_MIGRATE, .downtime_ns = MS(40));
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .pause_ns = MS(2));
    expect_no(ACTION_ROUND);
    say(EVENT_ACK, .epoch = status().epoch);
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, MS(40));
}

static void test_lost_before_handover(void **state)
{
    (void)state;
    switching(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect(ACTION_RELEASE);
    expect_no(ACTION_HOLD);
    assert_int_equal(status().migration, MIGRATION_FAILED);
    expect_state(PRIMARY_DISCONNECTED);
}

static void test_policy_holds(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    config.loss = ROLE_LOSS_STALL;
    switching(config);
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect(ACTION_HOLD);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_STALLED);
}

static void test_refused_load(void **state)
{
    (void)state;
    switching(kit_config());
    say(EVENT_REFUSE, .refusal = WIRE_REFUSE_GUEST, .text = "no memory");
    expect(ACTION_RELEASE);
    assert_non_null(strstr(status().migration_text, "no memory"));
}

/* Nobody here can know: not even the policy to continue lets the guest run. */
static void test_lost_after_handover(void **state)
{
    (void)state;
    handed(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect(ACTION_HOLD);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_STALLED);
    for (unsigned i = 0; i < 100; i++) {
        run_ms(100);
        expect_no(ACTION_PASS);
        expect_no(ACTION_RELEASE);
    }
    /* The standby did not get the word: it greets, so it runs nothing, and has nothing to run later. */
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    greet(WIRE_FEATURES_KNOWN);
    expect(ACTION_RELEASE);
}

static void test_answer_lost(void **state)
{
    (void)state;
    handed(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    say(EVENT_REFUSE, .generation = 2, .refusal = WIRE_REFUSE_GENERATION);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_MOVED);
}

static void arbitrate(enum role_arbiter answer)
{
    handed(arbitrated());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect_no(ACTION_RELEASE);
    while (!find(ACTION_ARBITRATE)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
        if (find(ACTION_CONNECT))
            say(EVENT_LINK_DOWN, .session = find(ACTION_CONNECT)->session, .code = -ECONNREFUSED);
    }
    say(EVENT_ARBITER, .arbiter = answer, .generation = 2);
}

static void test_arbiter_won(void **state)
{
    (void)state;
    arbitrate(ARBITER_WON);
    expect(ACTION_RELEASE);
    assert_int_equal(status().generation, 2);
}

static void test_arbiter_lost(void **state)
{
    (void)state;
    arbitrate(ARBITER_LOST);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_MOVED);
}

static void test_arbiter_unreachable(void **state)
{
    (void)state;
    arbitrate(ARBITER_UNREACHABLE);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_STALLED);
}

static void test_cancel(void **state)
{
    (void)state;
    /* While it copies, nothing happens to the guest. */
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(0, false);
    say(EVENT_MIGRATE_CANCEL);
    assert_int_equal(status().migration, MIGRATION_FAILED);
    assert_string_equal(status().migration_text, "cancelled");
    /* The capture that was under way comes back as a final one. */
    const uint64_t epoch = status().epoch;
    say(EVENT_ROUND_SENT, .epoch = epoch, .totals = {.frames = 9});
    say(EVENT_ROUND, .epoch = epoch, .captured = true, .final = true, .pause_ns = MS(2), .state_bytes = 5);
    expect(ACTION_RELEASE);
    expect_send(WIRE_COMMIT);
    say(EVENT_ACK, .epoch = epoch);
    expect_state(PRIMARY_PROTECTED);
    kit_end(NULL);
    /* While the standby loads: it needs a new session, since it can take no epoch any more. */
    switching(kit_config());
    say(EVENT_MIGRATE_CANCEL);
    expect(ACTION_RELEASE);
    expect_send(WIRE_REFUSE);
    expect(ACTION_DISCONNECT);
    kit_end(NULL);
    /* Too late. */
    handed(kit_config());
    say(EVENT_MIGRATE_CANCEL);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_SWITCHING);
}

/* A final capture of a session that ended meanwhile leaves no guest stopped. */
static void test_late_capture(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(0, false);
    const struct role_action round = *find(ACTION_ROUND);
    uint64_t old = kit.session;
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    say(EVENT_ROUND, .session = old, .epoch = round.epoch, .captured = true, .final = true);
    expect(ACTION_RELEASE);
}

static void test_timeout(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(500, false);
    for (unsigned i = 0; i < 20 && status().migration == MIGRATION_COPYING; i++) {
        answer_round(false);
        say(EVENT_ACK, .epoch = status().epoch);
        later_ms(50);
        next_round();
    }
    assert_int_equal(status().migration, MIGRATION_FAILED);
    expect_state(PRIMARY_PROTECTED);
    kit_end(NULL);
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    ask(500, true);
    for (unsigned i = 0; i < 20 && !find(ACTION_ROUND)->final; i++) {
        answer_round(false);
        say(EVENT_ACK, .epoch = status().epoch);
        later_ms(50);
        next_round();
    }
    assert_true(find(ACTION_ROUND)->final);
}

/* The time is up: the guest is slowed, for 5 times as long at most. */
static void test_throttle(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    say(EVENT_MIGRATE, .downtime_ns = MS(40), .timeout_ns = MS(500), .throttle = true);
    uint64_t began_ns = kit.now_ns, slowed_ns = 0;
    next_round();
    for (unsigned i = 0; i < 100 && status().migration == MIGRATION_COPYING; i++) {
        if (status().throttle && !slowed_ns)
            slowed_ns = kit.now_ns;
        assert_false(find(ACTION_ROUND)->final);
        answer_round(false);
        say(EVENT_ACK, .epoch = status().epoch);
        later_ms(50);
        next_round();
    }
    assert_in_range(slowed_ns - began_ns, MS(500), MS(600));
    assert_int_equal(status().migration, MIGRATION_FAILED);
    assert_in_range(status().migration_until_ns - began_ns, MS(3000), MS(3200));
    assert_false(status().throttle);
    assert_non_null(strstr(status().migration_text, "was slowed"));
    expect_state(PRIMARY_PROTECTED);
}

static void slowed(void)
{
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    say(EVENT_MIGRATE, .downtime_ns = MS(40), .timeout_ns = MS(100), .throttle = true);
    for (unsigned i = 0; i < 10 && !status().throttle; i++) {
        next_round();
        answer_round(false);
        say(EVENT_ACK, .epoch = status().epoch);
        later_ms(50);
    }
    assert_true(status().throttle);
}

/* Cancelled, lost, or captured for good: the guest is slowed no longer. */
static void test_throttle_ends(void **state)
{
    (void)state;
    slowed();
    say(EVENT_MIGRATE_CANCEL);
    assert_false(status().throttle);
    kit_end(NULL);
    slowed();
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    assert_false(status().throttle);
    kit_end(NULL);
    slowed();
    next_round();
    answer_round(true);
    assert_int_equal(status().migration, MIGRATION_SWITCHING);
    assert_true(status().throttle); /* in case that it is taken back */
    say(EVENT_ACK, .epoch = status().epoch);
    say(EVENT_LOADED, .epoch = status().epoch);
    say(EVENT_KEPT);
    say(EVENT_STARTED, .epoch = status().epoch, .generation = 2);
    expect_state(PRIMARY_MOVED);
    assert_false(status().throttle);
}

static void test_old_standby(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN & ~WIRE_FEATURE_SWITCH);
    say(EVENT_MIGRATE, .downtime_ns = MS(40));
    next_round();
    assert_int_equal(find(ACTION_ROUND)->downtime_ns, 0);
    assert_int_equal(status().migration, MIGRATION_FAILED);
}

/* A peer that says it without having been asked. */
static void test_unasked(void **state)
{
    (void)state;
    protect(kit_config(), WIRE_FEATURES_KNOWN);
    say(EVENT_LOADED, .epoch = status().epoch);
    expect_send(WIRE_REFUSE);
    kit_end(NULL);
    switching(kit_config());
    say(EVENT_LOADED, .epoch = status().epoch + 1);
    expect_send(WIRE_REFUSE);
    expect(ACTION_RELEASE);
    kit_end(NULL);
    handed(kit_config());
    say(EVENT_STARTED, .epoch = status().epoch); /* by our own generation */
    expect_send(WIRE_REFUSE);
    expect_no(ACTION_RELEASE);
}

/* --- standby --- */

static void hello(uint64_t session)
{
    struct message_hello message = {.version_min = 1,
                                    .version_max = 1,
                                    .lanes = 2,
                                    .detect_ms = 250,
                                    .optional = WIRE_FEATURES_KNOWN,
                                    .vm_uuid = {1, 2, 3},
                                    .host = "there"};
    memcpy(message.history, history, sizeof message.history);
    say(EVENT_HELLO, .session = session, .generation = 1, .hello = &message);
}

static void stand_by(struct role_config config)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(standby_new(&kit.standby, &config, 0, kit.now_ns), 0);
    hello(1);
    kit.session = 1;
    say(EVENT_PREPARED);
    say(EVENT_LANES_UP);
    struct message_commit message = {.state_bytes = 3};
    say(EVENT_ROUND_END, .epoch = 4, .captured = true, .commit = &message, .totals = {.frames = 4});
    say(EVENT_ROUND_COMPLETE, .epoch = 4, .captured = true);
    expect_send(WIRE_ACK);
}

static void loaded(struct role_config config)
{
    stand_by(config);
    say(EVENT_SWITCH, .epoch = 4);
    expect_no(ACTION_LOAD); /* its memory is being written */
    say(EVENT_APPLIED, .epoch = 4);
    expect(ACTION_LOAD);
    expect_state(STANDBY_SWITCHING);
    say(EVENT_LOAD_DONE);
    expect_send(WIRE_LOADED);
    expect_no(ACTION_TAKEOVER);
    expect_no(ACTION_STORE);
}

static void test_standby_runs(void **state)
{
    (void)state;
    loaded(kit_config());
    say(EVENT_HANDOVER, .epoch = 4);
    assert_true(place(ACTION_STORE) < place(ACTION_TAKEOVER));
    assert_int_equal(find(ACTION_STORE)->to, 2);
    expect_no(ACTION_DISCONNECT); /* there is something to say yet */
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    say(EVENT_RUNNING);
    expect_state(STANDBY_ACTIVE);
    expect_send(WIRE_STARTED);
    assert_int_equal(find_send(WIRE_STARTED)->session, 1);
    assert_true(place(ACTION_SEND) < place(ACTION_DISCONNECT));
}

static void test_standby_asks(void **state)
{
    (void)state;
    loaded(arbitrated());
    say(EVENT_HANDOVER, .epoch = 4);
    expect_no(ACTION_TAKEOVER);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON);
    expect(ACTION_TAKEOVER);
    kit_end(NULL);
    loaded(arbitrated());
    say(EVENT_HANDOVER, .epoch = 4);
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 2);
    expect_no(ACTION_TAKEOVER);
    expect_send(WIRE_REFUSE);
}

static void test_standby_cannot_load(void **state)
{
    (void)state;
    stand_by(kit_config());
    say(EVENT_APPLIED, .epoch = 4);
    say(EVENT_SWITCH, .epoch = 4);
    say(EVENT_LOAD_DONE, .code = -EIO, .text = "no such device");
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GUEST);
    hello(2);
    assert_true(find(ACTION_PREPARE)->fresh);
}

/* Loaded and not run: the checkpoint can be taken over, without being loaded again, and takes no other. */
static void test_standby_left_loaded(void **state)
{
    (void)state;
    loaded(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    expect_state(STANDBY_LOST);
    say(EVENT_TAKEOVER);
    expect(ACTION_TAKEOVER);
    kit_end(NULL);
    loaded(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET);
    hello(2);
    assert_false(find_send(WIRE_WELCOME)->welcome.has_commit);
    assert_true(find(ACTION_PREPARE)->fresh);
}

static void test_standby_unasked(void **state)
{
    (void)state;
    stand_by(kit_config());
    say(EVENT_HANDOVER, .epoch = 4);
    expect_send(WIRE_REFUSE);
    expect_no(ACTION_TAKEOVER);
    kit_end(NULL);
    stand_by(kit_config());
    say(EVENT_SWITCH, .epoch = 3);
    expect_send(WIRE_REFUSE);
    expect_no(ACTION_LOAD);
    kit_end(NULL);
    stand_by(kit_config());
    say(EVENT_APPLIED, .epoch = 4);
    say(EVENT_SWITCH, .epoch = 4);
    say(EVENT_HANDOVER, .epoch = 4); /* before LOADED */
    expect_send(WIRE_REFUSE);
    expect_no(ACTION_TAKEOVER);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_moved, kit_end),
        cmocka_unit_test_teardown(test_first_try_at_once, kit_end),
        cmocka_unit_test_teardown(test_first_try_after_what_is_in_flight, kit_end),
        cmocka_unit_test_teardown(test_lost_before_handover, kit_end),
        cmocka_unit_test_teardown(test_policy_holds, kit_end),
        cmocka_unit_test_teardown(test_refused_load, kit_end),
        cmocka_unit_test_teardown(test_lost_after_handover, kit_end),
        cmocka_unit_test_teardown(test_answer_lost, kit_end),
        cmocka_unit_test_teardown(test_arbiter_won, kit_end),
        cmocka_unit_test_teardown(test_arbiter_lost, kit_end),
        cmocka_unit_test_teardown(test_arbiter_unreachable, kit_end),
        cmocka_unit_test_teardown(test_cancel, kit_end),
        cmocka_unit_test_teardown(test_late_capture, kit_end),
        cmocka_unit_test_teardown(test_timeout, kit_end),
        cmocka_unit_test_teardown(test_throttle, kit_end),
        cmocka_unit_test_teardown(test_throttle_ends, kit_end),
        cmocka_unit_test_teardown(test_old_standby, kit_end),
        cmocka_unit_test_teardown(test_unasked, kit_end),
        cmocka_unit_test_teardown(test_standby_runs, kit_end),
        cmocka_unit_test_teardown(test_standby_asks, kit_end),
        cmocka_unit_test_teardown(test_standby_cannot_load, kit_end),
        cmocka_unit_test_teardown(test_standby_left_loaded, kit_end),
        cmocka_unit_test_teardown(test_standby_unasked, kit_end),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
