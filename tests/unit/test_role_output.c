/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_primary_kit.h"

/* The primary's machine and the guest's output: what waits ends an epoch, and when it may pass without one.
 */

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
        unit(test_output_ends_the_epoch_early), unit(test_output_waits_for_the_interval),
        unit(test_output_passes_when_alone),    unit(test_output_stays_held_in_a_short_break),
        unit(test_output_before_contact),       unit(test_output_of_a_guest_that_failed),
        unit(test_output_when_stopped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
