/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_KNOWN_KIT_H
#define UNDERSTUDY_TESTS_UNIT_KNOWN_KIT_H

#include "tests/unit/mirror.h"

#include "base/scope.h"
#include "restore/restore.h"

#include <unistd.h>

/* What a standby's memory has already is not sent: a primary's checkpoint with a standby that the test plays.
 */

#define PAGE      WIRE_PAGE_BYTES
#define LANES     2u
#define BLOCKS    2u
#define RAM       3000u
#define VGA       40u
#define QUESTIONS 64u
#define SLOW_US   50000

enum answers { AT_ONCE, SLOWLY, NOTHING, HELD };

struct kit {
    struct memory_options options;
    struct vmm *guest;
    struct checkpoint *checkpoint;
    struct mirror mirror;
    struct mirror_lane *lanes[LANES];
    uint64_t epoch, total;
    unsigned round;
    struct message_totals totals; /* of the round that was sent last */
    uint8_t *old[BLOCKS];         /* the standby's memory when the session began */

    pthread_mutex_t lock; /* of what follows */
    enum answers answers;
    struct message_page_sums questions[QUESTIONS];
    unsigned question_count;
};

static inline void on_round_sent(void *ctx, uint64_t epoch, uint32_t round,
                                 const struct message_totals *totals)
{
    struct kit *kit = ctx;
    assert_int_equal(epoch, kit->epoch);
    assert_int_equal(round, kit->round);
    kit->totals = *totals;
}

static inline void on_ready(void *ctx)
{
    (void)ctx;
}

static inline void answer(struct kit *kit, struct message_page_sums sums)
{
    static _Thread_local uint8_t digests[WIRE_PAGE_SUMS_MAX * WIRE_DIGEST_BYTES];
    for (uint32_t i = 0; i < sums.count; i++)
        assert_int_equal(wire_digest(kit->old[sums.block] + (sums.first + i) * PAGE, PAGE,
                                     digests + i * WIRE_DIGEST_BYTES),
                         0);
    sums.digests = digests;
    checkpoint_page_sums(kit->checkpoint, &sums);
}

static inline void on_wanted(void *ctx, uint32_t block, uint64_t first, uint32_t count)
{
    struct kit *kit = ctx;
    struct message_page_sums wanted = {.block = block, .first = first, .count = count};
    pthread_mutex_lock(&kit->lock);
    enum answers answers = kit->answers;
    if (answers == HELD) {
        assert_true(kit->question_count < QUESTIONS);
        kit->questions[kit->question_count++] = wanted;
    }
    pthread_mutex_unlock(&kit->lock);
    if (answers == NOTHING)
        wanted.count = 0;
    if (answers == SLOWLY)
        usleep(SLOW_US);
    if (answers != HELD)
        answer(kit, wanted);
}

/* The questions that wait are answered, `most` of them. */
static inline void answer_held(struct kit *kit, unsigned most)
{
    struct message_page_sums questions[QUESTIONS];
    pthread_mutex_lock(&kit->lock);
    unsigned count = kit->question_count < most ? kit->question_count : most;
    memcpy(questions, kit->questions, count * sizeof *questions);
    kit->question_count -= count;
    memmove(kit->questions, kit->questions + count, kit->question_count * sizeof *questions);
    pthread_mutex_unlock(&kit->lock);
    for (unsigned i = 0; i < count; i++)
        answer(kit, questions[i]);
}

static inline void remember_standby(struct kit *kit)
{
    for (unsigned i = 0; i < BLOCKS; i++)
        memcpy(kit->old[i], kit->mirror.blocks[i], kit->mirror.bytes[i]);
}

