/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_primary_kit.h"

/* The primary's machine, step by step: sessions, epochs, answers. What holds over whole lives is for
 * tests/sim. */

static void test_session(void **state)
{
    (void)state;
    start(kit_config());
    assert_true(place(ACTION_STORE) < place(ACTION_CONNECT));
    assert_true(find(ACTION_STORE)->active);
    assert_int_equal(find(ACTION_STORE)->to, 1);
    expect_state(PRIMARY_CONNECTING);
    assert_true(greeted(false, NULL, 0));
    expect_state(PRIMARY_COPYING);
    assert_false(status().protected_now);
    assert_int_equal(status().optional, WIRE_FEATURE_LZ4);
    assert_string_equal(status().peer, "there");
    say(EVENT_ACK, .epoch = commit());
    assert_true(status().protected_now);
    assert_int_equal(status().committed_epoch, 1);
    assert_string_equal(status().reason, "");
}

static void test_round_and_sent_in_either_order(void **state)
{
    (void)state;
    start(kit_config());
    greeted(false, NULL, 0);
    assert_false(find(ACTION_ROUND)->capture);
    say(EVENT_ROUND, .epoch = 1, .round = 0);
    assert_int_equal(kit.actions.count, 0);
    say(EVENT_ROUND_SENT, .epoch = 1, .round = 0, .totals = {.frames = 3, .sum = 4});
    const struct role_action *round = find_send(WIRE_ROUND);
    assert_non_null(round);
    assert_int_equal(round->totals.frames, 3);
    assert_int_equal(round->totals.sum, 4);
    say(EVENT_ROUND_DONE, .epoch = 1, .round = 0);
    assert_int_equal(find(ACTION_ROUND)->round, 1);
    say(EVENT_ROUND_SENT, .epoch = 1, .round = 1, .totals = {.frames = 5});
    assert_int_equal(kit.actions.count, 0);
    say(EVENT_ROUND, .epoch = 1, .round = 1, .captured = true, .state_bytes = 10, .state_sum = 11);
    const struct role_action *last = find_send(WIRE_COMMIT);
    assert_non_null(last);
    assert_int_equal(last->commit.round, 1);
    assert_int_equal(last->commit.totals.frames, 5);
    assert_int_equal(last->commit.state_bytes, 10);
    assert_int_equal(last->commit.state_sum, 11);
}

static void test_capture_is_forced(void **state)
{
    (void)state;
    start(kit_config());
    greeted(false, NULL, 0);
    for (uint32_t round = 0; round < 3; round++) {
        assert_false(find(ACTION_ROUND)->capture);
        say(EVENT_ROUND_SENT, .epoch = 1, .round = round);
        say(EVENT_ROUND, .epoch = 1, .round = round);
        say(EVENT_ROUND_DONE, .epoch = 1, .round = round);
    }
    assert_true(find(ACTION_ROUND)->capture);
}

static void test_failed_captures_go_on(void **state)
{
    (void)state;
    protect(kit_config());
    next_round();
    for (unsigned i = 1; i <= 5; i++) {
        assert_int_equal(find(ACTION_ROUND)->epoch, 2);
        assert_int_equal(find(ACTION_ROUND)->round, 0);
        say(EVENT_ROUND, .epoch = 2, .round = 0, .code = -ETIME);
        expect_no(ACTION_DISCONNECT);
        expect_no(ACTION_HOLD);
        assert_int_equal(find(ACTION_REPORT) != NULL, i == 3);
        next_round();
    }
    expect_state(PRIMARY_PROTECTED);
    assert_non_null(strstr(status().reason, "5 captures in a row failed"));
    say(EVENT_ACK, .epoch = commit());
    assert_string_equal(status().reason, "");
}

