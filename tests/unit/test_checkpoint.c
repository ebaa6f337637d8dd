/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/mirror.h"

#include "base/fault.h"
#include "base/scope.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

/* The checkpoint as a whole, over a guest that is nothing but memory and a mirror that decodes the frames. */

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

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct kit *kit = ctx;
    kit->sent_epoch = epoch;
    kit->sent_round = round;
    kit->sent_totals = *totals;
    atomic_fetch_add(&kit->sent, 1);
}

static void on_ready(void *ctx)
{
    struct kit *kit = ctx;
    atomic_fetch_add(&kit->ready, 1);
    if (kit->cancel_when_ready)
        checkpoint_cancel(kit->checkpoint);
}

static struct kit *kit_new(struct memory_options options, struct checkpoint_config config)
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

static void kit_free(struct kit *kit)
{
    for (unsigned i = 0; i < LANES_MAX; i++)
        free(kit->lanes[i]);
    mirror_free(&kit->mirror);
    checkpoint_free(kit->checkpoint);
    vmm_close(kit->guest);
    free(kit);
}

/* Carry the round to the mirror, on this thread, by all lanes in turn; then both sides' totals are equal. */
static void carry(struct kit *kit, uint32_t round)
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

static uint64_t round_live(struct kit *kit, uint32_t round)
{
    uint64_t pages;
    unsigned sent = kit->sent;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, round, &pages), 0);
    carry(kit, round);
    assert_int_equal(kit->sent, sent + 1);
    return pages;
}

static struct checkpoint_capture capture(struct kit *kit, uint32_t round)
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

static void committed(struct kit *kit)
{
    checkpoint_committed(kit->checkpoint);
    kit->epoch++;
}

/* Everything once: first copy, capture, commit. */
static void protect(struct kit *kit)
{
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    round_live(kit, 0);
    capture(kit, 1);
    committed(kit);
    mirror_assert_equal(&kit->mirror, kit->guest);
}

static void fill(struct kit *kit, uint32_t block, uint64_t page, unsigned seed, bool compressible)
{
    uint8_t bytes[PAGE];
    for (unsigned i = 0; i < PAGE; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[i] = compressible && i % 4 ? 'a' : (uint8_t)(seed >> 24);
    }
    memory_guest_write(kit->guest, block, page * PAGE, bytes, PAGE);
}

static void copies_everything_then_only_what_changed(void **state)
{
    (void)state;
    for (int unmapped = 0; unmapped < 2; unmapped++) {
        struct kit *kit = kit_new((struct memory_options){0}, (struct checkpoint_config){0});
        kit_free(kit);
        struct memory_options options = {.blocks = {{"ram", 1000 * PAGE}, {"rom", PAGE}, {"vga", 40 * PAGE}},
                                         .block_count = 3,
                                         .state_bytes = 700001,
                                         .unmapped = unmapped};
        kit = kit_new(options, (struct checkpoint_config){0});
        for (uint64_t p = 0; p < 900; p += 1 + p % 5)
            fill(kit, 0, p, (unsigned)p, false);
        assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
        assert_int_equal(round_live(kit, 0), 1041);
        mirror_assert_equal(&kit->mirror, kit->guest);
        /* What is written after the live round comes with the capture; what was not is not sent again. */
        fill(kit, 0, 999, 5, false);
        fill(kit, 1, 0, 6, false);
        assert_int_equal(capture(kit, 1).dirty_pages, 2);
        mirror_assert_equal(&kit->mirror, kit->guest);
        committed(kit);

        for (unsigned epoch = 0; epoch < 50; epoch++) {
            fill(kit, 0, epoch * 13 % 1000, epoch, epoch % 2);
            fill(kit, 2, epoch % 40, epoch, epoch % 2);
            memory_guest_write(kit->guest, 0, (epoch * 7 % 1000) * PAGE, (uint8_t[PAGE]){0}, PAGE);
            assert_in_range(capture(kit, 0).dirty_pages, 2, 3);
            mirror_assert_equal(&kit->mirror, kit->guest);
            committed(kit);
        }
        assert_int_equal(capture(kit, 0).dirty_pages, 0);
        assert_true(kit->mirror.runs[WIRE_RUN_ZERO] > 0 && kit->mirror.runs[WIRE_RUN_RAW] > 0);
        assert_int_equal(kit->mirror.runs[WIRE_RUN_LZ4], 0);
        kit_free(kit);
    }
}

