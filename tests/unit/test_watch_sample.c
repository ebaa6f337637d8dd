/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"
#include "tests/unit/watch_kit.h"

#include "base/scope.h"
#include "replicator/role.h"
#include "replicator/scope_json.h"

#include <errno.h>
#include <math.h>

/* What daemons say of themselves, also those that lie. */

static void test_a_status(void **state)
{
    (void)state;
    struct sample sample;
    json_t *status cleanup_json = kit_status("web", "alpha", "protected");
    assert_int_equal(sample_parse(status, &sample), 0);
    assert_string_equal(sample.machine, "web");
    assert_string_equal(sample.host, "alpha");
    assert_string_equal(sample.peer, "beta");
    assert_string_equal(sample.gate, "nfqueue");
    assert_int_equal(sample.protection, SAMPLE_IS_PROTECTED);
    /* Base units. */
    assert_float_equal(sample.values[SAMPLE_COMMIT_AGE_S], 0.0085, 1e-12);
    assert_float_equal(sample.values[SAMPLE_GUEST_BYTES], 8192000, 0);
    assert_float_equal(sample.values[SAMPLE_PAGES_RAW], 9, 0);
    assert_float_equal(sample.values[SAMPLE_OUTPUT_HOLDING], 1, 0);
    assert_false(sample_told(&sample, SAMPLE_UNPROTECTED_S)); /* null */
    assert_false(sample_told(&sample, SAMPLE_TAKEOVER_S));    /* missing */
    assert_true(sample.pause.told);
    assert_float_equal(sample.pause.sum_s, 0.21, 1e-12);
    assert_int_equal(sample.pause.bucket_count, 2);
    assert_float_equal(sample.pause.buckets[1].bound_s, 0.005, 1e-12);
    assert_float_equal(sample.output_delay.p99_s, 0.045, 1e-12);
}

/* Each state of the roles means something, and what the engines call protected is nothing else. */
static void test_states(void **state)
{
    (void)state;
    static const enum sample_protection expected[] = {
        [PRIMARY_DISCONNECTED] = SAMPLE_IS_UNPROTECTED,
        [PRIMARY_CONNECTING] = SAMPLE_IS_UNPROTECTED,
        [PRIMARY_GREETING] = SAMPLE_IS_DEGRADED,
        [PRIMARY_DESCRIBING] = SAMPLE_IS_DEGRADED,
        [PRIMARY_COPYING] = SAMPLE_IS_DEGRADED,
        [PRIMARY_PROTECTED] = SAMPLE_IS_PROTECTED,
        [PRIMARY_SWITCHING] = SAMPLE_IS_DEGRADED,
        [PRIMARY_ARBITRATING] = SAMPLE_IS_DEGRADED,
        [PRIMARY_STALLED] = SAMPLE_IS_DEGRADED,
        [PRIMARY_YIELDED] = SAMPLE_IS_AWAY,
        [PRIMARY_MOVED] = SAMPLE_IS_AWAY,
        [PRIMARY_ENDED] = SAMPLE_IS_AWAY,
        [STANDBY_WAITING] = SAMPLE_IS_UNPROTECTED,
        [STANDBY_GREETED] = SAMPLE_IS_DEGRADED,
        [STANDBY_RECEIVING] = SAMPLE_IS_DEGRADED,
        [STANDBY_SWITCHING] = SAMPLE_IS_DEGRADED,
        [STANDBY_LOST] = SAMPLE_IS_DEGRADED,
        [STANDBY_ARBITRATING] = SAMPLE_IS_DEGRADED,
        [STANDBY_TAKING_OVER] = SAMPLE_IS_DEGRADED,
        [STANDBY_ACTIVE] = SAMPLE_IS_UNPROTECTED,
        [STANDBY_FAILED] = SAMPLE_IS_UNPROTECTED,
        [STANDBY_ENDED] = SAMPLE_IS_AWAY,
    };
    assert_string_equal(role_state_name((enum role_state)array_length(expected)), "unknown");
    for (unsigned i = 0; i < array_length(expected); i++) {
        struct sample sample;
        json_t *status cleanup_json = kit_status("web", "alpha", role_state_name((enum role_state)i));
        assert_int_equal(sample_parse(status, &sample), 0);
        if (sample.protection != expected[i])
            fail_msg("%s is %s", sample.state, sample_protection_name(sample.protection));
        assert_true(strlen(sample.state) + 1 < sizeof sample.state);
        json_object_set_new(status, "protected", json_true());
        assert_int_equal(sample_parse(status, &sample), 0);
        assert_int_equal(sample.protection, SAMPLE_IS_PROTECTED);
    }
}

