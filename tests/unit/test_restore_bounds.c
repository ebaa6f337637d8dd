/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

#include "base/fault.h"
#include "restore/staging.h"

#include <pthread.h>
#include <time.h>

/* Staging that is full, staging that saves room, memory that does not grow, and a guest that cannot be
 * written. */

static struct restore_stats stats_of(struct kit *kit)
{
    struct restore_stats stats;
    restore_get_stats(kit->restore, &stats);
    return stats;
}

static void test_full_staging(void **state)
{
    (void)state;
    struct kit kit;
    kit_open(&kit, 100 << VMM_PAGE_SHIFT, false);
    kit_first_commit(&kit);
    for (uint64_t page = 0; page < 101; page++)
        kit_fill(kit_page(&kit, 0, page), page + 1);
    for (uint64_t page = 0; page < 100; page++)
        assert_int_equal(kit_send_pages(&kit, 0, page, 1, WIRE_RUN_RAW), 0);
    assert_int_equal(kit_send_pages(&kit, 0, 100, 1, WIRE_RUN_RAW), -ENOSPC);
    assert_text_has("staging is full", "409600 bytes");
    assert_int_equal(stats_of(&kit).staged_bytes, 409600);
    assert_int_equal(stats_of(&kit).staged_peak_bytes, 409600);
    restore_abort(kit.restore);
    memset(kit.model[0], 0, 101 << VMM_PAGE_SHIFT);

    /* The next session has all of it again. */
    kit_session(&kit, 2);
    for (uint64_t page = 0; page < 100; page++)
        kit_fill(kit_page(&kit, 0, page), page + 7);
    assert_int_equal(kit_send_pages(&kit, 0, 0, 60, WIRE_RUN_RAW), 0);
    assert_int_equal(kit_send_pages(&kit, 0, 60, 40, WIRE_RUN_LZ4), 0);
    kit_commit(&kit);
    kit_assert_taken_over(&kit, 2);
    kit_close(&kit);
}

/* The rest of a chunk that a lane began is not lost to the others. */
static void test_leftover_chunks(void **state)
{
    (void)state;
    static struct staging staging;
    const struct vmm_block block = {.name = "ram", .bytes = 1000 << VMM_PAGE_SHIFT};
    struct staging_writer *one, *other;
    uint32_t slot;
    assert_int_equal(staging_init(&staging, &block, 1, 640 << VMM_PAGE_SHIFT), 0);
    assert_int_equal(staging.pool.chunk_slots, 10);
    assert_int_equal(staging_enter(&staging, &one), 0);
    assert_int_equal(staging_enter(&staging, &other), 0);
    assert_int_equal(staging_take(one, 1, &slot), 1);
    for (unsigned i = 0; i < 630; i++)
        assert_int_equal(staging_take(other, 1, &slot), 1);
    assert_int_equal(staging_take(other, 1, &slot), -ENOSPC);
    staging_leave(one);
    assert_int_equal(staging_take(other, 64, &slot), 9);
    assert_int_equal(staging_take(other, 1, &slot), -ENOSPC);
    staging_leave(other);
    staging_drop(&staging);
    assert_int_equal(staging.pool.free_count, 64);
    staging_fini(&staging);
}

/* A full copy over a commit: what the guest has already takes no room, though staging is far too small for
 * all. */
static void full_copy(bool unmapped, uint8_t encoding)
{
    struct kit kit;
    kit_open(&kit, 32 << VMM_PAGE_SHIFT, unmapped);
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page++)
            kit_fill(kit_page(&kit, block, page), page * 2 + block);
    kit_first_commit(&kit);
    kit_fill(kit_page(&kit, 0, 777), 1);
    kit_commit(&kit); /* not applied: the session does it */
    kit_session(&kit, 1);
    for (unsigned i = 0; i < 20; i++)
        kit_fill(kit_page(&kit, i % KIT_BLOCKS, 6 * i), i + 5000);
    kit_send_all(&kit, encoding);
    assert_int_equal(stats_of(&kit).staged_bytes, 21 << VMM_PAGE_SHIFT);
    /* A page that comes again, now as the guest has it, is not staged any more. */
    assert_int_equal(kit_expect_round(&kit), 0);
    memcpy(kit_page(&kit, 0, 777), kit_guest_page(&kit, 0, 777), VMM_PAGE_BYTES);
    assert_int_equal(kit_send_pages(&kit, 0, 777, 1, encoding), 0);
    assert_int_equal(stats_of(&kit).staged_bytes, 20 << VMM_PAGE_SHIFT);
    kit_commit(&kit);
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

