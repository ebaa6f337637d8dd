/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_kit.h"

#include <errno.h>

/* The standby's machine, step by step. What holds over whole lives is for tests/sim. */

static void start(struct role_config config, uint64_t generation)
{
    kit.now_ns = START;
    kit.generation = 1;
    assert_int_equal(standby_new(&kit.standby, &config, generation, kit.now_ns), 0);
}

static struct message_hello kit_hello(void)
{
    struct message_hello hello = {.version_min = 1,
                                  .version_max = 1,
                                  .lanes = 2,
                                  .detect_ms = 250,
                                  .optional = WIRE_FEATURE_LZ4,
                                  .vm_uuid = {1, 2, 3},
                                  .host = "there"};
    memcpy(hello.history, history, sizeof hello.history);
    return hello;
}

static void hello(uint64_t session, uint64_t generation)
{
    struct message_hello hello = kit_hello();
    say(EVENT_HELLO, .session = session, .generation = generation, .hello = &hello);
}

/* A session, up to ACCEPT and data lanes. */
static void session(uint64_t number, uint64_t generation)
{
    hello(number, generation);
    expect_send(WIRE_WELCOME);
    expect(ACTION_PREPARE);
    kit.session = number;
    kit.generation = generation;
    say(EVENT_PREPARED);
    expect_send(WIRE_ACCEPT);
    say(EVENT_LANES_UP);
    expect_state(STANDBY_RECEIVING);
}

static void arrive(uint64_t epoch, uint32_t round, bool commit)
{
    struct message_commit message = {.round = round, .state_bytes = 3};
    say(EVENT_ROUND_END, .epoch = epoch, .round = round, .captured = commit,
        .commit = commit ? &message : NULL, .totals = {.frames = 4});
    expect(ACTION_EXPECT);
    say(EVENT_ROUND_COMPLETE, .epoch = epoch, .round = round, .captured = commit);
}

static void commit_and_apply(uint64_t epoch)
{
    arrive(epoch, 0, true);
    expect(ACTION_COMMIT);
    say(EVENT_APPLIED, .epoch = epoch);
}

static void protect(struct role_config config)
{
    start(config, 0);
    session(1, 1);
    commit_and_apply(1);
    assert_true(status().protected_now);
}

static struct role_config automatic(void)
{
    struct role_config config = kit_config();
    config.takeover = ROLE_TAKEOVER_AUTO;
    config.loss = ROLE_LOSS_STALL;
    return config;
}

static struct role_config arbitrated(void)
{
    struct role_config config = automatic();
    config.loss = ROLE_LOSS_CONTINUE;
    config.arbiter = true;
    return config;
}

static void run_until(enum role_action_type wanted)
{
    for (int i = 0; i < 1000 && !find(wanted); i++) {
        kit.now_ns = standby_deadline(kit.standby);
        say(EVENT_TICK);
    }
    expect(wanted);
}

static void test_epochs(void **state)
{
    (void)state;
    start(kit_config(), 0);
    expect_state(STANDBY_WAITING);
    hello(1, 3);
    assert_true(place(ACTION_STORE) < (unsigned)(find_send(WIRE_WELCOME) - kit.actions.items));
    assert_int_equal(find(ACTION_STORE)->to, 3);
    assert_false(find(ACTION_STORE)->active);
    const struct message_welcome *welcome = &find_send(WIRE_WELCOME)->welcome;
    assert_false(welcome->has_commit);
    assert_int_equal(welcome->optional, WIRE_FEATURE_LZ4);
    assert_int_equal(welcome->staging_bytes, 1 << 20);
    assert_string_equal(welcome->host, "here");
    assert_false(find(ACTION_PREPARE)->fresh);
    kit.session = 1;
    kit.generation = 3;
    say(EVENT_PREPARED);
    say(EVENT_LANES_UP);

    arrive(1, 0, false);
    assert_int_equal(find_send(WIRE_ROUND_DONE)->round, 0);
    arrive(1, 1, false);
    assert_int_equal(find_send(WIRE_ROUND_DONE)->round, 1);
    assert_false(status().protected_now);
    arrive(1, 2, true);
    assert_true(place(ACTION_COMMIT) < (unsigned)(find_send(WIRE_ACK) - kit.actions.items));
    assert_true(place(ACTION_APPLY) > place(ACTION_COMMIT));
    assert_int_equal(find_send(WIRE_ACK)->epoch, 1);
    assert_int_equal(status().committed_epoch, 1);
    assert_true(status().protected_now);
}

