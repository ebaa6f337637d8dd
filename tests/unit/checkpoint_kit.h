/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_CHECKPOINT_KIT_H
#define UNDERSTUDY_TESTS_CHECKPOINT_KIT_H

#include "tests/unit/mirror.h"

#include "base/fault.h"
#include "base/scope.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

/* A checkpoint over a guest that is nothing but memory, and a mirror that decodes the frames. */

#define LANES_MAX 3u
#define PAGE      WIRE_PAGE_BYTES

static const struct vmm_ops *memory_ops; /* while a test stands before them */

struct kit {
    struct memory_options options;
    struct vmm *guest;
    struct checkpoint *checkpoint;
    struct mirror mirror;
    struct mirror_lane *lanes[LANES_MAX];
    uint64_t epoch;
    atomic_uint sent; /* calls of round_sent */
    struct message_totals sent_totals;
    uint64_t sent_epoch;
    uint32_t sent_round;
    atomic_uint ready;
    bool cancel_when_ready;
};

static inline void on_round_sent(void *ctx, uint64_t epoch, uint32_t round,
                                 const struct message_totals *totals)
{
    struct kit *kit = ctx;
    kit->sent_epoch = epoch;
    kit->sent_round = round;
    kit->sent_totals = *totals;
    atomic_fetch_add(&kit->sent, 1);
}

static inline void on_ready(void *ctx)
{
    struct kit *kit = ctx;
    atomic_fetch_add(&kit->ready, 1);
    if (kit->cancel_when_ready)
        checkpoint_cancel(kit->checkpoint);
}

static inline struct kit *kit_new(struct memory_options options, struct checkpoint_config config)
{
    struct kit *kit = calloc(1, sizeof *kit);
    if (!options.block_count) {
        options.block_count = 2;
        options.blocks[0].name = "ram";
        options.blocks[0].bytes = 1000 * PAGE;
        options.blocks[1].name = "vga";
        options.blocks[1].bytes = 40 * PAGE;
    }
    kit->options = options;
    assert_int_equal(memory_guest_new(&kit->guest, &options), 0);
    config.lanes = LANES_MAX;
    config.round_sent = on_round_sent;
    config.ready = on_ready;
    config.ctx = kit;
    if (!config.staging_bytes)
        config.staging_bytes = 64u << 20;
    assert_int_equal(checkpoint_new(&kit->checkpoint, kit->guest, &config), 0);
    mirror_new(&kit->mirror, &options);
    for (unsigned i = 0; i < LANES_MAX; i++)
        kit->lanes[i] = mirror_lane_new(kit->checkpoint, &kit->mirror, i + 1);
    kit->epoch = 1;
    return kit;
}

static inline void kit_free(struct kit *kit)
{
    for (unsigned i = 0; i < LANES_MAX; i++)
        free(kit->lanes[i]);
    mirror_free(&kit->mirror);
    checkpoint_free(kit->checkpoint);
    vmm_close(kit->guest);
    free(kit);
}

/* Carry the round to the mirror, on this thread, by all lanes in turn; then both sides' totals are equal. */
static inline void carry(struct kit *kit, uint32_t round)
{
    for (unsigned i = 0, idle = 0; idle < LANES_MAX; i++) {
        int r = mirror_lane_step(kit->lanes[i % LANES_MAX], kit->epoch, round, false);
        assert_true(r >= 0);
        idle = r ? 0 : idle + 1;
    }
    assert_int_equal(kit->sent_epoch, kit->epoch);
    assert_int_equal(kit->sent_round, round);
    assert_memory_equal(&kit->sent_totals, &kit->mirror.totals, sizeof kit->sent_totals);
    kit->mirror.totals = (struct message_totals){0};
}

static inline uint64_t round_live(struct kit *kit, uint32_t round)
{
    uint64_t pages;
    unsigned sent = kit->sent;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, round, &pages), 0);
    carry(kit, round);
    assert_int_equal(kit->sent, sent + 1);
    return pages;
}

static inline struct checkpoint_capture capture(struct kit *kit, uint32_t round)
{
    struct checkpoint_capture captured;
    unsigned sent = kit->sent;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, round, NULL, &captured), 0);
    assert_true(memory_guest_running(kit->guest));
    carry(kit, round);
    assert_int_equal(kit->sent, sent + 1);
    assert_int_equal(kit->mirror.state_total, captured.state_bytes);
    assert_int_equal(wire_sum(kit->mirror.state, captured.state_bytes), captured.state_sum);
    return captured;
}

static inline void committed(struct kit *kit)
{
    checkpoint_committed(kit->checkpoint);
    kit->epoch++;
}

/* Everything once: first copy, capture, commit. */
static inline void protect(struct kit *kit)
{
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    round_live(kit, 0);
    capture(kit, 1);
    committed(kit);
    mirror_assert_equal(&kit->mirror, kit->guest);
}

static inline void fill(struct kit *kit, uint32_t block, uint64_t page, unsigned seed, bool compressible)
{
    uint8_t bytes[PAGE];
    for (unsigned i = 0; i < PAGE; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[i] = compressible && i % 4 ? 'a' : (uint8_t)(seed >> 24);
    }
    memory_guest_write(kit->guest, block, page * PAGE, bytes, PAGE);
}

struct pump {
    struct kit *kit;
    unsigned lane;
    uint32_t round;
    atomic_bool *stop;
    bool drop;
};

static inline void *pump(void *argument)
{
    struct pump *pump = argument;
    while (!atomic_load(pump->stop))
        if (mirror_lane_step(pump->kit->lanes[pump->lane], pump->kit->epoch, pump->round, pump->drop) == 0)
            sched_yield();
    return NULL;
}

#endif
