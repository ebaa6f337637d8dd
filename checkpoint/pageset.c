/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/pageset.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define WORD_BITS 64u

static size_t words_for(uint64_t bits)
{
    return (size_t)((bits + WORD_BITS - 1) / WORD_BITS);
}

int pageset_init(struct pageset *set, const struct vmm_description *guest)
{
    size_t total = 0;
    assert(guest->block_count <= VMM_BLOCKS_MAX);
    for (size_t i = 0; i < guest->block_count; i++) {
        size_t words = words_for(guest->blocks[i].bytes >> VMM_PAGE_SHIFT);
        total += words + words_for(words);
    }
    uint64_t *memory = calloc(total ? total : 1, sizeof *memory);
    if (!memory)
        return error_errno(-ENOMEM, "page set of %zu bytes", total * sizeof *memory);

    *set = (struct pageset){.block_count = (uint32_t)guest->block_count,
                            .memory = memory,
                            .memory_bytes = total * sizeof *memory};
    for (size_t i = 0; i < guest->block_count; i++) {
        struct pageset_block *block = &set->blocks[i];
        block->pages = guest->blocks[i].bytes >> VMM_PAGE_SHIFT;
        size_t words = words_for(block->pages);
        block->summary_words = words_for(words);
        block->words = memory;
        block->summary = memory + words;
        memory += words + block->summary_words;
    }
    return 0;
}

void pageset_fini(struct pageset *set)
{
    free(set->memory);
    *set = (struct pageset){0};
}

/* The bits of word `word` that lie in pages [first, end). */
static uint64_t mask_of(uint64_t word, uint64_t first, uint64_t end)
{
    uint64_t base = word * WORD_BITS, mask = ~0ull;
    if (first > base)
        mask &= ~0ull << (first - base);
    if (end < base + WORD_BITS)
        mask &= ~0ull >> (base + WORD_BITS - end);
    return mask;
}

static const struct pageset_block *block_of(const struct pageset *set, uint32_t block, uint64_t first,
                                            uint64_t pages)
{
    assert(block < set->block_count);
    assert(first <= set->blocks[block].pages && pages <= set->blocks[block].pages - first);
    return &set->blocks[block];
}

void pageset_add(struct pageset *set, uint32_t index, uint64_t first, uint64_t pages)
{
    const struct pageset_block *block = block_of(set, index, first, pages);
    uint64_t end = first + pages;
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++) {
        uint64_t fresh = mask_of(word, first, end) & ~block->words[word];
        block->words[word] |= fresh;
        block->summary[word / WORD_BITS] |= 1ull << (word % WORD_BITS);
        set->count += (uint64_t)__builtin_popcountll(fresh);
    }
}

void pageset_remove(struct pageset *set, uint32_t index, uint64_t first, uint64_t pages)
{
    const struct pageset_block *block = block_of(set, index, first, pages);
    uint64_t end = first + pages;
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++) {
        uint64_t gone = mask_of(word, first, end) & block->words[word];
        block->words[word] &= ~gone;
        /* Walks believe the summary. */
        if (!block->words[word])
            block->summary[word / WORD_BITS] &= ~(1ull << (word % WORD_BITS));
        set->count -= (uint64_t)__builtin_popcountll(gone);
    }
}

uint64_t pageset_missing(const struct pageset *set, uint32_t index, uint64_t first, uint64_t pages)
{
    const struct pageset_block *block = block_of(set, index, first, pages);
    uint64_t end = first + pages, missing = 0;
    for (uint64_t word = first / WORD_BITS; word * WORD_BITS < end; word++)
        missing += (uint64_t)__builtin_popcountll(mask_of(word, first, end) & ~block->words[word]);
    return missing;
}

void pageset_fill(struct pageset *set)
{
    for (uint32_t i = 0; i < set->block_count; i++)
        if (set->blocks[i].pages)
            pageset_add(set, i, 0, set->blocks[i].pages);
}

