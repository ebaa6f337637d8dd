/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_MIRROR_H
#define UNDERSTUDY_TESTS_UNIT_MIRROR_H

#include "tests/unit/unit.h"

#include "checkpoint/checkpoint.h"
#include "vmm/memory/memory.h"
#include "wire/message.h"

#include <lz4.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

/*
 * A standby of a few lines: takes the frames that a checkpoint produces, decodes them with the protocol's own
 * reader, and applies them to a copy of the guest's memory. Several threads may feed one mirror, since the
 * pages of one round are disjoint.
 */
#define MIRROR_SESSION 77u

struct mirror {
    uint8_t *blocks[4];
    uint64_t bytes[4];
    unsigned block_count;
    uint8_t *state;
    uint64_t state_total;
    pthread_mutex_t lock;         /* of what follows */
    struct message_totals totals; /* of the present round */
    uint64_t runs[3];             /* by encoding, ever */
    uint64_t changed;             /* pages that came as changes, ever */
    uint64_t state_pieces[2];     /* as they are, compressed; ever */
};

static inline void mirror_new(struct mirror *mirror, const struct memory_options *options)
{
    *mirror = (struct mirror){.block_count = options->block_count};
    pthread_mutex_init(&mirror->lock, NULL);
    mirror->state = calloc(1, 4u << 20);
    for (unsigned i = 0; i < options->block_count; i++) {
        mirror->bytes[i] = options->blocks[i].bytes;
        mirror->blocks[i] = malloc(mirror->bytes[i]);
        memset(mirror->blocks[i], 0xa5, mirror->bytes[i]); /* so that a page never sent shows */
    }
}

static inline void mirror_free(struct mirror *mirror)
{
    for (unsigned i = 0; i < mirror->block_count; i++)
        free(mirror->blocks[i]);
    free(mirror->state);
    pthread_mutex_destroy(&mirror->lock);
}

static inline uint64_t mirror_pages(struct mirror *mirror, const struct wire_frame *frame, uint32_t round)
{
    struct message_pages pages;
    struct message_run run;
    uint64_t seen = 0;
    assert_int_equal(message_pages_parse(frame, &pages), 0);
    assert_int_equal(pages.round, round);
    assert_true(pages.block < mirror->block_count);
    while (message_pages_next(&pages, &run)) {
        uint64_t bytes = (uint64_t)run.pages * WIRE_PAGE_BYTES;
        assert_true(run.first * WIRE_PAGE_BYTES + bytes <= mirror->bytes[pages.block]);
        uint8_t *to = mirror->blocks[pages.block] + run.first * WIRE_PAGE_BYTES;
        if (run.encoding == WIRE_RUN_ZERO)
            memset(to, 0, bytes);
        else if (run.encoding == WIRE_RUN_RAW)
            memcpy(to, run.body, bytes);
        else
            assert_int_equal(
                LZ4_decompress_safe((const char *)run.body, (char *)to, (int)run.body_bytes, (int)bytes),
                bytes);
        pthread_mutex_lock(&mirror->lock);
        mirror->runs[run.encoding]++;
        pthread_mutex_unlock(&mirror->lock);
        seen += run.pages;
    }
    return seen;
}

static inline uint64_t mirror_delta(struct mirror *mirror, const struct wire_frame *frame, uint32_t round)
{
    struct message_delta delta;
    struct message_delta_page page;
    assert_int_equal(message_delta_parse(frame, &delta), 0);
    assert_int_equal(delta.round, round);
    assert_true(delta.block < mirror->block_count);
    uint8_t *raw = malloc(delta.raw_bytes);
    if (delta.encoding == WIRE_DELTA_RAW)
        memcpy(raw, delta.body, delta.raw_bytes);
    else
        assert_int_equal(LZ4_decompress_safe((const char *)delta.body, (char *)raw, (int)delta.body_bytes,
                                             (int)delta.raw_bytes),
                         delta.raw_bytes);
    assert_int_equal(message_delta_open(&delta, raw), 0);
    while (message_delta_next(&delta, &page)) {
        assert_true(page.page * WIRE_PAGE_BYTES < mirror->bytes[delta.block]);
        uint8_t *to = mirror->blocks[delta.block] + page.page * WIRE_PAGE_BYTES;
        const uint8_t *from = page.blocks;
        for (unsigned i = 0; i < WIRE_PAGE_BYTES; i++)
            if (page.changed >> i / WIRE_DELTA_BLOCK & 1)
                to[i] ^= *from++;
        assert_int_equal(wire_sum(to, WIRE_PAGE_BYTES), page.sum);
    }
    free(raw);
    pthread_mutex_lock(&mirror->lock);
    mirror->changed += delta.page_count;
    pthread_mutex_unlock(&mirror->lock);
    return delta.page_count;
}

