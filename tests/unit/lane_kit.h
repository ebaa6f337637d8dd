/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_LANE_KIT_H
#define UNDERSTUDY_TESTS_UNIT_LANE_KIT_H

#include "tests/unit/lane_end.h"
#include "tests/unit/unit.h"

#include <signal.h>

/* Lanes over the loopback address, with real TLS: who they are, and how a test program runs. */

static struct certificates lane_certificates;
static struct tls_context *primary_tls, *standby_tls;

#define assert_reason(end, part)                                                                             \
    do {                                                                                                     \
        if (!strstr((end).reason, part))                                                                     \
            fail_msg("reason '%s' lacks '%s'", (end).reason, part);                                          \
    } while (0)

static const struct lane_config standby_config = {.ops = &end_ops, .side = WIRE_SIDE_STANDBY, .index = 1};

static inline void start_accept(struct end *end, struct lane_config config, int fd)
{
    config.tls = standby_tls;
    config.ctx = end;
    assert_int_equal(lane_accept(&end->lane, &config, fd), 0);
}

static inline void assert_no_trouble(const struct end *end)
{
    assert_int_equal(end->wrong, 0);
    assert_int_equal(end->late, 0);
    assert_int_equal(end->ups, 1);
    assert_int_equal(end->downs, 1);
}

static inline int run_lane_tests(const char *name, const struct CMUnitTest *tests, size_t count)
{
    signal(SIGPIPE, SIG_IGN); /* for the raw peers of these programs; lanes do not need it */
    certificates_make(&lane_certificates);
    struct tls_files files = certificates_files(&lane_certificates, "ca", "primary", "standby");
    certificates_must(tls_context_new(&primary_tls, &files));
    files = certificates_files(&lane_certificates, "ca", "standby", "primary");
    certificates_must(tls_context_new(&standby_tls, &files));
    int failed = _cmocka_run_group_tests(name, tests, count, NULL, NULL);
    tls_context_free(primary_tls);
    tls_context_free(standby_tls);
    certificates_remove(&lane_certificates);
    return failed;
}

#endif