static void compresses_only_when_allowed(void **state)
{
    (void)state;
    struct checkpoint_config config = {.compression = CHECKPOINT_COMPRESS_LZ4};
    struct kit *kit = kit_new((struct memory_options){0}, config);
    for (uint64_t p = 0; p < 600; p++)
        fill(kit, 0, p, (unsigned)p, p % 200 < 150);
    protect(kit);
    assert_int_equal(kit->mirror.runs[WIRE_RUN_LZ4], 0);

    checkpoint_set_lz4(kit->checkpoint, true);
    checkpoint_all_pending(kit->checkpoint);
    memset(kit->mirror.blocks[0], 1, kit->mirror.bytes[0]);
    assert_int_equal(round_live(kit, 0), 1040);
    mirror_assert_equal(&kit->mirror, kit->guest);
    assert_true(kit->mirror.runs[WIRE_RUN_LZ4] > 0);
    /* From staging too, whole runs and single pages. */
    for (uint64_t p = 0; p < 600; p += p < 300 ? 1 : 3)
        fill(kit, 0, p, (unsigned)p + 7, p % 200 < 150);
    uint64_t runs = kit->mirror.runs[WIRE_RUN_LZ4];
    capture(kit, 1);
    mirror_assert_equal(&kit->mirror, kit->guest);
    assert_true(kit->mirror.runs[WIRE_RUN_LZ4] > runs + 50);

    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_true(stats.compressing && stats.pages_lz4 >= 450 && stats.pages_raw >= 150);
    assert_int_equal(stats.bytes_guest, (stats.pages_lz4 + stats.pages_raw + stats.pages_zero) * PAGE);
    assert_true(stats.bytes_payload < stats.bytes_guest);
    kit_free(kit);
}

/* With every way to compress pages; what the standby did not agree to, or nobody wants, stays as it is. */
static void state_is_compressed_when_allowed(void **state)
{
    (void)state;
    static const struct {
        enum checkpoint_compression compression;
        bool allowed, compressed;
    } cases[] = {{CHECKPOINT_COMPRESS_AUTO, true, true},
                 {CHECKPOINT_COMPRESS_LZ4, true, true},
                 {CHECKPOINT_COMPRESS_LZ4, false, false},
                 {CHECKPOINT_COMPRESS_NONE, true, false}};
    for (unsigned i = 0; i < array_length(cases); i++) {
        struct memory_options options = {.state_bytes = 700001};
        struct kit *kit = kit_new(options, (struct checkpoint_config){.compression = cases[i].compression});
        checkpoint_set_state_lz4(kit->checkpoint, cases[i].allowed);
        protect(kit); /* capture() compares the state that arrived */
        assert_int_equal(kit->mirror.state_pieces[cases[i].compressed], 3);
        assert_int_equal(kit->mirror.state_pieces[!cases[i].compressed], 0);
        struct checkpoint_stats stats;
        checkpoint_get_stats(kit->checkpoint, &stats);
        assert_int_equal(stats.state_bytes, 700001);
        if (cases[i].compressed)
            assert_in_range(stats.state_bytes_payload, 3 * sizeof(struct wire_state_lz4) + 1, 600000);
        else
            assert_int_equal(stats.state_bytes_payload, 700001 + 3 * sizeof(struct wire_state));
        /* The next session may have agreed on something else. */
        checkpoint_set_state_lz4(kit->checkpoint, !cases[i].allowed);
        capture(kit, 0);
        assert_int_equal(kit->mirror.state_pieces[1] > 3 * cases[i].compressed,
                         !cases[i].allowed && cases[i].compression != CHECKPOINT_COMPRESS_NONE);
        kit_free(kit);
    }
}

