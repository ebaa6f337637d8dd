/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

#include "base/fault.h"

/* Epochs that go well, sessions that break, takeover. */

static void epochs(bool unmapped)
{
    struct kit kit;
    kit_open(&kit, 0, unmapped);
    kit_session(&kit, 5);
    for (uint32_t block = 0; block < KIT_BLOCKS; block++)
        for (uint64_t page = 0; page < kit_pages[block]; page += 3)
            kit_change(&kit, block, page);
    kit_send_all(&kit, WIRE_RUN_LZ4);
    kit_commit(&kit);
    assert_int_equal(restore_apply(kit.restore), 0);
    assert_int_equal(kit_differing(&kit), 0);

    for (unsigned i = 0; i < 60; i++) {
        uint64_t before = kit.epoch - 1;
        for (uint64_t rounds = kit_random(&kit.random) % 3; rounds; rounds--) {
            assert_int_equal(kit_send_changes(&kit), 0);
            assert_int_equal(kit_expect_round(&kit), 0);
            assert_int_equal(kit.done.code, 0);
            assert_false(kit.done.commit);
            assert_int_equal(kit.done.round, kit.round - 1);
        }
        assert_int_equal(kit_send_changes(&kit), 0);
        /* Nothing of the epoch is in the guest before it is applied. */
        assert_true(kit_differing(&kit) > 0);
        uint64_t value;
        assert_int_equal(restore_probe(kit.restore, "ram", 0, &value), 0);
        struct restore_stats stats;
        restore_get_stats(kit.restore, &stats);
        assert_int_equal(stats.committed_epoch, before);
        assert_true(stats.staged_bytes > 0);
        kit_commit(&kit);
        assert_int_equal(restore_apply(kit.restore), 0);
        assert_int_equal(kit_differing(&kit), 0);
        restore_get_stats(kit.restore, &stats);
        assert_int_equal(stats.committed_epoch, before + 1);
        assert_int_equal(stats.staged_bytes, 0);
        assert_int_equal(stats.epochs, i + 2);
    }
    kit_assert_taken_over(&kit, kit.epoch - 1);
    kit_close(&kit);
}

static void test_epochs_mapped(void **state)
{
    (void)state;
    epochs(false);
}

static void test_epochs_unmapped(void **state)
{
    (void)state;
    epochs(true);
}

/* Zero runs, long and short, take memory of the guest away or write it, and end at the right pages. */
static void test_zeros(void **state)
{
    (void)state;
    static const struct {
        uint64_t first;
        uint32_t pages;
    } runs[] = {{0, 1}, {2, 15}, {18, 16}, {40, 700}, {741, 2}, {760, 740}};
    struct kit kit;
    kit_open(&kit, 0, false);
    for (uint64_t page = 0; page < kit_pages[0]; page++)
        kit_fill(kit_page(&kit, 0, page), page);
    kit_first_commit(&kit);
    kit_frame(&kit.lane, 0);
    for (unsigned i = 0; i < array_length(runs); i++) {
        memset(kit_page(&kit, 0, runs[i].first), 0, (size_t)runs[i].pages << VMM_PAGE_SHIFT);
        kit_run(&kit, runs[i].first, runs[i].pages, WIRE_RUN_ZERO);
    }
    assert_int_equal(kit_send(&kit), 0);
    struct restore_stats stats;
    restore_get_stats(kit.restore, &stats);
    assert_int_equal(stats.staged_bytes, 0);
    kit_commit(&kit);
    assert_int_equal(restore_apply(kit.restore), 0);
    assert_int_equal(kit_differing(&kit), 0);
    kit_close(&kit);
}

/* A later round's page replaces the earlier one's, whatever the two are, and the slot is used again. */
static void test_rounds_replace(void **state)
{
    (void)state;
    static const uint8_t encodings[] = {WIRE_RUN_RAW, WIRE_RUN_ZERO, WIRE_RUN_LZ4, WIRE_RUN_RAW,
                                        WIRE_RUN_RAW};
    struct kit kit;
    /* Room for 64 pages, and the 5 rounds carry 200. */
    kit_open(&kit, 64 << VMM_PAGE_SHIFT, false);
    kit_first_commit(&kit);
    for (unsigned i = 0; i < array_length(encodings); i++) {
        for (uint64_t page = 100; page < 140; page++) {
            memset(kit_page(&kit, 0, page), 0, VMM_PAGE_BYTES);
            if (encodings[i] != WIRE_RUN_ZERO)
                memset(kit_page(&kit, 0, page), (int)(page + i), 100);
        }
        assert_int_equal(kit_send_pages(&kit, 0, 100, 40, encodings[i]), 0);
        struct restore_stats stats;
        restore_get_stats(kit.restore, &stats);
        assert_int_equal(stats.staged_bytes, encodings[i] == WIRE_RUN_ZERO ? 0 : 40 << VMM_PAGE_SHIFT);
        assert_int_equal(kit_expect_round(&kit), 0);
    }
    kit_commit(&kit);
    assert_int_equal(restore_apply(kit.restore), 0);
    assert_int_equal(kit_differing(&kit), 0);
    kit_close(&kit);
}

