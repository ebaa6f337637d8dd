/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_BLOCKSET_H
#define UNDERSTUDY_BASE_BLOCKSET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * A set of the blocks of one disk, a bit each. Emptying and merging cost the stretch that was used, so that a
 * guest that writes a few places of a huge disk pays for those. Not locked.
 */
struct blockset {
    uint64_t *words;
    uint64_t blocks, count;
    uint64_t low, high; /* words that may hold bits: low <= word < high */
};

int blockset_init(struct blockset *set, uint64_t blocks);
void blockset_fini(struct blockset *set);

void blockset_add(struct blockset *set, uint64_t first, uint64_t blocks);
void blockset_remove(struct blockset *set, uint64_t first, uint64_t blocks);
bool blockset_has_any(const struct blockset *set, uint64_t first, uint64_t blocks);
bool blockset_has_all(const struct blockset *set, uint64_t first, uint64_t blocks);
/* The first stretch at or behind `from`, else from the start, of at most `limit` blocks. False: empty. */
bool blockset_next(const struct blockset *set, uint64_t from, uint64_t limit, uint64_t *ret_first,
                   uint64_t *ret_blocks);
void blockset_merge(struct blockset *to, const struct blockset *from);
void blockset_clear(struct blockset *set);

static inline size_t blockset_memory_bytes(const struct blockset *set)
{
    return (size_t)((set->blocks + 63) / 64 * sizeof *set->words);
}

#endif