/* Memory of noise, and a standby that has all of it. */
static inline struct kit *kit_new(uint64_t ram_pages, enum answers answers)
{
    struct kit *kit = calloc(1, sizeof *kit);
    kit->options = (struct memory_options){.blocks = {{"ram", ram_pages * PAGE}, {"vga", VGA * PAGE}},
                                           .block_count = BLOCKS};
    kit->total = ram_pages + VGA;
    kit->epoch = 1;
    kit->answers = answers;
    pthread_mutex_init(&kit->lock, NULL);
    assert_int_equal(memory_guest_new(&kit->guest, &kit->options), 0);
    struct checkpoint_config config = {.staging_bytes = 4u << 20,
                                       .lanes = LANES,
                                       .round_sent = on_round_sent,
                                       .ready = on_ready,
                                       .page_sums_wanted = on_wanted,
                                       .ctx = kit};
    assert_int_equal(checkpoint_new(&kit->checkpoint, kit->guest, &config), 0);
    mirror_new(&kit->mirror, &kit->options);
    for (unsigned i = 0; i < LANES; i++)
        kit->lanes[i] = mirror_lane_new(kit->checkpoint, &kit->mirror, i + 1);
    uint64_t random = 1;
    for (unsigned i = 0; i < BLOCKS; i++) {
        uint64_t *words = memory_guest_block(kit->guest, i);
        for (uint64_t k = 0; k < kit->options.blocks[i].bytes / sizeof *words; k++)
            words[k] = random = random * 6364136223846793005u + 1442695040888963407u;
        memcpy(kit->mirror.blocks[i], words, kit->options.blocks[i].bytes);
        kit->old[i] = malloc(kit->options.blocks[i].bytes);
    }
    return kit;
}

static inline void kit_free(struct kit *kit)
{
    for (unsigned i = 0; i < LANES; i++)
        free(kit->lanes[i]);
    mirror_free(&kit->mirror);
    checkpoint_free(kit->checkpoint);
    vmm_close(kit->guest);
    for (unsigned i = 0; i < BLOCKS; i++)
        free(kit->old[i]);
    pthread_mutex_destroy(&kit->lock);
    free(kit);
}

static inline void begin(struct kit *kit)
{
    remember_standby(kit);
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    checkpoint_compare_memory(kit->checkpoint);
    kit->round = 0;
}

static inline void carry(struct kit *kit)
{
    for (unsigned i = 0, idle = 0; idle < LANES; i++) {
        int r = mirror_lane_step(kit->lanes[i % LANES], kit->epoch, kit->round, false);
        assert_true(r >= 0);
        idle = r ? 0 : idle + 1;
    }
    assert_memory_equal(&kit->totals, &kit->mirror.totals, sizeof kit->totals);
    kit->mirror.totals = (struct message_totals){0};
    kit->round++;
}

static inline uint64_t live_round(struct kit *kit)
{
    uint64_t pages;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, kit->round, &pages), 0);
    carry(kit);
    return pages;
}

static inline bool behind(struct kit *kit)
{
    struct checkpoint_estimate estimate;
    assert_int_equal(checkpoint_estimate(kit->checkpoint, &estimate), 0);
    assert_true(!estimate.behind || estimate.wants_round);
    return estimate.behind;
}

static inline uint64_t capture(struct kit *kit)
{
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, kit->round, NULL, &captured), 0);
    carry(kit);
    checkpoint_committed(kit->checkpoint);
    kit->epoch++;
    kit->round = 0;
    mirror_assert_equal(&kit->mirror, kit->guest);
    return captured.dirty_pages;
}

static inline uint64_t finish(struct kit *kit)
{
    while (behind(kit)) {
        answer_held(kit, QUESTIONS);
        live_round(kit);
    }
    return capture(kit);
}

static inline uint64_t sent_pages(const struct kit *kit)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    return stats.pages_zero + stats.pages_raw + stats.pages_lz4;
}

static inline uint64_t known_pages(const struct kit *kit)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_true(stats.pages_known <= stats.pages_compared);
    return stats.pages_known;
}

static inline void write_page(struct kit *kit, uint64_t page, uint8_t value)
{
    uint8_t bytes[PAGE];
    memset(bytes, value, sizeof bytes);
    memory_guest_write(kit->guest, 0, page * PAGE, bytes, sizeof bytes);
}

#endif
