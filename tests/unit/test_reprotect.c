/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_kit.h"

/* Who turns into what when the guest has changed hosts, and what two primaries say to each other at the door.
 * What holds over whole lives is for tests/sim. */

static struct role_config policy(enum role_reprotect reprotect)
{
    struct role_config config = kit_config();
    config.reprotect = reprotect;
    config.arbiter = true;
    return config;
}

static void start(struct role_config config, uint64_t generation, enum role_right right)
{
    kit.now_ns = START;
    kit.generation = generation;
    assert_int_equal(primary_new(&kit.primary, &config, history, generation, kit.now_ns), 0);
    primary_set_right(kit.primary, right);
    say(EVENT_TICK);
}

/* Somebody comes to the door. */
static void hello(uint64_t generation)
{
    struct message_hello message = {.version_min = 1,
                                    .version_max = 1,
                                    .lanes = 1,
                                    .detect_ms = 250,
                                    .vm_uuid = {1, 2, 3},
                                    .host = "there"};
    say(EVENT_HELLO, .session = 900, .generation = generation, .hello = &message);
}

static void expect_turned_away(enum wire_refusal code)
{
    const struct role_action *action = find(ACTION_TURN_AWAY);
    assert_non_null(action);
    assert_int_equal(action->session, 900);
    assert_int_equal(action->refusal, code);
    assert_true(action->text[0]);
}

static void yielded(struct role_config config)
{
    start(config, 1, ROLE_RIGHT_STORED);
    hello(2);
    expect_turned_away(WIRE_REFUSE_BUSY);
    expect(ACTION_YIELD);
    expect_no(ACTION_TURN);
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_false(find(ACTION_STORE)->active);
    expect_state(PRIMARY_YIELDED);
    assert_false(status().guest_here);
}

static void test_newer_at_the_door(void **state)
{
    (void)state;
    yielded(policy(ROLE_REPROTECT_AUTO));
    /* Nothing but a call makes it give up what was left behind. */
    run_ms(60000);
    expect_state(PRIMARY_YIELDED);
    hello(1);
    expect_turned_away(WIRE_REFUSE_GENERATION);
    expect_no(ACTION_TURN);
    hello(2);
    expect_turned_away(WIRE_REFUSE_BUSY);
    expect(ACTION_TURN);
    expect_no(ACTION_STORE);
    expect_state(PRIMARY_ENDED);
    assert_int_equal(primary_deadline(kit.primary), UINT64_MAX);
}

static void test_newer_while_connecting(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 1, ROLE_RIGHT_STORED);
    expect(ACTION_CONNECT);
    expect_state(PRIMARY_CONNECTING);
    hello(7);
    expect(ACTION_DISCONNECT);
    expect(ACTION_YIELD);
    expect_state(PRIMARY_YIELDED);
    assert_int_equal(status().generation, 7);
}

static void test_manual_waits_for_the_operator(void **state)
{
    (void)state;
    yielded(policy(ROLE_REPROTECT_MANUAL));
    hello(2);
    expect_turned_away(WIRE_REFUSE_BUSY);
    expect_no(ACTION_TURN);
    assert_non_null(strstr(find(ACTION_TURN_AWAY)->text, "reprotect"));
    expect_state(PRIMARY_YIELDED);
    say(EVENT_REPROTECT);
    expect(ACTION_TURN);
    expect_state(PRIMARY_ENDED);
}

static void test_reprotect_refused(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_MANUAL), 1, ROLE_RIGHT_STORED);
    say(EVENT_REPROTECT);
    expect(ACTION_REPORT);
    expect_no(ACTION_TURN);
    assert_true(status().guest_here);
}

static void test_older_at_the_door(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 3, ROLE_RIGHT_STORED);
    hello(2);
    expect_turned_away(WIRE_REFUSE_GENERATION);
    expect_no(ACTION_YIELD);
    assert_true(status().guest_here);
}

