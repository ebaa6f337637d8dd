/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/scope.h"
#include "vmm/qemu/blocks.h"
#include "vmm/qemu/locate.h"
#include "vmm/qemu/rom.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define HEADING "              Block Name    PSize              Offset               Used              Total"

static struct qemu_blocks blocks;

static void test_table(void **state)
{
    (void)state;
    assert_int_equal(blocks_parse(HEADING
                                  "\r\n"
                                  "                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 "
                                  "0x0000000010000000\r\n"
                                  "    /rom@etc/acpi/tables    4 KiB  0x0000000011180000 0x0000000000020000 "
                                  "0x0000000000200000\r\n"
                                  "          two words here    2 MiB  0x0000000011180000 0x0000000000020000 "
                                  "0x0000000000200000\r\n",
                                  &blocks),
                     0);
    assert_int_equal(blocks.count, 3);
    assert_string_equal(blocks.items[0].name, "pc.ram");
    assert_int_equal(blocks.items[0].bytes, 0x10000000);
    assert_int_equal(blocks.items[0].page_bytes, 4096);
    assert_int_equal(blocks.items[0].host, 0);
    assert_int_equal(blocks.items[1].bytes, 0x200000);
    assert_string_equal(blocks.items[2].name, "two words here");
    assert_int_equal(blocks.items[2].page_bytes, 2 << 20);
}

static void test_table_with_addresses(void **state)
{
    (void)state;
    assert_int_equal(blocks_parse(HEADING
                                  "                HVA  RO\n"
                                  "pc.ram    4 KiB  0x0 0x10000000 0x10000000 0x00007f5c13e00000  rw\n"
                                  "pc.bios   4 KiB  0x0 0x40000 0x40000 0x00007f5c71000000  ro\n",
                                  &blocks),
                     0);
    assert_int_equal(blocks.count, 2);
    assert_int_equal(blocks.items[0].host, 0x7f5c13e00000);
    assert_int_equal(blocks.items[1].host, 0x7f5c71000000);
}

static void test_bad_tables(void **state)
{
    (void)state;
    static const char *const tables[] = {
        "",
        "no table\n",
        HEADING "\n",
        HEADING "\npc.ram\n",
        HEADING "\npc.ram 4 KiB 0x0 0x1000\n",
        HEADING "\n 4 KiB 0x0 0x1000 0x1000\n",
        HEADING "\npc.ram 0 KiB 0x0 0x1000 0x1000\n",
        HEADING "\npc.ram 4 KiB 0x0 0x1000 0x0\n",
        HEADING "\npc.ram 4 KiB 0x0 0x1000 0x1001\n",
        HEADING "\npc.ram 4 KiB 0x0 0x1000 0x10xx\n",
        HEADING "\npc.ram 4 KiB 0x0 0x1000 0xfffffffffffff000\n",
        HEADING "\na 4 KiB 0x0 0x1000 0x1000\na 4 KiB 0x0 0x1000 0x1000\n",
    };
    for (unsigned i = 0; i < array_length(tables); i++) {
        blocks.count = 77;
        if (blocks_parse(tables[i], &blocks) != -EPROTO)
            fail_msg("table %u is accepted", i);
        assert_int_equal(blocks.count, 77);
    }
}

static void test_table_bounds(void **state)
{
    (void)state;
    char *table cleanup_free = malloc(1 << 16);
    assert_non_null(table);
    size_t used = (size_t)sprintf(table, "%s\n", HEADING);
    for (unsigned i = 0; i <= VMM_BLOCKS_MAX; i++)
        used += (size_t)sprintf(table + used, "block%u 4 KiB 0x0 0x1000 0x1000\n", i);
    assert_int_equal(blocks_parse(table, &blocks), -EOPNOTSUPP);
    *strrchr(table, 'b') = '\0';
    assert_int_equal(blocks_parse(table, &blocks), 0);
    assert_int_equal(blocks.count, VMM_BLOCKS_MAX);

    used = (size_t)sprintf(table, "%s\n", HEADING);
    memset(table + used, 'n', VMM_BLOCK_NAME);
    strcpy(table + used + VMM_BLOCK_NAME, " 4 KiB 0x0 0x1000 0x1000\n");
    assert_int_equal(blocks_parse(table, &blocks), -EPROTO);
}

/* A world for locate_assign(): contents are a letter for each mapping; a ROM's name tells which letters it
 * may be ("/rom@ab" is like 'a' or 'b'). */
static bool resembles(void *ctx, const struct qemu_block *block, const struct locate_mapping *mapping)
{
    const char *letters = ctx;
    return !rom_is(block->name) || strchr(block->name + 5, letters[mapping->start / 0x100000 - 1]);
}

static bool same(void *ctx, const struct locate_mapping *a, const struct locate_mapping *b)
{
    const char *letters = ctx;
    return letters[a->start / 0x100000 - 1] == letters[b->start / 0x100000 - 1];
}

/* `names` and `letters`: blocks and mappings, all of 64 KiB. */
static int assign(const char *const *names, const char *letters)
{
    struct locate_mapping mappings[8] = {0};
    size_t count = strlen(letters);
    for (size_t i = 0; i < count; i++)
        mappings[i] = (struct locate_mapping){.start = (i + 1) * 0x100000, .bytes = 0x10000};
    memset(&blocks, 0, sizeof blocks);
    for (; *names; names++) {
        struct qemu_block *block = &blocks.items[blocks.count++];
        snprintf(block->name, sizeof block->name, "%s", *names);
        block->bytes = 0x10000;
    }
    struct locate_judge judge = {.resembles = resembles, .same = same, .ctx = (void *)letters};
    return locate_assign(&blocks, mappings, count, &judge);
}
#define NAMES(...) ((const char *const[]){__VA_ARGS__, NULL})