static void test_commit_waits_for_apply(void **state)
{
    (void)state;
    start(kit_config(), 0);
    session(1, 1);
    arrive(1, 0, true);
    expect(ACTION_APPLY);
    arrive(2, 0, true);
    expect_no(ACTION_COMMIT);
    assert_null(find_send(WIRE_ACK));
    say(EVENT_APPLIED, .epoch = 1);
    assert_int_equal(find(ACTION_COMMIT)->epoch, 2);
    assert_int_equal(find_send(WIRE_ACK)->epoch, 2);
}

static void test_rounds_before_lanes_up(void **state)
{
    (void)state;
    start(kit_config(), 0);
    hello(1, 1);
    kit.session = 1;
    say(EVENT_ROUND_END, .epoch = 1);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_PROTOCOL); /* before ACCEPT */
    hello(2, 1);
    kit.session = 2;
    say(EVENT_PREPARED);
    arrive(1, 0, true); /* the primary saw the lanes first */
    expect(ACTION_COMMIT);
}

static void test_order_of_rounds(void **state)
{
    (void)state;
    const struct {
        uint64_t epoch;
        uint32_t round;
    } bad[] = {{1, 0}, {0, 0}, {2, 1}, {5, 3}};
    for (unsigned i = 0; i < 4; i++) {
        protect(kit_config());
        say(EVENT_ROUND_END, .epoch = bad[i].epoch, .round = bad[i].round);
        assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_PROTOCOL);
        expect(ACTION_DISCONNECT);
        expect_state(STANDBY_LOST);
        assert_int_equal(status().committed_epoch, 1);
        kit_end(NULL);
    }
    /* Within an epoch. */
    protect(kit_config());
    arrive(2, 0, false);
    say(EVENT_ROUND_END, .epoch = 3, .round = 0);
    expect_send(WIRE_REFUSE);
    /* An old epoch of the same history, in a new session. */
    session(2, 1);
    say(EVENT_ROUND_END, .epoch = 1, .round = 0, .captured = true);
    expect_send(WIRE_REFUSE);
    kit_end(NULL);
    /* Two rounds at once. */
    protect(kit_config());
    say(EVENT_ROUND_END, .epoch = 2, .round = 0);
    expect(ACTION_EXPECT);
    say(EVENT_ROUND_END, .epoch = 2, .round = 1);
    expect_send(WIRE_REFUSE);
}

static void test_generation_of_frames(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_ROUND_END, .generation = 2, .epoch = 2);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_PROTOCOL);
    expect_no(ACTION_EXPECT);
}

static void test_bad_epoch_is_refused(void **state)
{
    (void)state;
    const struct {
        int code;
        uint32_t refusal;
    } cases[] = {{-EBADMSG, WIRE_REFUSE_CORRUPT},
                 {-ENOSPC, WIRE_REFUSE_STAGING},
                 {-EPROTO, WIRE_REFUSE_PROTOCOL},
                 {-EIO, WIRE_REFUSE_INTERNAL}};
    protect(kit_config());
    for (unsigned i = 0; i < 4; i++) {
        say(EVENT_ROUND_END, .epoch = 2, .captured = true);
        say(EVENT_ROUND_COMPLETE, .epoch = 2, .captured = true, .code = cases[i].code, .text = "sum differs");
        expect_no(ACTION_COMMIT);
        assert_int_equal(find_send(WIRE_REFUSE)->refusal, cases[i].refusal);
        assert_non_null(strstr(find_send(WIRE_REFUSE)->text, "sum differs"));
        expect_state(STANDBY_LOST);
        assert_int_equal(status().committed_epoch, 1);
        session(i + 2, 1);
    }
}

