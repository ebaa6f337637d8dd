/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <string.h>

/*
 * The lanes' side: take a piece, build its frame in the lane's buffer, account for it.
 *
 * A call ends when it has written about as much as a chunk of incompressible pages, so that encryption starts
 * while the data are in the cache; or when it has looked at PRODUCE_PAGES_MAX pages, so that a stretch of
 * zero pages, which writes next to nothing, does not keep the lane's thread from its socket.
 */
#define PRODUCE_BYTES     ((size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES)
#define PRODUCE_PAGES_MAX 4096u

static_assert(sizeof(struct wire_state) + PLAN_STATE_PIECE <= ENCODE_PAYLOAD_MAX,
              "a piece of device state takes no more room than a chunk of pages");

static bool choose_lz4(struct checkpoint *checkpoint)
{
    scope_lock(&checkpoint->lock);
    if (!checkpoint->lz4_allowed || checkpoint->config.compression == CHECKPOINT_COMPRESS_NONE)
        return false;
    return checkpoint->config.compression == CHECKPOINT_COMPRESS_LZ4 || rate_next_is_lz4(&checkpoint->rate);
}

static void account_pages(struct checkpoint *checkpoint, const struct plan_item *item,
                          const struct encoded *encoded, bool lz4, uint64_t ns)
{
    scope_lock(&checkpoint->lock);
    struct checkpoint_stats *stats = &checkpoint->stats;
    stats->pages_zero += encoded->zero;
    stats->pages_raw += encoded->raw;
    stats->pages_lz4 += encoded->lz4;
    stats->bytes_guest += (uint64_t)item->pages * VMM_PAGE_BYTES;
    stats->bytes_payload += encoded->length;
    /* Among mostly zero pages the time says little about the others. */
    uint32_t written = encoded->raw + encoded->lz4;
    if (written * 2 >= item->pages)
        rate_encoded(&checkpoint->rate, lz4, (uint64_t)written * VMM_PAGE_BYTES, encoded->body_bytes, ns);
}

/* Returns the payload's length or a negative errno. */
static long produce_pages(struct checkpoint *checkpoint, struct checkpoint_lane *lane, uint8_t *payload)
{
    const struct plan_item *item = &lane->item;
    int r = fault_point(FAULT_ENCODE);
    if (r < 0)
        return r;
    bool lz4 = choose_lz4(checkpoint);
    uint64_t start_ns = clock_now_ns();
    struct encoded encoded;
    if (item->direct) {
        r = encode_direct(&lane->encoder, item, checkpoint->source, &checkpoint->guest, lz4, payload,
                          &encoded);
        if (r < 0)
            return error_add(r, "epoch %llu: read %u pages of block '%s' from page %llu",
                             (unsigned long long)item->epoch, item->pages,
                             checkpoint->guest.blocks[item->ranges[0].block].name,
                             (unsigned long long)item->ranges[0].first);
    } else {
        encode_stable(&lane->encoder, item, checkpoint->staging + item->staged * VMM_PAGE_BYTES, lz4, payload,
                      &encoded);
    }
    account_pages(checkpoint, item, &encoded, lz4, clock_now_ns() - start_ns);
    return (long)encoded.length;
}

static long produce_state(const struct checkpoint *checkpoint, const struct plan_item *item, uint64_t total,
                          uint8_t *payload)
{
    struct wire_state head = {.offset = to_le64(item->offset), .total = to_le64(total)};
    memcpy(payload, &head, sizeof head);
    memcpy(payload + sizeof head, checkpoint->state + item->offset, item->length);
    return (long)(sizeof head + item->length);
}

/* The lane is back: the time it was away is what its bytes cost to carry, unless it was away for want of
 * work. */
static void account_carry(struct checkpoint *checkpoint, struct checkpoint_lane *lane, uint64_t serial)
{
    if (lane->given_bytes && lane->given_serial == serial) {
        uint64_t away_ns = clock_now_ns() - lane->given_ns;
        scope_lock(&checkpoint->lock);
        rate_carried(&checkpoint->rate, lane->given_bytes, away_ns);
    }
    lane->given_bytes = 0;
}

int checkpoint_produce(struct checkpoint *checkpoint, unsigned lane_index, struct wire_writer *writer)
{
    assert(lane_index >= 1 && lane_index <= checkpoint->config.lanes);
    struct checkpoint_lane *lane = &checkpoint->lanes[lane_index - 1];
    struct plan *plan = &checkpoint->plan;
    struct plan_item *item = &lane->item;
    size_t before = writer->used;
    uint32_t looked_at = 0;
    bool first = true, finished = false;

    while (!finished && looked_at < PRODUCE_PAGES_MAX && writer->used - before < PRODUCE_BYTES) {
        size_t room;
        uint8_t *payload = wire_writer_payload(writer, &room);
        if (room < ENCODE_PAYLOAD_MAX) {
            assert(writer->used > 0); /* a buffer that cannot take one chunk would never send anything */
            break;
        }
        if (!plan_take(plan, item)) {
            lane->given_bytes = 0;
            return writer->used > before;
        }
        if (first)
            account_carry(checkpoint, lane, item->serial);
        first = false;

        long length = item->state ? produce_state(checkpoint, item, item->total, payload)
                                  : produce_pages(checkpoint, lane, payload);
        if (length < 0) {
            plan_failed(plan, (int)length);
            return (int)length;
        }
        uint64_t sum = wire_writer_finish(writer, item->state ? WIRE_STATE : WIRE_PAGES, item->generation,
                                          item->epoch, (size_t)length);
        looked_at += item->pages;
        struct message_totals totals;
        finished = plan_done(plan, item, (uint64_t)length, sum, &totals);
        if (finished)
            checkpoint->config.round_sent(checkpoint->config.ctx, item->epoch, item->round, &totals);
    }
    if (writer->used > before && !finished) {
        lane->given_bytes = writer->used - before;
        lane->given_serial = item->serial;
        lane->given_ns = clock_now_ns();
    }
    return writer->used > before;
}
