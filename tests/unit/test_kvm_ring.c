/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/dirty_ring.h"

#include <string.h>

/* What a dirty ring holds becomes marks. The kernel's side of it is played here. */

#define ENTRIES 8u
#define PAGES   200u
#define HIGH    0x100000000ull

static struct kvm_dirty_gfn entries[ENTRIES];
static struct dirty_ring ring;
static struct guest_memory memory;

static int set_up(void **state)
{
    (void)state;
    static uint8_t low[1], high[1]; /* marks need no content */
    memset(entries, 0, sizeof entries);
    ring = (struct dirty_ring){.entries = entries, .count = ENTRIES};
    memory = (struct guest_memory){0};
    return guest_memory_add(&memory, 0, PAGES * GUEST_MEMORY_PAGE, low) |
           guest_memory_add(&memory, HIGH, PAGES * GUEST_MEMORY_PAGE, high);
}

static int tear_down(void **state)
{
    (void)state;
    guest_memory_free(&memory);
    return 0;
}

static void write_entry(unsigned at, uint32_t slot, uint64_t page)
{
    entries[at] = (struct kvm_dirty_gfn){.flags = KVM_DIRTY_GFN_F_DIRTY, .slot = slot, .offset = page};
}

static unsigned marked(unsigned slot, uint64_t page)
{
    uint64_t marks[4] = {0};
    guest_memory_look_dirty(&memory, slot, marks);
    return marks[page / 64] >> page % 64 & 1;
}

static unsigned count(unsigned slot)
{
    uint64_t marks[4] = {0};
    unsigned bits = 0;
    guest_memory_look_dirty(&memory, slot, marks);
    for (unsigned i = 0; i < 4; i++)
        bits += (unsigned)__builtin_popcountll(marks[i]);
    return bits;
}

static void test_marks(void **state)
{
    (void)state;
    assert_int_equal(dirty_ring_empty(&ring, &memory), 0);
    write_entry(0, 0, 0);
    write_entry(1, 1, PAGES - 1);
    write_entry(3, 0, 50); /* not told yet: 2 is not */
    assert_int_equal(dirty_ring_empty(&ring, &memory), 2);
    assert_int_equal(marked(0, 0) + marked(1, PAGES - 1), 2);
    assert_int_equal(count(0) + count(1), 2);
    assert_int_equal(entries[0].flags, KVM_DIRTY_GFN_F_RESET);
    assert_int_equal(entries[3].flags, KVM_DIRTY_GFN_F_DIRTY);
    write_entry(2, 0, 49);
    assert_int_equal(dirty_ring_empty(&ring, &memory), 2);
    assert_int_equal(count(0), 3);
}

/* Over its end, three times, full each time; what has not been reset is not taken again. */
static void test_goes_round(void **state)
{
    (void)state;
    for (unsigned round = 0; round < 3; round++) {
        for (unsigned i = 0; i < ENTRIES; i++)
            write_entry((i + 5 * round) % ENTRIES, 0, round * ENTRIES + i);
        assert_int_equal(dirty_ring_empty(&ring, &memory), ENTRIES);
        assert_int_equal(dirty_ring_empty(&ring, &memory), 0);
        assert_int_equal(count(0), (round + 1) * ENTRIES);
        ring.next += 5; /* so that the next begins elsewhere */
    }
}

/* Rather all than too little. */
static void test_unknown_page(void **state)
{
    (void)state;
    static const struct {
        uint32_t slot;
        uint64_t page;
    } rows[] = {{2, 0}, {0, PAGES}, {1, 1ull << 63}, {UINT32_MAX, 3}, {1u << 16, 0}};
    for (unsigned i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        uint64_t marks[4];
        write_entry(i, rows[i].slot, rows[i].page);
        assert_int_equal(dirty_ring_empty(&ring, &memory), 1);
        assert_int_equal(count(0) + count(1), 2 * PAGES);
        guest_memory_take_dirty(&memory, 0, marks);
        guest_memory_take_dirty(&memory, 1, marks);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test_setup_teardown(test_marks, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_goes_round, set_up, tear_down),
                                       cmocka_unit_test_setup_teardown(test_unknown_page, set_up, tear_down)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
