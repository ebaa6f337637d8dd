/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/checkpoint_kit.h"

/* The pause of a capture: what is copied and sent within it, and when it is given up. */

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

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(more_than_staging_goes_out_within_the_pause),
        cmocka_unit_test(a_pause_without_end_is_given_up),
        cmocka_unit_test(a_slow_copy_is_given_up_before_anything_is_sent),
        cmocka_unit_test(pages_go_while_the_state_is_saved),
        cmocka_unit_test(fingerprints_and_probe_are_of_the_capture),
        cmocka_unit_test(many_pages_are_copied_by_two),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
