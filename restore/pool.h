/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_POOL_H
#define UNDERSTUDY_RESTORE_POOL_H

#include "vmm/vmm.h"

#include <pthread.h>
#include <stdatomic.h>

/*
 * The memory behind staging: one mapping of fixed size, cut into slots of a page, handed out in chunks of
 * consecutive slots so that the lanes meet here once in hundreds of pages. Both epochs draw from it.
 *
 * Chunks are reused last in, first out, so that a steady stream of small epochs lives in memory that is warm
 * and mapped; what only a large epoch needed goes back to the kernel when two epochs in a row did without. A
 * first part has memory from the start: the first staged epoch may be the one for which a guest stands still.
 *
 * `lock` guards everything that changes. It is never held while another lock is taken.
 */
struct pool {
    pthread_mutex_t lock;
    pthread_cond_t changed; /* chunks came back, or `cancelled` */

    uint8_t *slots;
    size_t map_bytes;
    uint32_t chunk_slots, chunk_count;

    uint32_t *free; /* stack of chunk numbers, the latest used on top */
    uint32_t free_count;
    uint8_t *resident; /* of each chunk: does it hold memory? */
    uint32_t resident_count;
    uint32_t given_before; /* chunks that came back at the last turn */

    pthread_t warmer;   /* where `warming` */
    bool warming;       /* the first chunks are given their memory, or were */
    atomic_bool warmed; /* the same was asked for */
    atomic_bool ending;

    bool refill;    /* a committed epoch is being applied: its chunks will come back */
    bool cancelled; /* nobody may wait */
};

/* `bytes` is rounded down to whole chunks, one page at least. */
int pool_init(struct pool *pool, uint64_t bytes);
void pool_fini(struct pool *pool);

/* With the lock held. False when none is free. A fresh chunk has no memory yet: pool_populate() gives it
 * some, in one call in place of a fault a page; without the lock, since that takes time. */
bool pool_take(struct pool *pool, uint32_t *ret_chunk, bool *ret_fresh);
void pool_populate(struct pool *pool, uint32_t chunk);
/* Give the chunks that are taken first their memory, by a thread of its own: the first staged epoch may be
 * the one for which a guest stands still. Once; without the lock. Who takes one of them before its memory is
 * there only finds it slower. Not while the process maps much: each mapping would wait for a chunk. */
void pool_warm(struct pool *pool);
/* With the lock held. All chunks of an epoch, in the order they were taken. Wakes those who wait. */
void pool_give(struct pool *pool, const uint32_t *chunks, uint32_t count);

/* Nobody may wait for memory, from now until pool_reopen(). */
void pool_cancel(struct pool *pool);
void pool_reopen(struct pool *pool);

static inline uint8_t *pool_slot(const struct pool *pool, uint32_t slot)
{
    return pool->slots + ((size_t)slot << VMM_PAGE_SHIFT);
}

static inline size_t pool_chunk_bytes(const struct pool *pool)
{
    return (size_t)pool->chunk_slots << VMM_PAGE_SHIFT;
}

#endif
