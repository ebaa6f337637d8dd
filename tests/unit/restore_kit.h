/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_RESTORE_KIT_H
#define UNDERSTUDY_TESTS_RESTORE_KIT_H

#include "tests/unit/unit.h"

#include "base/error.h"
#include "base/scope.h"
#include "restore/restore.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <lz4.h>
#include <stdatomic.h>
#include <stdio.h>

/*
 * A primary by hand: memory of its own ("model"), frames built from it, and the standby's restore behind.
 * Source block 0 is target block 1 and the other way round, so that a forgotten map shows.
 */
#define KIT_BLOCKS     2
#define KIT_LANE_BYTES (WIRE_PAYLOAD_MAX + sizeof(struct wire_header))
#define KIT_SESSION    77

static const uint64_t kit_pages[KIT_BLOCKS] = {1500, 130};
static const uint32_t kit_map[KIT_BLOCKS] = {1, 0};

/* What round_complete() was told last. */
struct kit_done {
    atomic_int calls;
    uint64_t epoch;
    uint32_t round;
    bool commit;
    int code;
    char text[ERROR_TEXT_MAX];
};

/* One lane: a frame under construction, and the frame. */
struct kit_lane {
    struct wire_writer writer;
    struct wire_reader reader;
    uint8_t *buffer;
    uint32_t block, run_count;
    struct message_run runs[512];
    uint8_t *bodies;
    size_t body_bytes;
    struct wire_frame frame;
};

struct kit {
    struct vmm *guest;
    struct vmm_ops ops; /* the guest's own, to be overridden */
    const struct vmm_ops *original;
    struct restore *restore;
    struct restore_config config;
    uint8_t *model[KIT_BLOCKS];
    uint64_t epoch;
    uint32_t round;
    struct message_totals totals;
    struct kit_done done;
    struct kit_lane lane;
    uint64_t random;
};

static inline uint64_t kit_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static inline void kit_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                                const char *text)
{
    struct kit_done *done = ctx;
    done->epoch = epoch;
    done->round = round;
    done->commit = commit;
    done->code = code;
    snprintf(done->text, sizeof done->text, "%s", text ? text : "");
    atomic_fetch_add(&done->calls, 1);
}

static inline void kit_lane_open(struct kit_lane *lane)
{
    *lane = (struct kit_lane){.buffer = malloc(KIT_LANE_BYTES), .bodies = malloc(WIRE_PAYLOAD_MAX)};
    assert_non_null(lane->buffer);
    assert_non_null(lane->bodies);
    lane->writer =
        (struct wire_writer){.buffer = lane->buffer, .room = KIT_LANE_BYTES, .session = KIT_SESSION};
    lane->reader =
        (struct wire_reader){.from = WIRE_SIDE_PRIMARY, .session_known = true, .session = KIT_SESSION};
}

static inline void kit_lane_close(struct kit_lane *lane)
{
    free(lane->buffer);
    free(lane->bodies);
}

static inline void kit_open(struct kit *kit, size_t staging_bytes, bool unmapped)
{
    memset(kit, 0, sizeof *kit);
    /* The target's blocks, in its own order: target block i is source block kit_map[i]. */
    struct memory_options options = {.block_count = KIT_BLOCKS, .unmapped = unmapped};
    for (unsigned i = 0; i < KIT_BLOCKS; i++) {
        kit->model[i] = calloc(kit_pages[i], VMM_PAGE_BYTES);
        assert_non_null(kit->model[i]);
        options.blocks[kit_map[i]].name = i == 0 ? "ram" : "rom";
        options.blocks[kit_map[i]].bytes = kit_pages[i] << VMM_PAGE_SHIFT;
    }
    assert_int_equal(memory_guest_new(&kit->guest, &options), 0);
    kit->original = kit->guest->ops;
    kit->ops = *kit->guest->ops;
    kit->guest->ops = &kit->ops;
    /* A waiting guest is not all zeros: its firmware is there already. */
    for (unsigned i = 0; i < KIT_BLOCKS; i++)
        memset(memory_guest_block(kit->guest, i), 0xee, 17 << VMM_PAGE_SHIFT);
    kit->config = (struct restore_config){staging_bytes, kit_complete, &kit->done};
    assert_int_equal(restore_new(&kit->restore, kit->guest, &kit->config), 0);
    kit_lane_open(&kit->lane);
    kit->random = 1;
}