static void test_bad_page_before_the_end_of_its_round(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_ROUND_COMPLETE, .epoch = 2, .code = -ENOSPC, .text = "staging is full");
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_STAGING);
    assert_int_equal(status().committed_epoch, 1);
}

static void test_hello_is_checked(void **state)
{
    (void)state;
    start(kit_config(), 5);
    const struct {
        uint32_t refusal;
        uint16_t min, max;
        uint8_t uuid;
        uint64_t required, generation;
    } cases[] = {
        {WIRE_REFUSE_VERSION, 2, 3, 1, 0, 5},
        {WIRE_REFUSE_VM, 1, 1, 9, 0, 5},
        {WIRE_REFUSE_FEATURE, 1, 1, 1, 1u << 9, 5},
        {WIRE_REFUSE_GENERATION, 1, 1, 1, 0, 4},
    };
    for (unsigned i = 0; i < 4; i++) {
        struct message_hello hello = kit_hello();
        hello.version_min = cases[i].min;
        hello.version_max = cases[i].max;
        hello.vm_uuid[0] = cases[i].uuid;
        hello.required = cases[i].required;
        say(EVENT_HELLO, .session = i + 1, .generation = cases[i].generation, .hello = &hello);
        assert_int_equal(find_send(WIRE_REFUSE)->refusal, cases[i].refusal);
        assert_int_equal(find_send(WIRE_REFUSE)->session, i + 1);
        assert_int_equal(find(ACTION_DISCONNECT)->session, i + 1);
        expect_no(ACTION_PREPARE);
        expect_state(STANDBY_WAITING);
    }
    assert_int_equal(status().generation, 5);
}

static void test_second_session(void **state)
{
    (void)state;
    protect(kit_config());
    /* Another guest's: the one that is up stays. */
    struct message_hello other = kit_hello();
    memcpy(other.history, other_history, sizeof other.history);
    strcpy(other.host, "elsewhere");
    say(EVENT_HELLO, .session = 2, .hello = &other);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_BUSY);
    assert_int_equal(find(ACTION_DISCONNECT)->session, 2);
    expect_state(STANDBY_RECEIVING);
    assert_int_equal(status().session, 1);
    /* The same guest's: its engine has given the old one up. */
    hello(3, 1);
    assert_int_equal(find(ACTION_DISCONNECT)->session, 1);
    assert_int_equal(find_send(WIRE_WELCOME)->session, 3);
    assert_true(find_send(WIRE_WELCOME)->welcome.has_commit);
    assert_int_equal(find_send(WIRE_WELCOME)->welcome.committed_epoch, 1);
    say(EVENT_LINK_DOWN, .session = 1);
    expect_state(STANDBY_GREETED);
    /* Its engine died and is back before we have noticed: a new history, the same host. */
    strcpy(other.host, "there");
    say(EVENT_HELLO, .session = 4, .hello = &other);
    assert_int_equal(find(ACTION_DISCONNECT)->session, 3);
    expect_send(WIRE_WELCOME);
    assert_int_equal(status().session, 4);
}

static void test_prepare_fails(void **state)
{
    (void)state;
    start(kit_config(), 0);
    hello(1, 1);
    kit.session = 1;
    say(EVENT_PREPARED, .code = -EXDEV, .refusal = WIRE_REFUSE_MISMATCH,
        .text = "machine q35 here, pc there");
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_MISMATCH);
    assert_string_equal(find_send(WIRE_REFUSE)->text, "machine q35 here, pc there");
    expect_state(STANDBY_WAITING);
    assert_non_null(strstr(status().reason, "pc there"));
}

