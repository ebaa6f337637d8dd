/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <string.h>

/*
 * The lanes' side: take a piece, build its frames in the lane's buffer, account for it.
 *
 * A call ends when it has written about as much as a chunk of incompressible pages, so that encryption starts
 * while the data are in the cache; or when it has looked at PRODUCE_PAGES_MAX pages, so that a stretch of
 * zero pages, which writes next to nothing, does not keep the lane's thread from its socket.
 */
#define PRODUCE_BYTES     ((size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES)
#define PRODUCE_PAGES_MAX 4096u

static_assert(ENCODE_PAYLOAD_MAX <= ENCODE_ROOM && ENCODE_ROOM <= WIRE_PAYLOAD_MAX,
              "who has room for both frames has room for either, and wire_writer_payload() can tell");

/* How an item's pages go. */
struct way {
    bool lz4;            /* pages that go whole are compressed */
    bool sample;         /* they are not, and a piece of them is, to see what it would bring */
    bool lz4_changes;    /* blocks that changed are */
    double page_out;     /* bytes that a page costs whole, for each of its own */
    unsigned blocks_max; /* changed blocks up to which a page goes as changes */
};

static struct way choose_way(struct checkpoint *checkpoint)
{
    struct way way = {.page_out = 1};
    scope_lock(&checkpoint->lock);
    way.lz4_changes = checkpoint->lz4_allowed && checkpoint->config.compression != CHECKPOINT_COMPRESS_NONE;
    if (way.lz4_changes && checkpoint->config.compression == CHECKPOINT_COMPRESS_LZ4) {
        way.lz4 = true;
    } else if (way.lz4_changes) {
        enum rate_way next = rate_next(&checkpoint->rate);
        way.lz4 = next == RATE_LZ4;
        way.sample = next == RATE_RAW_AND_SAMPLE;
    }
    if (way.lz4)
        way.page_out = rate_lz4_out(&checkpoint->rate);
    if (checkpoint->delta_bases)
        way.blocks_max =
            delta_blocks_max(way.page_out, way.lz4_changes ? rate_change_out(&checkpoint->rate) : 1);
    return way;
}

static void account_whole(struct checkpoint *checkpoint, const struct encoded *encoded, bool lz4, uint64_t ns)
{
    scope_lock(&checkpoint->lock);
    struct checkpoint_stats *stats = &checkpoint->stats;
    stats->pages_zero += encoded->zero;
    stats->pages_raw += encoded->raw;
    stats->pages_lz4 += encoded->lz4;
    stats->bytes_guest += (uint64_t)(encoded->zero + encoded->raw + encoded->lz4) * VMM_PAGE_BYTES;
    stats->bytes_payload += encoded->length;
    stats->bytes_lz4 += encoded->lz4_bytes;
    /* Among mostly zero pages the time says little about the others. */
    uint32_t written = encoded->raw + encoded->lz4;
    if (written >= encoded->zero)
        rate_encoded(&checkpoint->rate, lz4, (uint64_t)written * VMM_PAGE_BYTES, encoded->body_bytes, ns);
}

/* What LZ4 would have made of a payload that is raw. */
static void sample(struct checkpoint *checkpoint, struct encoder *encoder, const struct way *way,
                   const uint8_t *payload, const struct encoded *encoded)
{
    if (!way->sample)
        return;
    uint64_t start_ns = clock_now_ns();
    size_t out = 0, in = encode_sample(encoder, payload, encoded, &out);
    uint64_t ns = clock_now_ns() - start_ns;
    scope_lock(&checkpoint->lock);
    rate_sampled(&checkpoint->rate, encoded->body_bytes, in, out, ns);
}

/* Pages as changes (`encoded` says how they went) and pages that did not go at all. */
static void account_delta(struct checkpoint *checkpoint, const struct delta *delta, const struct way *way,
                          const struct delta_encoded *encoded)
{
    scope_lock(&checkpoint->lock);
    struct checkpoint_stats *stats = &checkpoint->stats;
    uint64_t whole = (uint64_t)(delta->pages * VMM_PAGE_BYTES * way->page_out);
    stats->pages_delta += delta->pages;
    stats->pages_same += delta->same;
    stats->bytes_guest += (uint64_t)(delta->pages + delta->same) * VMM_PAGE_BYTES;
    stats->bytes_payload += encoded->length;
    stats->bytes_delta += encoded->length;
    if (whole > encoded->length)
        stats->bytes_delta_saved += whole - encoded->length;
    stats->bytes_same_saved += (uint64_t)(delta->same * VMM_PAGE_BYTES * way->page_out);
    stats->delta_hits += delta->hits;
    stats->delta_misses += delta->misses;
    if (way->lz4_changes)
        rate_changes(&checkpoint->rate, encoded->block_in, encoded->block_out);
}