/* The announcement may come before, between or after the frames; the answer comes once. */
static void test_announcement_first(void **state)
{
    (void)state;
    struct kit kit;
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    for (unsigned when = 0; when < 3; when++) {
        struct wire_frame frames[2];
        struct kit_lane lanes[2];
        struct message_totals totals = {0};
        int calls = kit.done.calls;
        for (unsigned i = 0; i < 2; i++) {
            kit_lane_open(&lanes[i]);
            kit_frame(&lanes[i], i);
            kit_change(&kit, i, 7);
            kit_run_of(&lanes[i], 7, 1, WIRE_RUN_RAW, kit_page(&kit, i, 7));
            frames[i] = *kit_seal(&lanes[i], kit.epoch, 0, &totals);
        }
        for (unsigned i = 0; i < 3; i++) {
            assert_int_equal(kit.done.calls, calls);
            if (i == when)
                assert_int_equal(restore_expect(kit.restore, kit.epoch, 0, &totals, NULL), 0);
            else
                assert_int_equal(restore_pages(kit.restore, &frames[i - (i > when)]), 0);
        }
        assert_int_equal(kit.done.calls, calls + 1);
        assert_int_equal(kit.done.code, 0);
        kit.round = 1;
        kit_commit(&kit);
        assert_int_equal(restore_apply(kit.restore), 0);
        assert_int_equal(kit_differing(&kit), 0);
        for (unsigned i = 0; i < 2; i++)
            kit_lane_close(&lanes[i]);
    }
    /* A round without frames is complete at once. */
    int calls = kit.done.calls;
    assert_int_equal(kit_expect_round(&kit), 0);
    assert_int_equal(kit.done.calls, calls + 1);
    kit_close(&kit);
}

/*
 * The session breaks after the N-th step of an epoch, for every N, with or without the former commit applied:
 * the former checkpoint is there, whole, and the next session goes on from it.
 */
static void broken_after(unsigned steps, bool applied, bool unmapped)
{
    struct kit kit;
    kit_open(&kit, 0, unmapped);
    kit_first_commit(&kit);
    assert_int_equal(kit_send_changes(&kit), 0);
    kit_commit(&kit);
    if (applied)
        assert_int_equal(restore_apply(kit.restore), 0);
    uint64_t committed = kit.epoch - 1;
    uint8_t *saved[KIT_BLOCKS];
    for (unsigned i = 0; i < KIT_BLOCKS; i++) {
        saved[i] = malloc(kit_pages[i] << VMM_PAGE_SHIFT);
        memcpy(saved[i], kit.model[i], kit_pages[i] << VMM_PAGE_SHIFT);
    }
    bool complete = false;
    for (unsigned step = 0; step < steps; step++)
        switch (step) {
        case 0:
        case 1:
        case 3:
            assert_int_equal(kit_send_changes(&kit), 0);
            break;
        case 2:
            assert_int_equal(kit_expect_round(&kit), 0);
            break;
        case 4:
            assert_int_equal(kit_send_whole_state(&kit), 0);
            break;
        case 5:
            assert_int_equal(kit_expect_commit(&kit), 0);
            assert_int_equal(kit.done.code, 0);
            complete = true;
            break;
        }
    restore_abort(kit.restore);
    assert_int_equal(kit_send_changes(&kit), -ECANCELED);
    assert_int_equal(complete, steps == 6);
    for (unsigned i = 0; i < KIT_BLOCKS; i++)
        memcpy(kit.model[i], saved[i], kit_pages[i] << VMM_PAGE_SHIFT);

    if (steps % 2) {
        kit_assert_taken_over(&kit, committed);
    } else {
        kit_session(&kit, committed + 2);
        assert_int_equal(kit_differing(&kit), 0);
        struct restore_stats stats;
        restore_get_stats(kit.restore, &stats);
        assert_int_equal(stats.committed_epoch, committed);
        assert_int_equal(stats.staged_bytes, 0);
        assert_int_equal(kit_send_changes(&kit), 0);
        kit_commit(&kit);
        kit_assert_taken_over(&kit, committed + 2);
    }
    for (unsigned i = 0; i < KIT_BLOCKS; i++)
        free(saved[i]);
    kit_close(&kit);
}