/* Seven bytes have nothing that LZ4 could leave out. */
static void state_that_does_not_shrink_goes_as_it_is(void **state)
{
    (void)state;
    struct memory_options options = {.state_bytes = 7};
    struct kit *kit = kit_new(options, (struct checkpoint_config){.state_lz4_allowed = true});
    protect(kit);
    assert_int_equal(kit->mirror.state_pieces[0], 1);
    assert_int_equal(kit->mirror.state_pieces[1], 0);
    kit_free(kit);
}

static void abandoned_pages_come_again(void **state)
{
    (void)state;
    struct kit *kit = kit_new((struct memory_options){0}, (struct checkpoint_config){0});
    protect(kit);
    /* A live round and half a capture, lost with the session. */
    for (uint64_t p = 0; p < 300; p++)
        fill(kit, 0, p, 1, false);
    uint64_t pages;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, 0, &pages), 0);
    assert_int_equal(pages, 300);
    while (mirror_lane_step(kit->lanes[0], kit->epoch, 0, true) > 0)
        ;
    for (uint64_t p = 200; p < 500; p++)
        fill(kit, 0, p, 2, false);
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, NULL, &captured), 0);
    assert_int_equal(captured.dirty_pages, 300);
    unsigned sent = kit->sent;
    assert_int_equal(mirror_lane_step(kit->lanes[1], kit->epoch, 1, true), 1);
    checkpoint_cancel(kit->checkpoint);
    assert_int_equal(mirror_lane_step(kit->lanes[1], kit->epoch, 1, true), 0);
    checkpoint_abandoned(kit->checkpoint);
    assert_int_equal(kit->sent, sent);

    fill(kit, 1, 3, 3, false);
    struct checkpoint_estimate estimate;
    assert_int_equal(checkpoint_estimate(kit->checkpoint, &estimate), 0);
    assert_int_equal(estimate.dirty_pages, 501);
    kit->epoch += 5;
    assert_int_equal(capture(kit, 0).dirty_pages, 501);
    mirror_assert_equal(&kit->mirror, kit->guest);
    committed(kit);
    assert_int_equal(capture(kit, 0).dirty_pages, 0);
    committed(kit);

    /* Whoever forgets to abandon a round that the lanes did not finish, or takes it for committed, loses
     * nothing either. */
    fill(kit, 0, 7, 4, false);
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, 0, &pages), 0);
    assert_int_equal(round_live(kit, 1), 1);
    fill(kit, 0, 8, 4, false);
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 2, NULL, &captured), 0);
    committed(kit);
    assert_int_equal(capture(kit, 0).dirty_pages, 2);
    mirror_assert_equal(&kit->mirror, kit->guest);
    kit_free(kit);
}