static void test_other_machine_at_the_door(void **state)
{
    struct message_hello message = {.vm_uuid = {9}, .host = "there"};
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 3, ROLE_RIGHT_STORED);
    say(EVENT_HELLO, .session = 900, .generation = 9, .hello = &message);
    expect_turned_away(WIRE_REFUSE_VM);
    expect_no(ACTION_YIELD);
    assert_int_equal(status().generation, 3);
}

/* Two of one generation: a takeover made it, so who took over is right. */
static void test_same_generation(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 2, ROLE_RIGHT_TAKEN);
    hello(2);
    expect_turned_away(WIRE_REFUSE_GENERATION);
    expect_no(ACTION_YIELD);
    kit_end(NULL);
    start(policy(ROLE_REPROTECT_AUTO), 2, ROLE_RIGHT_STORED);
    hello(2);
    expect_turned_away(WIRE_REFUSE_BUSY);
    expect_no(ACTION_YIELD);
    kit_end(NULL);
    start(policy(ROLE_REPROTECT_AUTO), 2, ROLE_RIGHT_DOUBTFUL);
    hello(2);
    expect_turned_away(WIRE_REFUSE_BUSY);
    expect(ACTION_YIELD);
    expect_state(PRIMARY_YIELDED);
}

static void test_taken_over_needs_no_leave(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 2, ROLE_RIGHT_TAKEN);
    expect(ACTION_PASS);
    expect(ACTION_CONNECT);
    expect_no(ACTION_STORE);
    kit.session = find(ACTION_CONNECT)->session;
    /* The peer is gone for long: nobody asks the arbiter, nobody holds the guest, it is called again. */
    for (unsigned i = 0; i < 20; i++) {
        say(EVENT_LINK_DOWN, .code = -1, .text = "connection refused");
        expect_no(ACTION_ARBITRATE);
        expect_no(ACTION_HOLD);
        expect_no(ACTION_PASS);
        while (!find(ACTION_CONNECT)) {
            assert_true(primary_deadline(kit.primary) < UINT64_MAX);
            kit.now_ns = primary_deadline(kit.primary);
            say(EVENT_TICK);
            expect_no(ACTION_ARBITRATE);
        }
        kit.session = find(ACTION_CONNECT)->session;
    }
}

static void test_doubtful_right_is_recorded_late(void **state)
{
    (void)state;
    start(policy(ROLE_REPROTECT_AUTO), 2, ROLE_RIGHT_DOUBTFUL);
    expect_no(ACTION_STORE);
    expect_no(ACTION_PASS);
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    struct message_welcome welcome = {.version = 1, .detect_ms = 250, .host = "there"};
    say(EVENT_WELCOME, .welcome = &welcome);
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_true(find(ACTION_STORE)->active);
}

/* --- a planned move --- */

static void moved(enum role_reprotect reprotect, enum role_left left)
{
    struct role_config config = policy(reprotect);
    config.arbiter = false;
    start(config, 1, ROLE_RIGHT_STORED);
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    struct message_welcome welcome = {
        .version = 1, .detect_ms = 250, .optional = WIRE_FEATURES_KNOWN, .host = "there"};
    say(EVENT_WELCOME, .welcome = &welcome);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    say(EVENT_BEGUN);
    for (unsigned i = 0; i < 2; i++) {
        while (!find(ACTION_ROUND)) {
            kit.now_ns = primary_deadline(kit.primary);
            say(EVENT_HEARTBEAT);
        }
        const struct role_action round = *find(ACTION_ROUND);
        say(EVENT_ROUND_SENT, .epoch = round.epoch, .totals = {.frames = 9});
        say(EVENT_ROUND, .epoch = round.epoch, .captured = true, .final = i, .state_bytes = 5);
        say(EVENT_ACK, .epoch = round.epoch);
        if (!i)
            say(EVENT_MIGRATE, .downtime_ns = MS(40), .left = left);
    }
    say(EVENT_LOADED, .epoch = status().epoch);
    say(EVENT_KEPT);
    say(EVENT_STARTED, .epoch = status().epoch, .generation = 2);
    expect_state(PRIMARY_MOVED);
}

