/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/delta.h"

#include "base/error.h"
#include "wire/message.h"

#include <assert.h>
#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A page that the guest wrote has mostly changed in a few of its blocks, and a page that was marked has often
 * not changed at all (it was written with what it held, or only read through a mapping for writing). With the
 * standby's copy at hand the lane sees that, and sends what changed: 24 bytes for the page and the
 * exclusive-or of the blocks, which is mostly zeros and so compresses well, all pages of the item together.
 *
 *      zero          ──► whole: a run costs nothing          (no copy is kept)
 *      no copy known ──► whole                               a copy is kept, if there is room
 *      like the copy ──► nothing
 *      else          ──► whole or changes: what is cheaper by the ratios measured lately
 *
 * The copy is exchanged in the same step in which the bytes that go out are looked at, under its lock, so
 * that it is what the standby will have whatever way is chosen.
 *
 * While the pages are looked at the blocks are gathered behind the room of the largest table; the table grows
 * from there to the left, backwards, and is turned round in the end.
 */

/* Below this share of its size LZ4 is believed to bring no block, whatever was measured: a page of changes
 * that all went to nothing must not make every page look cheap. */
#define BLOCK_OUT_MIN (1.0 / 16)

#define TABLE_BYTES (WIRE_DELTA_PAGES_MAX * sizeof(struct wire_delta_page))

static_assert(PLAN_CHUNK_PAGES <= WIRE_DELTA_PAGES_MAX, "an item is at most one WIRE_DELTA");
static_assert(sizeof(struct wire_delta) + MESSAGE_DELTA_RAW_MAX <= WIRE_PAYLOAD_MAX,
              "and that fits in a frame");

int delta_init(struct delta *delta)
{
    *delta = (struct delta){.raw = aligned_alloc(64, MESSAGE_DELTA_RAW_MAX)};
    return delta->raw ? 0 : error_errno(-ENOMEM, "changes of a lane");
}

void delta_fini(struct delta *delta)
{
    free(delta->raw);
    *delta = (struct delta){0};
}

static struct wire_delta_page *entry_at(const struct delta *delta, uint32_t index)
{
    return (struct wire_delta_page *)(delta->raw + TABLE_BYTES) - 1 - index;
}

static void look(struct delta *delta, struct cache *cache, uint32_t block, uint64_t page, unsigned at,
                 const uint8_t *content, unsigned blocks_max)
{
    if (delta->zeros >> at & 1) {
        cache_drop(cache, block, page);
        delta->whole |= 1ull << at;
        return;
    }
    uint64_t changed;
    switch (cache_exchange(cache, block, page, content, blocks_max, &changed,
                           delta->raw + TABLE_BYTES + delta->block_bytes)) {
    case CACHE_ABSENT:
        delta->misses++;
        delta->whole |= 1ull << at;
        return;
    case CACHE_SAME:
        delta->hits++;
        delta->same++;
        return;
    case CACHE_FAR:
        delta->hits++;
        delta->whole |= 1ull << at;
        return;
    case CACHE_NEAR:
        delta->hits++;
        *entry_at(delta, delta->pages++) = (struct wire_delta_page){
            .page = to_le64(page),
            .changed = to_le64(changed),
            .sum = to_le64(wire_sum(content, VMM_PAGE_BYTES)),
        };
        delta->block_bytes += (uint32_t)__builtin_popcountll(changed) * WIRE_DELTA_BLOCK;
    }
}

static void turn_table(const struct delta *delta)
{
    for (uint32_t i = 0; i < delta->pages / 2; i++) {
        struct wire_delta_page *a = entry_at(delta, i), *b = entry_at(delta, delta->pages - 1 - i), c = *a;
        *a = *b;
        *b = c;
    }
}

void delta_split(struct delta *delta, struct cache *cache, const struct plan_item *item, const uint8_t *bytes,
                 uint64_t zeros, unsigned blocks_max)
{
    delta->zeros = zeros;
    delta->whole = 0;
    delta->pages = delta->same = delta->hits = delta->misses = delta->block_bytes = 0;
    unsigned at = 0;
    for (uint32_t r = 0; r < item->range_count; r++)
        for (uint32_t i = 0; i < item->ranges[r].pages; i++, at++)
            look(delta, cache, item->ranges[r].block, item->ranges[r].first + i, at,
                 bytes + (size_t)at * VMM_PAGE_BYTES, blocks_max);
    turn_table(delta);
}

unsigned delta_blocks_max(double page_out, double block_out)
{
    if (block_out < BLOCK_OUT_MIN)
        block_out = BLOCK_OUT_MIN;
    double blocks =
        (VMM_PAGE_BYTES * page_out - sizeof(struct wire_delta_page)) / (WIRE_DELTA_BLOCK * block_out);
    return blocks <= 0 ? 0 : blocks >= 64 ? 64 : (unsigned)blocks;
}

void delta_encode(const struct delta *delta, const struct plan_item *item, void *lz4, uint8_t *payload,
                  struct delta_encoded *ret_encoded)
{
    assert(delta->pages);
    uint32_t table_bytes = delta->pages * (uint32_t)sizeof(struct wire_delta_page);
    struct message_delta head = {
        .block = item->ranges[0].block,
        .round = item->round,
        .page_count = delta->pages,
        .raw_bytes = table_bytes + delta->block_bytes,
        .encoding = WIRE_DELTA_LZ4,
    };
    const uint8_t *raw = delta->raw + TABLE_BYTES - table_bytes;
    uint8_t *body = payload + sizeof(struct wire_delta);
    int body_bytes = 0;
    if (lz4)
        body_bytes = LZ4_compress_fast_extState(lz4, (const char *)raw, (char *)body, (int)head.raw_bytes,
                                                (int)head.raw_bytes - 1, 1);
    if (body_bytes <= 0) {
        head.encoding = WIRE_DELTA_RAW;
        body_bytes = (int)head.raw_bytes;
        memcpy(body, raw, head.raw_bytes);
    }
    *ret_encoded = (struct delta_encoded){
        .length = message_delta_build(&head, payload) + (size_t)body_bytes,
        .block_in = delta->block_bytes,
        /* The table hardly compresses: numbers and sums. */
        .block_out = (uint32_t)body_bytes > table_bytes ? (uint32_t)body_bytes - table_bytes : 0,
    };
}
