/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/unit/unit.h"
#include "vmm/kvm/device.h"
#include "vmm/kvm/guest_memory.h"

#include <errno.h>
#include <stdlib.h>

#define PAGE GUEST_MEMORY_PAGE

/* --- guest memory --- */

static uint8_t ram[64 * PAGE], high[PAGE];

static struct guest_memory two_slots(void)
{
    struct guest_memory memory = {0};
    assert_int_equal(guest_memory_add(&memory, 0, sizeof ram, ram), 0);
    assert_int_equal(guest_memory_add(&memory, 1ull << 32, sizeof high, high), 0);
    return memory;
}

static void only_what_lies_in_one_slot_is_memory(void **state)
{
    (void)state;
    struct guest_memory memory cleanup(guest_memory_free) = two_slots();
    assert_ptr_equal(guest_memory_pointer(&memory, 0, 1), ram);
    assert_ptr_equal(guest_memory_pointer(&memory, sizeof ram - 1, 1), ram + sizeof ram - 1);
    assert_null(guest_memory_pointer(&memory, sizeof ram - 1, 2));
    assert_null(guest_memory_pointer(&memory, sizeof ram, 0));
    assert_null(guest_memory_pointer(&memory, 16, UINT64_MAX - 8)); /* would wrap */
    assert_null(guest_memory_pointer(&memory, UINT64_MAX, 1));
    assert_ptr_equal(guest_memory_pointer(&memory, (1ull << 32) + 8, PAGE - 8), high + 8);
    assert_null(guest_memory_pointer(&memory, (1ull << 32) + 8, PAGE));
    uint64_t word = 1;
    assert_int_equal(guest_memory_read(&memory, sizeof ram - 7, &word, 8), -EFAULT);
    assert_int_equal(guest_memory_write(&memory, sizeof ram - 7, &word, 8), -EFAULT);
    assert_int_equal(word, 1);
}

static void what_the_vmm_writes_is_marked(void **state)
{
    (void)state;
    struct guest_memory memory cleanup(guest_memory_free) = two_slots();
    uint64_t marks[2] = {0}, word = 42;
    assert_int_equal(guest_memory_write(&memory, 3 * PAGE - 4, &word, 8), 0); /* pages 2 and 3 */
    assert_int_equal(guest_memory_read(&memory, 9 * PAGE, &word, 8), 0);
    guest_memory_mark(&memory, 62 * PAGE, 2 * PAGE);
    guest_memory_mark(&memory, 63 * PAGE, 2 * PAGE); /* not memory */
    guest_memory_mark(&memory, 5 * PAGE, 0);
    guest_memory_mark(&memory, 1ull << 32, 1);
    marks[0] = 1; /* what KVM says */
    guest_memory_take_dirty(&memory, 0, marks);
    assert_int_equal(marks[0], 1 | 1 << 2 | 1 << 3 | 3ull << 62);
    guest_memory_take_dirty(&memory, 1, marks + 1);
    assert_int_equal(marks[1], 1);
    marks[0] = 0;
    guest_memory_take_dirty(&memory, 0, marks);
    assert_int_equal(marks[0], 0);
}

static void slots_must_be_pages_and_apart(void **state)
{
    (void)state;
    struct guest_memory memory cleanup(guest_memory_free) = two_slots();
    assert_int_equal(guest_memory_add(&memory, 63 * PAGE, 2 * PAGE, ram), -EEXIST);
    assert_text_has("0x3f000", "overlaps");
    assert_int_equal(guest_memory_add(&memory, 100, PAGE, ram), -EINVAL);
    assert_int_equal(guest_memory_add(&memory, 0, 0, ram), -EINVAL);
    assert_int_equal(guest_memory_add(&memory, UINT64_MAX - PAGE + 1, PAGE, ram), -EINVAL);
    for (unsigned i = 2; i < GUEST_SLOTS_MAX; i++)
        assert_int_equal(guest_memory_add(&memory, (uint64_t)i << 33, PAGE, ram), 0);
    assert_int_equal(guest_memory_add(&memory, 1ull << 40, PAGE, ram), -ENOSPC);
}

/* --- records --- */

