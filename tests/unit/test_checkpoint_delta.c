/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/mirror.h"

#include "base/fault.h"

#include <errno.h>

/* Changes inside pages as a checkpoint sends them, to a mirror that applies them to what it has. */

#define LANES 2u
#define PAGE  WIRE_PAGE_BYTES
#define PAGES 600u
#define SMALL 20u

struct kit {
    struct vmm *guest;
    struct checkpoint *checkpoint;
    struct mirror mirror;
    struct mirror_lane *lanes[LANES];
    uint8_t *committed[2]; /* the mirror's memory at its last commit */
    uint64_t epoch, random;
    unsigned sent;
    struct message_totals totals;
};

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct kit *kit = ctx;
    (void)epoch;
    (void)round;
    kit->totals = *totals;
    kit->sent++;
}

static void on_ready(void *ctx)
{
    (void)ctx;
}

static uint64_t next_random(struct kit *kit)
{
    uint64_t x = kit->random += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static struct kit *kit_new(struct checkpoint_config config, bool unmapped)
{
    struct kit *kit = calloc(1, sizeof *kit);
    struct memory_options options = {
        .blocks = {{"ram", PAGES * PAGE}, {"vga", SMALL * PAGE}}, .block_count = 2, .unmapped = unmapped};
    assert_int_equal(memory_guest_new(&kit->guest, &options), 0);
    config.lanes = LANES;
    config.round_sent = on_round_sent;
    config.ready = on_ready;
    config.ctx = kit;
    if (!config.staging_bytes)
        config.staging_bytes = 64u << 20;
    assert_int_equal(checkpoint_new(&kit->checkpoint, kit->guest, &config), 0);
    mirror_new(&kit->mirror, &options);
    for (unsigned i = 0; i < LANES; i++)
        kit->lanes[i] = mirror_lane_new(kit->checkpoint, &kit->mirror, i + 1);
    for (unsigned i = 0; i < 2; i++)
        kit->committed[i] = malloc(kit->mirror.bytes[i]);
    kit->epoch = 1;
    return kit;
}

static void kit_free(struct kit *kit)
{
    for (unsigned i = 0; i < LANES; i++)
        free(kit->lanes[i]);
    for (unsigned i = 0; i < 2; i++)
        free(kit->committed[i]);
    mirror_free(&kit->mirror);
    checkpoint_free(kit->checkpoint);
    vmm_close(kit->guest);
    free(kit);
}

/* Carry the round to the mirror, by all lanes in turn; then both sides' totals are equal. */
static void carry(struct kit *kit, uint32_t round)
{
    unsigned idle = 0;
    for (unsigned i = 0; idle < LANES; i++) {
        int r = mirror_lane_step(kit->lanes[i % LANES], kit->epoch, round, false);
        assert_true(r >= 0);
        idle = r ? 0 : idle + 1;
    }
    assert_memory_equal(&kit->totals, &kit->mirror.totals, sizeof kit->totals);
    kit->mirror.totals = (struct message_totals){0};
}

static void live(struct kit *kit, uint32_t round)
{
    uint64_t pages;
    unsigned sent = kit->sent;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, round, &pages), 0);
    carry(kit, round);
    assert_int_equal(kit->sent, sent + 1);
}

static void capture(struct kit *kit, uint32_t round)
{
    struct checkpoint_capture captured;
    unsigned sent = kit->sent;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, round, NULL, &captured), 0);
    carry(kit, round);
    assert_int_equal(kit->sent, sent + 1);
}

static void standby_commits(struct kit *kit)
{
    mirror_assert_equal(&kit->mirror, kit->guest);
    for (unsigned i = 0; i < 2; i++)
        memcpy(kit->committed[i], kit->mirror.blocks[i], kit->mirror.bytes[i]);
    kit->epoch++;
}

static void commit(struct kit *kit)
{
    standby_commits(kit);
    checkpoint_committed(kit->checkpoint);
}

/* Everything once; then one epoch more, so that every page that may be in the cache is. */
static void protect(struct kit *kit)
{
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    live(kit, 0);
    capture(kit, 1);
    commit(kit);
}

static struct checkpoint_stats stats_of(struct kit *kit)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    return stats;
}

static void fill(struct kit *kit, uint64_t page)
{
    uint64_t words[PAGE / 8];
    for (unsigned i = 0; i < PAGE / 8; i++)
        words[i] = next_random(kit);
    memory_guest_write(kit->guest, 0, page * PAGE, words, PAGE);
}

static void poke(struct kit *kit, uint64_t page)
{
    uint64_t value = next_random(kit);
    memory_guest_write(kit->guest, 0, page * PAGE + value % 512 * 8, &value, sizeof value);
}