static void failures_lose_nothing(void **state)
{
    (void)state;
    static const char *const points[] = {"capture-paused=error", "capture-scanned=error",
                                         "capture-copied=error", "capture-resumed=error", "copy-round=error"};
    struct kit *kit = kit_new((struct memory_options){0}, (struct checkpoint_config){0});
    assert_int_equal(fault_arm("baseline=error"), 0);
    assert_int_equal(checkpoint_begin(kit->checkpoint), -EIO);
    assert_true(memory_guest_running(kit->guest));
    protect(kit);
    for (unsigned i = 0; i < array_length(points); i++) {
        fill(kit, 0, 100 + i, i + 1, false);
        uint64_t pages = 12345;
        struct checkpoint_capture captured = {.pause_ns = 12345};
        assert_int_equal(fault_arm(points[i]), 0);
        int r = strncmp(points[i], "capture", 7)
                    ? checkpoint_round(kit->checkpoint, 1, kit->epoch, 0, &pages)
                    : checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured);
        assert_int_equal(r, -EIO);
        assert_text_has("on purpose");
        assert_int_equal(pages, 12345);
        assert_int_equal(captured.pause_ns, 12345);
        assert_true(memory_guest_running(kit->guest));
        assert_int_equal(mirror_lane_step(kit->lanes[0], kit->epoch, 0, true), 0);
        fill(kit, 0, 200 + i, i + 1, false);
        assert_int_equal(capture(kit, 0).dirty_pages, 2);
        mirror_assert_equal(&kit->mirror, kit->guest);
        committed(kit);
    }

    fill(kit, 0, 1, 9, false);
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured), 0);
    assert_int_equal(fault_arm("encode=error"), 0);
    assert_int_equal(mirror_lane_step(kit->lanes[0], kit->epoch, 0, true), -EIO);
    assert_int_equal(mirror_lane_step(kit->lanes[1], kit->epoch, 0, true), 0);
    checkpoint_cancel(kit->checkpoint);
    checkpoint_abandoned(kit->checkpoint);
    assert_int_equal(capture(kit, 0).dirty_pages, 1);
    mirror_assert_equal(&kit->mirror, kit->guest);

    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_int_equal(stats.captures_given_up, 4);
    kit_free(kit);
}

struct pump {
    struct kit *kit;
    unsigned lane;
    uint32_t round;
    atomic_bool *stop;
    bool drop;
};

static void *pump(void *argument)
{
    struct pump *pump = argument;
    while (!atomic_load(pump->stop))
        if (mirror_lane_step(pump->kit->lanes[pump->lane], pump->kit->epoch, pump->round, pump->drop) == 0)
            sched_yield();
    return NULL;
}

static void more_than_staging_goes_out_within_the_pause(void **state)
{
    (void)state;
    struct checkpoint_config config = {.staging_bytes = 100 * PAGE, .pause_limit_ns = 60000000000};
    struct kit *kit = kit_new((struct memory_options){0}, config);
    protect(kit);
    for (uint64_t p = 0; p < 900; p += 2)
        fill(kit, 0, p, 3, false);

    atomic_bool stop = false;
    struct pump pumps[LANES_MAX];
    pthread_t threads[LANES_MAX];
    for (unsigned i = 0; i < LANES_MAX; i++) {
        pumps[i] = (struct pump){.kit = kit, .lane = i, .stop = &stop};
        assert_int_equal(pthread_create(&threads[i], NULL, pump, &pumps[i]), 0);
    }
    unsigned sent = kit->sent;
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured), 0);
    while (atomic_load(&kit->sent) == sent)
        sched_yield();
    atomic_store(&stop, true);
    for (unsigned i = 0; i < LANES_MAX; i++)
        pthread_join(threads[i], NULL);
    assert_int_equal(captured.dirty_pages, 450);
    assert_memory_equal(&kit->sent_totals, &kit->mirror.totals, sizeof kit->sent_totals);
    mirror_assert_equal(&kit->mirror, kit->guest);
    struct checkpoint_stats stats;
    checkpoint_get_stats(kit->checkpoint, &stats);
    assert_int_equal(stats.staging_peak_bytes, 100 * PAGE);
    assert_int_equal(stats.staging_bytes, 100 * PAGE);
    kit_free(kit);
}