static void test_what_a_move_leaves_behind(void **state)
{
    static const struct {
        enum role_reprotect reprotect;
        enum role_left left;
        bool turns;
    } cases[] = {
        {ROLE_REPROTECT_AUTO, ROLE_LEFT_POLICY, true}, {ROLE_REPROTECT_AUTO, ROLE_LEFT_SWAP, true},
        {ROLE_REPROTECT_AUTO, ROLE_LEFT_COLD, false},  {ROLE_REPROTECT_MANUAL, ROLE_LEFT_POLICY, false},
        {ROLE_REPROTECT_MANUAL, ROLE_LEFT_SWAP, true}, {ROLE_REPROTECT_MANUAL, ROLE_LEFT_COLD, false},
    };
    (void)state;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        moved(cases[i].reprotect, cases[i].left);
        hello(2);
        expect_turned_away(WIRE_REFUSE_BUSY);
        assert_int_equal(find(ACTION_TURN) != NULL, cases[i].turns);
        /* An operator may think better of it. */
        if (!cases[i].turns) {
            say(EVENT_REPROTECT);
            expect(ACTION_TURN);
        }
        kit_end(NULL);
    }
}

/* --- standby --- */

static void taken_over(enum role_reprotect reprotect)
{
    struct role_config config = kit_config();
    config.reprotect = reprotect;
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(standby_new(&kit.standby, &config, 1, kit.now_ns), 0);
    struct message_hello message = {.version_min = 1,
                                    .version_max = 1,
                                    .lanes = 1,
                                    .detect_ms = 250,
                                    .vm_uuid = {1, 2, 3},
                                    .host = "there"};
    kit.session = 1;
    say(EVENT_HELLO, .hello = &message);
    say(EVENT_PREPARED);
    say(EVENT_LANES_UP);
    struct message_commit commit = {.state_bytes = 5};
    say(EVENT_ROUND_END, .epoch = 1, .captured = true, .commit = &commit);
    say(EVENT_ROUND_COMPLETE, .epoch = 1, .captured = true);
    say(EVENT_APPLIED, .epoch = 1);
    say(EVENT_TAKEOVER);
    expect(ACTION_TAKEOVER);
    say(EVENT_REPROTECT); /* too early, and said so */
    expect(ACTION_REPORT);
    say(EVENT_RUNNING);
    expect_state(STANDBY_ACTIVE);
    expect_no(ACTION_TURN);
}

static void test_active_turns(void **state)
{
    (void)state;
    taken_over(ROLE_REPROTECT_AUTO);
    assert_true(standby_deadline(kit.standby) <= kit.now_ns);
    say(EVENT_TICK);
    expect(ACTION_TURN);
    expect_state(STANDBY_ENDED);
}

static void test_active_waits_for_the_operator(void **state)
{
    (void)state;
    taken_over(ROLE_REPROTECT_MANUAL);
    run_ms(60000);
    expect_state(STANDBY_ACTIVE);
    say(EVENT_REPROTECT);
    expect_state(STANDBY_ACTIVE);
    run_ms(1);
    expect(ACTION_TURN);
    expect_state(STANDBY_ENDED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(test_newer_at_the_door, kit_end),
        cmocka_unit_test_teardown(test_newer_while_connecting, kit_end),
        cmocka_unit_test_teardown(test_manual_waits_for_the_operator, kit_end),
        cmocka_unit_test_teardown(test_reprotect_refused, kit_end),
        cmocka_unit_test_teardown(test_older_at_the_door, kit_end),
        cmocka_unit_test_teardown(test_other_machine_at_the_door, kit_end),
        cmocka_unit_test_teardown(test_same_generation, kit_end),
        cmocka_unit_test_teardown(test_taken_over_needs_no_leave, kit_end),
        cmocka_unit_test_teardown(test_doubtful_right_is_recorded_late, kit_end),
        cmocka_unit_test_teardown(test_what_a_move_leaves_behind, kit_end),
        cmocka_unit_test_teardown(test_active_turns, kit_end),
        cmocka_unit_test_teardown(test_active_waits_for_the_operator, kit_end),
    };
    return cmocka_run_group_tests_name("reprotect", tests, NULL, NULL);
}