static void records_come_back(void **state)
{
    (void)state;
    uint8_t bytes[128];
    struct record_writer writer;
    record_writer_init(&writer, bytes, sizeof bytes);
    record_begin(&writer, 7, 2, 9);
    record_put_u8(&writer, 0x12);
    record_put_u16(&writer, 0x3456);
    record_put_u32(&writer, 0x789abcde);
    record_put_u64(&writer, 0x0123456789abcdef);
    record_put(&writer, "abc", 3);
    record_end(&writer);
    record_begin(&writer, 8, 1, 0);
    record_end(&writer);
    size_t length;
    assert_int_equal(record_writer_end(&writer, &length), 0);
    assert_int_equal(length, 16 + 18 + 16);

    struct record_reader reader;
    struct record record;
    record_reader_init(&reader, bytes, length);
    assert_int_equal(record_next(&reader, &record), 1);
    assert_int_equal(record.type, 7);
    assert_int_equal(record.version, 2);
    assert_int_equal(record.instance, 9);
    assert_int_equal(record_take_u8(&record), 0x12);
    assert_int_equal(record_take_u16(&record), 0x3456);
    assert_int_equal(record_take_u32(&record), 0x789abcde);
    assert_int_equal(record_take_u64(&record), 0x0123456789abcdef);
    assert_int_equal(record_check_end(&record, "thing"), -EBADMSG);
    assert_text_has("thing 9", "3 of 18 bytes are left over");
    assert_memory_equal(record_take_piece(&record, 3), "abc", 3);
    assert_int_equal(record_check_end(&record, "thing"), 0);
    assert_int_equal(record_take_u32(&record), 0);
    assert_int_equal(record_check_end(&record, "thing"), -EBADMSG);
    assert_text_has("thing 9", "18 bytes are too few");
    assert_int_equal(record_check_version(&record, "thing", 1), -EBADMSG);
    assert_text_has("thing 9", "version 2", "knows 1");
    assert_int_equal(record_next(&reader, &record), 1);
    assert_int_equal(record.bytes, 0);
    assert_int_equal(record_next(&reader, &record), 0);
}

static void a_cut_sequence_is_refused(void **state)
{
    (void)state;
    uint8_t bytes[64];
    struct record_writer writer;
    record_writer_init(&writer, bytes, sizeof bytes);
    record_begin(&writer, 7, 1, 0);
    record_put_u64(&writer, 1);
    record_end(&writer);
    for (size_t length = 1; length < 24; length++) {
        struct record_reader reader;
        struct record record;
        record_reader_init(&reader, bytes, length);
        assert_int_equal(record_next(&reader, &record), -EBADMSG);
    }
}

static void too_little_room_is_told_at_the_end(void **state)
{
    (void)state;
    uint8_t bytes[20];
    size_t length = 1;
    struct record_writer writer;
    record_writer_init(&writer, bytes, sizeof bytes);
    record_begin(&writer, 7, 1, 0);
    record_put_u64(&writer, 1);
    record_put_u8(&writer, 1); /* would fit, but would lie where the other should */
    record_end(&writer);
    assert_int_equal(record_writer_end(&writer, &length), -ENOBUFS);
    assert_int_equal(length, 1);
}

/* --- bus --- */

struct toy {
    struct device device;
    uint64_t value;
    unsigned quiet, width;
    bool stuck;
};

static uint64_t toy_read(struct device *device, uint64_t offset, unsigned bytes)
{
    ((struct toy *)device)->width = bytes;
    return ((struct toy *)device)->value + offset;
}

static void toy_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    ((struct toy *)device)->width = bytes;
    ((struct toy *)device)->value = value + offset;
}

static int toy_quiesce(struct device *device)
{
    struct toy *toy = (struct toy *)device;
    toy->quiet++;
    return toy->stuck ? error_set(-ETIMEDOUT, "something is under way") : 0;
}

static void toy_resume(struct device *device)
{
    ((struct toy *)device)->quiet--;
}

static void toy_reset(struct device *device)
{
    ((struct toy *)device)->value = 0;
}

static void toy_save(struct device *device, struct record_writer *writer)
{
    record_put_u64(writer, ((struct toy *)device)->value);
}

static int toy_load(struct device *device, struct record *record)
{
    uint64_t value = record_take_u64(record);
    if (value == 13)
        return error_set(-EBADMSG, "13 is not possible");
    ((struct toy *)device)->value = value;
    return 0;
}

static void toy_free(struct device *device)
{
    free(device);
}

static const struct device_ops toy_ops = {"toy",     toy_read, toy_write, toy_quiesce, toy_resume,
                                          toy_reset, toy_save, toy_load,  toy_free};

static struct toy *toy_new(enum device_space space, uint64_t base, uint32_t instance)
{
    struct toy *toy = calloc(1, sizeof *toy);
    toy->device = (struct device){&toy_ops, space, base, 16, RECORD_SERIAL, 3, instance};
    return toy;
}

static void accesses_find_their_device(void **state)
{
    (void)state;
    struct bus bus cleanup(bus_free) = {0};
    struct toy *a = toy_new(DEVICE_MMIO, 0x1000, 0), *b = toy_new(DEVICE_PORT, 0x1000, 1);
    assert_int_equal(bus_add(&bus, &a->device), 0);
    assert_int_equal(bus_add(&bus, &b->device), 0);
    uint32_t value = 0x01020304;
    assert_true(bus_write(&bus, DEVICE_MMIO, 0x1004, 2, &value));
    assert_int_equal(a->value, 0x0304 + 4);
    assert_int_equal(a->width, 2);
    assert_int_equal(b->value, 0);
    assert_true(bus_read(&bus, DEVICE_MMIO, 0x1000, 4, &value));
    assert_int_equal(value, 0x0308);
    assert_false(bus_read(&bus, DEVICE_MMIO, 0x100e, 4, &value)); /* across the end */
    assert_int_equal(value, UINT32_MAX);
    assert_false(bus_read(&bus, DEVICE_MMIO, 0x1010, 4, &value));
    assert_false(bus_read(&bus, DEVICE_MMIO, 0xfff, 2, &value));
    assert_false(bus_write(&bus, DEVICE_MMIO, 0x1000, 3, &value));
}

