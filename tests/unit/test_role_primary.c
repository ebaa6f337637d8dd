/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_kit.h"

#include <errno.h>

/* The primary's machine, step by step. What holds over whole lives is for tests/sim. */

static void start(struct role_config config)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(primary_new(&kit.primary, &config, history, 1, kit.now_ns), 0);
    say(EVENT_TICK);
}

static struct role_config stalling(void)
{
    struct role_config config = kit_config();
    config.loss = ROLE_LOSS_STALL;
    return config;
}

static void welcome(bool has_commit, const uint8_t *of, uint64_t epoch)
{
    struct message_welcome welcome = {.version = 1,
                                      .has_commit = has_commit,
                                      .detect_ms = 250,
                                      .optional = WIRE_FEATURE_LZ4,
                                      .committed_epoch = epoch,
                                      .host = "there"};
    if (of)
        memcpy(welcome.history, of, sizeof welcome.history);
    say(EVENT_WELCOME, .welcome = &welcome);
}

static void connected(void)
{
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    expect_send(WIRE_HELLO);
}

/* From ACTION_CONNECT to the first round. Returns whether everything is copied. */
static bool greeted(bool has_commit, const uint8_t *of, uint64_t epoch)
{
    connected();
    welcome(has_commit, of, epoch);
    expect(ACTION_OPEN_LANES);
    expect_send(WIRE_DESCRIBE);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    bool full = find(ACTION_BEGIN)->full;
    say(EVENT_BEGUN);
    expect(ACTION_ROUND);
    return full;
}

/* Answer ACTION_ROUND with a capture, up to COMMIT on the wire. */
static uint64_t commit(void)
{
    const struct role_action round = *find(ACTION_ROUND);
    say(EVENT_ROUND_SENT, .epoch = round.epoch, .round = round.round, .totals = {.frames = 9});
    say(EVENT_ROUND, .epoch = round.epoch, .round = round.round, .captured = true, .pause_ns = MS(2),
        .state_bytes = 5, .state_sum = 6);
    expect_send(WIRE_COMMIT);
    return round.epoch;
}

static void protect(struct role_config config)
{
    start(config);
    greeted(false, NULL, 0);
    say(EVENT_ACK, .epoch = commit());
    expect(ACTION_COMMITTED);
    expect_state(PRIMARY_PROTECTED);
}

static void next_round(void)
{
    while (!find(ACTION_ROUND)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_HEARTBEAT);
    }
}

static void reconnect(void)
{
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
}

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

static void test_refusals_back_off(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    config.detect_ns = MS(4000); /* so that nothing but the next attempt is due */
    start(config);
    uint64_t wanted_ms = 50;
    for (int i = 0; i < 6; i++) {
        connected();
        say(EVENT_REFUSE, .refusal = WIRE_REFUSE_MISMATCH, .text = "machine q35 here, pc there");
        assert_int_equal(primary_deadline(kit.primary) - kit.now_ns, MS(wanted_ms));
        assert_int_equal(find(ACTION_REPORT) != NULL, i == 0); /* the same words again are no news */
        wanted_ms = wanted_ms >= 200 ? 400 : 2 * wanted_ms;
        reconnect();
    }
    assert_non_null(strstr(status().reason, "machine q35 here, pc there"));
}

static void test_newer_generation_yields(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_HEARTBEAT, .generation = 2);
    assert_true(place(ACTION_YIELD) < place(ACTION_STORE));
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_false(find(ACTION_STORE)->active);
    expect_state(PRIMARY_YIELDED);
    assert_false(status().guest_here);
    run_ms(100000);
    expect_state(PRIMARY_YIELDED);
}

static void test_refused_by_who_runs_the_guest(void **state)
{
    (void)state;
    const uint64_t generations[] = {1, 2}; /* 1: the takeover was forced past an arbiter */
    for (int i = 0; i < 2; i++) {
        start(kit_config());
        connected();
        say(EVENT_REFUSE, .refusal = WIRE_REFUSE_GENERATION, .generation = generations[i]);
        expect(ACTION_YIELD);
        expect_state(PRIMARY_YIELDED);
        kit_end(NULL);
    }
    /* Another machine's generation means nothing. */
    start(kit_config());
    connected();
    say(EVENT_REFUSE, .refusal = WIRE_REFUSE_VM, .generation = 9);
    expect_no(ACTION_YIELD);
}

static struct role_config arbitrated(void)
{
    struct role_config config = kit_config();
    config.arbiter = true;
    return config;
}

