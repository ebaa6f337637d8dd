/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/unit/unit.h"
#include "vmm/keep.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void ranges(void **state)
{
    (void)state;
    struct vmm_ranges ranges cleanup(vmm_ranges_free) = {0};
    assert_int_equal(vmm_ranges_pages(&ranges), 0);
    assert_int_equal(vmm_ranges_add(&ranges, 0, 10, 5), 0);
    assert_int_equal(vmm_ranges_add(&ranges, 0, 15, 1), 0); /* continues */
    assert_int_equal(ranges.count, 1);
    assert_int_equal(ranges.items[0].pages, 6);
    assert_int_equal(vmm_ranges_add(&ranges, 1, 16, 1), 0); /* another block */
    assert_int_equal(vmm_ranges_add(&ranges, 1, 18, 1), 0); /* a gap */
    assert_int_equal(vmm_ranges_add(&ranges, 1, 17, 1), 0); /* backwards */
    assert_int_equal(ranges.count, 4);
    assert_int_equal(vmm_ranges_pages(&ranges), 9);
    for (uint64_t i = 0; i < 10000; i++)
        assert_int_equal(vmm_ranges_add(&ranges, 2, i * 2, 1), 0);
    assert_int_equal(ranges.count, 10004);
    assert_int_equal(vmm_ranges_pages(&ranges), 10009);
    assert_int_equal(ranges.items[10003].first, 19998);
    vmm_ranges_free(&ranges);
    assert_int_equal(ranges.count, 0);
    assert_int_equal(vmm_ranges_add(&ranges, 0, 0, 1), 0); /* usable again */
    vmm_ranges_free(NULL);
}

static struct vmm_block blocks_a[] = {
    {"pc.ram", 1 << 20, NULL}, {"vga.vram", 1 << 16, NULL}, {"bios", 4096, NULL}};
static struct vmm_block blocks_b[] = {
    {"bios", 4096, NULL}, {"pc.ram", 1 << 20, NULL}, {"vga.vram", 1 << 16, NULL}};
#define TEXT "driver qemu\nversion 7.2.9\nmachine pc-q35-7.2\n"

static const struct vmm_description here = {blocks_a, 3, TEXT};

static int match(const struct vmm_block *blocks, size_t count, const char *text, uint32_t *ret_map)
{
    struct vmm_description target = {blocks, count, text};
    return vmm_description_match(&here, &target, ret_map);
}

static void all_of_the_difference(void **state)
{
    (void)state;
    const struct vmm_description source = {blocks_a, 3, "smp 2\ncpu a\ndevice x at 1\ndevice z\n"},
                                 target = {blocks_a, 3, "smp 2\ncpu b\ndevice \x1bx at 2\ndevice z"};
    char *diff = vmm_description_diff(&source, &target);
    assert_string_equal(diff, "-cpu a\n+cpu b\n+device ?x at 2\n-device x at 1\n");
    free(diff);
    diff = vmm_description_diff(&here, &here);
    assert_string_equal(diff, "");
    free(diff);
    char *many = calloc(1, 20001);
    for (size_t i = 0; i < 10000; i++)
        memcpy(many + 2 * i, "x\n", 2);
    diff = vmm_description_diff(&(struct vmm_description){blocks_a, 3, many}, &here);
    size_t lines = 0;
    for (const char *at = diff; *at; at++)
        lines += *at == '\n';
    assert_int_equal(lines, VMM_DIFF_LINES);
    free(diff);
    free(many);
}

static void alike(void **state)
{
    (void)state;
    uint32_t map[VMM_BLOCKS_MAX];
    memset(map, 0xff, sizeof map);
    assert_int_equal(match(blocks_b, 3, TEXT, map), 0);
    assert_int_equal(map[0], 1);
    assert_int_equal(map[1], 2);
    assert_int_equal(map[2], 0);
    assert_int_equal(map[3], UINT32_MAX);
    /* A last line without its newline is the same line. */
    assert_int_equal(match(blocks_a, 3, "driver qemu\nversion 7.2.9\nmachine pc-q35-7.2", map), 0);
    assert_int_equal(map[0], 0);
}

