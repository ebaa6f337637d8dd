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

static const struct lane_config primary_config = {
    .ops = &end_ops, .side = WIRE_SIDE_PRIMARY, .index = 1, .session_known = true, .session = 77};

static inline void start_accept(struct end *end, struct lane_config config, int fd)
{
    config.tls = standby_tls;
    config.ctx = end;
    assert_int_equal(lane_accept(&end->lane, &config, fd), 0);
}

static inline void start_connect(struct end *end, struct lane_config config,
                                 const struct sockaddr_storage *address, socklen_t length)
{
    config.tls = primary_tls;
    config.ctx = end;
    assert_int_equal(lane_connect(&end->lane, &config, (const struct sockaddr *)address, length), 0);
}

/* Both ends were end_init()ed and told what to do. */
static inline void start_pair(struct end *primary, struct end *standby, struct lane_config primary_choice,
                              struct lane_config standby_choice)
{
    struct sockaddr_storage address;
    socklen_t length;
    int listener = end_listen(&address, &length);
    start_connect(primary, primary_choice, &address, length);
    start_accept(standby, standby_choice, end_take(listener));
    close(listener);
}

/* Around every boundary there is: the smallest, a TLS record, a batch, the largest. */
static inline size_t mixed_sizes(uint64_t frame)
{
    static const size_t sizes[] = {17,
                                   18,
                                   64,
                                   1000,
                                   4096,
                                   16384 - 64 - 1,
                                   16384 - 64,
                                   16384 - 63,
                                   16384,
                                   65535,
                                   65536,
                                   131072 + 7,
                                   256 * 1024 - 64,
                                   256 * 1024,
                                   256 * 1024 + 1,
                                   400000,
                                   17,
                                   17,
                                   512 * 1024 - 1,
                                   512 * 1024,
                                   512 * 1024,
                                   17,
                                   512 * 1024 - 100,
                                   30000};
    return sizes[frame % array_length(sizes)];
}

static inline size_t small(uint64_t frame)
{
    (void)frame;
    return 24;
}

static inline size_t large(uint64_t frame)
{
    (void)frame;
    return 256 * 1024;
}

static inline uint64_t produced_by(struct end *end)
{
    scope_lock(&end->mutex);
    return end->produced;
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