static void test_full_copy_over_commit(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 4; i++)
        full_copy(i & 1, i & 2 ? WIRE_RUN_LZ4 : WIRE_RUN_RAW);
}

struct blocked {
    struct kit *kit;
    int code;
    atomic_bool over;
};

static void *send_blocked(void *argument)
{
    struct blocked *blocked = argument;
    blocked->code = kit_send_pages(blocked->kit, 0, 200, 50, WIRE_RUN_RAW);
    atomic_store(&blocked->over, true);
    return NULL;
}

/* Staging is full of an epoch that is being applied: the lane waits, until it is applied or the session ends.
 */
static void blocked_until(bool applied)
{
    struct kit kit;
    pthread_t thread;
    struct blocked blocked = {.kit = &kit};
    kit_open(&kit, 64 << VMM_PAGE_SHIFT, false);
    kit_first_commit(&kit);
    for (uint64_t page = 0; page < 250; page++)
        kit_fill(kit_page(&kit, 0, page), page + 1);
    assert_int_equal(kit_send_pages(&kit, 0, 0, 60, WIRE_RUN_RAW), 0);
    kit_commit(&kit);
    assert_int_equal(pthread_create(&thread, NULL, send_blocked, &blocked), 0);
    nanosleep(&(struct timespec){.tv_nsec = 20000000}, NULL);
    assert_false(atomic_load(&blocked.over));
    if (applied)
        assert_int_equal(restore_apply(kit.restore), 0);
    else
        restore_abort(kit.restore);
    pthread_join(thread, NULL);
    assert_int_equal(blocked.code, applied ? 0 : -ECANCELED);
    if (applied)
        kit_commit(&kit);
    assert_int_equal(restore_takeover(kit.restore, NULL), 0);
    assert_int_equal(memcmp(kit.model[0], kit_guest_page(&kit, 0, 0), 60 << VMM_PAGE_SHIFT), 0);
    kit_close(&kit);
}

static void test_blocked_lane(void **state)
{
    (void)state;
    blocked_until(true);
    blocked_until(false);
}

static unsigned writes_left;

static int failing_write(struct vmm *guest, const struct vmm_range *ranges, size_t count, const void *from)
{
    struct kit *kit = (void *)((uint8_t *)guest->ops - offsetof(struct kit, ops));
    if (writes_left-- == 0)
        return error_set(-EFAULT, "the guest's memory cannot be written");
    return kit->original->write(guest, ranges, count, from);
}

/* Applying fails at the N-th write, for every N: nothing is committed, until a full copy has healed the
 * guest. */
static void test_apply_fails(void **state)
{
    (void)state;
    int r = -1;
    for (unsigned n = 0; r != 0; n++) {
        struct kit kit;
        assert_true(n < 100);
        kit_open(&kit, 0, true);
        kit_first_commit(&kit);
        for (unsigned i = 0; i < 3; i++)
            assert_int_equal(kit_send_changes(&kit), 0);
        kit_commit(&kit);
        assert_int_equal(stats_of(&kit).committed_epoch, 2);
        writes_left = n;
        kit.ops.write = failing_write;
        r = restore_apply(kit.restore);
        kit.ops.write = kit.original->write;
        if (r == 0) {
            assert_true(n > 0);
            assert_int_equal(kit_differing(&kit), 0);
        } else {
            assert_int_equal(r, -EFAULT);
            assert_text_has("epoch 2", "block", "cannot be written");
            assert_int_equal(stats_of(&kit).committed_epoch, 0);
            assert_int_equal(stats_of(&kit).staged_bytes, 0);
            assert_int_equal(kit_send_changes(&kit), -ECANCELED);
            assert_int_equal(restore_apply(kit.restore), 0);
            assert_int_equal(restore_takeover(kit.restore, NULL), -ENODATA);
            assert_text_has("broken", "cannot be written");
            kit_first_commit(&kit);
            kit_assert_taken_over(&kit, 1);
        }
        kit_close(&kit);
    }
}

static void test_apply_faults(void **state)
{
    (void)state;
    static const char *const points[] = {"apply-begin=error", "apply-half=error", "apply-end=error"};
    for (unsigned i = 0; i < 2 * array_length(points); i++) {
        struct kit kit;
        kit_open(&kit, 0, i & 1);
        for (uint64_t page = 0; page < kit_pages[0]; page++)
            kit_fill(kit_page(&kit, 0, page), page + 1);
        kit_first_commit(&kit);
        for (uint64_t page = 100; page < 140; page++)
            kit_fill(kit_page(&kit, 0, page), page + 7);
        assert_int_equal(kit_send_pages(&kit, 0, 100, 40, WIRE_RUN_RAW), 0);
        kit_commit(&kit);
        assert_int_equal(fault_arm(points[i / 2]), 0);
        assert_int_equal(restore_takeover(kit.restore, NULL), -EIO);
        assert_text_has("taking over", "failed on purpose");
        /* Half is half. */
        assert_int_equal(kit_differing(&kit), 40 - 20 * (i / 2));
        assert_int_equal(restore_takeover(kit.restore, NULL), -ENODATA);
        kit_close(&kit);
    }
    /* An epoch without pages passes the same points. */
    struct kit kit;
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    kit_commit(&kit);
    assert_int_equal(fault_arm("apply-half=error"), 0);
    assert_int_equal(restore_apply(kit.restore), -EIO);
    kit_close(&kit);
}