static void test_failed_capture_starts_the_session_anew(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    config.loss = ROLE_LOSS_STALL;
    protect(config);
    next_round();
    say(EVENT_ROUND, .epoch = 2, .round = 0, .code = -EIO, .text = "QMP said no");
    assert_non_null(strstr(find_send(WIRE_REFUSE)->text, "QMP said no"));
    expect(ACTION_DISCONNECT);
    expect_no(ACTION_HOLD); /* the standby is well */
    expect_state(PRIMARY_DISCONNECTED);
    uint64_t then_ns = kit.now_ns;
    reconnect();
    assert_in_range(kit.now_ns - then_ns, MS(50), MS(100));
    expect_no(ACTION_HOLD);
    assert_false(greeted(true, history, 1));
    assert_int_equal(find(ACTION_ROUND)->epoch, 3);

    /* Where it does not answer, the guest is held before it can take over. */
    say(EVENT_ROUND, .epoch = 3, .round = 0, .code = -EIO);
    then_ns = kit.now_ns;
    while (!find(ACTION_HOLD)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    assert_int_equal(kit.now_ns - then_ns, MS(250));
    expect_state(PRIMARY_STALLED);
}

static void test_interval(void **state)
{
    (void)state;
    protect(kit_config()); /* pause 2 ms, the ACK at once */
    uint64_t captured_ns = kit.now_ns - MS(2);
    next_round();
    assert_int_equal(kit.now_ns - captured_ns, MS(50));
    /* A pause of 100 ms at a share of 25 % stretches the interval, smoothed over captures. */
    for (int i = 0; i < 40; i++) {
        const struct role_action round = *find(ACTION_ROUND);
        kit.now_ns += MS(100);
        say(EVENT_ROUND_SENT, .epoch = round.epoch);
        say(EVENT_ROUND, .epoch = round.epoch, .captured = true, .pause_ns = MS(100));
        captured_ns = kit.now_ns - MS(100);
        say(EVENT_ACK, .epoch = round.epoch);
        next_round();
    }
    assert_in_range(kit.now_ns - captured_ns, MS(390), MS(400));
    assert_in_range(status().interval_ns, MS(390), MS(400));
    /* A slow standby: the next epoch starts at its ACK. */
    uint64_t epoch = commit();
    for (int i = 0; i < 20; i++) {
        later_ms(50);
        say(EVENT_HEARTBEAT);
        expect_no(ACTION_ROUND);
    }
    say(EVENT_ACK, .epoch = epoch);
    expect(ACTION_ROUND);
}

static void test_heartbeats_and_silence(void **state)
{
    (void)state;
    protect(kit_config());
    unsigned beats = 0;
    for (int i = 0; i < 24; i++) {
        later_ms(10);
        say(EVENT_TICK);
        beats += find_send(WIRE_HEARTBEAT) != NULL;
    }
    assert_in_range(beats, 4, 5);
    expect_state(PRIMARY_PROTECTED);
    later_ms(10);
    say(EVENT_TICK);
    expect(ACTION_DISCONNECT);
    expect_no(ACTION_HOLD);
    expect_state(PRIMARY_DISCONNECTED);
    assert_non_null(strstr(status().reason, "silent for 250 ms"));
}

static void test_own_sleep_is_no_silence(void **state)
{
    (void)state;
    protect(kit_config());
    later_ms(100);
    say(EVENT_TICK);
    later_ms(200);
    say(EVENT_TICK);
    expect_no(ACTION_DISCONNECT);
    say(EVENT_HEARTBEAT);
    expect_state(PRIMARY_PROTECTED);
}

/* The standby has given us up long ago; what it said before counts no more. */
static void test_long_sleep_ends_the_session(void **state)
{
    (void)state;
    protect(stalling());
    next_round();
    uint64_t epoch = commit();
    later_ms(250);
    say(EVENT_ACK, .epoch = epoch);
    expect_no(ACTION_COMMITTED);
    expect(ACTION_DISCONNECT);
    expect(ACTION_HOLD);
    reconnect();
    connected();
    welcome(true, history, epoch);
    expect(ACTION_ADOPT);
    say(EVENT_LANES_UP);
    later_ms(200);
    say(EVENT_ACCEPT);
    expect_no(ACTION_RELEASE);
    expect_state(PRIMARY_STALLED);
}

static void test_changes_only(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_LINK_DOWN, .code = -ECONNRESET, .text = "reset");
    expect(ACTION_DISCONNECT);
    reconnect();
    assert_false(greeted(true, history, 1));
    expect_no(ACTION_ADOPT);
    assert_int_equal(find(ACTION_ROUND)->epoch, 2);
}