static void a_pause_without_end_is_given_up(void **state)
{
    (void)state;
    struct checkpoint_config config = {.staging_bytes = 100 * PAGE, .pause_limit_ns = 20000000};
    struct kit *kit = kit_new((struct memory_options){0}, config);
    protect(kit);
    for (uint64_t p = 0; p < 400; p++)
        fill(kit, 0, p, 3, false);
    /* Nobody carries the pages away. */
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured), -ETIMEDOUT);
    assert_text_has("capture of epoch 2", "0 of 300 pages");
    assert_true(memory_guest_running(kit->guest));
    assert_int_equal(mirror_lane_step(kit->lanes[0], kit->epoch, 0, true), 0);

    kit->cancel_when_ready = true;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured), -ECANCELED);
    assert_true(memory_guest_running(kit->guest));
    kit->cancel_when_ready = false;
    checkpoint_abandoned(kit->checkpoint);

    assert_int_equal(round_live(kit, 0), 400);
    capture(kit, 1);
    mirror_assert_equal(&kit->mirror, kit->guest);
    kit_free(kit);
}

static void a_slow_copy_is_given_up_before_anything_is_sent(void **state)
{
    (void)state;
    struct checkpoint_config config = {.pause_limit_ns = 1};
    struct kit *kit = kit_new((struct memory_options){0}, config);
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    assert_int_equal(round_live(kit, 0), 1040);
    fill(kit, 0, 1, 1, false);
    struct checkpoint_capture captured;
    assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, NULL, &captured), -ETIME);
    assert_true(memory_guest_running(kit->guest));
    assert_int_equal(mirror_lane_step(kit->lanes[0], kit->epoch, 1, true), 0);
    assert_int_equal(round_live(kit, 1), 1);
    mirror_assert_equal(&kit->mirror, kit->guest);
    kit_free(kit);
}

/* A driver that is slow at saving the device state, while the lanes work; and what came of it. */
static struct {
    struct kit *kit;
    const struct vmm_ops *real;
    int code;
    uint64_t pages;
} slow_save;

static int save_end_slowly(struct vmm *guest, const void **ret_state, size_t *ret_bytes)
{
    struct kit *kit = slow_save.kit;
    assert_false(memory_guest_running(guest));
    while (mirror_lane_step(kit->lanes[0], kit->epoch, 0, false) > 0)
        ;
    slow_save.pages = kit->mirror.totals.pages;
    int r = slow_save.real->save_end(guest, ret_state, ret_bytes);
    return slow_save.code ? error_set(slow_save.code, "the state could not be saved") : r;
}

static void pages_go_while_the_state_is_saved(void **state)
{
    (void)state;
    for (int fails = 0; fails < 2; fails++) {
        struct kit *kit = kit_new((struct memory_options){0}, (struct checkpoint_config){0});
        protect(kit);
        for (uint64_t p = 0; p < 300; p++)
            fill(kit, 0, p, 3, false);
        slow_save.kit = kit;
        slow_save.real = kit->guest->ops;
        slow_save.code = fails ? -EIO : 0;
        struct vmm_ops ops = *slow_save.real;
        ops.save_end = save_end_slowly;
        kit->guest->ops = &ops;
        unsigned sent = kit->sent;
        struct checkpoint_capture captured;
        int r = checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured);
        kit->guest->ops = slow_save.real;
        assert_int_equal(slow_save.pages, 300);
        assert_int_equal(kit->sent, sent);
        assert_true(memory_guest_running(kit->guest));
        if (fails) {
            /* Frames are out, so not the code that says that it may be tried again in this session. */
            assert_int_equal(r, -EIO);
            assert_text_has("capture of epoch 2", "the state could not be saved");
            assert_int_equal(mirror_lane_step(kit->lanes[0], kit->epoch, 0, true), 0);
            kit->mirror.totals = (struct message_totals){0};
            assert_int_equal(round_live(kit, 0), 300);
            capture(kit, 1);
        } else {
            assert_int_equal(r, 0);
            carry(kit, 0);
        }
        mirror_assert_equal(&kit->mirror, kit->guest);
        kit_free(kit);
    }
}