/* The payload was built where the writer wants it. */
static void finish_frame(struct wire_writer *writer, const struct plan_item *item, enum wire_type type,
                         size_t length, uint32_t pages, struct message_totals *sent)
{
    sent->sum += wire_writer_finish(writer, type, item->generation, item->epoch, length);
    sent->frames++;
    sent->pages += pages;
    sent->bytes += length;
}

static int read_failed(const struct checkpoint *checkpoint, const struct plan_item *item, int code)
{
    return error_add(code, "epoch %llu: read %u pages of block '%s' from page %llu",
                     (unsigned long long)item->epoch, item->pages,
                     checkpoint->guest.blocks[item->ranges[0].block].name,
                     (unsigned long long)item->ranges[0].first);
}

/* All pages whole. */
static int produce_whole(struct checkpoint *checkpoint, struct checkpoint_lane *lane, const struct way *way,
                         struct wire_writer *writer, struct message_totals *sent)
{
    const struct plan_item *item = &lane->item;
    size_t room;
    uint8_t *payload = wire_writer_payload(writer, &room);
    uint64_t start_ns = clock_now_ns();
    struct encoded encoded;
    if (item->direct) {
        int r = encode_direct(&lane->encoder, item, checkpoint->source, &checkpoint->guest, way->lz4, payload,
                              &encoded);
        if (r < 0)
            return read_failed(checkpoint, item, r);
    } else {
        encode_stable(&lane->encoder, item, checkpoint->staging + item->staged * VMM_PAGE_BYTES, way->lz4,
                      payload, &encoded);
    }
    account_whole(checkpoint, &encoded, way->lz4, clock_now_ns() - start_ns);
    sample(checkpoint, &lane->encoder, way, payload, &encoded);
    finish_frame(writer, item, WIRE_PAGES, encoded.length, item->pages, sent);
    return 0;
}

/* The item's changes of disks, in their order. Compressed where that pays for pages; what it brings is
 * measured here too. */
static void produce_disk(struct checkpoint *checkpoint, struct checkpoint_lane *lane,
                         struct wire_writer *writer, struct message_totals *sent)
{
    struct plan_item *item = &lane->item;
    struct way way = choose_way(checkpoint);
    uint64_t start_ns = clock_now_ns(), bytes = 0;
    const struct disk_record *record;
    TAILQ_FOREACH(record, &item->records, link)
    bytes += disk_record_body(record);
    struct encoded encoded = {0};
    size_t room;
    uint8_t *payload = wire_writer_payload(writer, &room);
    encode_disk(&lane->encoder, item, way.lz4, payload, &encoded);
    disks_release(checkpoint->disks, &item->records);
    {
        scope_lock(&checkpoint->lock);
        checkpoint->stats.disk_bytes_payload += encoded.length;
        rate_encoded(&checkpoint->rate, way.lz4, bytes, encoded.body_bytes, clock_now_ns() - start_ns);
    }
    sample(checkpoint, &lane->encoder, &way, payload, &encoded);
    finish_frame(writer, item, WIRE_DISK, encoded.length, 0, sent);
}

/* Each page in the way that is cheapest, from bytes that nobody changes any more; what goes out of a guest
 * that runs is copied first, since the cache must have just that. */
static int produce_split(struct checkpoint *checkpoint, struct checkpoint_lane *lane, const struct way *way,
                         struct wire_writer *writer, struct message_totals *sent)
{
    struct encoder *encoder = &lane->encoder;
    const struct plan_item *item = &lane->item;
    const uint8_t *bytes = encoder->scratch;
    uint64_t start_ns = clock_now_ns();
    if (!item->direct) {
        bytes = checkpoint->staging + item->staged * VMM_PAGE_BYTES;
    } else {
        int r = encode_read(encoder, item, checkpoint->source, &checkpoint->guest);
        if (r < 0)
            return read_failed(checkpoint, item, r);
    }
    uint64_t read_ns = clock_now_ns() - start_ns;
    struct delta *delta = &encoder->delta;
    delta_split(delta, &checkpoint->cache, item, bytes, encode_find_zeros(bytes, item->pages),
                way->blocks_max);

