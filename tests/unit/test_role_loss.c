/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_primary_kit.h"

/* The primary's machine when its standby refuses, is lost, or runs the guest itself: stall, the operator, the
 * arbiter. */

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
    assert_int_equal(find(ACTION_ARBITRATE)->to, 3);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 3);
    assert_true(place(ACTION_STORE) < place(ACTION_RELEASE));
    assert_int_equal(status().generation, 3);
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

/* The register may hold what we asked for; the standby has to know, and both go on from there. */
static void test_a_right_that_was_not_taken_up(void **state)
{
    (void)state;
    protect(arbitrated());
    run_ms(251);
    say(EVENT_ARBITER, .arbiter = ARBITER_UNREACHABLE);
    while (!find(ACTION_CONNECT)) {
        kit.now_ns = primary_deadline(kit.primary);
        say(EVENT_TICK);
    }
    kit.session = find(ACTION_CONNECT)->session;
    say(EVENT_CONTROL_UP);
    assert_int_equal(find_send(WIRE_HELLO)->epoch, 2);
    assert_int_equal(status().generation, 1);
    kit.generation = 4; /* the standby's own claim */
    welcome(true, history, 1);
    expect_no(ACTION_YIELD);
    assert_int_equal(find(ACTION_STORE)->to, 4);
    assert_true(find(ACTION_STORE)->active);
    say(EVENT_LINK_DOWN);
    run_ms(251);
    expect_state(PRIMARY_ARBITRATING);
    say(EVENT_ARBITER, .arbiter = ARBITER_WON, .generation = 5);
    assert_int_equal(find(ACTION_STORE)->to, 5);
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

#define unit(test) cmocka_unit_test_teardown(test, kit_end)

int main(void)
{
    const struct CMUnitTest tests[] = {
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
        unit(test_a_right_that_was_not_taken_up),
        unit(test_never_protected_asks_gently),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