static void test_stall(void **state)
{
    (void)state;
    protect(stalling());
    say(EVENT_LINK_DOWN);
    expect(ACTION_HOLD);
    expect_state(PRIMARY_STALLED);
    reconnect();
    expect_state(PRIMARY_STALLED); /* the attempt under way is not what the operator asks for */
    connected();
    welcome(true, history, 1);
    expect_no(ACTION_RELEASE);
    say(EVENT_LANES_UP);
    say(EVENT_ACCEPT);
    expect(ACTION_RELEASE);
    expect_state(PRIMARY_COPYING);
}

static void test_stall_needs_something_to_lose(void **state)
{
    (void)state;
    start(stalling());
    greeted(false, NULL, 0);
    say(EVENT_LINK_DOWN);
    expect_no(ACTION_HOLD);
    /* A COMMIT whose ACK is lost may have been committed. */
    reconnect();
    greeted(false, NULL, 0);
    commit();
    say(EVENT_LINK_DOWN);
    expect(ACTION_HOLD);
}

static void test_operator_continues(void **state)
{
    (void)state;
    protect(stalling());
    say(EVENT_CONTINUE);
    expect_no(ACTION_RELEASE);
    say(EVENT_LINK_DOWN);
    say(EVENT_CONTINUE);
    expect(ACTION_RELEASE);
    expect_state(PRIMARY_CONNECTING);
    assert_int_equal(status().generation, 1);
    say(EVENT_LINK_DOWN, .session = find(ACTION_CONNECT)->session);
    expect_no(ACTION_HOLD);
}

static void test_operator_continues_by_leave(void **state)
{
    (void)state;
    struct role_config config = stalling();
    config.arbiter = true;
    protect(config);
    say(EVENT_LINK_DOWN);
    say(EVENT_CONTINUE);
    expect_no(ACTION_RELEASE);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    expect_state(PRIMARY_STALLED);
    expect_no(ACTION_RELEASE);
    say(EVENT_CONTINUE);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    assert_true(place(ACTION_STORE) < place(ACTION_RELEASE));
    assert_int_equal(status().generation, 2);
}

static void test_arbiter_won(void **state)
{
    (void)state;
    protect(arbitrated());
    say(EVENT_LINK_DOWN);
    expect_no(ACTION_ARBITRATE); /* a connection that broke is not yet a standby that died */
    while (!find(ACTION_ARBITRATE)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    assert_int_equal(kit.now_ns - START, MS(250));
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 2);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    expect_no(ACTION_HOLD);
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_true(find(ACTION_STORE)->active);
    /* Nothing to lose any more: asked once. */
    for (int i = 0; i < 50; i++) {
        say(EVENT_LINK_DOWN, .session = status().session);
        expect_no(ACTION_ARBITRATE);
        run_ms(100);
    }
    reconnect();
    assert_false(greeted(true, history, 1));
}

static void test_arbiter_lost(void **state)
{
    (void)state;
    protect(arbitrated());
    run_ms(251);
    expect_state(PRIMARY_ARBITRATING);
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 5);
    expect(ACTION_YIELD);
    assert_int_equal(find(ACTION_STORE)->to, 5);
    assert_false(find(ACTION_STORE)->active);
}

static void test_arbiter_unreachable(void **state)
{
    (void)state;
    protect(arbitrated());
    run_ms(251);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE, .text = "timed out");
    expect(ACTION_HOLD);
    assert_non_null(strstr(status().reason, "timed out"));
    run_ms(60);
    expect_state(PRIMARY_ARBITRATING);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    expect_no(ACTION_HOLD);
    run_ms(110);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON);
    expect(ACTION_RELEASE);
}

static void test_never_protected_asks_gently(void **state)
{
    (void)state;
    start(arbitrated());
    for (int i = 0; i < 20 && status().state != PRIMARY_ARBITRATING; i++) {
        say(EVENT_LINK_DOWN, .session = status().session);
        run_ms(100);
    }
    expect_state(PRIMARY_ARBITRATING);
    assert_true(kit.now_ns - START >= MS(1000));
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    expect_no(ACTION_HOLD);
    run_ms(60);
    expect_state(PRIMARY_ARBITRATING);
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 2);
    expect(ACTION_YIELD);
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

/* --- output --- */