static inline void kit_close(struct kit *kit)
{
    restore_free(kit->restore);
    vmm_close(kit->guest);
    kit_lane_close(&kit->lane);
    for (unsigned i = 0; i < KIT_BLOCKS; i++)
        free(kit->model[i]);
}

static inline uint8_t *kit_page(struct kit *kit, uint32_t block, uint64_t page)
{
    return kit->model[block] + (page << VMM_PAGE_SHIFT);
}

/* The target's page that mirrors the model's. */
static inline uint8_t *kit_guest_page(struct kit *kit, uint32_t block, uint64_t page)
{
    return (uint8_t *)memory_guest_block(kit->guest, kit_map[block]) + (page << VMM_PAGE_SHIFT);
}

static inline void kit_fill(void *to, uint64_t seed)
{
    uint64_t words[VMM_PAGE_BYTES / 8];
    for (unsigned i = 0; i < array_length(words); i++)
        words[i] = kit_random(&seed);
    memcpy(to, words, sizeof words);
}

/* Differing pages between model and guest. */
static inline uint64_t kit_differing(struct kit *kit)
{
    uint64_t differing = 0;
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page++)
            differing +=
                memcmp(kit_page(kit, block, page), kit_guest_page(kit, block, page), VMM_PAGE_BYTES) != 0;
    return differing;
}

/* Frames: begin, runs in ascending order, send. */

static inline void kit_frame(struct kit_lane *lane, uint32_t block)
{
    lane->block = block;
    lane->run_count = 0;
    lane->body_bytes = 0;
}

static inline void kit_run_of(struct kit_lane *lane, uint64_t first, uint32_t pages, uint8_t encoding,
                              const void *content)
{
    struct message_run *run = &lane->runs[lane->run_count++];
    uint8_t *to = lane->bodies + lane->body_bytes;
    int raw = (int)(pages << VMM_PAGE_SHIFT), length = 0;
    assert_true(lane->run_count <= array_length(lane->runs));
    if (encoding == WIRE_RUN_LZ4) {
        length = LZ4_compress_default(content, (char *)to, raw, raw);
        if (length == 0)
            encoding = WIRE_RUN_RAW;
    }
    if (encoding == WIRE_RUN_RAW)
        memcpy(to, content, (size_t)(length = raw));
    *run = (struct message_run){
        .first = first, .pages = pages, .encoding = encoding, .body_bytes = (uint32_t)length};
    lane->body_bytes += (size_t)length;
}

static inline void kit_run(struct kit *kit, uint64_t first, uint32_t pages, uint8_t encoding)
{
    kit_run_of(&kit->lane, first, pages, encoding, kit_page(kit, kit->lane.block, first));
}

static inline void kit_read_frame(struct kit_lane *lane)
{
    long size = wire_reader_next(&lane->reader, lane->buffer, lane->writer.used, &lane->frame);
    assert_int_equal(size, lane->writer.used);
}

/* Finish the frame and count it as sent. */
static inline struct wire_frame *kit_seal(struct kit_lane *lane, uint64_t epoch, uint32_t round,
                                          struct message_totals *totals)
{
    size_t room;
    lane->writer.used = 0;
    uint8_t *payload = wire_writer_payload(&lane->writer, &room);
    assert_true(16 + lane->run_count * 16 + lane->body_bytes <= room);
    size_t at = message_pages_build(lane->block, round, lane->runs, lane->run_count, payload);
    memcpy(payload + at, lane->bodies, lane->body_bytes);
    wire_writer_finish(&lane->writer, WIRE_PAGES, 1, epoch, at + lane->body_bytes);
    kit_read_frame(lane);
    totals->frames++;
    for (unsigned i = 0; i < lane->run_count; i++)
        totals->pages += lane->runs[i].pages;
    totals->bytes += lane->frame.length;
    totals->sum += lane->frame.header_sum;
    return &lane->frame;
}