void pageset_clear(struct pageset *set)
{
    for (uint32_t i = 0; i < set->block_count; i++) {
        struct pageset_block *block = &set->blocks[i];
        for (size_t s = 0; s < block->summary_words; s++) {
            for (uint64_t left = block->summary[s]; left; left &= left - 1)
                block->words[s * WORD_BITS + (unsigned)__builtin_ctzll(left)] = 0;
            block->summary[s] = 0;
        }
    }
    set->count = 0;
}

void pageset_merge(struct pageset *to, const struct pageset *from)
{
    assert(to->block_count == from->block_count);
    for (uint32_t i = 0; i < from->block_count; i++) {
        struct pageset_block *target = &to->blocks[i];
        const struct pageset_block *source = &from->blocks[i];
        assert(target->pages == source->pages);
        for (size_t s = 0; s < source->summary_words; s++) {
            for (uint64_t left = source->summary[s]; left; left &= left - 1) {
                size_t word = s * WORD_BITS + (unsigned)__builtin_ctzll(left);
                to->count += (uint64_t)__builtin_popcountll(source->words[word] & ~target->words[word]);
                target->words[word] |= source->words[word];
            }
            target->summary[s] |= source->summary[s];
        }
    }
}

void pageset_swap(struct pageset *a, struct pageset *b)
{
    struct pageset kept = *a;
    *a = *b;
    *b = kept;
}

/* The first page at or after `from` that is in the set; block->pages if none is. */
static uint64_t find_member(const struct pageset_block *block, uint64_t from)
{
    if (from >= block->pages)
        return block->pages;
    uint64_t word = from / WORD_BITS;
    uint64_t bits = block->words[word] & (~0ull << (from % WORD_BITS));
    if (bits)
        return word * WORD_BITS + (unsigned)__builtin_ctzll(bits);

    word++;
    size_t s = (size_t)(word / WORD_BITS);
    if (s >= block->summary_words)
        return block->pages;
    uint64_t summary = block->summary[s] & (~0ull << (word % WORD_BITS));
    while (!summary) {
        if (++s == block->summary_words)
            return block->pages;
        summary = block->summary[s];
    }
    word = s * WORD_BITS + (unsigned)__builtin_ctzll(summary);
    return word * WORD_BITS + (unsigned)__builtin_ctzll(block->words[word]);
}

/* The first page in [from, limit) that is not in the set; `limit` if all are. */
static uint64_t find_gap(const struct pageset_block *block, uint64_t from, uint64_t limit)
{
    while (from < limit) {
        uint64_t gaps = ~block->words[from / WORD_BITS] & (~0ull << (from % WORD_BITS));
        if (gaps) {
            uint64_t page = from / WORD_BITS * WORD_BITS + (unsigned)__builtin_ctzll(gaps);
            return page < limit ? page : limit;
        }
        from = (from / WORD_BITS + 1) * WORD_BITS;
    }
    return limit;
}

bool pageset_next(const struct pageset *set, struct pageset_cursor *cursor, uint64_t max,
                  struct vmm_range *ret_run)
{
    assert(max > 0);
    for (; cursor->block < set->block_count; cursor->block++, cursor->page = 0) {
        const struct pageset_block *block = &set->blocks[cursor->block];
        uint64_t first = find_member(block, cursor->page);
        if (first == block->pages)
            continue;
        uint64_t limit = block->pages - first > max ? first + max : block->pages;
        uint64_t end = find_gap(block, first, limit);
        *ret_run = (struct vmm_range){.block = cursor->block, .first = first, .pages = end - first};
        cursor->page = end;
        return true;
    }
    return false;
}

void pageset_skip(const struct pageset *set, struct pageset_cursor *cursor, uint64_t pages)
{
    struct vmm_range run;
    while (pages > 0 && pageset_next(set, cursor, pages, &run))
        pages -= run.pages;
}