static void test_session_breaks(void **state)
{
    (void)state;
    for (unsigned steps = 0; steps <= 6; steps++)
        for (unsigned how = 0; how < 4; how++)
            broken_after(steps, how & 1, how & 2);
}

/* The first copy breaks: there is nothing to resume, until a whole one comes. */
static void test_first_copy_breaks(void **state)
{
    (void)state;
    struct kit kit;
    kit_open(&kit, 0, false);
    assert_int_equal(restore_takeover(kit.restore, NULL), -ENODATA);
    kit_fill(kit_page(&kit, 0, 3), 3);
    kit_session(&kit, 1);
    assert_int_equal(kit_send_pages(&kit, 0, 0, 10, WIRE_RUN_RAW), 0);
    assert_int_equal(kit_send_whole_state(&kit), 0);
    restore_abort(kit.restore);
    assert_int_equal(restore_takeover(kit.restore, NULL), -ENODATA);
    assert_text_has("no checkpoint");
    assert_false(memory_guest_running(kit.guest));
    uint64_t value;
    assert_int_equal(restore_probe(kit.restore, "ram", 0, &value), -ENODATA);
    kit_first_commit(&kit);
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

/* What is verified before the link breaks may still be committed. */
static void test_commit_after_abort(void **state)
{
    (void)state;
    struct kit kit;
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    assert_int_equal(kit_send_changes(&kit), 0);
    assert_int_equal(kit_send_whole_state(&kit), 0);
    assert_int_equal(kit_expect_commit(&kit), 0);
    restore_abort(kit.restore);
    assert_int_equal(restore_commit(kit.restore, kit.epoch), 0);
    kit_assert_taken_over(&kit, kit.epoch);
    kit_close(&kit);
}

static int failing_announce(struct vmm *guest)
{
    (void)guest;
    return error_set(-ENETDOWN, "no network");
}

static void test_takeover(void **state)
{
    (void)state;
    struct kit kit;
    struct restore_timing timing;
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    assert_int_equal(kit_send_changes(&kit), 0);
    kit_commit(&kit);
    kit.ops.announce = failing_announce;
    static const char *const points[] = {"takeover-load=error", "takeover-run=error"};
    for (unsigned i = 0; i < array_length(points); i++) {
        assert_int_equal(fault_arm(points[i]), 0);
        assert_int_equal(restore_takeover(kit.restore, &timing), -EIO);
        assert_false(memory_guest_running(kit.guest));
    }
    assert_int_equal(restore_takeover(kit.restore, &timing), 0);
    assert_true(memory_guest_running(kit.guest));
    assert_true(timing.announce_failed);
    assert_text_has("announcing", "no network");
    assert_int_equal(kit_differing(&kit), 0);
    kit_close(&kit);
}

/* Faults in front of staging end a session and nothing else. */
static void test_faults(void **state)
{
    (void)state;
    static const char *const points[] = {"stage-pages=error", "stage-state=error", "verify-epoch=error"};
    struct kit kit;
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    for (unsigned i = 0; i < array_length(points); i++) {
        kit_session(&kit, 10 + i);
        assert_int_equal(fault_arm(points[i]), 0);
        assert_int_equal(kit_send_pages(&kit, 0, 1, 1, WIRE_RUN_RAW), i == 0 ? -EIO : 0);
        assert_int_equal(kit_send_whole_state(&kit), i == 1 ? -EIO : 0);
        assert_int_equal(kit_expect_commit(&kit), i == 2 ? -EIO : 0);
        assert_int_equal(kit.done.calls, 1);
    }
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_epochs_mapped),
        cmocka_unit_test(test_epochs_unmapped),
        cmocka_unit_test(test_zeros),
        cmocka_unit_test(test_rounds_replace),
        cmocka_unit_test(test_announcement_first),
        cmocka_unit_test(test_session_breaks),
        cmocka_unit_test(test_first_copy_breaks),
        cmocka_unit_test(test_commit_after_abort),
        cmocka_unit_test(test_takeover),
        cmocka_unit_test(test_faults),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