static const struct checkpoint_config with_changes = {.delta_bytes = 8u << 20, .delta_allowed = true};

static void small_writes_cost_little(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 6; i++) {
        struct checkpoint_config config = with_changes;
        config.lz4_allowed = i % 3 > 0;
        config.compression = i % 3 == 1 ? CHECKPOINT_COMPRESS_LZ4 : CHECKPOINT_COMPRESS_AUTO;
        struct kit *kit = kit_new(config, i / 3);
        protect(kit);
        for (uint64_t page = 0; page < 200; page++)
            fill(kit, page);
        capture(kit, 0);
        assert_true(kit->totals.bytes > 200 * PAGE);
        assert_int_equal(kit->mirror.changed, 0);
        commit(kit);
        for (unsigned epoch = 0; epoch < 5; epoch++) {
            for (uint64_t page = 0; page < 200; page++)
                poke(kit, page);
            capture(kit, 0);
            assert_int_equal(kit->totals.pages, 200);
            commit(kit);
        }
        struct checkpoint_stats stats = stats_of(kit);
        assert_int_equal(stats.pages_delta, 1000);
        assert_int_equal(kit->mirror.changed, 1000);
        assert_int_equal(stats.delta_hits, 1000);
        /* 8 bytes that changed in one block of 64, and 24 of the table. */
        if (config.lz4_allowed)
            assert_in_range(stats.bytes_delta, 1000 * 20, 1000 * 40);
        else
            assert_in_range(stats.bytes_delta, 1000 * 88, 1000 * 90);
        assert_true(stats.bytes_delta_saved > 900 * PAGE);
        assert_int_equal(stats.bytes_guest,
                         (stats.pages_zero + stats.pages_raw + stats.pages_lz4 + stats.pages_delta) * PAGE);
        kit_free(kit);
    }
}

/* Marked and not changed: no frame at all, in a capture and in a live round that has nothing else. */
static void unchanged_pages_are_not_sent(void **state)
{
    (void)state;
    struct kit *kit = kit_new(with_changes, false);
    protect(kit);
    for (uint64_t page = 0; page < 500; page++)
        fill(kit, page);
    capture(kit, 0);
    commit(kit);
    for (unsigned epoch = 0; epoch < 3; epoch++) {
        memory_guest_mark(kit->guest, 0, 0, 500);
        live(kit, 0);
        assert_int_equal(kit->totals.frames, 0);
        assert_int_equal(kit->totals.pages, 0);
        memory_guest_mark(kit->guest, 0, 0, 500);
        poke(kit, 333);
        capture(kit, 1);
        assert_int_equal(kit->totals.pages, 1);
        commit(kit);
    }
    struct checkpoint_stats stats = stats_of(kit);
    assert_int_equal(stats.pages_same, 3 * 999);
    assert_int_equal(stats.pages_delta, 3);
    kit_free(kit);
}

/* More unchanged pages than one call of produce() looks at: it must not say that nothing is ready. */
static void many_unchanged_pages(void **state)
{
    (void)state;
    struct memory_options options = {.blocks = {{"ram", 10000 * PAGE}}, .block_count = 1};
    struct kit kit = {.epoch = 1};
    struct checkpoint_config config = {.delta_bytes = 64u << 20,
                                       .delta_allowed = true,
                                       .staging_bytes = 64u << 20,
                                       .lanes = 1,
                                       .round_sent = on_round_sent,
                                       .ready = on_ready,
                                       .ctx = &kit};
    assert_int_equal(memory_guest_new(&kit.guest, &options), 0);
    assert_int_equal(checkpoint_new(&kit.checkpoint, kit.guest, &config), 0);
    mirror_new(&kit.mirror, &options);
    kit.lanes[0] = mirror_lane_new(kit.checkpoint, &kit.mirror, 1);
    assert_int_equal(checkpoint_begin(kit.checkpoint), 0);
    for (unsigned epoch = 0; epoch < 3; epoch++) {
        struct checkpoint_capture captured;
        for (uint64_t page = 0; epoch == 0 && page < 10000; page++)
            memory_guest_write(kit.guest, 0, page * PAGE, (const uint8_t[]){1}, 1);
        memory_guest_mark(kit.guest, 0, 0, 10000);
        assert_int_equal(checkpoint_capture(kit.checkpoint, 1, kit.epoch, 0, NULL, &captured), 0);
        while (mirror_lane_step(kit.lanes[0], kit.epoch, 0, false) == 1)
            ;
        assert_int_equal(kit.sent, epoch + 1);
        assert_memory_equal(&kit.totals, &kit.mirror.totals, sizeof kit.totals);
        kit.mirror.totals = (struct message_totals){0};
        mirror_assert_equal(&kit.mirror, kit.guest);
        checkpoint_committed(kit.checkpoint);
        kit.epoch++;
    }
    assert_in_range(kit.totals.pages, 0, 100);
    free(kit.lanes[0]);
    mirror_free(&kit.mirror);
    checkpoint_free(kit.checkpoint);
    vmm_close(kit.guest);
}

