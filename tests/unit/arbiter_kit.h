/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_ARBITER_KIT_H
#define UNDERSTUDY_TESTS_ARBITER_KIT_H

#include "replicator/arbiter_backend.h"
#include "tests/unit/unit.h"

#include <errno.h>

/* What every back end of the arbiter must do: two arbiters of one register that does not exist yet. */

static const uint8_t uuid[16] = {1, 2, 3};
static struct arbiter *alpha, *beta;

/* `*ret_generation` is 99 when nothing was said of it. */
static inline int swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    *ret_generation = 99;
    return arbiter_swap(arbiter, from, to, ret_generation);
}

static inline int open_both(const char *specification, const struct etcd_config *etcd)
{
    return arbiter_open(&alpha, specification, etcd, uuid, "alpha") < 0 ||
           arbiter_open(&beta, specification, etcd, uuid, "beta") < 0;
}

static inline void close_both(void)
{
    arbiter_close(alpha);
    arbiter_close(beta);
}

static inline void check_read(struct arbiter *arbiter, uint64_t generation, const char *owner)
{
    char holder[ARBITER_OWNER_MAX] = "?";
    uint64_t now = 99;
    assert_int_equal(arbiter_read(arbiter, &now, holder), 0);
    assert_int_equal(now, generation);
    assert_string_equal(holder, owner);
}

static inline void check_one_wins(void)
{
    uint64_t now;
    check_read(beta, 0, "");
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 2);
    check_read(beta, 2, "alpha");
    assert_int_equal(swap(beta, 1, 2, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 2);
    /* The answer was lost, we ask again: what is ours is left behind, for the other may have been told of it.
     */
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 3);
    assert_int_equal(swap(beta, 2, 3, &now), ARBITER_RESULT_LOST);
    assert_int_equal(swap(alpha, 1, 5, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 5);
    /* Who knows the present generation may go on from there. */
    assert_int_equal(swap(beta, 5, 6, &now), ARBITER_RESULT_WON);
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 6);
    assert_int_equal(swap(alpha, 5, 7, &now), ARBITER_RESULT_LOST);
    /* A register that is behind: generations grew without it. */
    assert_int_equal(swap(alpha, 7, 8, &now), ARBITER_RESULT_WON);
    assert_int_equal(swap(beta, 7, 8, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 8);
    assert_int_equal(swap(alpha, 8, 8, &now), -EINVAL);
    assert_int_equal(swap(alpha, 8, UINT64_MAX, &now), -EINVAL);
}

#endif
