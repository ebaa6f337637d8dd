/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include "wire/check.h"

/*
 * WIRE_PAGES: a table of runs, then their bodies.
 *
 *     | wire_pages | run 0 | run 1 | ... | run n-1 | body 0 | body 1 | ... | body n-1 |
 *
 * parse() walks the table once and accepts it whole or not at all, so next() needs no checks: the bodies of
 * an accepted table end exactly where the payload ends.
 */

static struct wire_run run_at(const uint8_t *runs, unsigned index)
{
    struct wire_run run;
    memcpy(&run, runs + index * sizeof run, sizeof run);
    return run;
}

static int check_run(const struct wire_frame *frame, const struct wire_run *run)
{
    uint64_t pages = from_le16(run->pages), body = from_le32(run->body);
    int r = 0;
    TRY(r, check_bounds(frame, "run's reserved", run->reserved, 0, 0));
    switch (run->encoding) {
    case WIRE_RUN_ZERO:
        TRY(r, check_bounds(frame, "zero run's pages", pages, 1, WIRE_RUN_PAGES_MAX));
        TRY(r, check_bounds(frame, "zero run's body", body, 0, 0));
        break;
    case WIRE_RUN_RAW:
        TRY(r, check_bounds(frame, "raw run's pages", pages, 1, WIRE_RUN_BODY_PAGES_MAX));
        TRY(r, check_bounds(frame, "raw run's body", body, pages * WIRE_PAGE_BYTES, pages * WIRE_PAGE_BYTES));
        break;
    case WIRE_RUN_LZ4:
        TRY(r, check_bounds(frame, "lz4 run's pages", pages, 1, WIRE_RUN_BODY_PAGES_MAX));
        TRY(r, check_bounds(frame, "lz4 run's body", body, 1, pages * WIRE_PAGE_BYTES));
        break;
    default:
        TRY(r, check_bounds(frame, "run's encoding", run->encoding, WIRE_RUN_ZERO, WIRE_RUN_LZ4));
    }
    TRY(r, check_pages(frame, from_le64(run->first), pages));
    return r;
}

int message_pages_parse(const struct wire_frame *frame, struct message_pages *ret_pages)
{
    struct wire_pages wire;
    int r = check_fixed(frame, WIRE_PAGES, &wire, sizeof wire);
    if (r < 0)
        return r;
    uint32_t run_count = from_le16(wire.run_count);
    size_t table_end = sizeof wire + run_count * sizeof(struct wire_run);
    TRY(r, check_bounds(frame, "block", from_le32(wire.block), 0, WIRE_BLOCKS_MAX - 1));
    TRY(r, check_bounds(frame, "reserved", from_le16(wire.reserved), 0, 0));
    TRY(r, check_bounds(frame, "run_count", run_count, 1, UINT16_MAX));
    if (r < 0)
        return r;
    if (table_end > frame->length)
        return error_set(-EMSGSIZE, "%s: payload is %u bytes, expected at least %zu for %u runs",
                         wire_type_name(frame->type), frame->length, table_end, run_count);

    const uint8_t *runs = frame->payload + sizeof wire;
    /* At most 2^16 runs of 2^16 pages and bodies of 2^18 bytes: no sum here can wrap. */
    uint64_t pages = 0, bodies = 0, next_page = 0;
    for (uint32_t i = 0; i < run_count; i++) {
        struct wire_run run = run_at(runs, i);
        r = check_run(frame, &run);
        if (r < 0)
            return error_add(r, "run %u", i);
        if (from_le64(run.first) < next_page)
            return error_set(-EPROTO, "run %u: %s: first page is %" PRIu64 ", expected %" PRIu64 " or higher",
                             i, wire_type_name(frame->type), from_le64(run.first), next_page);
        next_page = from_le64(run.first) + from_le16(run.pages);
        pages += from_le16(run.pages);
        bodies += from_le32(run.body);
    }
    TRY(r, check_bounds(frame, "page_count", from_le32(wire.page_count), pages, pages));
    TRY(r, check_length(frame, table_end + bodies));
    if (r < 0)
        return r;
    *ret_pages = (struct message_pages){
        .block = from_le32(wire.block),
        .round = from_le32(wire.round),
        .page_count = from_le32(wire.page_count),
        .run_count = (uint16_t)run_count,
        .runs = runs,
        .body = frame->payload + table_end,
    };
    return 0;
}

bool message_pages_next(struct message_pages *pages, struct message_run *ret_run)
{
    if (pages->taken == pages->run_count)
        return false;
    struct wire_run run = run_at(pages->runs, pages->taken++);
    *ret_run = (struct message_run){
        .first = from_le64(run.first),
        .pages = from_le16(run.pages),
        .encoding = run.encoding,
        .body = pages->body,
        .body_bytes = from_le32(run.body),
    };
    pages->body += ret_run->body_bytes;
    return true;
}

size_t message_pages_build(uint32_t block, uint32_t round, const struct message_run *runs, unsigned run_count,
                           void *to)
{
    assert(run_count >= 1 && run_count <= UINT16_MAX);
    uint32_t pages = 0;
    uint8_t *at = (uint8_t *)to + sizeof(struct wire_pages);
    for (unsigned i = 0; i < run_count; i++) {
        struct wire_run run = {
            .first = to_le64(runs[i].first),
            .pages = to_le16((uint16_t)runs[i].pages),
            .encoding = runs[i].encoding,
            .body = to_le32(runs[i].body_bytes),
        };
        pages += runs[i].pages;
        at = mempcpy(at, &run, sizeof run);
    }
    struct wire_pages wire = {
        .block = to_le32(block),
        .run_count = to_le16((uint16_t)run_count),
        .round = to_le32(round),
        .page_count = to_le32(pages),
    };
    memcpy(to, &wire, sizeof wire);
    return (size_t)(at - (uint8_t *)to);
}
