/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/checkpoint_kit.h"

/* The checkpoint as a whole: what is sent, what comes again, and many threads at it. */

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
        cmocka_unit_test(abandoning_waits_for_lanes_at_work),
        cmocka_unit_test(threads_agree),
        cmocka_unit_test(memory_does_not_grow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