static inline int kit_send(struct kit *kit)
{
    return restore_pages(kit->restore, kit_seal(&kit->lane, kit->epoch, kit->round, &kit->totals));
}

/* A piece of the device state; `raw_bytes`: what `bytes` decode to, 0 where they are the piece. */
static inline int kit_send_piece(struct kit *kit, uint64_t offset, uint64_t total, const void *bytes,
                                 size_t length, uint32_t raw_bytes)
{
    struct kit_lane *lane = &kit->lane;
    size_t room;
    lane->writer.used = 0;
    uint8_t *payload = wire_writer_payload(&lane->writer, &room);
    size_t at = raw_bytes ? message_state_lz4_build(offset, total, raw_bytes, payload)
                          : message_state_build(offset, total, payload);
    memcpy(payload + at, bytes, length);
    wire_writer_finish(&lane->writer, raw_bytes ? WIRE_STATE_LZ4 : WIRE_STATE, 1, kit->epoch, at + length);
    kit_read_frame(lane);
    kit->totals.frames++;
    kit->totals.bytes += lane->frame.length;
    kit->totals.sum += lane->frame.header_sum;
    return restore_state(kit->restore, &lane->frame);
}

static inline int kit_send_state(struct kit *kit, uint64_t offset, uint64_t total, const void *bytes,
                                 size_t length)
{
    return kit_send_piece(kit, offset, total, bytes, length, 0);
}

/* One frame that carries these pages of the model as one run. */
static inline int kit_send_pages(struct kit *kit, uint32_t block, uint64_t first, uint32_t pages,
                                 uint8_t encoding)
{
    kit_frame(&kit->lane, block);
    kit_run(kit, first, pages, encoding);
    return kit_send(kit);
}

static inline void kit_session(struct kit *kit, uint64_t epoch)
{
    assert_int_equal(restore_session(kit->restore, kit_map, KIT_BLOCKS), 0);
    kit->epoch = epoch;
    kit->round = 0;
    kit->totals = (struct message_totals){0};
}

/* The device state of an epoch: its size and bytes differ from epoch to epoch. */
static inline size_t kit_state(uint64_t epoch, uint8_t to[VMM_PAGE_BYTES])
{
    kit_fill(to, epoch * 1000003);
    return 1 + epoch % VMM_PAGE_BYTES;
}

static inline int kit_send_whole_state(struct kit *kit)
{
    uint8_t bytes[VMM_PAGE_BYTES];
    size_t length = kit_state(kit->epoch, bytes), half = length / 2;
    int r = half ? kit_send_state(kit, half, length, bytes + half, length - half) : 0;
    return r < 0 ? r : kit_send_state(kit, 0, length, bytes, half ? half : length);
}

static inline int kit_expect_round(struct kit *kit)
{
    int r = restore_expect(kit->restore, kit->epoch, kit->round, &kit->totals, NULL);
    kit->round++;
    kit->totals = (struct message_totals){0};
    return r;
}

static inline struct message_commit kit_commit_message(const struct kit *kit)
{
    uint8_t bytes[VMM_PAGE_BYTES];
    struct message_commit commit = {.round = kit->round, .totals = kit->totals};
    commit.state_bytes = kit_state(kit->epoch, bytes);
    commit.state_sum = wire_sum(bytes, commit.state_bytes);
    return commit;
}

static inline int kit_expect_commit(struct kit *kit)
{
    struct message_commit commit = kit_commit_message(kit);
    return restore_expect(kit->restore, kit->epoch, kit->round, &kit->totals, &commit);
}

