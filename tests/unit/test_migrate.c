/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/migrate.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

/* When a switchover is short enough. */

#define MS(n) ((uint64_t)(n)*1000000)

static const struct migrate_costs costs = {.pause_ns = MS(10),
                                           .send_ns = MS(20),
                                           .commit_ns = MS(3),
                                           .takeover_ns = MS(8),
                                           .arbiter_ns = MS(4),
                                           .fixed_pause_ns = MS(2)};

static void downtime(void **state)
{
    (void)state;
    assert_int_equal(migrate_downtime_ns(&costs), MS(45) + MIGRATE_HANDOVER_NS);
    struct migrate_costs unknown = costs;
    unknown.takeover_ns = 0;
    assert_int_equal(migrate_downtime_ns(&unknown), MS(37) + MIGRATE_TAKEOVER_GUESS_NS + MIGRATE_HANDOVER_NS);
    unknown.arbiter_ns = 0;
    assert_int_equal(migrate_downtime_ns(&unknown), MS(33) + MIGRATE_TAKEOVER_GUESS_NS + MIGRATE_HANDOVER_NS);
}

static void steps(void **state)
{
    (void)state;
    assert_int_equal(migrate_next(&costs, MS(48), false, false, true), MIGRATE_NOW);
    assert_int_equal(migrate_next(&costs, MS(47), false, false, true), MIGRATE_ROUND);
    assert_int_equal(migrate_next(&costs, MS(47), false, false, false), MIGRATE_CAPTURE);
    /* 20 ms are left without any dirty page, so no number of rounds reaches 19. */
    assert_int_equal(migrate_next(&costs, MS(20), false, false, true), MIGRATE_ROUND);
    assert_int_equal(migrate_next(&costs, MS(19), false, false, true), MIGRATE_CAPTURE);
    /* The time is up. */
    assert_int_equal(migrate_next(&costs, MS(1), true, false, false), MIGRATE_NOW);
    /* Not even then without the disks. */
    assert_int_equal(migrate_next(&costs, MS(100), true, true, false), MIGRATE_ROUND);
}

static void learning(void **state)
{
    (void)state;
    uint64_t mean = 0;
    migrate_learn(&mean, MS(4));
    assert_int_equal(mean, MS(4));
    migrate_learn(&mean, MS(8));
    assert_int_equal(mean, MS(5));
}

/* From the first step on the guest has less and less, and always something. */
static void slowing(void **state)
{
    (void)state;
    unsigned share = 0, steps = 0;
    do {
        unsigned next = migrate_share_next(share);
        assert_true(next > share && next <= MIGRATE_SHARE_MAX && next < 100);
        share = next;
        steps++;
        assert_int_equal(migrate_stopped_ns(share) + migrate_running_ns(share), MIGRATE_SLICE_NS);
        assert_int_equal(migrate_stopped_ns(share), (uint64_t)share * MIGRATE_SLICE_NS / 100);
    } while (share < MIGRATE_SHARE_MAX);
    assert_in_range(steps, 2, 10);
    assert_int_equal(migrate_share_next(share), MIGRATE_SHARE_MAX);
    assert_true(migrate_running_ns(share) > 0);
}

static void eta(void **state)
{
    (void)state;
    assert_true(migrate_eta_s(0, 0, 5) == 0);
    assert_true(migrate_eta_s(100, 30, 10) == 5);
    assert_true(migrate_eta_s(100, 10, 10) < 0);
    assert_true(migrate_eta_s(100, 10, 20) < 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(downtime), cmocka_unit_test(steps), cmocka_unit_test(learning),
        cmocka_unit_test(slowing),  cmocka_unit_test(eta),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