static inline void mirror_state(struct mirror *mirror, const struct wire_frame *frame)
{
    struct message_state piece;
    assert_true(frame->type == WIRE_STATE || frame->type == WIRE_STATE_LZ4);
    assert_int_equal(message_state_parse(frame, &piece), 0);
    assert_true(piece.total <= 4u << 20);
    uint8_t *to = mirror->state + piece.offset;
    if (piece.lz4)
        assert_int_equal(LZ4_decompress_safe((const char *)piece.bytes, (char *)to, (int)piece.body_bytes,
                                             (int)piece.length),
                         piece.length);
    else
        memcpy(to, piece.bytes, piece.length);
    mirror->state_total = piece.total;
    pthread_mutex_lock(&mirror->lock);
    mirror->state_pieces[piece.lz4]++;
    pthread_mutex_unlock(&mirror->lock);
}

static inline void mirror_frame(struct mirror *mirror, const struct wire_frame *frame, uint64_t epoch,
                                uint32_t round)
{
    uint64_t pages = 0;
    assert_int_equal(frame->epoch, epoch);
    if (frame->type == WIRE_PAGES) {
        pages = mirror_pages(mirror, frame, round);
    } else if (frame->type == WIRE_DELTA) {
        pages = mirror_delta(mirror, frame, round);
    } else {
        mirror_state(mirror, frame);
    }
    pthread_mutex_lock(&mirror->lock);
    mirror->totals.frames++;
    mirror->totals.pages += pages;
    mirror->totals.bytes += frame->length;
    mirror->totals.sum += frame->header_sum;
    pthread_mutex_unlock(&mirror->lock);
}

/* A lane with nothing in between. */
struct mirror_lane {
    struct checkpoint *checkpoint;
    struct mirror *mirror;
    unsigned index;
    struct wire_writer writer;
    struct wire_reader reader;
    uint8_t buffer[1u << 20];
};

static inline struct mirror_lane *mirror_lane_new(struct checkpoint *checkpoint, struct mirror *mirror,
                                                  unsigned index)
{
    struct mirror_lane *lane = calloc(1, sizeof *lane);
    *lane = (struct mirror_lane){
        .checkpoint = checkpoint,
        .mirror = mirror,
        .index = index,
        .writer = {.room = sizeof lane->buffer, .session = MIRROR_SESSION},
        .reader = {.from = WIRE_SIDE_PRIMARY, .session_known = true, .session = MIRROR_SESSION}};
    lane->writer.buffer = lane->buffer;
    return lane;
}

/* One produce() and its frames; what produce() returned. The frames go to the mirror unless `drop`. */
static inline int mirror_lane_step(struct mirror_lane *lane, uint64_t epoch, uint32_t round, bool drop)
{
    lane->writer.used = 0;
    int r = checkpoint_produce(lane->checkpoint, lane->index, &lane->writer);
    size_t at = 0;
    while (at < lane->writer.used) {
        struct wire_frame frame;
        long size = wire_reader_next(&lane->reader, lane->buffer + at, lane->writer.used - at, &frame);
        assert_true(size > 0);
        at += (size_t)size;
        if (!drop)
            mirror_frame(lane->mirror, &frame, epoch, round);
    }
    if (r == 1)
        assert_true(lane->writer.used > 0);
    return r;
}

static inline void mirror_assert_equal(const struct mirror *mirror, struct vmm *guest)
{
    for (unsigned i = 0; i < mirror->block_count; i++) {
        const uint8_t *memory = memory_guest_block(guest, i);
        for (uint64_t at = 0; at < mirror->bytes[i]; at += WIRE_PAGE_BYTES)
            if (memcmp(memory + at, mirror->blocks[i] + at, WIRE_PAGE_BYTES))
                fail_msg("block %u page %llu differs", i, (unsigned long long)(at / WIRE_PAGE_BYTES));
    }
}

#endif
