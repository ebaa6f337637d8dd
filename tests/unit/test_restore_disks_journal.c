/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_disks_kit.h"

#include "base/fault.h"

#include <errno.h>

static void a_full_journal(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    restore_free(bench->restore);
    bench->config.journal_bytes_max = 8192;
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    first_commit(bench); /* directly: needs none */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'f'), 0);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'g'), -ENOSPC);
    assert_text_has("journal full");
    session(bench, 20);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'h'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 4096, 'h');
    bench_free(bench);
}

/* The standby dies between its commit and the end of the apply; its guest is started anew on the same images.
 */
static void killed_between_commit_and_apply(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 2; half++) {
        struct bench *bench = bench_new();
        first_commit(bench);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
        assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 512, 'l'), 0);
        commit(bench);
        assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 512, 'm'), 0); /* not committed */
        if (half) {
            assert_int_equal(fault_arm("journal-apply=error"), 0);
            assert_int_equal(restore_apply(bench->restore), -EIO);
            assert_text_has("applying epoch 2");
            expect_disk(bench, 0, 0, 512, 'k');
        }
        expect_disk(bench, 1, 0, 512, 'b');
        restore_free(bench->restore);
        assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
        expect_disk(bench, 0, 0, 512, 'k');
        expect_disk(bench, 1, 0, 512, 'l');
        assert_int_equal(bench->notices, 2);
        restore_free(bench->restore);
        assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
        assert_int_equal(bench->notices, 2);
        bench_free(bench);
    }
}

/* An apply that failed leaves a journal that a full copy must not be undone by. */
static void a_failed_apply_is_forgotten_by_a_full_copy(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
    commit(bench);
    assert_int_equal(fault_arm("journal-apply=error"), 0);
    assert_int_equal(restore_apply(bench->restore), -EIO);
    assert_int_equal(restore_takeover(bench->restore, NULL), -ENODATA);
    session(bench, 30);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'n'), 0);
    expect_disk(bench, 0, 0, 512, 'n'); /* directly */
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'n');
    bench_free(bench);
}

static int load_after_flush(struct vmm *vmm, const void *state, size_t bytes)
{
    assert_int_equal(the_bench->flushes, 2);
    return the_bench->driver->load(vmm, state, bytes);
}

/* What is loaded, and the disks, are the committed epoch's, whatever is under way. */
static void a_takeover(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    bench->ops.load = load_after_flush;
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'u'), 0);
    assert_int_equal(restore_takeover(bench->restore, NULL), 0);
    assert_true(memory_guest_running(bench->guest));
    size_t bytes;
    assert_int_equal(*(const uint8_t *)memory_guest_loaded(bench->guest, &bytes), 2);
    expect_disk(bench, 0, 0, 512, 't');
    /* From now on the images are the guest's. */
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_WRITE, 0, 512, memset((uint8_t[512]){0}, 'g', 512));
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    expect_disk(bench, 0, 0, 512, 'g');
    assert_int_equal(bench->notices, 0);
    bench_free(bench);
}

/* Complete, and the session ends before it is committed. */
static void a_complete_epoch_that_is_not_committed(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    assert_int_equal(complete(bench), 0);
    restore_abort(bench->restore);
    session(bench, 2);
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'a');
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    assert_int_equal(complete(bench), 0);
    assert_int_equal(restore_takeover(bench->restore, NULL), 0);
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'a');
    bench_free(bench);
}

/* A journal that cannot be committed: the epoch is not, and the former one can be taken over. */
static void a_commit_that_fails(void **state)
{
    (void)state;
    static const char *const faults[] = {"journal-commit=error", "journal-committed=error"};
    for (unsigned i = 0; i < 2; i++) {
        struct bench *bench = bench_new();
        first_commit(bench);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
        assert_int_equal(fault_arm(faults[i]), 0);
        assert_int_equal(complete(bench), -EIO);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'u'), -ECANCELED);
        struct restore_stats stats;
        restore_get_stats(bench->restore, &stats);
        assert_int_equal(stats.committed_epoch, 1);
        if (i == 0) {
            session(bench, 2);
            assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'v'), 0);
            commit(bench);
            apply(bench);
            expect_disk(bench, 0, 0, 512, 'v');
        } else {
            assert_int_equal(restore_takeover(bench->restore, NULL), 0);
            expect_disk(bench, 0, 0, 512, 'a');
            size_t bytes;
            assert_int_equal(*(const uint8_t *)memory_guest_loaded(bench->guest, &bytes), 1);
        }
        bench_free(bench);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_journal),
        cmocka_unit_test(killed_between_commit_and_apply),
        cmocka_unit_test(a_failed_apply_is_forgotten_by_a_full_copy),
        cmocka_unit_test(a_takeover),
        cmocka_unit_test(a_complete_epoch_that_is_not_committed),
        cmocka_unit_test(a_commit_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
