/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_standby_kit.h"

/* The standby's machine when the primary is gone: policy, operator, arbiter, fence, and a stop in the middle.
 */

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
    assert_int_equal(status().generation, 4);                     /* 3 may be the register's, with our name */
    say(EVENT_ARBITER, .arbiter = ARBITER_LOST, .generation = 2); /* too late to matter */
    expect_state(STANDBY_TAKING_OVER);
}

/* What was asked for and not taken up must not stand between the primary and the register. */
static void test_a_right_that_nobody_takes_up(void **state)
{
    (void)state;
    struct role_config config = arbitrated();
    config.fence = true;
    protect(config);
    run_until(ACTION_ARBITRATE);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 2);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNFENCED, .generation = 2);
    hello(2, 1);
    expect_send(WIRE_WELCOME);
    expect_no(ACTION_STORE);
    assert_int_equal(status().generation, 2);
    kit.session = 2;
    say(EVENT_HEARTBEAT); /* said before the primary read that */
    assert_null(find_send(WIRE_REFUSE));
    /* Gone before it could follow: it comes by what it knows, and our checkpoint is still that of 1. */
    say(EVENT_LINK_DOWN);
    run_until(ACTION_ARBITRATE);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 1);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 3);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    hello(3, 1);
    assert_int_equal(status().generation, 3);
    kit.session = 3;
    kit.generation = 3;
    say(EVENT_HEARTBEAT);
    assert_int_equal(find(ACTION_STORE)->to, 3);
    assert_false(find(ACTION_STORE)->active);
    say(EVENT_LINK_DOWN);
    run_until(ACTION_ARBITRATE);
    assert_int_equal(find(ACTION_ARBITRATE)->from, 3);
    assert_int_equal(find(ACTION_ARBITRATE)->to, 4);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 5);
    expect(ACTION_TAKEOVER);
    assert_int_equal(status().generation, 5);
}

static void test_what_the_primary_asked_for(void **state)
{
    (void)state;
    protect(arbitrated());
    say(EVENT_LINK_DOWN);
    struct message_hello message = kit_hello();
    say(EVENT_HELLO, .session = 2, .generation = 1, .epoch = 7, .hello = &message);
    expect_send(WIRE_WELCOME);
    assert_int_equal(status().generation, 7);
    say(EVENT_LINK_DOWN, .session = 2);
    say(EVENT_HELLO, .session = 3, .generation = 1, .epoch = WIRE_GENERATION_MAX + 1, .hello = &message);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_PROTOCOL);
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

/* A guest that cannot be reached runs, perhaps, and by right. */
static void test_active_and_out_of_reach(void **state)
{
    (void)state;
    protect(kit_config());
    say(EVENT_TAKEOVER);
    say(EVENT_RUNNING);
    expect_state(STANDBY_ACTIVE);
    say(EVENT_GUEST, .guest = VMM_EVENT_LOST);
    expect_no(ACTION_STORE);
    assert_true(find(ACTION_EXIT)->code < 0);
    kit_end(NULL);

    protect(kit_config()); /* one that waits is of no use then */
    say(EVENT_GUEST, .guest = VMM_EVENT_LOST);
    assert_int_equal(find_send(WIRE_REFUSE)->refusal, WIRE_REFUSE_GUEST);
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

#define unit(test) cmocka_unit_test_teardown(test, kit_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
        unit(test_automatic),
        unit(test_silence_in_a_session),
        unit(test_primary_is_back_in_time),
        unit(test_own_sleep_is_no_silence),
        unit(test_goodbye),
        unit(test_stopped_primary_is_not_taken_over_later),
        unit(test_operator_takes_over),
        unit(test_takeover_waits_for_apply),
        unit(test_arbiter),
        unit(test_a_right_that_nobody_takes_up),
        unit(test_what_the_primary_asked_for),
        unit(test_primary_went_alone),
        unit(test_arbiter_unreachable),
        unit(test_fence),
        unit(test_guest_breaks_while_the_arbiter_is_asked),
        unit(test_active),
        unit(test_active_and_out_of_reach),
        unit(test_stop),
        unit(test_stop_while_arbitrating),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