static void test_broken_by_apply(void **state)
{
    (void)state;
    start(automatic(), 0);
    session(1, 1);
    arrive(1, 0, true);
    say(EVENT_APPLIED, .epoch = 1, .code = -EIO, .text = "disk");
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GUEST);
    expect_state(STANDBY_WAITING);
    assert_int_equal(status().committed_epoch, 0);
    run_ms(1000);
    expect_state(STANDBY_WAITING);
    say(EVENT_TAKEOVER, .force = true);
    expect_no(ACTION_TAKEOVER);
    assert_non_null(strstr(find(ACTION_REPORT)->text, "broken"));
    hello(2, 1);
    assert_false(find_send(WIRE_WELCOME)->welcome.has_commit);
    assert_true(find(ACTION_PREPARE)->fresh);
    kit.session = 2;
    say(EVENT_PREPARED);
    say(EVENT_LANES_UP);
    commit_and_apply(2);
    say(EVENT_LINK_DOWN);
    expect_state(STANDBY_LOST);
}

static void test_waiting_guest_dies(void **state)
{
    (void)state;
    protect(automatic());
    say(EVENT_GUEST, .guest = VMM_EVENT_FAILED);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GUEST);
    expect_state(STANDBY_WAITING);
    assert_int_equal(status().committed_epoch, 0);
    hello(2, 1);
    assert_true(find(ACTION_PREPARE)->fresh);
}

static void test_automatic(void **state)
{
    (void)state;
    protect(automatic());
    uint64_t heard_ns = kit.now_ns;
    later_ms(100);
    say(EVENT_HEARTBEAT, .epoch = 1);
    heard_ns = kit.now_ns;
    later_ms(20);
    say(EVENT_LINK_DOWN, .code = -ECONNRESET, .text = "reset"); /* does not shorten the wait */
    expect_state(STANDBY_LOST);
    run_until(ACTION_TAKEOVER);
    assert_int_equal(kit.now_ns - heard_ns, MS(250));
    assert_true(place(ACTION_STORE) < place(ACTION_TAKEOVER));
    assert_int_equal(find(ACTION_STORE)->to, 2);
    assert_true(find(ACTION_STORE)->active);
    expect_state(STANDBY_TAKING_OVER);
    say(EVENT_RUNNING);
    expect_state(STANDBY_ACTIVE);
    assert_true(status().guest_here);
    assert_int_equal(status().generation, 2);
}

static void test_silence_in_a_session(void **state)
{
    (void)state;
    protect(automatic());
    uint64_t heard_ns = kit.now_ns;
    run_until(ACTION_TAKEOVER);
    assert_int_equal(kit.now_ns - heard_ns, MS(250));
    assert_true(place(ACTION_DISCONNECT) < place(ACTION_TAKEOVER));
}

static void test_primary_is_back_in_time(void **state)
{
    (void)state;
    protect(automatic());
    say(EVENT_LINK_DOWN);
    run_ms(200);
    hello(2, 1);
    kit.session = 2;
    expect_state(STANDBY_GREETED);
    run_ms(200);
    expect_state(STANDBY_GREETED);
    run_until(ACTION_TAKEOVER); /* the old checkpoint stays good until a new one is committed */
}

static void test_own_sleep_is_no_silence(void **state)
{
    (void)state;
    protect(automatic());
    later_ms(5000);
    say(EVENT_TICK);
    expect_no(ACTION_TAKEOVER);
    expect_state(STANDBY_RECEIVING);
    say(EVENT_HEARTBEAT);
    say(EVENT_LINK_DOWN);
    run_ms(100);
    later_ms(5000);
    say(EVENT_TICK);
    expect_no(ACTION_TAKEOVER);
    expect_state(STANDBY_LOST);
}

