/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "bench/guests/options.h"
#include "bench/guests/workload.h"

#include <lz4.h>
#include <stdio.h>
#include <string.h>

/* What the bare guest, a process and a host agree upon: pages, walks and words of the command line. */

typedef uint64_t page_words[WORKLOAD_PAGE_WORDS];

static const enum workload_unit units[] = {WORKLOAD_PAGE, WORKLOAD_LINE};
static const enum workload_data kinds[] = {WORKLOAD_RANDOM, WORKLOAD_TEXT, WORKLOAD_ZERO};

static void write_up_to(uint64_t *page, enum workload_unit unit, enum workload_data data, uint64_t number,
                        uint64_t iteration)
{
    memset(page, 0, WORKLOAD_PAGE_BYTES);
    for (uint64_t i = 1; i <= iteration; i++)
        workload_write(page, unit, data, number, i);
}

static void pages_are_what_was_written(void **state)
{
    (void)state;
    for (unsigned u = 0; u < 2; u++)
        for (unsigned k = 0; k < 3; k++) {
            page_words page = {0};
            struct workload_fault fault;
            assert_true(workload_check(page, units[u], kinds[k], 5, 0, &fault));
            for (uint64_t i = 1; i <= 300; i++) {
                workload_write(page, units[u], kinds[k], 5, i);
                assert_true(workload_check(page, units[u], kinds[k], 5, i, &fault));
            }
        }
}

static void a_lost_write_is_stale(void **state)
{
    (void)state;
    for (unsigned u = 0; u < 2; u++)
        for (unsigned k = 0; k < 3; k++)
            for (uint64_t i = 1; i <= 200; i++) {
                page_words page;
                struct workload_fault fault = {0};
                write_up_to(page, units[u], kinds[k], 5, i - 1);
                assert_false(workload_check(page, units[u], kinds[k], 5, i, &fault));
                assert_int_equal(fault.wanted, i);
                /* Zeros do not say when they were written; else the page names its iteration. */
                if (kinds[k] != WORKLOAD_ZERO) {
                    assert_true(fault.whole);
                    assert_true(fault.found < i);
                }
            }
}

static void another_page_is_found(void **state)
{
    (void)state;
    for (unsigned u = 0; u < 2; u++) {
        page_words page;
        struct workload_fault fault;
        write_up_to(page, units[u], WORKLOAD_RANDOM, 6, 70);
        assert_false(workload_check(page, units[u], WORKLOAD_RANDOM, 5, 70, &fault));
        assert_false(fault.whole);
    }
}

static void a_torn_page_is_found(void **state)
{
    (void)state;
    for (unsigned k = 0; k < 3; k++)
        for (unsigned cut = 1; cut < WORKLOAD_PAGE_WORDS; cut++) {
            page_words page, older;
            struct workload_fault fault;
            write_up_to(page, WORKLOAD_PAGE, kinds[k], 9, 3);
            write_up_to(older, WORKLOAD_PAGE, kinds[k], 9, 1);
            memcpy(page + cut, older + cut, (WORKLOAD_PAGE_WORDS - cut) * 8);
            assert_false(workload_check(page, WORKLOAD_PAGE, kinds[k], 9, 3, &fault));
            assert_false(fault.whole);
            assert_true(fault.word >= cut);
        }
}

static void any_bit_matters(void **state)
{
    (void)state;
    for (unsigned u = 0; u < 2; u++)
        for (unsigned k = 0; k < 3; k++)
            for (unsigned i = 0; i < 2; i++) {
                page_words page;
                write_up_to(page, units[u], kinds[k], 1, 100 + i);
                for (unsigned bit = 0; bit < WORKLOAD_PAGE_BYTES * 8; bit += 13) {
                    struct workload_fault fault;
                    page[bit / 64] ^= 1ull << bit % 64;
                    assert_false(workload_check(page, units[u], kinds[k], 1, 100 + i, &fault));
                    assert_int_equal(fault.word, bit / 64);
                    page[bit / 64] ^= 1ull << bit % 64;
                }
            }
}