static void different_texts(void **state)
{
    (void)state;
    uint32_t map[VMM_BLOCKS_MAX] = {77};
    assert_int_equal(match(blocks_b, 3, "driver qemu\nversion 8.0.0\nmachine pc-i440fx\n", map), -EXDEV);
    assert_text_has("primary has 'version 7.2.9'", "standby 'version 8.0.0'");
    assert_null(strstr(error_text(), "machine pc"));
    assert_int_equal(match(blocks_b, 3, "driver qemu\nversion 7.2.9\n", map), -EXDEV);
    assert_text_has("only the primary has 'machine pc-q35-7.2'");
    assert_int_equal(match(blocks_b, 3, TEXT "device e1000\n", map), -EXDEV);
    assert_text_has("only the standby has 'device e1000'");
    assert_int_equal(match(blocks_b, 3, "", map), -EXDEV);
    assert_text_has("only the primary has 'driver qemu'");
    /* A prefix is another value. */
    assert_int_equal(match(blocks_b, 3, "driver qemu\nversion 7.2\nmachine pc-q35-7.2\n", map), -EXDEV);
    assert_text_has("'version 7.2.9'", "'version 7.2'");
    assert_int_equal(map[0], 77);
}

/* Lines that share a long beginning: the text shows the place where they part. */
static void long_lines(void **state)
{
    (void)state;
    char a[3000], b[3000];
    memset(a, 'd', sizeof a);
    memset(b, 'd', sizeof b);
    a[sizeof a - 1] = b[sizeof b - 1] = 0;
    memcpy(a + 2000, "alpha", 5);
    memcpy(b + 2000, "beta!", 5);
    struct vmm_description source = {blocks_a, 3, a}, target = {blocks_a, 3, b};
    uint32_t map[VMM_BLOCKS_MAX];
    assert_int_equal(vmm_description_match(&source, &target, map), -EXDEV);
    assert_text_has("ddalpha", "ddbeta!", "'...d");
}

static void different_blocks(void **state)
{
    (void)state;
    uint32_t map[VMM_BLOCKS_MAX] = {77};
    struct vmm_block blocks[4];
    memcpy(blocks, blocks_b, sizeof blocks_b);
    blocks[1].bytes = 1 << 21;
    assert_int_equal(match(blocks, 3, TEXT, map), -EXDEV);
    assert_text_has("'pc.ram'", "1048576 bytes on the primary", "2097152 on the standby");

    memcpy(blocks, blocks_b, sizeof blocks_b);
    assert_int_equal(match(blocks, 2, TEXT, map), -EXDEV);
    assert_text_has("'vga.vram'", "65536 bytes on the primary", "no such block on the standby");

    strcpy(blocks[2].name, "qxl.vram");
    assert_int_equal(match(blocks, 3, TEXT, map), -EXDEV);
    assert_text_has("'vga.vram'");

    memcpy(blocks, blocks_b, sizeof blocks_b);
    blocks[3] = (struct vmm_block){"nvdimm", 8192, NULL};
    assert_int_equal(match(blocks, 4, TEXT, map), -EXDEV);
    assert_text_has("'nvdimm'", "8192 bytes on the standby", "no such block on the primary");

    /* Two source blocks of one name must not both land in one target block. */
    struct vmm_block twice[] = {{"bios", 4096, NULL}, {"bios", 4096, NULL}};
    struct vmm_description source = {twice, 2, ""}, target = {blocks_b, 1, ""};
    assert_int_equal(vmm_description_match(&source, &target, map), -EXDEV);
    assert_text_has("two RAM blocks 'bios'");
    assert_int_equal(map[0], 77);
}

static void block_counts(void **state)
{
    (void)state;
    struct vmm_block *many cleanup_free = calloc(VMM_BLOCKS_MAX + 1, sizeof *many);
    for (unsigned i = 0; i <= VMM_BLOCKS_MAX; i++) {
        snprintf(many[i].name, sizeof many[i].name, "block%u", i);
        many[i].bytes = (i + 1) * 4096;
    }
    uint32_t map[VMM_BLOCKS_MAX];
    struct vmm_description source = {many, VMM_BLOCKS_MAX, ""}, target = source;
    assert_int_equal(vmm_description_match(&source, &target, map), 0);
    for (uint32_t i = 0; i < VMM_BLOCKS_MAX; i++)
        assert_int_equal(map[i], i);
    source.block_count++;
    assert_int_equal(vmm_description_match(&source, &target, map), -EXDEV);
    assert_text_has("65", "64");
    assert_int_equal(vmm_description_match(&target, &source, map), -EXDEV);
}