static void test_goodbye(void **state)
{
    (void)state;
    protect(automatic());
    say(EVENT_GOODBYE, .reason = WIRE_GOODBYE_GUEST_FAILED);
    expect(ACTION_TAKEOVER); /* at once */
    kit_end(NULL);

    const uint32_t orderly[] = {WIRE_GOODBYE_STOP, WIRE_GOODBYE_GUEST_ENDED};
    for (int i = 0; i < 2; i++) {
        protect(automatic());
        say(EVENT_GOODBYE, .reason = orderly[i]);
        run_ms(10000);
        expect_state(STANDBY_LOST);
        kit_end(NULL);
    }

    protect(kit_config()); /* manual */
    say(EVENT_GOODBYE, .reason = WIRE_GOODBYE_GUEST_FAILED);
    run_ms(10000);
    expect_state(STANDBY_LOST);
    assert_non_null(strstr(status().reason, "epoch 1 can be taken over"));
}

static void test_stopped_primary_is_not_taken_over_later(void **state)
{
    (void)state;
    protect(automatic());
    say(EVENT_GOODBYE, .reason = WIRE_GOODBYE_STOP);
    session(2, 1);
    say(EVENT_LINK_DOWN); /* before a new epoch: the guest ran unprotected since the checkpoint here */
    run_ms(10000);
    expect_state(STANDBY_LOST);
    session(3, 1);
    commit_and_apply(2);
    say(EVENT_LINK_DOWN);
    run_until(ACTION_TAKEOVER);
}

static void test_operator_takes_over(void **state)
{
    (void)state;
    start(kit_config(), 0);
    say(EVENT_TAKEOVER, .force = true);
    expect_no(ACTION_TAKEOVER);
    assert_non_null(strstr(find(ACTION_REPORT)->text, "no checkpoint"));
    kit_end(NULL);

    protect(kit_config());
    say(EVENT_TAKEOVER);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GENERATION);
    assert_true((unsigned)(find_send(WIRE_REFUSE) - kit.actions.items) < place(ACTION_DISCONNECT));
    assert_true(place(ACTION_DISCONNECT) < place(ACTION_TAKEOVER));
    assert_int_equal(status().generation, 2);
    say(EVENT_TAKEOVER);
    expect_no(ACTION_TAKEOVER);
}

static void test_takeover_waits_for_apply(void **state)
{
    (void)state;
    start(kit_config(), 0);
    session(1, 1);
    arrive(1, 0, true);
    say(EVENT_TAKEOVER);
    expect_state(STANDBY_TAKING_OVER);
    expect_no(ACTION_TAKEOVER);
    say(EVENT_APPLIED, .epoch = 1);
    expect(ACTION_TAKEOVER);
    kit_end(NULL);

    start(kit_config(), 0);
    session(1, 1);
    arrive(1, 0, true);
    say(EVENT_TAKEOVER);
    say(EVENT_APPLIED, .epoch = 1, .code = -EIO);
    expect_no(ACTION_TAKEOVER);
    expect_state(STANDBY_FAILED);
}

static void test_arbiter(void **state)
{
    (void)state;
    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 2);
    expect_no(ACTION_TAKEOVER);
    hello(2, 1);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_BUSY);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    expect(ACTION_TAKEOVER);
    kit_end(NULL);

    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 2);
    expect_state(STANDBY_WAITING);
    assert_non_null(strstr(status().reason, "arbitration lost"));
    run_ms(10000);
    expect_state(STANDBY_WAITING);
    /* The primary that won comes back and dies before it has sent anything new. */
    session(2, 2);
    say(EVENT_LINK_DOWN);
    run_ms(10000);
    expect_state(STANDBY_LOST);
    assert_non_null(strstr(status().reason, "alone"));
    say(EVENT_TAKEOVER); /* the arbiter would be asked from the checkpoint's generation, and say no */
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 3);
    say(EVENT_TAKEOVER, .force = true);
    expect(ACTION_TAKEOVER);
    assert_int_equal(status().generation, 3);
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 2); /* too late to matter */
    expect_state(STANDBY_TAKING_OVER);
}