static void test_assign(void **state)
{
    (void)state;
    assert_int_equal(assign(NAMES("ram"), "x"), 0);
    assert_int_equal(blocks.items[0].host, 0x100000);
    /* By contents, in either order, and by elimination */
    assert_int_equal(assign(NAMES("/rom@a", "/rom@b"), "ba"), 0);
    assert_int_equal(blocks.items[0].host, 0x200000);
    assert_int_equal(blocks.items[1].host, 0x100000);
    assert_int_equal(assign(NAMES("flash", "/rom@a"), "ax"), 0);
    assert_int_equal(blocks.items[0].host, 0x200000);
    assert_int_equal(blocks.items[1].host, 0x100000);
    /* Equal ROMs: any order, each once */
    assert_int_equal(assign(NAMES("/rom@a", "/rom@a/2", "/rom@b"), "aab"), 0);
    assert_int_not_equal(blocks.items[0].host, blocks.items[1].host);
    assert_int_equal(blocks.items[2].host, 0x300000);
}

static void test_ambiguity_is_refused(void **state)
{
    (void)state;
    assert_int_equal(assign(NAMES("flash0", "flash1"), "xx"), -EOPNOTSUPP); /* equal now, but not for ever */
    assert_text_has("flash", "cannot be told");
    assert_int_equal(assign(NAMES("ram"), "xy"), -EOPNOTSUPP);
    assert_int_equal(assign(NAMES("/rom@ab", "/rom@ba"), "ab"), -EOPNOTSUPP);
    assert_text_has("/rom@");
    assert_int_equal(assign(NAMES("/rom@a", "/rom@a/2"), "aaa"),
                     -EOPNOTSUPP); /* one of them is something else */
    assert_int_equal(assign(NAMES("/rom@a", "ram"), "aa"), -EOPNOTSUPP);
    /* Missing */
    assert_int_equal(assign(NAMES("/rom@a"), "b"), -EOPNOTSUPP);
    assert_text_has("/rom@a", "no mapping of 65536 bytes");
    assert_int_equal(assign(NAMES("one", "two"), "x"), -EOPNOTSUPP);
    assert_text_has("two");
}

static void test_roms(void **state)
{
    (void)state;
    assert_true(rom_is("/rom@etc/table-loader"));
    assert_true(rom_is("0000:00:03.0/virtio-net-pci.rom"));
    assert_false(rom_is("pc.rom"));
    assert_false(rom_is("0000:00:01.0/vga.vram"));

    uint8_t head[ROM_HEAD_BYTES] = {0};
    memcpy(head, "\1\0\0\0etc/acpi/rsdp", 18);
    assert_true(rom_resembles("/rom@etc/table-loader", NULL, head));
    assert_false(rom_resembles("/rom@etc/acpi/rsdp", NULL, head));
    assert_false(rom_resembles("0000:00:03.0/virtio-net-pci.rom", NULL, head));
    memcpy(head, "RSD PTR ", 8);
    assert_true(rom_resembles("/rom@etc/acpi/rsdp", NULL, head));
}

static void test_option_roms(void **state)
{
    (void)state;
    json_t *pci =
        json_loads("[{\"bus\": 0, \"devices\": ["
                   "{\"slot\": 3, \"function\": 0, \"id\": {\"vendor\": 6900, \"device\": 4096}},"
                   "{\"slot\": 4, \"function\": 1, \"id\": {\"vendor\": 32902, \"device\": 4307},"
                   " \"pci_bridge\": {\"devices\": ["
                   "  {\"slot\": 0, \"function\": 0, \"id\": {\"vendor\": 6900, \"device\": 4096}}]}}]}]",
                   0, NULL);
    assert_non_null(pci);
    uint8_t head[ROM_HEAD_BYTES] = {0x55, 0xaa};
    head[0x18] = 0x40;
    memcpy(head + 0x40, "PCIR\xf4\x1a\x00\x10", 8); /* 1af4:1000 */
    assert_true(rom_resembles("0000:00:03.0/x.rom", pci, head));
    assert_false(rom_resembles("0000:00:04.1/x.rom", pci, head));
    assert_true(rom_resembles("0000:00:04.1:00.0/x.rom", pci, head));
    assert_true(rom_resembles("0000:00:07.0/x.rom", pci, head)); /* unknown device: cannot be ruled out */
    assert_true(rom_resembles("0000:00:03.0:00.0/x.rom", pci, head));
    assert_true(rom_resembles("0000:00:04.1:zz/x.rom", pci, head));
    head[0x19] = 0xff; /* points outside */
    assert_true(rom_resembles("0000:00:04.1/x.rom", pci, head));
    head[1] = 0;
    assert_false(rom_resembles("0000:00:03.0/x.rom", pci, head));
    json_decref(pci);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_table),      cmocka_unit_test(test_table_with_addresses),
        cmocka_unit_test(test_bad_tables), cmocka_unit_test(test_table_bounds),
        cmocka_unit_test(test_assign),     cmocka_unit_test(test_ambiguity_is_refused),
        cmocka_unit_test(test_roms),       cmocka_unit_test(test_option_roms),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
