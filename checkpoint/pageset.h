/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_PAGESET_H
#define UNDERSTUDY_CHECKPOINT_PAGESET_H

#include "vmm/vmm.h"

/*
 * A set of guest pages: one bit a page, and above each 64 words of those one bit a word, so that walking or
 * emptying a set costs what is in it and not what the guest has. Memory is taken once, for the whole guest.
 * Not locked.
 */
struct pageset_block {
    uint64_t pages;
    uint64_t *words;   /* bit p % 64 of words[p / 64]: page p is in the set */
    uint64_t *summary; /* bit w % 64 of summary[w / 64]: words[w] is not 0 */
    size_t summary_words;
};

struct pageset {
    struct pageset_block blocks[VMM_BLOCKS_MAX];
    uint32_t block_count;
    uint64_t count; /* pages in the set */
    uint64_t *memory;
    size_t memory_bytes;
};

/* An empty set for the guest's blocks. -ENOMEM. */
int pageset_init(struct pageset *set, const struct vmm_description *guest);
void pageset_fini(struct pageset *set);

void pageset_add(struct pageset *set, uint32_t block, uint64_t first, uint64_t pages);
void pageset_remove(struct pageset *set, uint32_t block, uint64_t first, uint64_t pages);
void pageset_fill(struct pageset *set);
void pageset_clear(struct pageset *set);
/* Both sets are of one guest. */
void pageset_merge(struct pageset *to, const struct pageset *from);
/* Exchange the contents of two sets of one guest. */
void pageset_swap(struct pageset *a, struct pageset *b);

/* How many of these pages are not in the set. */
uint64_t pageset_missing(const struct pageset *set, uint32_t block, uint64_t first, uint64_t pages);

/* Walk: zero-initialise the cursor; each call gives the next run of at most `max` pages, in ascending order,
 * and moves the cursor behind it. False at the end. */
struct pageset_cursor {
    uint32_t block;
    uint64_t page;
};
bool pageset_next(const struct pageset *set, struct pageset_cursor *cursor, uint64_t max,
                  struct vmm_range *ret_run);

/* Move the cursor behind the next `pages` pages of the set (or to its end). */
void pageset_skip(const struct pageset *set, struct pageset_cursor *cursor, uint64_t pages);

#endif