static void fingerprints_and_probe_are_of_the_capture(void **state)
{
    (void)state;
    for (int unmapped = 0; unmapped < 2; unmapped++) {
        struct memory_options options = {
            .blocks = {{"ram", 300 * PAGE}, {"vga", 2 * PAGE}}, .block_count = 2, .unmapped = unmapped};
        struct kit *kit = kit_new(options, (struct checkpoint_config){0});
        assert_int_equal(checkpoint_set_probe(kit->checkpoint, "none", 0), -ENOENT);
        assert_int_equal(checkpoint_set_probe(kit->checkpoint, "vga", PAGE - 7), -EINVAL);
        assert_int_equal(checkpoint_set_probe(kit->checkpoint, "vga", 2 * PAGE), -EINVAL);
        assert_int_equal(checkpoint_set_probe(kit->checkpoint, "vga", 2 * PAGE - 8), 0);
        protect(kit);
        for (uint64_t p = 0; p < 300; p += 3)
            fill(kit, 0, p, 8, false);
        memory_guest_write(kit->guest, 1, 2 * PAGE - 8, "\1\2\0\0\0\0\0\3", 8);

        uint64_t fingerprints[200];
        struct checkpoint_verify verify = {
            .block = 0, .first = 99, .count = 200, .fingerprints = fingerprints};
        struct checkpoint_capture captured;
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, &verify, &captured), 0);
        assert_int_equal(captured.probe, 0x0300000000000201);
        /* The guest goes on; the fingerprints are of what the mirror has. */
        fill(kit, 0, 99, 9, false);
        carry(kit, 0);
        for (uint64_t i = 0; i < 200; i++)
            assert_int_equal(fingerprints[i], wire_sum(kit->mirror.blocks[0] + (99 + i) * PAGE, PAGE));

        verify.first = 101;
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, &verify, &captured), -EINVAL);
        verify = (struct checkpoint_verify){.block = 2, .count = 1};
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, &verify, &captured), -EINVAL);
        verify = (struct checkpoint_verify){.count = WIRE_VERIFY_MAX + 1};
        assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 1, &verify, &captured), -EINVAL);
        assert_true(memory_guest_running(kit->guest));
        kit_free(kit);
    }
}

/* A guest whose pages from `bad_page` on cannot be read. */
static uint64_t bad_page;

static int failing_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    for (size_t i = 0; i < count; i++)
        if (ranges[i].first + ranges[i].pages > bad_page)
            return error_set(-EIO, "page %llu is bad", (unsigned long long)bad_page);
    return memory_ops->read(vmm, ranges, count, to);
}

static void many_pages_are_copied_by_two(void **state)
{
    (void)state;
    for (int unmapped = 0; unmapped < 2; unmapped++) {
        struct memory_options options = {
            .blocks = {{"ram", 6000 * PAGE}, {"vga", 500 * PAGE}}, .block_count = 2, .unmapped = unmapped};
        struct kit *kit = kit_new(options, (struct checkpoint_config){0});
        protect(kit);
        for (uint64_t p = 0; p < 6000; p += 1 + p % 3)
            fill(kit, 0, p, (unsigned)p, false);
        for (uint64_t p = 0; p < 500; p++)
            fill(kit, 1, p, (unsigned)p + 9, false);
        struct checkpoint_capture captured;
        if (unmapped) { /* each thread's failure is told */
            struct vmm_ops ops = *kit->guest->ops;
            memory_ops = kit->guest->ops;
            ops.read = failing_read;
            kit->guest->ops = &ops;
            for (bad_page = 100; bad_page <= 5900; bad_page += 5800) {
                assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured),
                                 -EIO);
                assert_text_has("is bad", "capture of epoch 2");
                assert_true(memory_guest_running(kit->guest));
            }
            kit->guest->ops = memory_ops;
        }
        assert_true(capture(kit, 0).dirty_pages >= 2 * 2048);
        mirror_assert_equal(&kit->mirror, kit->guest);
        kit_free(kit);
    }
}

/* A guest whose reads take as long as the test wants. */
static atomic_bool reading, may_read;

static int slow_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    atomic_store(&reading, true);
    while (!atomic_load(&may_read))
        sched_yield();
    int r = memory_ops->read(vmm, ranges, count, to);
    atomic_store(&reading, false);
    return r;
}