static void test_everything_when_the_checkpoint_is_not_ours(void **state)
{
    (void)state;
    protect(kit_config());
    const struct {
        bool has;
        const uint8_t *of;
        uint64_t epoch;
    } cases[] = {{false, NULL, 0}, {true, other_history, 1}, {true, history, 77}, {true, history, 0}};
    for (unsigned i = 0; i < 4; i++) {
        say(EVENT_LINK_DOWN);
        reconnect();
        assert_true(greeted(cases[i].has, cases[i].of, cases[i].epoch));
    }
}

static void test_lost_ack_is_adopted(void **state)
{
    (void)state;
    protect(kit_config());
    next_round();
    assert_int_equal(commit(), 2);
    say(EVENT_LINK_DOWN);
    reconnect();
    connected();
    welcome(true, history, 2);
    assert_int_equal(find(ACTION_ADOPT)->epoch, 2);
    assert_int_equal(status().committed_epoch, 2);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    assert_false(find(ACTION_BEGIN)->full);
}

static void test_a_foreign_epoch_of_the_same_number_is_not_adopted(void **state)
{
    (void)state;
    start(kit_config());
    greeted(true, other_history, 1);
    assert_int_equal(commit(), 1);
    say(EVENT_LINK_DOWN);
    reconnect();
    connected();
    welcome(true, other_history, 1);
    expect_no(ACTION_ADOPT);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    assert_true(find(ACTION_BEGIN)->full);
}

static void test_answers_of_a_former_session(void **state)
{
    (void)state;
    protect(kit_config());
    next_round();
    uint64_t epoch = commit(), former = kit.session;
    say(EVENT_LINK_DOWN);
    say(EVENT_ACK, .session = former, .epoch = epoch);
    expect_no(ACTION_COMMITTED);
    reconnect();
    greeted(true, history, 1);
    assert_int_equal(find(ACTION_ROUND)->epoch, epoch + 1); /* no number ever means two contents */
    say(EVENT_ACK, .session = former, .epoch = epoch);
    say(EVENT_ROUND, .session = former, .epoch = epoch, .captured = true);
    assert_int_equal(kit.actions.count, 0);
    expect_state(PRIMARY_COPYING);
}

static void test_violations(void **state)
{
    (void)state;
    const struct role_event bad[] = {
        {.type = EVENT_ACK, .epoch = 1},
        {.type = EVENT_ACK, .epoch = 9},
        {.type = EVENT_ROUND_DONE, .epoch = 2},
        {.type = EVENT_ACCEPT},
    };
    protect(kit_config());
    for (unsigned i = 0; i < 4; i++) {
        next_round();
        uint64_t acked = status().committed_epoch;
        say_event(bad[i]);
        const struct role_action *refuse = find_send(WIRE_REFUSE);
        assert_non_null(refuse);
        assert_int_equal(refuse->refusal, WIRE_REFUSE_PROTOCOL);
        expect(ACTION_DISCONNECT);
        expect_no(ACTION_COMMITTED);
        assert_int_equal(status().committed_epoch, acked);
        reconnect();
        greeted(true, history, acked);
        say(EVENT_ACK, .epoch = commit());
    }
}

static void test_unasked_features(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    config.optional = WIRE_FEATURE_VERIFY;
    start(config);
    connected();
    welcome(false, NULL, 0);
    expect_send(WIRE_REFUSE);
    expect_state(PRIMARY_DISCONNECTED);
}