static void test_primary_went_alone(void **state)
{
    (void)state;
    protect(arbitrated());
    say(EVENT_LINK_DOWN);
    run_ms(100);
    session(2, 2); /* it won the arbitration before it came back; nothing new is committed yet */
    say(EVENT_LINK_DOWN);
    run_ms(10000);
    expect_state(STANDBY_LOST);
    expect_no(ACTION_ARBITRATE);
    session(3, 2);
    commit_and_apply(2);
    say(EVENT_LINK_DOWN);
    run_until(ACTION_ARBITRATE);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 2);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 3);
}

static void test_arbiter_unreachable(void **state)
{
    (void)state;
    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    uint64_t wanted_ms = 50;
    for (int i = 0; i < 4; i++) {
        say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE, .text = "locked");
        expect_state(STANDBY_LOST);
        assert_non_null(strstr(status().reason, "locked"));
        uint64_t then_ns = kit.now_ns;
        run_until(ACTION_ARBITRATE);
        assert_int_equal(kit.now_ns - then_ns, MS(wanted_ms));
        wanted_ms *= 2;
    }
    hello(2, 1); /* turned away, but no longer silent */
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_BUSY);
    uint64_t heard_ns = kit.now_ns;
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    run_until(ACTION_ARBITRATE);
    assert_true(kit.now_ns - heard_ns >= MS(250));
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    hello(2, 1);
    expect_send(WIRE_WELCOME);
    kit.session = 2;
    run_ms(200);
    expect_state(STANDBY_GREETED);
}

static void test_fence(void **state)
{
    (void)state;
    struct role_config config = automatic(); /* stall, no arbiter */
    config.fence = true;
    protect(config);
    run_until(ACTION_ARBITRATE);
    assert_true(find(ACTION_ARBITRATE)->fence);
    assert_non_null(strstr(status().reason, "host is fenced"));
    hello(2, 1); /* the primary is about to be switched off: it must not get a session */
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_BUSY);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNFENCED, .text = "fence /a: exit status 1: no route");
    expect_no(ACTION_TAKEOVER);
    expect_state(STANDBY_LOST);
    assert_non_null(
        strstr(status().reason, "not fenced: fence /a: exit status 1: no route; it is tried again"));
    assert_int_equal(status().generation, 1);
    run_until(ACTION_ARBITRATE);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    expect(ACTION_TAKEOVER);
    kit_end(NULL);

    config = arbitrated();
    protect(config); /* none is configured */
    run_until(ACTION_ARBITRATE);
    assert_false(find(ACTION_ARBITRATE)->fence);
    kit_end(NULL);

    config = kit_config(); /* a person's takeover is fenced, too, unless forced */
    config.fence = true;
    protect(config);
    say(EVENT_LINK_DOWN);
    say(EVENT_TAKEOVER);
    assert_true(find(ACTION_ARBITRATE)->fence);
    expect_no(ACTION_TAKEOVER);
    say(EVENT_TAKEOVER, .force = true);
    expect(ACTION_TAKEOVER);
}

static void test_guest_breaks_while_the_arbiter_is_asked(void **state)
{
    (void)state;
    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    say(EVENT_GUEST, .guest = VMM_EVENT_FAILED);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    expect_no(ACTION_TAKEOVER);
    expect_state(STANDBY_WAITING);
    assert_int_equal(status().generation, 1);
    hello(2, 1);
    expect_send(WIRE_WELCOME);
}