static void *abandon(void *argument)
{
    struct kit *kit = argument;
    checkpoint_abandoned(kit->checkpoint);
    assert_false(atomic_load(&reading));
    return NULL;
}

static void abandoning_waits_for_lanes_at_work(void **state)
{
    (void)state;
    struct kit *kit =
        kit_new((struct memory_options){.blocks = {{"ram", 50 * PAGE}}, .block_count = 1, .unmapped = true},
                (struct checkpoint_config){0});
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    struct vmm_ops slow_ops = *kit->guest->ops;
    slow_ops.read = slow_read;
    memory_ops = kit->guest->ops;
    kit->guest->ops = &slow_ops;
    uint64_t pages;
    assert_int_equal(checkpoint_round(kit->checkpoint, 1, 1, 0, &pages), 0);

    atomic_bool stop = false;
    struct pump lane = {.kit = kit, .stop = &stop, .drop = true};
    pthread_t threads[2];
    assert_int_equal(pthread_create(&threads[0], NULL, pump, &lane), 0);
    while (!atomic_load(&reading))
        sched_yield();
    checkpoint_cancel(kit->checkpoint);
    assert_int_equal(pthread_create(&threads[1], NULL, abandon, kit), 0);
    usleep(50000);
    atomic_store(&may_read, true);
    pthread_join(threads[1], NULL);
    atomic_store(&stop, true);
    pthread_join(threads[0], NULL);
    assert_int_equal(kit->sent, 0);
    kit->guest->ops = memory_ops;
    kit_free(kit);
}

static void *write_for_ever(void *argument)
{
    struct pump *writer = argument;
    for (unsigned i = 1; !atomic_load(writer->stop); i++) {
        fill(writer->kit, 0, (i * 37) % 1000, i, i % 3);
        if (i % 64 == 0)
            sched_yield();
    }
    return NULL;
}

/* Lanes, a guest that never stops writing, live rounds, lost sessions: at every commit the mirror is what the
 * fingerprints say that the guest was. */
static void threads_agree(void **state)
{
    (void)state;
    struct checkpoint_config config = {
        .staging_bytes = 4u << 20, .compression = CHECKPOINT_COMPRESS_AUTO, .lz4_allowed = true};
    struct kit *kit = kit_new((struct memory_options){0}, config);
    assert_int_equal(checkpoint_begin(kit->checkpoint), 0);
    atomic_bool stop_writer = false;
    struct pump writer = {.kit = kit, .stop = &stop_writer};
    pthread_t writer_thread;
    assert_int_equal(pthread_create(&writer_thread, NULL, write_for_ever, &writer), 0);

    unsigned commits = 0, lost = 0;
    for (unsigned i = 0; i < 120; i++) {
        bool lose = i % 7 == 3;
        uint32_t round = 0;
        for (; round < 1 + i % 3; round++) {
            bool last = round == i % 3;
            atomic_bool stop = false;
            struct pump pumps[LANES_MAX];
            pthread_t threads[LANES_MAX];
            for (unsigned k = 0; k < LANES_MAX; k++) {
                pumps[k] = (struct pump){.kit = kit, .lane = k, .round = round, .stop = &stop, .drop = lose};
                assert_int_equal(pthread_create(&threads[k], NULL, pump, &pumps[k]), 0);
            }
            static uint64_t fingerprints[1000];
            struct checkpoint_verify verify = {.count = 1000, .fingerprints = fingerprints};
            struct checkpoint_capture captured;
            uint64_t pages;
            unsigned sent = atomic_load(&kit->sent);
            if (last)
                assert_int_equal(
                    checkpoint_capture(kit->checkpoint, 1, kit->epoch, round, &verify, &captured), 0);
            else
                assert_int_equal(checkpoint_round(kit->checkpoint, 1, kit->epoch, round, &pages), 0);
            if (lose) {
                checkpoint_cancel(kit->checkpoint);
                checkpoint_abandoned(kit->checkpoint);
                lost++;
            } else {
                while (atomic_load(&kit->sent) == sent)
                    sched_yield();
            }
            atomic_store(&stop, true);
            for (unsigned k = 0; k < LANES_MAX; k++)
                pthread_join(threads[k], NULL);
            if (lose)
                break;
            assert_memory_equal(&kit->sent_totals, &kit->mirror.totals, sizeof kit->sent_totals);
            kit->mirror.totals = (struct message_totals){0};
            if (last) {
                checkpoint_committed(kit->checkpoint);
                commits++;
                for (uint64_t p = 0; p < 1000; p++)
                    assert_int_equal(wire_sum(kit->mirror.blocks[0] + p * PAGE, PAGE), fingerprints[p]);
            }
        }
        kit->epoch++;
    }
    assert_true(commits > 80 && lost > 10);
    atomic_store(&stop_writer, true);
    pthread_join(writer_thread, NULL);
    kit_free(kit);
}

