/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/pacer.h"

#include "base/clock.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>

#include <cmocka.h>

/* Bytes are counted, against a clock that the test moves. */

#define RATE   ((uint64_t)10000000)
#define CHUNK  ((uint64_t)262144)
#define START  (1000 * NS_PER_S)
#define STEP   (NS_PER_MS / 2)
#define CREDIT ((uint64_t)(RATE * (double)PACER_CREDIT_NS / NS_PER_S))

/* What `lanes` lanes that always have something to send produce from `from_ns` on in `seconds`. */
static uint64_t run(struct pacer *pacer, unsigned lanes, uint64_t from_ns, double seconds)
{
    uint64_t bytes = 0, end_ns = from_ns + (uint64_t)(seconds * NS_PER_S);
    for (uint64_t now_ns = from_ns; now_ns < end_ns; now_ns += STEP)
        for (unsigned lane = 0; lane < lanes; lane++)
            if (pacer_begin(pacer, now_ns) == 0) {
                pacer_end(pacer, CHUNK);
                bytes += CHUNK;
            }
    return bytes;
}

static void assert_near(uint64_t bytes, double seconds)
{
    uint64_t wanted = (uint64_t)((double)RATE * seconds);
    assert_in_range(bytes, wanted - CHUNK, wanted + CHUNK + CREDIT);
}

static void all_lanes_together(void **state)
{
    (void)state;
    for (unsigned lanes = 1; lanes <= 8; lanes *= 2) {
        struct pacer pacer;
        pacer_init(&pacer, RATE);
        assert_near(run(&pacer, lanes, START, 10), 10);
        pacer_fini(&pacer);
    }
}

/* However long nothing was sent, there is no burst afterwards. */
static void rest_is_not_saved(void **state)
{
    (void)state;
    struct pacer pacer;
    pacer_init(&pacer, RATE);
    run(&pacer, 2, START, 1);
    assert_near(run(&pacer, 2, START + 100 * NS_PER_S, 0.5), 0.5);
    pacer_fini(&pacer);
}

/* Short pauses are: a lane that comes a little late does not lose rate by it. */
static void lateness_is_made_good(void **state)
{
    (void)state;
    struct pacer pacer;
    uint64_t bytes = 0, now_ns = START;
    pacer_init(&pacer, RATE);
    while (now_ns < START + 10 * NS_PER_S) {
        uint64_t ready_ns = pacer_begin(&pacer, now_ns);
        if (ready_ns) {
            now_ns = ready_ns + 2 * NS_PER_MS;
            continue;
        }
        pacer_end(&pacer, CHUNK / 4);
        bytes += CHUNK / 4;
    }
    assert_near(bytes, 10);
    pacer_fini(&pacer);
}

/* Lanes that begin at the same instant do not all go; and what was not produced is not paid for. */
static void one_at_a_time(void **state)
{
    (void)state;
    struct pacer pacer;
    pacer_init(&pacer, RATE);
    assert_int_equal(pacer_begin(&pacer, START), 0);
    uint64_t ready_ns = pacer_begin(&pacer, START);
    assert_true(ready_ns > START);
    pacer_end(&pacer, 0);
    assert_int_equal(pacer_begin(&pacer, START), 0);
    pacer_end(&pacer, 3 * CHUNK);
    assert_int_equal(pacer_begin(&pacer, START), START - PACER_CREDIT_NS + pacer_cost_ns(&pacer, 3 * CHUNK));
    pacer_fini(&pacer);
}

static void no_bound(void **state)
{
    (void)state;
    struct pacer pacer;
    pacer_init(&pacer, 0);
    for (unsigned i = 0; i < 1000; i++) {
        assert_int_equal(pacer_begin(&pacer, START), 0);
        pacer_end(&pacer, CHUNK);
    }
    assert_int_equal(pacer_cost_ns(&pacer, CHUNK), 0);
    pacer_set(&pacer, RATE);
    assert_int_equal(pacer_cost_ns(&pacer, RATE), NS_PER_S);
    assert_int_equal(pacer_begin(&pacer, START), 0);
    pacer_end(&pacer, 2 * RATE);
    assert_true(pacer_begin(&pacer, START) > START + NS_PER_S);
    /* Nobody waits for what was owed when the bound is gone. */
    pacer_set(&pacer, 0);
    assert_int_equal(pacer_begin(&pacer, START), 0);
    pacer_fini(&pacer);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(all_lanes_together),
        cmocka_unit_test(rest_is_not_saved),
        cmocka_unit_test(lateness_is_made_good),
        cmocka_unit_test(one_at_a_time),
        cmocka_unit_test(no_bound),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