static void test_active(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_TAKEOVER);
    hello(2, 1);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GENERATION);
    say(EVENT_RUNNING);
    hello(3, 2); /* a tie: who runs the guest wins */
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GENERATION);
    expect_state(STANDBY_ACTIVE);
    hello(4, 3); /* the takeover had been forced against somebody who was allowed to go on */
    expect(ACTION_YIELD);
    assert_int_equal(find(ACTION_STORE)->to, 3);
    assert_false(find(ACTION_STORE)->active);
    expect_state(STANDBY_FAILED);
    kit_end(NULL);

    protect(kit_config());
    say(EVENT_TAKEOVER);
    say(EVENT_STOP); /* not in the middle */
    expect_no(ACTION_EXIT);
    say(EVENT_RUNNING);
    assert_int_equal(find(ACTION_EXIT)->code, 0);
    kit_end(NULL);

    protect(kit_config());
    say(EVENT_TAKEOVER);
    say(EVENT_RUNNING, .code = -EIO, .text = "load failed");
    expect_state(STANDBY_FAILED);
    assert_non_null(strstr(status().reason, "load failed"));
    hello(2, 1);
    expect_no(ACTION_PREPARE);
    say(EVENT_STOP);
    expect(ACTION_EXIT);
}

static void test_stop(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_STOP);
    assert_int_equal(find_send(WIRE_GOODBYE)->reason, WIRE_GOODBYE_STOP);
    expect(ACTION_DISCONNECT);
    expect(ACTION_EXIT);
    expect_state(STANDBY_ENDED);
    hello(2, 1);
    assert_int_equal(kit.actions.count, 0);
}

/* The arbiter may give the right while the operator stops the engine: then somebody must run the guest. */
static void test_stop_while_arbitrating(void **state)
{
    (void)state;
    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    say(EVENT_STOP);
    expect_no(ACTION_EXIT);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 2);
    expect(ACTION_TAKEOVER);
    expect_no(ACTION_EXIT);
    say(EVENT_RUNNING);
    expect(ACTION_EXIT);
    expect_state(STANDBY_ENDED);
    kit_end(NULL);

    for (enum role_arbiter answer = ARBITER_LOST; answer <= ARBITER_UNFENCED; answer++) {
        protect(arbitrated());
        run_until(ACTION_ARBITRATE);
        say(EVENT_STOP);
        expect_no(ACTION_EXIT);
        say(EVENT_ARBITER, .arbiter = answer, .generation = 2);
        expect_no(ACTION_TAKEOVER);
        expect(ACTION_EXIT);
        expect_state(STANDBY_ENDED);
        kit_end(NULL);
    }

    /* Said twice. */
    protect(arbitrated());
    run_until(ACTION_ARBITRATE);
    say(EVENT_STOP);
    say(EVENT_STOP);
    expect(ACTION_EXIT);
}

static void test_set_up_is_bounded(void **state)
{
    (void)state;
    start(kit_config(), 0);
    hello(1, 1);
    kit.session = 1;
    for (int i = 0; i < 51; i++) {
        later_ms(100);
        say(EVENT_HEARTBEAT);
    }
    expect_state(STANDBY_WAITING);
    assert_non_null(strstr(status().reason, "not ready"));
}

#define unit(test) cmocka_unit_test_teardown(test, kit_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        unit(test_epochs),
        unit(test_commit_waits_for_apply),
        unit(test_rounds_before_lanes_up),
        unit(test_order_of_rounds),
        unit(test_generation_of_frames),
        unit(test_bad_epoch_is_refused),
        unit(test_bad_page_before_the_end_of_its_round),
        unit(test_hello_is_checked),
        unit(test_second_session),
        unit(test_prepare_fails),
        unit(test_broken_by_apply),
        unit(test_waiting_guest_dies),
        unit(test_automatic),
        unit(test_silence_in_a_session),
        unit(test_primary_is_back_in_time),
        unit(test_own_sleep_is_no_silence),
        unit(test_goodbye),
        unit(test_stopped_primary_is_not_taken_over_later),
        unit(test_operator_takes_over),
        unit(test_takeover_waits_for_apply),
        unit(test_arbiter),
        unit(test_primary_went_alone),
        unit(test_arbiter_unreachable),
        unit(test_fence),
        unit(test_guest_breaks_while_the_arbiter_is_asked),
        unit(test_active),
        unit(test_stop),
        unit(test_stop_while_arbitrating),
        unit(test_set_up_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