/* Sanitizers keep what was freed. */
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define SANITIZED true
#elif defined(__has_feature)
#define SANITIZED (__has_feature(address_sanitizer) || __has_feature(thread_sanitizer))
#else
#define SANITIZED false
#endif

static uint64_t resident_pages(void)
{
    unsigned long long size = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "re");
    assert_non_null(file);
    assert_int_equal(fscanf(file, "%llu %llu", &size, &resident), 2);
    fclose(file);
    return resident;
}

static void memory_does_not_grow(void **state)
{
    (void)state;
    struct kit *kit = kit_new((struct memory_options){.state_bytes = 10000}, (struct checkpoint_config){0});
    protect(kit);
    uint64_t resident = 0;
    struct checkpoint_stats early, late;
    for (unsigned i = 0; i < 10000; i++) {
        for (unsigned k = 0; k < 4; k++)
            fill(kit, 0, (i * 7 + k * 101) % 1000, i, false);
        if (i % 100 == 99) { /* lost sessions on the way */
            struct checkpoint_capture captured;
            assert_int_equal(checkpoint_capture(kit->checkpoint, 1, kit->epoch, 0, NULL, &captured), 0);
            checkpoint_cancel(kit->checkpoint);
            checkpoint_abandoned(kit->checkpoint);
        }
        capture(kit, 0);
        committed(kit);
        if (i == 1000) {
            checkpoint_get_stats(kit->checkpoint, &early);
            resident = resident_pages();
        }
    }
    checkpoint_get_stats(kit->checkpoint, &late);
    assert_int_equal(late.memory_bytes, early.memory_bytes);
    assert_true(late.memory_bytes < 1040 * PAGE + (2u << 20));
    assert_true(SANITIZED || resident_pages() < resident + 128);
    mirror_assert_equal(&kit->mirror, kit->guest);
    kit_free(kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copies_everything_then_only_what_changed),
        cmocka_unit_test(compresses_only_when_allowed),
        cmocka_unit_test(state_is_compressed_when_allowed),
        cmocka_unit_test(state_that_does_not_shrink_goes_as_it_is),
        cmocka_unit_test(abandoned_pages_come_again),
        cmocka_unit_test(failures_lose_nothing),
        cmocka_unit_test(more_than_staging_goes_out_within_the_pause),
        cmocka_unit_test(a_pause_without_end_is_given_up),
        cmocka_unit_test(a_slow_copy_is_given_up_before_anything_is_sent),
        cmocka_unit_test(pages_go_while_the_state_is_saved),
        cmocka_unit_test(fingerprints_and_probe_are_of_the_capture),
        cmocka_unit_test(many_pages_are_copied_by_two),
        cmocka_unit_test(abandoning_waits_for_lanes_at_work),
        cmocka_unit_test(threads_agree),
        cmocka_unit_test(memory_does_not_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