static void test_nobody(void **state)
{
    (void)state;
    static const char *const needed[] = {"vm", "host", "role", "state"};
    for (unsigned i = 0; i < array_length(needed); i++) {
        struct sample sample = {.machine = "untouched"};
        json_t *status cleanup_json = kit_status("web", "alpha", "protected");
        kit_set(status, NULL, needed[i], json_integer(3));
        assert_int_equal(sample_parse(status, &sample), -EPROTO);
        assert_text_has(needed[i]);
        kit_set(status, NULL, needed[i], json_string(""));
        assert_int_equal(sample_parse(status, &sample), -EPROTO);
        json_object_del(status, needed[i]);
        assert_int_equal(sample_parse(status, &sample), -EPROTO);
        assert_string_equal(sample.machine, "untouched");
    }
    struct sample sample;
    json_t *array cleanup_json = json_pack("[s]", "vm");
    assert_int_equal(sample_parse(array, &sample), -EPROTO);
}

static void test_lies(void **state)
{
    (void)state;
    struct sample sample;
    char longer[4096];
    memset(longer, 'x', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    json_t *status cleanup_json = kit_status("w\x1b[2J\n\xc3\xa9", longer, "protected");
    kit_set(status, NULL, "reason", json_string(longer));
    kit_set(status, NULL, "generation", json_integer(-3));
    kit_set(status, NULL, "epoch", json_string("many"));
    kit_set(status, NULL, "wire_bytes", json_real(-0.5));
    kit_set(status, NULL, "commit_age_ms", json_object());
    kit_set(status, NULL, "bytes", json_integer(3));
    kit_set(status, NULL, "encoders", json_array());
    kit_set(status, NULL, "peer", json_null());
    assert_int_equal(sample_parse(status, &sample), 0);
    assert_string_equal(sample.machine, "w?[2J???");
    assert_int_equal(strlen(sample.host), sizeof sample.host - 1);
    assert_int_equal(strlen(sample.reason), sizeof sample.reason - 1);
    assert_string_equal(sample.peer, "");
    static const enum sample_value untold[] = {SAMPLE_GENERATION,   SAMPLE_EPOCH,       SAMPLE_WIRE_BYTES,
                                               SAMPLE_COMMIT_AGE_S, SAMPLE_GUEST_BYTES, SAMPLE_PAGES_RAW};
    for (unsigned i = 0; i < array_length(untold); i++)
        assert_true(isnan(sample.values[untold[i]]) && !sample_told(&sample, untold[i]));
}

static unsigned buckets_of(json_t *buckets)
{
    struct sample sample;
    json_t *status cleanup_json = kit_status("web", "alpha", "protected");
    kit_set(status, "pause_ms", "buckets", buckets);
    assert_int_equal(sample_parse(status, &sample), 0);
    return sample.pause.bucket_count;
}

static void test_buckets(void **state)
{
    (void)state;
    assert_int_equal(buckets_of(json_pack("[[f, i]]", 1.0, 100)), 1);
    assert_int_equal(buckets_of(json_pack("[[f, i]]", 1.0, 101)), 0);                 /* more than all */
    assert_int_equal(buckets_of(json_pack("[[f, i], [f, i]]", 1.0, 50, 2.0, 49)), 0); /* fewer than before */
    assert_int_equal(buckets_of(json_pack("[[f, i], [f, i]]", 2.0, 50, 2.0, 60)), 0); /* the same bound */
    assert_int_equal(buckets_of(json_pack("[[f, s]]", 1.0, "50")), 0);
    assert_int_equal(buckets_of(json_pack("[[f]]", 1.0)), 0);
    assert_int_equal(buckets_of(json_pack("{s:i}", "a", 1)), 0);
    json_t *many = json_array();
    for (int i = 0; i < SAMPLE_BUCKETS_MAX; i++)
        json_array_append_new(many, json_pack("[f, i]", 1.0 + i, 1));
    assert_int_equal(buckets_of(json_copy(many)), SAMPLE_BUCKETS_MAX);
    json_array_append_new(many, json_pack("[f, i]", 1000.0, 1));
    assert_int_equal(buckets_of(many), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_a_status), cmocka_unit_test(test_states),  cmocka_unit_test(test_nobody),
        cmocka_unit_test(test_lies),     cmocka_unit_test(test_buckets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
