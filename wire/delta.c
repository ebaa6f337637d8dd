/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include "wire/check.h"

/*
 * WIRE_DELTA: a table of pages and the blocks that changed in each, compressed as one.
 *
 *     | wire_delta | body |          body, decompressed:  | page 0 | ... | page n-1 | blocks of 0 | ... | of
 * n-1 |
 *
 * The payload can be judged only so far while the body is compressed; so there are two steps, and what the
 * first accepts bounds the memory that the second needs: message_delta.raw_bytes is at most
 * MESSAGE_DELTA_RAW_MAX. Each walks everything once and accepts it whole or not at all, so next() needs no
 * checks.
 */

static_assert(WIRE_PAGE_BYTES / WIRE_DELTA_BLOCK == 64, "the blocks of a page are the bits of one word");

int message_delta_parse(const struct wire_frame *frame, struct message_delta *ret_delta)
{
    static const uint8_t zeros[sizeof((struct wire_delta *)NULL)->reserved];
    struct wire_delta wire = {0};
    int r = check_fixed(frame, WIRE_DELTA, &wire, sizeof wire);
    if (r < 0)
        return r;
    uint64_t pages = from_le32(wire.page_count), raw_bytes = from_le32(wire.raw_bytes);
    uint64_t body_bytes = frame->length - sizeof wire;
    TRY(r, check_bounds(frame, "block", from_le32(wire.block), 0, WIRE_BLOCKS_MAX - 1));
    TRY(r, check_bounds(frame, "page_count", pages, 1, WIRE_DELTA_PAGES_MAX));
    TRY(r, check_bounds(frame, "encoding", wire.encoding, WIRE_DELTA_RAW, WIRE_DELTA_LZ4));
    TRY(r, check_bounds(frame, "reserved", memcmp(wire.reserved, zeros, sizeof zeros) != 0, 0, 0));
    /* At least one block of each page has changed. */
    TRY(r, check_bounds(frame, "raw_bytes", raw_bytes,
                        pages * (sizeof(struct wire_delta_page) + WIRE_DELTA_BLOCK),
                        pages * (sizeof(struct wire_delta_page) + WIRE_PAGE_BYTES)));
    if (r < 0)
        return r;
    r = wire.encoding == WIRE_DELTA_RAW ? check_length(frame, sizeof wire + raw_bytes)
                                        : check_bounds(frame, "lz4 body", body_bytes, 1, raw_bytes);
    if (r < 0)
        return r;
    *ret_delta = (struct message_delta){
        .block = from_le32(wire.block),
        .round = from_le32(wire.round),
        .page_count = (uint32_t)pages,
        .raw_bytes = (uint32_t)raw_bytes,
        .encoding = wire.encoding,
        .body = frame->payload + sizeof wire,
        .body_bytes = (uint32_t)body_bytes,
    };
    return 0;
}

static struct wire_delta_page page_at(const uint8_t *table, uint32_t index)
{
    struct wire_delta_page page;
    memcpy(&page, table + index * sizeof page, sizeof page);
    return page;
}

static uint32_t blocks_bytes(uint64_t changed)
{
    return (uint32_t)__builtin_popcountll(changed) * WIRE_DELTA_BLOCK;
}

int message_delta_open(struct message_delta *delta, const uint8_t *raw)
{
    uint64_t next_page = 0, blocks = delta->page_count * sizeof(struct wire_delta_page);
    for (uint32_t i = 0; i < delta->page_count; i++) {
        struct wire_delta_page page = page_at(raw, i);
        uint64_t number = from_le64(page.page);
        if (number < next_page || number >= WIRE_PAGE_LIMIT)
            return error_set(-EPROTO,
                             "DELTA: entry %u: page is %" PRIu64 ", expected %" PRIu64 " to 2^52 - 1", i,
                             number, next_page);
        if (from_le64(page.changed) == 0)
            return error_set(-EPROTO, "DELTA: entry %u: nothing of page %" PRIu64 " has changed", i, number);
        next_page = number + 1;
        blocks += blocks_bytes(from_le64(page.changed));
    }
    if (blocks != delta->raw_bytes)
        return error_set(-EPROTO, "DELTA: raw_bytes is %u, expected %" PRIu64 " for the blocks that changed",
                         delta->raw_bytes, blocks);
    delta->table = raw;
    delta->blocks = raw + delta->page_count * sizeof(struct wire_delta_page);
    delta->taken = 0;
    return 0;
}

bool message_delta_next(struct message_delta *delta, struct message_delta_page *ret_page)
{
    assert(delta->table);
    if (delta->taken == delta->page_count)
        return false;
    struct wire_delta_page page = page_at(delta->table, delta->taken++);
    *ret_page = (struct message_delta_page){
        .page = from_le64(page.page),
        .changed = from_le64(page.changed),
        .sum = from_le64(page.sum),
        .blocks = delta->blocks,
    };
    delta->blocks += blocks_bytes(ret_page->changed);
    return true;
}

size_t message_delta_build(const struct message_delta *delta, void *to)
{
    struct wire_delta wire = {
        .block = to_le32(delta->block),
        .round = to_le32(delta->round),
        .page_count = to_le32(delta->page_count),
        .raw_bytes = to_le32(delta->raw_bytes),
        .encoding = delta->encoding,
    };
    memcpy(to, &wire, sizeof wire);
    return sizeof wire;
}