static void test_many_epochs(void **state)
{
    (void)state;
    struct kit kit;
    kit_open(&kit, 1 << 20, false);
    kit_first_commit(&kit);
    uint64_t most_early = 0, most_late = 0;
    for (unsigned i = 0; i < 10000; i++) {
        uint64_t pages = 1 + kit_random(&kit.random) % 16;
        uint64_t page = kit_random(&kit.random) % (kit_pages[0] - pages);
        for (unsigned round = 0; round < 2; round++) {
            memset(kit_page(&kit, 0, page), (int)i + 1, (size_t)pages << VMM_PAGE_SHIFT);
            assert_int_equal(kit_send_pages(&kit, 0, page, (uint32_t)pages, WIRE_RUN_LZ4), 0);
            if (round == 0)
                assert_int_equal(kit_expect_round(&kit), 0);
        }
        if (i % 100 == 99) {
            /* A session that breaks in the middle costs nothing either. */
            uint64_t epoch = kit.epoch;
            restore_abort(kit.restore);
            kit_session(&kit, epoch);
            assert_int_equal(kit_send_pages(&kit, 0, page, (uint32_t)pages, WIRE_RUN_LZ4), 0);
        }
        kit_commit(&kit);
        uint64_t memory = stats_of(&kit).memory_bytes, *most = i < 5000 ? &most_early : &most_late;
        if (memory > *most)
            *most = memory;
        assert_int_equal(restore_apply(kit.restore), 0);
        assert_int_equal(stats_of(&kit).staged_bytes, 0);
    }
    assert_true(most_late <= most_early);
    /* Staging, both indexes, one lane's buffers, and little else. */
    assert_true(most_early < (1 << 20) + 2 * 4096 * 6 + 128 * 4096 + 65536);
    assert_true(stats_of(&kit).staged_peak_bytes <= 1 << 20);
    kit_assert_taken_over(&kit, kit.epoch - 1);
    kit_close(&kit);
}

/* What a large epoch needed is given back when two epochs did without. */
static void test_memory_given_back(void **state)
{
    (void)state;
    struct vmm *guest;
    struct memory_options options = {.block_count = 1, .blocks = {{"ram", 256u << 20}}};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    struct kit kit = {0};
    kit.config = (struct restore_config){0, kit_complete, &kit.done};
    kit_lane_open(&kit.lane);
    assert_int_equal(restore_new(&kit.restore, guest, &kit.config), 0);
    assert_int_equal(restore_session(kit.restore, (uint32_t[]){0}, 1), 0);
    kit.epoch = 1;
    static uint8_t content[64 * VMM_PAGE_BYTES];
    uint64_t before = 0, at_most = 0;
    for (unsigned i = 0; i < 5; i++) {
        unsigned frames = i == 1 ? 900 : 1;
        for (unsigned frame = 0; frame < frames; frame++) {
            memset(content, (int)(frame + i + 1), sizeof content);
            kit_frame(&kit.lane, 0);
            kit_run_of(&kit.lane, frame * 64, 64, WIRE_RUN_RAW, content);
            assert_int_equal(kit_send(&kit), 0);
        }
        kit_commit(&kit);
        assert_int_equal(restore_apply(kit.restore), 0);
        uint64_t memory = stats_of(&kit).memory_bytes;
        if (i == 0)
            before = memory;
        at_most = memory > at_most ? memory : at_most;
    }
    assert_true(at_most > 225u << 20);
    assert_true(stats_of(&kit).memory_bytes < before + (24u << 20));
    restore_free(kit.restore);
    vmm_close(guest);
    kit_lane_close(&kit.lane);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_full_staging),          cmocka_unit_test(test_leftover_chunks),
        cmocka_unit_test(test_full_copy_over_commit), cmocka_unit_test(test_blocked_lane),
        cmocka_unit_test(test_apply_fails),           cmocka_unit_test(test_apply_faults),
        cmocka_unit_test(test_many_epochs),           cmocka_unit_test(test_memory_given_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