static void test_output_ends_the_epoch_early(void **state)
{
    (void)state;
    struct role_config config = kit_config();
    config.eager = true;
    protect(config);
    assert_int_equal(primary_deadline(kit.primary), kit.now_ns + MS(50) - MS(2));
    say(EVENT_OUTPUT);
    /* 2 ms of pause at a share of 25 percent: no sooner than 8 ms after the capture stopped the guest. */
    assert_int_equal(primary_deadline(kit.primary), kit.now_ns + MS(6));
    run_ms(6);
    expect(ACTION_ROUND);
    /* What is said while the capture is made waits for the next one, which then comes early too. */
    uint64_t epoch = commit();
    say(EVENT_OUTPUT);
    say(EVENT_ACK, .epoch = epoch);
    assert_true(primary_deadline(kit.primary) <= kit.now_ns + MS(6));
    kit.now_ns += MS(8);
    say(EVENT_TICK);
    expect(ACTION_ROUND);
    epoch = commit();
    say(EVENT_ACK, .epoch = epoch);
    run_ms(20); /* nothing waits: the interval */
    assert_int_equal(status().epoch, epoch);
}

static void test_output_waits_for_the_interval(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_OUTPUT);
    assert_int_equal(primary_deadline(kit.primary), kit.now_ns + MS(50) - MS(2));
    say(EVENT_OUTPUT, .urgent = true); /* no more can be held */
    assert_int_equal(primary_deadline(kit.primary), kit.now_ns + MS(6));
}

static void test_output_passes_when_alone(void **state)
{
    (void)state;
    protect(kit_config());
    expect_no(ACTION_PASS);
    say(EVENT_LINK_DOWN, .text = "gone");
    expect_no(ACTION_PASS); /* it may be back at once */
    uint64_t lost_ns = kit.now_ns;
    while (!find(ACTION_PASS)) {
        kit.now_ns = primary_deadline(kit.primary);
        assert_true(kit.now_ns < lost_ns + MS(1000));
        say(EVENT_TICK);
        if (find(ACTION_CONNECT)) {
            kit.session = find(ACTION_CONNECT)->session;
            if (!find(ACTION_PASS))
                say(EVENT_LINK_DOWN, .text = "nobody there");
        }
    }
    assert_true(kit.now_ns >= lost_ns + MS(250));
    assert_true(status().unprotected_ns == lost_ns);
}

static void test_output_stays_held_in_a_short_break(void **state)
{
    (void)state;
    protect(kit_config());
    uint64_t epoch = status().committed_epoch;
    say(EVENT_LINK_DOWN, .text = "gone");
    while (!find(ACTION_CONNECT)) {
        expect_no(ACTION_PASS);
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    greeted(true, history, epoch);
    expect_no(ACTION_PASS);
    say(EVENT_ACK, .epoch = commit());
    expect_no(ACTION_PASS);
    assert_int_equal(status().unprotected_ns, 0);
}

static void test_output_before_contact(void **state)
{
    (void)state;
    struct role_config config = stalling();
    config.takeover = ROLE_TAKEOVER_AUTO; /* a checkpoint of before may be resumed any moment */
    start(config);
    for (int i = 0; i < 20; i++) {
        expect_no(ACTION_PASS);
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
        if (find(ACTION_CONNECT)) {
            kit.session = find(ACTION_CONNECT)->session;
            say(EVENT_LINK_DOWN, .text = "nobody there");
        }
    }
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    connected();
    welcome(false, NULL, 0); /* there is none */
    expect(ACTION_PASS);
}

static void test_output_of_a_guest_that_failed(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_GUEST, .guest = VMM_EVENT_FAILED);
    expect_no(ACTION_PASS);
    expect(ACTION_EXIT);
}

static void test_output_when_stopped(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_STOP);
    expect_send(WIRE_GOODBYE);
    assert_true(place(ACTION_PASS) < place(ACTION_EXIT));
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
        unit(test_refusals_back_off),
        unit(test_newer_generation_yields),
        unit(test_refused_by_who_runs_the_guest),
        unit(test_stall),
        unit(test_stall_needs_something_to_lose),
        unit(test_operator_continues),
        unit(test_operator_continues_by_leave),
        unit(test_arbiter_won),
        unit(test_arbiter_lost),
        unit(test_arbiter_unreachable),
        unit(test_never_protected_asks_gently),
        unit(test_ends),
        unit(test_bounds_on_answers),
        unit(test_output_ends_the_epoch_early),
        unit(test_output_waits_for_the_interval),
        unit(test_output_passes_when_alone),
        unit(test_output_stays_held_in_a_short_break),
        unit(test_output_before_contact),
        unit(test_output_of_a_guest_that_failed),
        unit(test_output_when_stopped),
        unit(test_config),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
