/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/virtio_block_kit.h"

#include <errno.h>

static void it_says_how_large_it_is(void **state)
{
    (void)state;
    assert_int_equal(kit_read(kit, 8), 2);
    assert_int_equal(kit_read(kit, REG_CONFIG), DISK_BYTES / 512);
    assert_int_equal(kit_read(kit, REG_CONFIG + 4), 0);
    assert_int_equal(kit_read(kit, REG_CONFIG + 12), 126); /* seg_max */
    assert_int_equal(kit_read(kit, REG_CONFIG + 20), 512);
    assert_int_equal(kit_read(kit, REG_CONFIG + 36), 1 << 22); /* max_discard_sectors */
    assert_int_equal(kit_read(kit, REG_CONFIG + 60), 0);
    uint8_t may_unmap;
    assert_true(bus_read(&kit->bus, DEVICE_MMIO, KIT_MMIO + REG_CONFIG + 56, 1, &may_unmap));
    assert_int_equal(may_unmap, 1);
    assert_int_equal(virtio_block_bytes(disk_of(kit)), DISK_BYTES);
    assert_int_equal(request(GET_ID, 0, 20), OK);
    assert_memory_equal(kit_at(kit, data_at(0)), "a disk with a long name", 20);
}

static void what_is_written_is_read(void **state)
{
    (void)state;
    fill(0, 0xa5, 8192);
    assert_int_equal(request(OUT, 7, 8192), OK);
    assert_true(file_has(7 * 512, 8192, 0xa5));
    assert_true(file_has(0, 7 * 512, 0));
    fill(0, 0, 8192);
    uint64_t marks[16];
    kit_take_marks(kit, marks);
    assert_int_equal(request(IN, 8, 4096), OK);
    const uint8_t *got = kit_at(kit, data_at(0));
    assert_true(got[0] == 0xa5 && got[4095] == 0xa5 && got[4096] == 0);
    kit_take_marks(kit, marks);
    assert_true(kit_marked(marks, data_at(0)) && kit_marked(marks, slot_at(0)));
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(request(IN, DISK_BYTES / 512 - 1, 512), OK);
}

static void ranges_become_zeros(void **state)
{
    (void)state;
    fill(0, 0xee, 16384);
    assert_int_equal(request(OUT, 0, 16384), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 8, 8, 0), OK);
    assert_int_equal(range_request(WRITE_ZEROES, 24, 8, 1), OK);
    assert_int_equal(range_request(DISCARD, 16, 1, 0), OK);
    assert_true(file_has(0, 4096, 0xee) && file_has(4096, 4096, 0) && file_has(8192, 512, 0));
    assert_true(file_has(8704, 3584, 0xee) && file_has(12288, 4096, 0));
    assert_int_equal(lseek(file, 0, SEEK_END), DISK_BYTES);
}

static void what_is_not_on_the_disk_is_an_error(void **state)
{
    (void)state;
    uint64_t last = DISK_BYTES / 512 - 1;
    assert_int_equal(request(IN, last, 1024), IOERR);
    assert_int_equal(request(OUT, last, 1024), IOERR);
    assert_int_equal(request(OUT, last + 1, 512), IOERR);
    assert_int_equal(request(IN, UINT64_MAX, 512), IOERR);
    assert_int_equal(request(IN, UINT64_MAX / 512, 512), IOERR);
    assert_int_equal(request(OUT, 0, 100), IOERR);
    assert_int_equal(request(IN, 0, 100), IOERR);
    assert_int_equal(range_request(DISCARD, last, 2, 0), IOERR);
    assert_int_equal(range_request(DISCARD, UINT64_MAX, 2, 0), IOERR);
    assert_int_equal(range_request(WRITE_ZEROES, 0, UINT32_MAX, 0), IOERR);
    assert_int_equal(range_request(DISCARD, 0, 1, 1), UNSUPPORTED); /* a flag that it does not have */
    assert_int_equal(range_request(WRITE_ZEROES, 0, 1, 2), UNSUPPORTED);
    assert_int_equal(range_request(WRITE_ZEROES, 0, 0, 0), OK);
    assert_int_equal(request(DISCARD, 0, 32), IOERR); /* more ranges than it takes */
    assert_int_equal(request(99, 0, 0), UNSUPPORTED);
    assert_int_equal(kit_read(kit, REG_STATUS), 15);
    assert_true(file_has(0, DISK_BYTES, 0));
}