static void send_pokes(struct kit *kit, uint64_t expected)
{
    uint64_t before = kit->mirror.changed;
    for (uint64_t page = 0; page < 100; page++)
        poke(kit, page);
    capture(kit, 0);
    commit(kit);
    assert_int_equal(kit->mirror.changed - before, expected);
}

/* Nothing is a change of anything while the standby has acknowledged nothing in this session. */
static void sessions_begin_with_whole_pages(void **state)
{
    (void)state;
    struct kit *kit = kit_new(with_changes, false);
    for (uint64_t page = 0; page < 100; page++)
        fill(kit, page);
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    capture(kit, 0);
    assert_int_equal(kit->mirror.changed, 0);
    /* The epoch goes on: the same pages again, and still whole. */
    for (unsigned session = 0; session < 3; session++) {
        checkpoint_abandoned(kit->checkpoint);
        checkpoint_set_delta(kit->checkpoint, true);
        live(kit, 0);
        for (uint64_t page = 0; page < 100; page++)
            poke(kit, page);
        live(kit, 1);
        capture(kit, 2);
        assert_int_equal(kit->mirror.changed, 0);
    }
    commit(kit);
    send_pokes(kit, 0); /* what came live was not kept */
    send_pokes(kit, 100);
    send_pokes(kit, 100);

    /* A new session forgets, even if the last one ended in peace: its end may have been a wrong base. */
    checkpoint_set_delta(kit->checkpoint, true);
    send_pokes(kit, 0);
    send_pokes(kit, 100);
    checkpoint_set_delta(kit->checkpoint, true);
    fill(kit, 200);
    capture(kit, 0);
    commit(kit);
    send_pokes(kit, 0);
    send_pokes(kit, 100);

    /* Within the first epoch nothing is a base either, and a page that came live replaces one that was kept.
     */
    uint64_t before = kit->mirror.changed;
    checkpoint_set_delta(kit->checkpoint, true);
    for (uint32_t round = 0; round < 6; round++) {
        for (uint64_t page = 0; page < 100; page++)
            poke(kit, page);
        if (round == 2)
            capture(kit, round);
        else
            live(kit, round);
    }
    capture(kit, 6);
    commit(kit);
    assert_int_equal(kit->mirror.changed, before);
    send_pokes(kit, 0);
    send_pokes(kit, 100);
    checkpoint_abandoned(kit->checkpoint);
    send_pokes(kit, 100);
    checkpoint_all_pending(kit->checkpoint);
    send_pokes(kit, 0);
    send_pokes(kit, 100);
    checkpoint_set_delta(kit->checkpoint, false);
    send_pokes(kit, 0);
    send_pokes(kit, 0);
    kit_free(kit);

    kit = kit_new((struct checkpoint_config){.delta_allowed = true}, false);
    protect(kit);
    send_pokes(kit, 0);
    send_pokes(kit, 0);
    assert_int_equal(stats_of(kit).delta_memory_bytes, 0);
    kit_free(kit);
}

/* A page that changed all over goes whole, one that is zero goes as such, and both have the right base next.
 */
static void whole_pages_are_bases(void **state)
{
    (void)state;
    struct kit *kit = kit_new(with_changes, false);
    protect(kit);
    for (unsigned epoch = 0; epoch < 40; epoch++) {
        uint64_t before = kit->mirror.changed;
        bool whole = epoch % 2 == 0;
        for (uint64_t page = 0; page < 100; page++)
            if (whole)
                fill(kit, page);
            else if (epoch % 4 == 3)
                memory_guest_write(kit->guest, 0, page * PAGE, (const uint8_t[PAGE]){0}, PAGE);
            else
                poke(kit, page);
        if (epoch % 3)
            capture(kit, 0);
        else
            live(kit, 0), capture(kit, 1);
        commit(kit);
        assert_int_equal(kit->mirror.changed - before, epoch % 4 == 1 ? 100 : 0);
    }
    kit_free(kit);
}

