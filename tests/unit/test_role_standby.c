/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/role_standby_kit.h"

/* The standby's machine, step by step: sessions and epochs. What holds over whole lives is for tests/sim. */

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

/* One that was launched ahead: no session ends with it, and the first one launches another. */
static void test_waiting_guest_dies_early(void **state)
{
    (void)state;
    start(automatic(), 0);
    say(EVENT_GUEST, .guest = VMM_EVENT_FAILED);
    expect_state(STANDBY_WAITING);
    unsigned reports = 0;
    for (unsigned i = 0; i < kit.actions.count; i++)
        if (kit.actions.items[i].type == ACTION_REPORT) {
            reports++;
            assert_null(strstr(kit.actions.items[i].text, "session"));
        }
    assert_int_equal(reports, 1);
    hello(1, 1);
    expect_send(WIRE_WELCOME);
    assert_true(find(ACTION_PREPARE)->fresh);
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
        unit(test_waiting_guest_dies_early),
        unit(test_set_up_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