static void ranges_and_records_belong_to_one(void **state)
{
    (void)state;
    struct bus bus cleanup(bus_free) = {0};
    struct toy *a = toy_new(DEVICE_MMIO, 0x1000, 0);
    assert_int_equal(bus_add(&bus, &a->device), 0);
    struct toy *b = toy_new(DEVICE_MMIO, 0x100f, 1);
    assert_int_equal(bus_add(&bus, &b->device), -EEXIST);
    assert_text_has("toy 1 at 0x100f overlaps toy 0 at 0x1000");
    b->device.base = 0x2000;
    b->device.instance = 0;
    assert_int_equal(bus_add(&bus, &b->device), -EEXIST);
    assert_text_has("toy 0 already");
    free(b);
}

static void a_failed_quiesce_is_undone(void **state)
{
    (void)state;
    struct bus bus cleanup(bus_free) = {0};
    struct toy *toys[3];
    for (uint32_t i = 0; i < 3; i++) {
        toys[i] = toy_new(DEVICE_MMIO, 0x1000 * (i + 1), i);
        assert_int_equal(bus_add(&bus, &toys[i]->device), 0);
    }
    toys[1]->stuck = true;
    assert_int_equal(bus_quiesce(&bus), -ETIMEDOUT);
    assert_text_has("toy 1", "under way");
    for (unsigned i = 0; i < 3; i++)
        assert_int_equal(toys[i]->quiet, 0);
    toys[1]->stuck = false;
    assert_int_equal(bus_quiesce(&bus), 0);
    assert_int_equal(toys[2]->quiet, 1);
    bus_resume(&bus);
    assert_int_equal(toys[2]->quiet, 0);
}

static int load_all(struct bus *bus, const void *from, size_t bytes)
{
    struct record_reader reader;
    struct record record;
    record_reader_init(&reader, from, bytes);
    bus_load_begin(bus);
    int rc;
    while ((rc = record_next(&reader, &record)) > 0)
        if ((rc = bus_load(bus, &record)))
            return rc;
    return rc ? rc : bus_load_end(bus);
}

static void states_are_loaded_whole_or_refused_by_name(void **state)
{
    (void)state;
    struct bus bus cleanup(bus_free) = {0};
    struct toy *a = toy_new(DEVICE_MMIO, 0x1000, 0), *b = toy_new(DEVICE_MMIO, 0x2000, 1);
    assert_int_equal(bus_add(&bus, &a->device), 0);
    assert_int_equal(bus_add(&bus, &b->device), 0);
    a->value = 5;
    b->value = 6;
    uint8_t bytes[256];
    struct record_writer writer;
    record_writer_init(&writer, bytes, sizeof bytes);
    bus_save(&bus, &writer);
    size_t length;
    assert_int_equal(record_writer_end(&writer, &length), 0);
    assert_int_equal(length, 48);
    bus_reset(&bus);
    assert_int_equal(load_all(&bus, bytes, length), 0);
    assert_int_equal(a->value, 5);
    assert_int_equal(b->value, 6);

    assert_int_equal(load_all(&bus, bytes, 24), -EXDEV);
    assert_text_has("no record for toy 1");
    memcpy(bytes + 48, bytes, 24);
    assert_int_equal(load_all(&bus, bytes, 72), -EBADMSG);
    assert_text_has("toy 0", "two records");
    bytes[24 + 12] = 2;
    assert_int_equal(load_all(&bus, bytes, 48), -EXDEV);
    assert_text_has("no device", "0x110 2");
    bytes[24 + 12] = 1;
    bytes[24 + 4] = 4;
    assert_int_equal(load_all(&bus, bytes, 48), -EBADMSG);
    assert_text_has("toy 1", "version 4", "knows 3");
    bytes[24 + 4] = 3;
    bytes[24 + 16] = 13;
    assert_int_equal(load_all(&bus, bytes, 48), -EBADMSG);
    assert_text_has("state of toy 1: 13 is not possible");
    bytes[24 + 16] = 6;
    bytes[24 + 8] = 4;
    assert_int_equal(load_all(&bus, bytes, 44), -EBADMSG);
    assert_text_has("toy 1", "4 bytes are too few");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(only_what_lies_in_one_slot_is_memory),
        cmocka_unit_test(what_the_vmm_writes_is_marked),
        cmocka_unit_test(slots_must_be_pages_and_apart),
        cmocka_unit_test(records_come_back),
        cmocka_unit_test(a_cut_sequence_is_refused),
        cmocka_unit_test(too_little_room_is_told_at_the_end),
        cmocka_unit_test(accesses_find_their_device),
        cmocka_unit_test(ranges_and_records_belong_to_one),
        cmocka_unit_test(a_failed_quiesce_is_undone),
        cmocka_unit_test(states_are_loaded_whole_or_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
