/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/byteorder.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#define PAGES 200u

static struct vmm *guest_new(bool unmapped)
{
    struct vmm *guest;
    struct memory_options options = {
        .blocks = {{"ram", PAGES << VMM_PAGE_SHIFT}, {"rom", 3 << VMM_PAGE_SHIFT}},
        .block_count = 2,
        .state_bytes = 21,
        .unmapped = unmapped};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    return guest;
}

static void expect_ranges(struct vmm *guest, bool clear, const struct vmm_range *wanted, size_t count)
{
    struct vmm_ranges found = {0};
    assert_int_equal(guest->ops->scan(guest, clear, &found), 0);
    assert_int_equal(found.count, count);
    for (size_t i = 0; i < count; i++) {
        assert_int_equal(found.items[i].block, wanted[i].block);
        assert_int_equal(found.items[i].first, wanted[i].first);
        assert_int_equal(found.items[i].pages, wanted[i].pages);
    }
    vmm_ranges_free(&found);
}

static void test_describe(void **state)
{
    (void)state;
    for (unsigned unmapped = 0; unmapped < 2; unmapped++) {
        struct vmm *guest = guest_new(unmapped);
        struct vmm_description description;
        guest->ops->describe(guest, &description);
        assert_int_equal(description.block_count, 2);
        assert_string_equal(description.blocks[1].name, "rom");
        assert_int_equal(description.blocks[0].bytes, PAGES << VMM_PAGE_SHIFT);
        assert_ptr_equal(description.blocks[0].map, unmapped ? NULL : memory_guest_block(guest, 0));
        vmm_close(guest);
    }
}

/* Marks come once tracking is on, join to ranges over word borders, and stay until a scan clears them. */
static void test_marks(void **state)
{
    (void)state;
    struct vmm *guest = guest_new(false);
    uint64_t value = 1;
    memory_guest_write(guest, 0, 0, &value, sizeof value);
    assert_false(memory_guest_running(guest));
    assert_int_equal(guest->ops->track(guest), 0);
    assert_true(memory_guest_running(guest));
    expect_ranges(guest, false, NULL, 0);

    memory_guest_write(guest, 0, 5 * VMM_PAGE_BYTES - 4, &value,
                       sizeof value); /* across a border: pages 4, 5 */
    memory_guest_write(guest, 1, 3 * VMM_PAGE_BYTES - 8, &value, sizeof value);
    memory_guest_mark(guest, 0, 63, 66);
    memory_guest_mark(guest, 0, PAGES - 1, 1);
    static const struct vmm_range wanted[] = {{0, 4, 2}, {0, 63, 66}, {0, PAGES - 1, 1}, {1, 2, 1}};
    expect_ranges(guest, false, wanted, 4);
    expect_ranges(guest, false, wanted, 4);
    assert_int_equal(guest->ops->pause(guest), 0);
    assert_false(memory_guest_running(guest));
    expect_ranges(guest, true, wanted, 4);
    expect_ranges(guest, true, NULL, 0);
    assert_int_equal(guest->ops->resume(guest), 0);
    assert_true(memory_guest_running(guest));
    memory_guest_mark(guest, 1, 0, 3);
    expect_ranges(guest, false, &(struct vmm_range){1, 0, 3}, 1);
    vmm_close(guest);
}

struct writer {
    struct vmm *guest;
    atomic_ullong writes;
    atomic_bool stop;
};

static void *write_on(void *argument)
{
    struct writer *writer = argument;
    while (!atomic_load(&writer->stop)) {
        uint64_t value = atomic_load(&writer->writes) + 1;
        memory_guest_write(writer->guest, 0, value % PAGES * VMM_PAGE_BYTES, &value, sizeof value);
        atomic_store(&writer->writes, value);
    }
    return NULL;
}