static void what_is_no_request_stops_the_device(void **state)
{
    (void)state;
    static const struct kit_piece bad[][2] = {
        {{KIT_BUFFERS, 15, false}, {KIT_BUFFERS + 100, 1, true}}, /* half a header */
        {{KIT_BUFFERS, 16, false}, {KIT_BUFFERS + 100, 0, true}}, /* nowhere to put the status */
    };
    for (size_t i = 0; i < array_length(bad); i++) {
        start_driver(ALL);
        kit_send(&queue, bad[i], 2);
        kit_turn(kit);
        assert_true(kit_read(kit, REG_STATUS) & STATUS_NEEDS_RESET);
        assert_int_equal(kit_done(&queue), 0);
    }
    start_driver(ALL);
    assert_int_equal(request(FLUSH, 0, 0), OK);
}

static void a_read_only_disk_is_not_written(void **state)
{
    (void)state;
    bus_quiesce(&kit->bus);
    kit_free(kit);
    kit = with_disk(NULL, dup(file), true);
    bus_resume(&kit->bus);
    assert_true(kit_features(kit) & VIRTIO_F(5));
    assert_false(kit_features(kit) & (F_DISCARD | F_ZEROES));
    start_driver(ALL);
    fill(0, 1, 512);
    assert_int_equal(request(OUT, 0, 512), IOERR);
    assert_int_equal(range_request(DISCARD, 0, 1, 0), UNSUPPORTED);
    assert_int_equal(request(FLUSH, 0, 0), OK);
    assert_int_equal(request(IN, 0, 512), OK);
    assert_true(file_has(0, 512, 0));
}

static void what_was_not_agreed_is_not_done(void **state)
{
    (void)state;
    start_driver(0);
    fill(0, 7, 512);
    assert_int_equal(request(OUT, 0, 512), OK); /* through to the disk, as there is no flush */
    assert_int_equal(range_request(DISCARD, 0, 1, 0), UNSUPPORTED);
    assert_int_equal(range_request(WRITE_ZEROES, 0, 1, 0), UNSUPPORTED);
    assert_true(file_has(0, 512, 7));
}

static void only_disks_are_disks(void **state)
{
    (void)state;
    struct virtio_place place = kit_place(kit);
    struct device *device = NULL;
    int pipe_ends[2];
    assert_int_equal(pipe(pipe_ends), 0);
    assert_int_equal(virtio_block_new(&device, &place, pipe_ends[0], true, "p"), -EINVAL);
    assert_text_has("disk 'p'", "neither a file nor a block device");
    int odd = new_file();
    assert_int_equal(ftruncate(odd, 1000), 0);
    assert_int_equal(virtio_block_new(&device, &place, odd, true, "q"), -EINVAL);
    assert_text_has("disk 'q'", "1000 bytes", "sectors of 512");
    close(odd);
    close(pipe_ends[0]);
    close(pipe_ends[1]);
}

/* A reset takes effect when what is under way is over, so nothing reaches RAM that the guest uses anew. */
static void a_reset_waits_for_what_is_under_way(void **state)
{
    (void)state;
    kit_start(kit);
    for (unsigned i = 0; i < 200; i++) {
        fill(0, 1, 4096);
        put_request(0, OUT, 0, 4096);
        put_request(1, IN, 0, 16384);
        kit_notify(&queue);
        usleep(i);
        kit_write(kit, REG_STATUS, 0);
        fill(1, 0xcc, 16384);
        uint16_t used = *kit_u16(&queue, queue.used + 2);
        usleep(100);
        assert_int_equal(*kit_u16(&queue, queue.used + 2), used);
        const uint8_t *data = kit_at(kit, data_at(1));
        for (unsigned j = 0; j < 16384; j++)
            assert_int_equal(data[j], 0xcc);
        start_driver(ALL);
    }
}

static void a_disk_of_another_size_is_refused(void **state)
{
    (void)state;
    struct kit_state saved;
    kit_save(kit, &saved);
    int smaller = new_file();
    assert_int_equal(ftruncate(smaller, DISK_BYTES / 2), 0);
    struct kit *other = with_disk(kit, smaller, false);
    assert_int_equal(kit_load(other, &saved), -EXDEV);
    assert_text_has("virtio-block 0", "configuration");
    kit_free(other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(it_says_how_large_it_is, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_written_is_read, set_up, tear_down),
        cmocka_unit_test_setup_teardown(ranges_become_zeros, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_not_on_the_disk_is_an_error, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_is_no_request_stops_the_device, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_read_only_disk_is_not_written, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_was_not_agreed_is_not_done, set_up, tear_down),
        cmocka_unit_test_setup_teardown(only_disks_are_disks, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_reset_waits_for_what_is_under_way, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_disk_of_another_size_is_refused, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
