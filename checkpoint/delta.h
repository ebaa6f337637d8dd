/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_DELTA_H
#define UNDERSTUDY_CHECKPOINT_DELTA_H

#include "checkpoint/cache.h"
#include "checkpoint/plan.h"

/*
 * Which pages of an item go whole, which as what changed in them, and which need not go at all; and the
 * WIRE_DELTA payload of those in the middle. See delta.c.
 */
struct delta {
    uint8_t *raw; /* MESSAGE_DELTA_RAW_MAX bytes: the table, which grows to the left, and the blocks */

    /* Of the present item. Bit i: its i-th page. */
    uint64_t zeros; /* is zero */
    uint64_t whole; /* goes whole, zeros too */
    uint32_t pages; /* that go as changes */
    uint32_t same;  /* that need not go */
    uint32_t hits, misses;
    uint32_t block_bytes;
};

int delta_init(struct delta *delta);
void delta_fini(struct delta *delta);

/* Look at the item's pages in `bytes`, which nobody changes meanwhile: they are what the standby will have.
 * Pages that differ in at most `blocks_max` blocks go as changes. */
void delta_split(struct delta *delta, struct cache *cache, const struct plan_item *item, const uint8_t *bytes,
                 uint64_t zeros, unsigned blocks_max);

/* How many blocks may have changed for a page to be cheaper like that, when a whole one costs `page_out`
 * bytes for each of its own and a block that changed `block_out`. */
unsigned delta_blocks_max(double page_out, double block_out);

struct delta_encoded {
    size_t length;              /* of the payload */
    size_t block_in, block_out; /* bytes of the blocks; and as they went */
};

/* Build the payload of the pages that go as changes, at least one. `lz4`: LZ4's working memory, or NULL. */
void delta_encode(const struct delta *delta, const struct plan_item *item, void *lz4, uint8_t *payload,
                  struct delta_encoded *ret_encoded);

#endif