/* While it is paused the guest stands still, and each pause's marks are exactly the pages that changed. */
static void test_pause_stops_writers(void **state)
{
    (void)state;
    struct writer writer = {.guest = guest_new(false)};
    struct vmm *guest = writer.guest;
    static uint8_t copy[PAGES << VMM_PAGE_SHIFT], now[PAGES << VMM_PAGE_SHIFT];
    pthread_t thread;
    assert_int_equal(guest->ops->track(guest), 0);
    assert_int_equal(pthread_create(&thread, NULL, write_on, &writer), 0);
    for (unsigned i = 0; i < 50; i++) {
        unsigned long long seen = atomic_load(&writer.writes);
        while (atomic_load(&writer.writes) == seen)
            ;
        assert_int_equal(guest->ops->pause(guest), 0);
        struct vmm_ranges ranges = {0};
        assert_int_equal(guest->ops->scan(guest, true, &ranges), 0);
        struct vmm_range all = {0, 0, PAGES};
        assert_int_equal(guest->ops->read(guest, &all, 1, now), 0);
        nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
        assert_memory_equal(now, memory_guest_block(guest, 0), sizeof now);
        bool marked[PAGES] = {false};
        for (size_t r = 0; r < ranges.count; r++)
            for (uint64_t page = 0; page < ranges.items[r].pages; page++)
                marked[ranges.items[r].first + page] = true;
        for (unsigned page = 0; page < PAGES; page++)
            assert_int_equal(marked[page], memcmp(now + page * VMM_PAGE_BYTES, copy + page * VMM_PAGE_BYTES,
                                                  VMM_PAGE_BYTES) != 0);
        memcpy(copy, now, sizeof copy);
        vmm_ranges_free(&ranges);
        assert_int_equal(guest->ops->resume(guest), 0);
    }
    atomic_store(&writer.stop, true);
    pthread_join(thread, NULL);
    vmm_close(guest);
}

static void test_state(void **state)
{
    (void)state;
    struct vmm *guest = guest_new(false);
    const void *saved;
    size_t bytes;
    uint8_t first[21];
    for (unsigned i = 1; i <= 2; i++) {
        le64 word;
        assert_int_equal(guest->ops->pause(guest), 0);
        assert_int_equal(guest->ops->save_begin(guest), 0);
        assert_int_equal(guest->ops->save_end(guest, &saved, &bytes), 0);
        assert_int_equal(guest->ops->resume(guest), 0);
        assert_int_equal(bytes, 21);
        memcpy(&word, (const uint8_t *)saved + 8, sizeof word);
        assert_int_equal(from_le64(word), ((uint64_t)i << 32) + 1);
        if (i == 1)
            memcpy(first, saved, sizeof first);
    }
    assert_memory_not_equal(first, saved, sizeof first);

    struct vmm *target = guest_new(true);
    assert_int_equal(target->ops->run(target), -ENODATA);
    assert_null(memory_guest_loaded(target, &bytes));
    assert_int_equal(target->ops->load(target, saved, 21), 0);
    assert_memory_equal(memory_guest_loaded(target, &bytes), saved, 21);
    assert_int_equal(bytes, 21);
    assert_false(memory_guest_running(target));
    assert_int_equal(target->ops->run(target), 0);
    assert_true(memory_guest_running(target));
    assert_int_equal(target->ops->announce(target), 0);
    vmm_close(target);
    vmm_close(guest);
}

/* write() and read() take scattered ranges in their order; zero() takes the memory away. */
static void test_target(void **state)
{
    (void)state;
    struct vmm *guest = guest_new(true);
    static const struct vmm_range ranges[] = {{1, 2, 1}, {0, 10, 3}, {0, 0, 1}};
    uint8_t from[5 * VMM_PAGE_BYTES], to[5 * VMM_PAGE_BYTES];
    for (unsigned i = 0; i < sizeof from; i++)
        from[i] = (uint8_t)(i / 7 + 1);
    assert_int_equal(guest->ops->write(guest, ranges, 3, from), 0);
    assert_memory_equal((uint8_t *)memory_guest_block(guest, 0) + 10 * VMM_PAGE_BYTES, from + VMM_PAGE_BYTES,
                        3 * VMM_PAGE_BYTES);
    assert_int_equal(guest->ops->read(guest, ranges, 3, to), 0);
    assert_memory_equal(from, to, sizeof from);

    assert_int_equal(guest->ops->zero(guest, &(struct vmm_range){0, 10, 2}), 0);
    unsigned char resident[3];
    assert_int_equal(
        mincore((uint8_t *)memory_guest_block(guest, 0) + 10 * VMM_PAGE_BYTES, 3 * VMM_PAGE_BYTES, resident),
        0);
    assert_int_equal(resident[0] & 1, 0);
    assert_int_equal(resident[1] & 1, 0);
    assert_int_equal(resident[2] & 1, 1);
    memset(from + VMM_PAGE_BYTES, 0, 2 * VMM_PAGE_BYTES);
    assert_int_equal(guest->ops->read(guest, ranges, 3, to), 0);
    assert_memory_equal(from, to, sizeof from);
    assert_int_equal(guest->ops->event_fd(guest), -1);
    assert_int_equal(guest->ops->event(guest), VMM_EVENT_NONE);
    vmm_close(guest);
    vmm_close(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_describe),
        cmocka_unit_test(test_marks),
        cmocka_unit_test(test_pause_stops_writers),
        cmocka_unit_test(test_state),
        cmocka_unit_test(test_target),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