    size_t room;
    struct encoded whole;
    struct delta_encoded changes = {0};
    uint32_t whole_pages = (uint32_t)__builtin_popcountll(delta->whole);
    if (whole_pages) {
        uint8_t *payload = wire_writer_payload(writer, &room);
        start_ns = clock_now_ns();
        encode_whole(encoder, item, bytes, way->lz4, payload, &whole);
        account_whole(checkpoint, &whole, way->lz4,
                      clock_now_ns() - start_ns + read_ns * whole_pages / item->pages);
        sample(checkpoint, encoder, way, payload, &whole);
        finish_frame(writer, item, WIRE_PAGES, whole.length, whole_pages, sent);
    }
    if (delta->pages) {
        delta_encode(delta, item, way->lz4_changes ? encoder->lz4 : NULL, wire_writer_payload(writer, &room),
                     &changes);
        finish_frame(writer, item, WIRE_DELTA, changes.length, delta->pages, sent);
    }
    account_delta(checkpoint, delta, way, &changes);
    return 0;
}

static void forget(struct checkpoint *checkpoint, const struct plan_item *item)
{
    for (uint32_t r = 0; r < item->range_count; r++)
        for (uint64_t i = 0; i < item->ranges[r].pages; i++)
            cache_drop(&checkpoint->cache, item->ranges[r].block, item->ranges[r].first + i);
}

static int produce_pages(struct checkpoint *checkpoint, struct checkpoint_lane *lane,
                         struct wire_writer *writer, struct message_totals *sent)
{
    int r = fault_point(FAULT_ENCODE);
    if (r < 0)
        return r;
    struct way way = choose_way(checkpoint);
    /* The first copy of everything is not kept: that would cost its time, and keep the wrong pages. */
    if (checkpoint->delta_on && (checkpoint->delta_bases || !lane->item.direct))
        return produce_split(checkpoint, lane, &way, writer, sent);
    if (checkpoint->delta_on)
        forget(checkpoint, &lane->item);
    return produce_whole(checkpoint, lane, &way, writer, sent);
}

/* Compressed whatever was measured for pages: it shrinks to a few hundredths, and is small beside them. */
static void produce_state(struct checkpoint *checkpoint, struct checkpoint_lane *lane,
                          struct wire_writer *writer, struct message_totals *sent)
{
    const struct plan_item *item = &lane->item;
    bool lz4;
    {
        scope_lock(&checkpoint->lock);
        lz4 = checkpoint->state_lz4_allowed && checkpoint->config.compression != CHECKPOINT_COMPRESS_NONE;
    }
    size_t room, length;
    enum wire_type type = encode_state(&lane->encoder, item, checkpoint->state, lz4,
                                       wire_writer_payload(writer, &room), &length);
    {
        scope_lock(&checkpoint->lock);
        checkpoint->stats.state_bytes += item->length;
        checkpoint->stats.state_bytes_payload += length;
    }
    finish_frame(writer, item, type, length, 0, sent);
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

    /* Pages that need no frame are no reason to come back with nothing, which would mean that nothing is
     * ready; there are no more of them than the cache holds. */
    while (!finished && (looked_at < PRODUCE_PAGES_MAX || writer->used == before) &&
           writer->used - before < PRODUCE_BYTES) {
        size_t room;
        wire_writer_payload(writer, &room);
        if (room < ENCODE_ROOM) {
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

        struct message_totals sent = {0}, totals;
        int r = 0;
        if (item->kind == PLAN_STATE)
            produce_state(checkpoint, lane, writer, &sent);
        else if (item->kind == PLAN_DISK)
            produce_disk(checkpoint, lane, writer, &sent);
        else
            r = produce_pages(checkpoint, lane, writer, &sent);
        if (r < 0) {
            plan_failed(plan, r);
            return r;
        }
        looked_at += item->pages;
        finished = plan_done(plan, item, &sent, &totals);
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