static void test_ends(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_GUEST, .guest = VMM_EVENT_ENDED);
    assert_int_equal(find_send(WIRE_GOODBYE)->reason, WIRE_GOODBYE_GUEST_ENDED);
    assert_true(place(ACTION_DISCONNECT) > (unsigned)(find_send(WIRE_GOODBYE) - kit.actions.items));
    assert_int_equal(find(ACTION_EXIT)->code, 0);
    kit_end(NULL);

    protect(kit_config());
    say(EVENT_GUEST, .guest = VMM_EVENT_FAILED);
    assert_int_equal(find_send(WIRE_GOODBYE)->reason, WIRE_GOODBYE_GUEST_FAILED);
    assert_true(find(ACTION_EXIT)->code < 0);
    kit_end(NULL);

    /* It may run: the standby must not. */
    protect(kit_config());
    say(EVENT_GUEST, .guest = VMM_EVENT_LOST);
    assert_int_equal(find_send(WIRE_GOODBYE)->reason, WIRE_GOODBYE_STOP);
    expect_no(ACTION_STORE);
    expect_no(ACTION_PASS); /* as if this engine had died */
    assert_true(find(ACTION_EXIT)->code < 0);
    kit_end(NULL);

    protect(kit_config());
    say(EVENT_STOP);
    assert_int_equal(find_send(WIRE_GOODBYE)->reason, WIRE_GOODBYE_STOP);
    expect_no(ACTION_STORE);
    expect(ACTION_EXIT);
    say(EVENT_STOP);
    assert_int_equal(kit.actions.count, 0);
    assert_true(primary_deadline(kit.primary) == UINT64_MAX);
}

static void test_bounds_on_answers(void **state)
{
    (void)state;
    start(kit_config());
    kit.session = find(ACTION_CONNECT)->session;
    run_ms(2001);
    expect_state(PRIMARY_DISCONNECTED);
    assert_non_null(strstr(status().reason, "no connection"));
    kit_end(NULL);

    protect(kit_config());
    next_round();
    commit();
    for (int i = 0; i < 51; i++) { /* alive, but it does not answer */
        later_ms(100);
        say(EVENT_HEARTBEAT);
    }
    assert_false(status().protected_now);
    assert_non_null(strstr(status().reason, "no ACK"));
}

static void test_config(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    assert_int_equal(role_config_check(&config), 0);
    config.takeover = ROLE_TAKEOVER_AUTO;
    assert_int_equal(role_config_check(&config), -EINVAL);
    assert_non_null(strstr(error_text(), "needs an arbiter"));
    config.arbiter = true;
    assert_int_equal(role_config_check(&config), 0);
    config.arbiter = false;
    config.loss = ROLE_LOSS_STALL;
    assert_int_equal(role_config_check(&config), 0);
    config.detect_ns = MS(1);
    assert_int_equal(role_config_check(&config), -EINVAL);
    assert_non_null(strstr(error_text(), "detect"));
    assert_int_equal(primary_new(&kit.primary, &config, history, 1, 0), -EINVAL);
    config = kit_config();
    assert_int_equal(primary_new(&kit.primary, &config, history, 0, 0), -EINVAL);
    assert_null(kit.primary);
    for (int i = 0; i <= STANDBY_ENDED; i++)
        assert_true(strlen(role_state_name((enum role_state)i)) > 3);
}

#define unit(test) cmocka_unit_test_teardown(test, kit_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        unit(test_session),
        unit(test_round_and_sent_in_either_order),
        unit(test_capture_is_forced),
        unit(test_failed_captures_go_on),
        unit(test_failed_capture_starts_the_session_anew),
        unit(test_interval),
        unit(test_heartbeats_and_silence),
        unit(test_own_sleep_is_no_silence),
        unit(test_long_sleep_ends_the_session),
        unit(test_changes_only),
        unit(test_everything_when_the_checkpoint_is_not_ours),
        unit(test_lost_ack_is_adopted),
        unit(test_a_foreign_epoch_of_the_same_number_is_not_adopted),
        unit(test_answers_of_a_former_session),
        unit(test_violations),
        unit(test_unasked_features),
        unit(test_ends),
        unit(test_bounds_on_answers),
        unit(test_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
