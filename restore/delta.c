/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/decode.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <string.h>

/*
 * A page that comes as changes: its base is copied to a free slot, the blocks are applied there, and the sum
 * of the result is compared before anybody else can see it. The base is what the filling stage holds for the
 * page, else the guest's memory, which must be the committed checkpoint by then: the caller waits for that.
 *
 * A peer that sends one page on two lanes at once may have the slot of the base replaced while it is copied.
 * Slots stay mapped, so that gives wrong bytes and no more, and the sum tells.
 */

static_assert(MESSAGE_DELTA_RAW_MAX <= (size_t)STAGING_SCRATCH_PAGES << VMM_PAGE_SHIFT,
              "a decompressed body fits in the writer's scratch memory");

/* A block at any address; the compiler makes of it what the processor has. */
typedef uint64_t block_words __attribute__((vector_size(WIRE_DELTA_BLOCK), aligned(1), may_alias));

static int open_body(const struct decode *decode, struct message_delta *delta)
{
    if (delta->encoding == WIRE_DELTA_RAW)
        return message_delta_open(delta, delta->body);
    int got = LZ4_decompress_safe((const char *)delta->body, (char *)decode->writer->scratch,
                                  (int)delta->body_bytes, (int)delta->raw_bytes);
    if (got != (int)delta->raw_bytes)
        return error_set(-EBADMSG, "DELTA: %" PRIu32 " compressed bytes do not decode to %" PRIu32,
                         delta->body_bytes, delta->raw_bytes);
    return message_delta_open(delta, decode->writer->scratch);
}

static int copy_base(const struct decode *decode, uint64_t position, uint64_t page, uint8_t *to)
{
    const struct staging_writer *writer = decode->writer;
    uint32_t entry = atomic_load_explicit(&writer->stage->index[position], memory_order_acquire);
    if (entry >= STAGE_SLOT)
        memcpy(to, staging_slot(writer->staging, entry - STAGE_SLOT), VMM_PAGE_BYTES);
    else if (entry == STAGE_ZERO)
        memset(to, 0, VMM_PAGE_BYTES);
    else if (decode->block->map)
        memcpy(to, (const uint8_t *)decode->block->map + (page << VMM_PAGE_SHIFT), VMM_PAGE_BYTES);
    else
        return decode->target->ops->read(decode->target, &(struct vmm_range){decode->block_index, page, 1}, 1,
                                         to);
    return 0;
}

static void apply_blocks(uint8_t *to, const struct message_delta_page *page)
{
    block_words *base = (block_words *)to;
    const block_words *changes = (const block_words *)page->blocks;
    for (uint64_t left = page->changed; left; left &= left - 1)
        base[__builtin_ctzll(left)] ^= *changes++;
}

static int stage_page(const struct decode *decode, const struct message_delta_page *page)
{
    struct staging_writer *writer = decode->writer;
    uint64_t position = staging_position(writer->staging, decode->block_index, page->page);
    uint32_t slot;
    long got = staging_take(writer, 1, &slot);
    if (got < 0)
        return (int)got;
    uint8_t *to = staging_slot(writer->staging, slot);
    int r = copy_base(decode, position, page->page, to);
    if (r == 0) {
        apply_blocks(to, page);
        if (wire_sum(to, VMM_PAGE_BYTES) != page->sum)
            r = error_set(-EBADMSG, "changes that do not fit: the sum is not the one announced");
    }
    if (r < 0) {
        staging_return(writer, slot);
        return r;
    }
    staging_touch(writer, position, 1);
    staging_put(writer, position, slot + STAGE_SLOT);
    return 0;
}

int decode_delta(const struct decode *decode, struct message_delta *delta)
{
    uint64_t block_pages = decode->block->bytes >> VMM_PAGE_SHIFT;
    int r = open_body(decode, delta);
    if (r < 0)
        return error_add(r, "block '%s'", decode->block->name);
    struct message_delta_page page;
    while (message_delta_next(delta, &page)) {
        r = page.page < block_pages
                ? stage_page(decode, &page)
                : error_set(-EPROTO, "DELTA: the block has %" PRIu64 " pages", block_pages);
        if (r < 0)
            return error_add(r, "page %" PRIu64 " of block '%s'", page.page, decode->block->name);
    }
    return 0;
}