/* --- a copy of a guest's memory --- */

static int read_guest(void *ctx, const struct vmm_range *range, void *to)
{
    struct vmm *guest = ctx;
    return guest->ops->read(guest, range, 1, to);
}

static struct vmm *guest_of(const char *second, uint64_t second_pages)
{
    struct vmm *guest;
    struct memory_options options = {.blocks = {{"ram", 200 * 4096}, {second, second_pages * 4096}},
                                     .block_count = 2};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    return guest;
}

static unsigned writes; /* pages */
static const struct vmm_ops *memory_ops;

static int counted_write(struct vmm *vmm, const struct vmm_range *ranges, size_t count, const void *from)
{
    for (size_t i = 0; i < count; i++)
        writes += (unsigned)ranges[i].pages;
    return memory_ops->write(vmm, ranges, count, from);
}

static void memory_is_kept(void **state)
{
    (void)state;
    struct vmm *old = guest_of("rom", 3);
    uint8_t *ram = memory_guest_block(old, 0);
    static const unsigned pages[] = {0, 1, 63, 64, 65, 199};
    for (unsigned i = 0; i < array_length(pages); i++)
        ram[pages[i] * 4096 + i] = (uint8_t)(i + 1);
    memset(memory_guest_block(old, 1), 7, 4096);
    struct vmm_description description;
    old->ops->describe(old, &description);
    struct vmm_keep *keep, *second;
    assert_int_equal(vmm_keep_new(&keep, description.blocks, description.block_count, read_guest, old), 0);
    assert_int_equal(vmm_keep_new(&second, description.blocks, description.block_count, read_guest, old), 0);

    struct vmm *fresh = guest_of("rom", 3);
    memory_ops = fresh->ops;
    struct vmm_ops counting = *fresh->ops;
    counting.write = counted_write;
    fresh->ops = &counting;
    uint64_t bytes;
    assert_int_equal(vmm_keep_fill(keep, fresh, &bytes), 0);
    assert_int_equal(bytes, 7 * 4096);
    assert_int_equal(writes, 7); /* zeros are not written */
    for (unsigned i = 0; i < 2; i++)
        assert_memory_equal(memory_guest_block(fresh, i), memory_guest_block(old, i),
                            description.blocks[i].bytes);
    vmm_close(fresh);

    /* A block of another size is another one. */
    fresh = guest_of("rom", 4);
    assert_int_equal(vmm_keep_fill(second, fresh, &bytes), 0);
    assert_int_equal(bytes, 6 * 4096);
    vmm_close(fresh);
    vmm_keep_free(keep);
    vmm_keep_free(second);
    vmm_close(old);
}

static int fail_to_read(void *ctx, const struct vmm_range *range, void *to)
{
    (void)ctx;
    (void)to;
    return range->first ? error_set(-EIO, "it is gone") : 0;
}

static void memory_that_cannot_be_kept(void **state)
{
    (void)state;
    const struct vmm_block blocks[] = {{"pc.ram", 1 << 20, NULL}};
    struct vmm_keep *keep = NULL;
    assert_int_equal(vmm_keep_new(&keep, blocks, 1, fail_to_read, NULL), -EIO);
    assert_text_has("pc.ram", "it is gone");
    /* No host has a sixteenth of this to spare. */
    const struct vmm_block huge[] = {{"pc.ram", UINT64_C(1) << 44, NULL}};
    assert_int_equal(vmm_keep_new(&keep, huge, 1, fail_to_read, NULL), -ENOSPC);
    assert_text_has("keep block pc.ram");
    assert_null(keep);
    vmm_keep_free(NULL);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(ranges),
        cmocka_unit_test(all_of_the_difference),
        cmocka_unit_test(alike),
        cmocka_unit_test(different_texts),
        cmocka_unit_test(long_lines),
        cmocka_unit_test(different_blocks),
        cmocka_unit_test(block_counts),
        cmocka_unit_test(memory_is_kept),
        cmocka_unit_test(memory_that_cannot_be_kept),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