static void a_line_is_64_bytes(void **state)
{
    (void)state;
    page_words before, after;
    write_up_to(before, WORKLOAD_LINE, WORKLOAD_RANDOM, 3, 130);
    memcpy(after, before, sizeof before);
    workload_write(after, WORKLOAD_LINE, WORKLOAD_RANDOM, 3, 131);
    unsigned differ = 0;
    for (unsigned i = 0; i < WORKLOAD_PAGE_WORDS; i++)
        if (before[i] != after[i]) {
            assert_int_equal(i / WORKLOAD_LINE_WORDS, 130 % WORKLOAD_LINES);
            differ++;
        }
    assert_int_equal(differ, WORKLOAD_LINE_WORDS - 1); /* all but its name */
}

static int compressed(enum workload_data data)
{
    page_words page;
    char out[LZ4_COMPRESSBOUND(WORKLOAD_PAGE_BYTES)];
    write_up_to(page, WORKLOAD_PAGE, data, 77, 1);
    return LZ4_compress_default((const char *)page, out, WORKLOAD_PAGE_BYTES, sizeof out);
}

static void data_is_what_it_is_called(void **state)
{
    (void)state;
    page_words page;
    assert_true(compressed(WORKLOAD_RANDOM) >= (int)WORKLOAD_PAGE_BYTES);
    assert_in_range(compressed(WORKLOAD_TEXT), WORKLOAD_PAGE_BYTES / 4, WORKLOAD_PAGE_BYTES / 2);
    write_up_to(page, WORKLOAD_PAGE, WORKLOAD_ZERO, 7, 2);
    for (unsigned i = 0; i < WORKLOAD_PAGE_WORDS; i++)
        assert_int_equal(page[i], 0);
}

static void walks_stay_in_their_slice(void **state)
{
    (void)state;
    for (unsigned order = 0; order < 3; order++) {
        struct workload_walk walk = {.order = (enum workload_order)order, .hot = 8}, again;
        unsigned seen[100] = {0}, hot = 0;
        workload_walk_start(&walk, 40, 100);
        again = walk;
        for (unsigned i = 0; i < 20000; i++) {
            uint64_t number = workload_walk_next(&walk);
            assert_in_range(number, 40, 139);
            assert_int_equal(number, workload_walk_next(&again));
            seen[number - 40]++;
            hot += number < 48;
        }
        for (unsigned i = 0; i < 100; i++)
            assert_int_not_equal(seen[i], 0);
        if (walk.order == WORKLOAD_ORDER_HOT)
            assert_in_range(hot, 17500, 18700);
        if (walk.order == WORKLOAD_ORDER_SEQUENTIAL)
            for (unsigned i = 0; i < 100; i++)
                assert_int_equal(seen[i], 200);
    }
}

static void a_slice_of_one_page(void **state)
{
    (void)state;
    for (unsigned order = 0; order < 3; order++) {
        struct workload_walk walk = {.order = (enum workload_order)order, .hot = 8};
        workload_walk_start(&walk, 7, 1);
        for (unsigned i = 0; i < 10; i++)
            assert_int_equal(workload_walk_next(&walk), 7);
    }
}

static void mixing_heeds_the_order(void **state)
{
    (void)state;
    assert_int_equal(workload_mix(1, 2), workload_mix(1, 2));
    assert_int_not_equal(workload_mix(workload_mix(0, 1), 2), workload_mix(workload_mix(0, 2), 1));
    assert_int_not_equal(workload_mix(0, 0), 0);
}

static bool parse(struct options *options, const char *line)
{
    const char *word;
    size_t length;
    options_default(options);
    return options_parse(options, line, 4, &word, &length);
}