static void captures_that_are_given_up(void **state)
{
    (void)state;
    struct checkpoint_config config = with_changes;
    config.pause_limit_ns = 20000000;
    struct kit *kit = kit_new(config, false);
    protect(kit);
    send_pokes(kit, 0);
    for (unsigned i = 0; i < 5; i++) {
        struct checkpoint_capture captured;
        for (uint64_t page = 0; page < 100; page++)
            poke(kit, page);
        if (i % 2)
            live(kit, 0);
        assert_int_equal(fault_arm("capture-scanned=delay:40"), 0);
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, i % 2, NULL, &captured), -ETIME);
        for (uint64_t page = 50; page < 100; page++)
            poke(kit, page);
        capture(kit, i % 2);
        commit(kit);
    }
    assert_true(kit->mirror.changed >= 500);
    kit_free(kit);
}

static void write_at_random(struct kit *kit)
{
    for (unsigned i = 0; i < 80; i++) {
        uint64_t random = next_random(kit), page = random % 300;
        if (random >> 60 == 0)
            memory_guest_write(kit->guest, 0, page * PAGE, (const uint8_t[PAGE]){0}, PAGE);
        else if (random >> 60 < 4)
            fill(kit, page);
        else if (random >> 60 < 7)
            memory_guest_mark(kit->guest, 0, page, 1);
        else if (random >> 60 == 7)
            memory_guest_write(kit->guest, 1, random % (SMALL * PAGE - 8), &random, sizeof random);
        else
            poke(kit, page);
    }
}

/* The session breaks at some point of a round: some of its frames arrived, some left and did not, a lane may
 * have failed. The standby forgets what was not committed; or it had committed, and only its word was lost.
 */
static void break_session(struct kit *kit, uint32_t round)
{
    struct checkpoint_capture captured;
    uint64_t pages;
    switch (next_random(kit) % 4) {
    case 0: /* all arrived, and the acknowledgement did not */
        capture(kit, round);
        standby_commits(kit);
        break;
    case 1:
        capture(kit, round);
        break;
    case 2:
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, round, NULL, &captured), 0);
        if (next_random(kit) % 2)
            assert_int_equal(fault_arm("encode@2=error"), 0);
        mirror_lane_step(kit->lanes[0], kit->epoch, round, next_random(kit) % 2);
        mirror_lane_step(kit->lanes[1], kit->epoch, round, true);
        assert_int_equal(fault_arm("apply-end@1=error"), 0); /* disarms the other */
        break;
    default:
        assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, round, &pages), 0);
        mirror_lane_step(kit->lanes[0], kit->epoch, round, next_random(kit) % 2);
    }
    checkpoint_cancel(kit->checkpoint);
    checkpoint_abandoned(kit->checkpoint);
    for (unsigned i = 0; i < 2; i++)
        memcpy(kit->mirror.blocks[i], kit->committed[i], kit->mirror.bytes[i]);
    for (unsigned i = 0; i < LANES; i++)
        kit->lanes[i]->writer.sequence = kit->lanes[i]->reader.sequence = 0;
    kit->mirror.totals = (struct message_totals){0};
    kit->epoch++;
    /* What was abandoned is no base, even to a session that nobody announces. */
    if (next_random(kit) % 2)
        checkpoint_set_delta(kit->checkpoint, true);
}

static void sessions_break_at_random(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++) {
        struct checkpoint_config config = with_changes;
        config.delta_bytes = i / 2 ? 256 * PAGE : 8u << 20;
        config.lz4_allowed = true;
        struct kit *kit = kit_new(config, i % 2);
        kit->random = i;
        protect(kit);
        for (unsigned epoch = 0; epoch < UNIT_TURNS(400); epoch++) {
            uint32_t round = 0, rounds = (uint32_t)next_random(kit) % 3;
            for (; round < rounds; round++) {
                write_at_random(kit);
                live(kit, round);
            }
            write_at_random(kit);
            if (next_random(kit) % 6 == 0) {
                break_session(kit, round);
                continue;
            }
            capture(kit, round);
            commit(kit);
        }
        struct checkpoint_stats stats = stats_of(kit);
        assert_true(stats.pages_delta > UNIT_TURNS(5000) && stats.pages_same > UNIT_TURNS(2000));
        assert_true(stats.pages_raw > UNIT_TURNS(5000) && stats.pages_zero > UNIT_TURNS(500));
        kit_free(kit);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(small_writes_cost_little), cmocka_unit_test(unchanged_pages_are_not_sent),
        cmocka_unit_test(many_unchanged_pages),     cmocka_unit_test(sessions_begin_with_whole_pages),
        cmocka_unit_test(whole_pages_are_bases),    cmocka_unit_test(captures_that_are_given_up),
        cmocka_unit_test(sessions_break_at_random),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
