/* SPDX-License-Identifier: Apache-2.0 */
#include "base/blockset.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

int blockset_init(struct blockset *set, uint64_t blocks)
{
    *set = (struct blockset){.blocks = blocks};
    set->words = calloc((size_t)((blocks + 63) / 64), sizeof *set->words);
    return set->words ? 0 : error_errno(-ENOMEM, "a set of %llu blocks", (unsigned long long)blocks);
}

void blockset_fini(struct blockset *set)
{
    free(set->words);
    *set = (struct blockset){0};
}

/* The bits of `first`'s word that belong to the stretch; how many blocks that are. */
static uint64_t bits_of(uint64_t first, uint64_t blocks, uint64_t *ret_taken)
{
    uint64_t shift = first % 64, take = blocks < 64 - shift ? blocks : 64 - shift;
    *ret_taken = take;
    return (take == 64 ? ~0ull : (1ull << take) - 1) << shift;
}

void blockset_add(struct blockset *set, uint64_t first, uint64_t blocks)
{
    assert(blocks && first < set->blocks && blocks <= set->blocks - first);
    uint64_t low = first / 64, high = (first + blocks - 1) / 64 + 1;
    bool empty = set->low == set->high;
    set->low = empty || low < set->low ? low : set->low;
    set->high = empty || high > set->high ? high : set->high;
    for (uint64_t taken; blocks; first += taken, blocks -= taken) {
        uint64_t bits = bits_of(first, blocks, &taken), *word = &set->words[first / 64];
        set->count += (unsigned)__builtin_popcountll(bits & ~*word);
        *word |= bits;
    }
}

void blockset_remove(struct blockset *set, uint64_t first, uint64_t blocks)
{
    for (uint64_t taken; blocks; first += taken, blocks -= taken) {
        uint64_t bits = bits_of(first, blocks, &taken), *word = &set->words[first / 64];
        set->count -= (unsigned)__builtin_popcountll(bits & *word);
        *word &= ~bits;
    }
}

bool blockset_has_any(const struct blockset *set, uint64_t first, uint64_t blocks)
{
    for (uint64_t taken; blocks; first += taken, blocks -= taken)
        if (set->words[first / 64] & bits_of(first, blocks, &taken))
            return true;
    return false;
}

bool blockset_has_all(const struct blockset *set, uint64_t first, uint64_t blocks)
{
    for (uint64_t taken; blocks; first += taken, blocks -= taken) {
        uint64_t bits = bits_of(first, blocks, &taken);
        if ((set->words[first / 64] & bits) != bits)
            return false;
    }
    return true;
}

static bool has(const struct blockset *set, uint64_t block)
{
    return set->words[block / 64] >> block % 64 & 1;
}

bool blockset_next(const struct blockset *set, uint64_t from, uint64_t limit, uint64_t *ret_first,
                   uint64_t *ret_blocks)
{
    if (set->count == 0)
        return false;
    uint64_t word = from / 64, mask = ~0ull << from % 64;
    if (word < set->low || word >= set->high) {
        word = set->low;
        mask = ~0ull;
    }
    uint64_t left = set->words[word] & mask;
    while (!left) {
        word = word + 1 < set->high ? word + 1 : set->low;
        left = set->words[word];
    }
    uint64_t first = word * 64 + (unsigned)__builtin_ctzll(left), blocks = 1;
    while (blocks < limit && first + blocks < set->blocks && has(set, first + blocks))
        blocks++;
    *ret_first = first;
    *ret_blocks = blocks;
    return true;
}

void blockset_merge(struct blockset *to, const struct blockset *from)
{
    if (from->low == from->high)
        return;
    bool empty = to->low == to->high;
    to->low = empty || from->low < to->low ? from->low : to->low;
    to->high = empty || from->high > to->high ? from->high : to->high;
    for (uint64_t word = from->low; word < from->high; word++) {
        to->count += (unsigned)__builtin_popcountll(from->words[word] & ~to->words[word]);
        to->words[word] |= from->words[word];
    }
}

void blockset_clear(struct blockset *set)
{
    if (set->high > set->low)
        memset(set->words + set->low, 0, (size_t)(set->high - set->low) * sizeof *set->words);
    set->low = set->high = set->count = 0;
}