static void words_are_understood(void **state)
{
    (void)state;
    struct options o;
    assert_true(parse(&o, ""));
    assert_true(parse(&o, "  mem=16M rate=max check=0 cpus=4\thot=9 order=hot write=line data=zero steps=70 "
                          "tick=250 irq=0 tsc=2500000 fill=on oracle=on avx=on block=ram0 net=0xd0000000:5 "
                          "disk=0xd0000200:12 disk_rate=max disk_blocks=16 disk_writes=9 "
                          "virtio_mmio.device=512@0xfeb00e00:12\n"));
    assert_int_equal(o.bytes, 16 << 20);
    assert_int_equal(o.rate, OPTIONS_UNLIMITED);
    assert_int_equal(o.check, 0);
    assert_int_equal(o.cpus, 4);
    assert_int_equal(o.hot, 9);
    assert_int_equal(o.order, WORKLOAD_ORDER_HOT);
    assert_int_equal(o.unit, WORKLOAD_LINE);
    assert_int_equal(o.data, WORKLOAD_ZERO);
    assert_int_equal(o.steps, 70);
    assert_int_equal(o.tick_ms, 250);
    assert_int_equal(o.irq_hz, 0);
    assert_int_equal(o.tsc_khz, 2500000);
    assert_true(o.fill && o.oracle && o.avx);
    assert_int_equal(o.net, 0xd0000000);
    assert_int_equal(o.net_irq, 5);
    assert_int_equal(o.disk, 0xd0000200);
    assert_int_equal(o.disk_irq, 12);
    assert_int_equal(o.disk_rate, OPTIONS_UNLIMITED);
    assert_int_equal(o.disk_blocks, 16);
    assert_int_equal(o.disk_writes, 9);
    assert_string_equal(o.block, "ram0");
    assert_true(parse(&o, "mem=4096 mem=1G")); /* the last one counts */
    assert_int_equal(o.bytes, 1 << 30);
    assert_true(parse(&o, "mem=1024G"));
}

static void other_words_are_named(void **state)
{
    (void)state;
    const char *bad[] = {"mem",
                         "mem=",
                         "mem=0",
                         "mem=2048G",
                         "mem=4m",
                         "mem=K",
                         "mem=-1",
                         "rate=fast",
                         "rate=100000001",
                         "cpus=0",
                         "cpus=5",
                         "order=up",
                         "write=byte",
                         "data=",
                         "fill=yes",
                         "steps=0",
                         "irq=10001",
                         "tsc=1",
                         "hot=0",
                         "rat=1",
                         "ratee=1",
                         "=5",
                         "quiet",
                         "tick=18446744073709551617",
                         "net=0xd0000000",
                         "net=0xd0000000:24",
                         "net=d0000000:5",
                         "net=0x100000000:5",
                         "net=0xg:5",
                         "net=0x1:5",
                         "net=0x:5",
                         "net=0xd0000000:",
                         "disk=0xd0000000",
                         "disk_blocks=15",
                         "disk_blocks=4097",
                         "disk_writes=0",
                         "block=",
                         "block=a-name-that-has-more-characters-than-there-is-room-for"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct options options;
        char line[120];
        const char *word = NULL;
        size_t length = 0;
        snprintf(line, sizeof line, "cpus=2 %s rate=5", bad[i]);
        options_default(&options);
        assert_false(options_parse(&options, line, 4, &word, &length));
        assert_ptr_equal(word, line + 7);
        assert_int_equal(length, strlen(bad[i]));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_are_what_was_written),
        cmocka_unit_test(a_lost_write_is_stale),
        cmocka_unit_test(another_page_is_found),
        cmocka_unit_test(a_torn_page_is_found),
        cmocka_unit_test(any_bit_matters),
        cmocka_unit_test(a_line_is_64_bytes),
        cmocka_unit_test(data_is_what_it_is_called),
        cmocka_unit_test(walks_stay_in_their_slice),
        cmocka_unit_test(a_slice_of_one_page),
        cmocka_unit_test(mixing_heeds_the_order),
        cmocka_unit_test(words_are_understood),
        cmocka_unit_test(other_words_are_named),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
