/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/decode.h"

#include "base/error.h"
#include "restore/batch.h"

#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <string.h>
#include <sys/mman.h>

/*
 * A run's way: raw pages are copied once, from the frame to their slot or to the guest. An LZ4 run is decoded
 * right into consecutive slots, or into the guest's mapped memory; only where slots are scattered, or where
 * pages are to be compared first, does it take the way over the writer's scratch memory, which is as large as
 * two runs and so stays in the cache.
 */

#define POPULATE_PAGES 8

static uint8_t *guest_page(const struct decode *decode, uint64_t page)
{
    return (uint8_t *)decode->block->map + (page << VMM_PAGE_SHIFT);
}

static int decompress(const struct message_run *run, uint8_t *to)
{
    int wanted = (int)(run->pages << VMM_PAGE_SHIFT);
    int got = LZ4_decompress_safe((const char *)run->body, (char *)to, (int)run->body_bytes, wanted);
    if (got == wanted)
        return 0;
    return error_set(-EBADMSG, "%" PRIu32 " compressed bytes do not decode to %" PRIu32 " pages",
                     run->body_bytes, run->pages);
}

static int direct_mapped(const struct decode *decode, const struct message_run *run)
{
    uint8_t *to = guest_page(decode, run->first);
    size_t bytes = (size_t)run->pages << VMM_PAGE_SHIFT;
    /* The first copy is what gives the guest its memory. One call for the run spares a fault a page, which
     * was a third of the whole cost; where it is refused (Linux < 5.14), the faults do it. */
    if (run->pages >= POPULATE_PAGES)
        (void)madvise(to, bytes, MADV_POPULATE_WRITE);
    if (run->encoding == WIRE_RUN_LZ4)
        return decompress(run, to);
    memcpy(to, run->body, bytes);
    return 0;
}

/* Into a guest that must be written to with a call. `*used` counts pages of scratch that the batch holds. */
static int direct_batched(const struct decode *decode, const struct message_run *run, struct batch *batch,
                          unsigned *used)
{
    if (run->encoding == WIRE_RUN_RAW)
        return batch_add(batch, run->first, run->pages, run->body);
    if (*used + run->pages > STAGING_SCRATCH_PAGES) {
        int r = batch_flush(batch);
        if (r < 0)
            return r;
        *used = 0;
    }
    uint8_t *to = decode->writer->scratch + ((size_t)*used << VMM_PAGE_SHIFT);
    int r = decompress(run, to);
    if (r < 0)
        return r;
    *used += run->pages;
    return batch_add(batch, run->first, run->pages, to);
}

static int direct(const struct decode *decode, const struct message_run *run, struct batch *batch,
                  unsigned *used)
{
    if (run->encoding == WIRE_RUN_ZERO)
        return decode->target->ops->zero(decode->target,
                                         &(struct vmm_range){decode->block_index, run->first, run->pages});
    return decode->block->map ? direct_mapped(decode, run) : direct_batched(decode, run, batch, used);
}

/* Copy consecutive pages to free slots and put them. */
static int stage_copy(struct staging_writer *writer, uint64_t position, const uint8_t *from, unsigned pages)
{
    while (pages) {
        uint32_t slot;
        long got = staging_take(writer, pages, &slot);
        if (got < 0)
            return (int)got;
        memcpy(staging_slot(writer->staging, slot), from, (size_t)got << VMM_PAGE_SHIFT);
        for (long i = 0; i < got; i++)
            staging_put(writer, position++, slot++ + STAGE_SLOT);
        from += (size_t)got << VMM_PAGE_SHIFT;
        pages -= (unsigned)got;
    }
    return 0;
}

/* Stage what differs from the guest's present memory, forget what was staged where it does not. */
static int stage_differing(const struct decode *decode, const struct message_run *run, uint64_t position,
                           const uint8_t *from)
{
    struct staging_writer *writer = decode->writer;
    const uint8_t *present;
    if (decode->block->map) {
        present = guest_page(decode, run->first);
    } else {
        uint8_t *copy = writer->scratch + ((size_t)WIRE_RUN_BODY_PAGES_MAX << VMM_PAGE_SHIFT);
        int r = decode->target->ops->read(
            decode->target, &(struct vmm_range){decode->block_index, run->first, run->pages}, 1, copy);
        if (r < 0)
            return r;
        present = copy;
    }
    for (uint32_t i = 0; i < run->pages; i++, from += VMM_PAGE_BYTES, present += VMM_PAGE_BYTES) {
        if (memcmp(from, present, VMM_PAGE_BYTES) == 0) {
            staging_put(writer, position + i, STAGE_ABSENT);
            continue;
        }
        int r = stage_copy(writer, position + i, from, 1);
        if (r < 0)
            return r;
    }
    return 0;
}

static int stage(const struct decode *decode, const struct message_run *run)
{
    struct staging_writer *writer = decode->writer;
    uint64_t position = staging_position(writer->staging, decode->block_index, run->first);
    staging_touch(writer, position, run->pages);
    if (run->encoding == WIRE_RUN_ZERO) {
        /* Not compared even when pages are: to look at a page that has no memory would give it some. */
        for (uint32_t i = 0; i < run->pages; i++)
            staging_put(writer, position + i, STAGE_ZERO);
        return 0;
    }
    const uint8_t *from = run->body;
    if (run->encoding == WIRE_RUN_LZ4) {
        uint32_t slot;
        bool in_place = decode->way == DECODE_STAGE && staging_take_run(writer, run->pages, &slot);
        uint8_t *to = in_place ? staging_slot(writer->staging, slot) : writer->scratch;
        int r = decompress(run, to);
        if (r < 0)
            return r;
        for (uint32_t i = 0; in_place && i < run->pages; i++)
            staging_put(writer, position + i, slot + i + STAGE_SLOT);
        if (in_place)
            return 0;
        from = to;
    }
    if (decode->way == DECODE_COMPARE)
        return stage_differing(decode, run, position, from);
    return stage_copy(writer, position, from, run->pages);
}

int decode_pages(const struct decode *decode, struct message_pages *pages)
{
    struct batch batch;
    unsigned used = 0;
    struct message_run run;
    uint64_t block_pages = decode->block->bytes >> VMM_PAGE_SHIFT;
    batch_begin(&batch, decode->target, decode->block, decode->block_index);
    while (message_pages_next(pages, &run)) {
        int r;
        if (run.first >= block_pages || run.pages > block_pages - run.first)
            r = error_set(-EPROTO, "the block has %" PRIu64 " pages", block_pages);
        else
            r = decode->way == DECODE_DIRECT ? direct(decode, &run, &batch, &used) : stage(decode, &run);
        if (r < 0)
            return error_add(r, "pages %" PRIu64 " to %" PRIu64 " of block '%s'", run.first,
                             run.first + run.pages - 1, decode->block->name);
    }
    return batch_flush(&batch);
}
