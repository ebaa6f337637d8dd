/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_CACHE_H
#define UNDERSTUDY_CHECKPOINT_CACHE_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Copies of pages exactly as the standby has them: the bases of what is sent as a change. See cache.c.
 *
 * Threads: lanes' threads call exchange() and drop(), each page by one lane at a time. The others are for the
 * time when no lane is at a piece of a round.
 */
#define CACHE_WAYS 8u

struct cache_entry {
    uint64_t page;
    uint64_t written, used; /* epochs, as the cache counts them; written 0: the entry is free */
    uint32_t block;
};

struct cache {
    struct cache_entry *entries; /* sets x CACHE_WAYS */
    uint8_t *contents;           /* a page for each entry */
    pthread_mutex_t *locks;      /* of a set's entries and contents; leaf */
    size_t sets, locks_count;
    size_t map_bytes, memory_bytes;
    uint64_t epoch; /* the present one, from 1 */
};

/* Takes all its memory at once: at most `bytes`, but one set at least, and no more than `pages` pages need.
 * -ENOMEM. */
int cache_init(struct cache *cache, uint64_t bytes, uint64_t pages);
void cache_fini(struct cache *cache);

enum cache_found {
    CACHE_ABSENT, /* the standby's copy was not known */
    CACHE_SAME,   /* it is like this already */
    CACHE_NEAR,   /* it differs in at most `blocks_max` blocks, which are in ret_blocks */
    CACHE_FAR,    /* it differs in more */
};

/* The page will be on the standby as `content`, which nobody changes meanwhile: from here on that is the
 * page's base. What was it before? `ret_changed`: bit n: the n-th 64 bytes differ. `ret_blocks` (a page of
 * room): for each set bit, in order, the exclusive-or of old and new. */
enum cache_found cache_exchange(struct cache *cache, uint32_t block, uint64_t page, const uint8_t *content,
                                unsigned blocks_max, uint64_t *ret_changed, uint8_t *ret_blocks);

/* The page will be on the standby in a way that is not worth keeping or not known. */
void cache_drop(struct cache *cache, uint32_t block, uint64_t page);

/* The present epoch is acknowledged: what was exchanged in it stays. The next begins. */
void cache_committed(struct cache *cache);
/* Nobody knows what of the present epoch the standby has: pages exchanged in it have no base any more. */
void cache_abandoned(struct cache *cache);
/* Nothing is known of the standby. */
void cache_clear(struct cache *cache);

#endif