/* After the last frame: state, COMMIT, commit. The next epoch's frames may follow. */
static inline void kit_commit(struct kit *kit)
{
    int calls = atomic_load(&kit->done.calls);
    assert_int_equal(kit_send_whole_state(kit), 0);
    assert_int_equal(kit_expect_commit(kit), 0);
    assert_int_equal(atomic_load(&kit->done.calls), calls + 1);
    assert_string_equal(kit->done.text, "");
    assert_int_equal(kit->done.code, 0);
    assert_true(kit->done.commit);
    assert_int_equal(kit->done.epoch, kit->epoch);
    assert_int_equal(restore_commit(kit->restore, kit->epoch), 0);
    kit->epoch++;
    kit->round = 0;
    kit->totals = (struct message_totals){0};
}

/* All of the model, as the first epoch of a session or a full copy later. */
static inline void kit_send_all(struct kit *kit, uint8_t encoding)
{
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page += WIRE_RUN_BODY_PAGES_MAX) {
            uint64_t left = kit_pages[block] - page;
            uint32_t pages = left < WIRE_RUN_BODY_PAGES_MAX ? (uint32_t)left : WIRE_RUN_BODY_PAGES_MAX;
            assert_int_equal(kit_send_pages(kit, block, page, pages, encoding), 0);
        }
}

static inline void kit_first_commit(struct kit *kit)
{
    kit_session(kit, 1);
    kit_send_all(kit, WIRE_RUN_RAW);
    kit_commit(kit);
    assert_int_equal(restore_apply(kit->restore), 0);
    assert_int_equal(kit_differing(kit), 0);
}

/* Change a page of the model at random: noise, something that compresses, or zeros; returns its encoding. */
static inline uint8_t kit_change(struct kit *kit, uint32_t block, uint64_t page)
{
    uint64_t random = kit_random(&kit->random);
    uint8_t *at = kit_page(kit, block, page);
    switch (random % 4) {
    case 0:
        memset(at, 0, VMM_PAGE_BYTES);
        return WIRE_RUN_ZERO;
    case 1:
        memset(at, 0, VMM_PAGE_BYTES);
        memcpy(at + random % 4000, &random, sizeof random);
        return WIRE_RUN_LZ4;
    default:
        kit_fill(at, random);
        return WIRE_RUN_RAW;
    }
}

/* Send a random set of changed pages of one block in one frame. */
static inline int kit_send_changes(struct kit *kit)
{
    uint32_t block = kit_random(&kit->random) % KIT_BLOCKS;
    kit_frame(&kit->lane, block);
    for (uint64_t page = kit_random(&kit->random) % 40; page < kit_pages[block];
         page += 1 + kit_random(&kit->random) % 90) {
        uint8_t encoding = kit_change(kit, block, page);
        uint32_t pages = 1;
        while (pages < 20 && kit_random(&kit->random) % 4 && page + pages < kit_pages[block]) {
            uint8_t another = kit_change(kit, block, page + pages);
            encoding = another == encoding ? encoding : WIRE_RUN_LZ4;
            pages++;
        }
        kit_run(kit, page, pages, encoding);
        page += pages;
    }
    if (kit->lane.run_count == 0) {
        kit_change(kit, block, 0);
        kit_run(kit, 0, 1, WIRE_RUN_RAW);
    }
    return kit_send(kit);
}

/* The guest as it would be resumed: `loaded` state and memory are those of `epoch`. */
static inline void kit_assert_taken_over(struct kit *kit, uint64_t epoch)
{
    uint8_t bytes[VMM_PAGE_BYTES];
    size_t length = kit_state(epoch, bytes), loaded;
    assert_int_equal(restore_takeover(kit->restore, NULL), 0);
    assert_true(memory_guest_running(kit->guest));
    const void *state = memory_guest_loaded(kit->guest, &loaded);
    assert_int_equal(loaded, length);
    assert_memory_equal(state, bytes, length);
    assert_int_equal(kit_differing(kit), 0);
}

#endif
