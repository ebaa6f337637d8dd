/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/qemu/blocks.h"
#include "vmm/qemu/locate.h"

#include <string.h>

/*
 * The RAM blocks of a QEMU: the table that it prints, and the decision which mapping is which block.
 * Properties: accepted blocks have distinct names and possible sizes; an assignment that is made gives every
 * block a mapping of its size that could be it, and no mapping to two blocks.
 *
 * Input: a seed for the judge's answers, the number of mappings, a byte for each; then the table's text.
 */
#define MAPPINGS_MAX 32

struct oracle {
    uint64_t seed;
    const struct qemu_blocks *blocks;
};

/* Answers that look random but are the same whenever the same is asked. */
static bool resembles(void *ctx, const struct qemu_block *block, const struct locate_mapping *mapping)
{
    const struct oracle *oracle = ctx;
    uint64_t state = oracle->seed ^ (uint64_t)(block - oracle->blocks->items) << 32 ^ mapping->start;
    return oracle->seed % 2 == 0 || fuzz_random(&state) % 4;
}

static bool same(void *ctx, const struct locate_mapping *a, const struct locate_mapping *b)
{
    const struct oracle *oracle = ctx;
    return oracle->seed % 3 == 0 || a->start % 3 == b->start % 3;
}

static void check_blocks(const struct qemu_blocks *blocks)
{
    fuzz_require(blocks->count >= 1 && blocks->count <= VMM_BLOCKS_MAX);
    for (size_t i = 0; i < blocks->count; i++) {
        const struct qemu_block *block = &blocks->items[i];
        fuzz_require(block->name[0] && memchr(block->name, 0, sizeof block->name));
        fuzz_require(block->bytes && block->bytes % VMM_PAGE_BYTES == 0 && block->page_bytes);
        for (size_t j = 0; j < i; j++)
            fuzz_require(strcmp(block->name, blocks->items[j].name));
    }
}

static void assign(struct qemu_blocks *blocks, struct locate_mapping *mappings, size_t count, uint64_t seed)
{
    struct oracle oracle = {seed, blocks};
    struct locate_judge judge = {resembles, same, &oracle};
    uint64_t known[VMM_BLOCKS_MAX];
    for (size_t i = 0; i < blocks->count; i++)
        known[i] = blocks->items[i].host;
    error_clear();
    int r = locate_assign(blocks, mappings, count, &judge);
    if (r < 0) {
        fuzz_require(strcmp(error_text(), "no error was recorded"));
        return;
    }
    unsigned uses[MAPPINGS_MAX] = {0};
    for (size_t i = 0; i < blocks->count; i++) {
        const struct qemu_block *block = &blocks->items[i];
        if (known[i]) {
            fuzz_require(block->host == known[i]);
            continue;
        }
        size_t m = 0;
        while (m < count && mappings[m].start != block->host)
            m++;
        fuzz_require(m < count && ++uses[m] == 1);
        fuzz_require(mappings[m].taken && mappings[m].bytes == block->bytes &&
                     mappings[m].shared == block->shared);
        fuzz_require(resembles(&oracle, block, &mappings[m]));
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    uint64_t seed = fuzz_take(&input, 1);
    size_t count = (size_t)fuzz_take(&input, 1) % MAPPINGS_MAX;
    uint8_t picks[MAPPINGS_MAX];
    for (size_t i = 0; i < count; i++)
        picks[i] = (uint8_t)fuzz_take(&input, 1);
    char *table cleanup_free = malloc(input.left + 1);
    if (input.left)
        memcpy(table, input.bytes, input.left);
    table[input.left] = 0;

    struct qemu_blocks *blocks cleanup_free = calloc(1, sizeof *blocks);
    error_clear();
    if (blocks_parse(table, blocks) < 0) {
        fuzz_require(blocks->count == 0 && strcmp(error_text(), "no error was recorded"));
        return 0;
    }
    check_blocks(blocks);
    /* Mappings mostly of sizes that blocks have, else nothing would ever fit. */
    struct locate_mapping mappings[MAPPINGS_MAX];
    for (size_t i = 0; i < count; i++)
        mappings[i] = (struct locate_mapping){
            .start = (i + 1) << 40,
            .bytes = blocks->items[picks[i] % blocks->count].bytes + (picks[i] >= 250 ? VMM_PAGE_BYTES : 0),
            .shared = picks[i] % 2,
        };
    assign(blocks, mappings, count, seed);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    static const char heads[][14] = {"\0\5\0\1\2\3\4", "\3\6\0\1\2\3\4\4", "\6\4\0\1\2\3"};
    static const size_t head_bytes[] = {7, 8, 6};
    static const char *const tables[] = {
        "              Block Name    PSize              Offset               Used              Total\n"
        "                  pc.ram    4 KiB  0x0000000000000000 0x0000000010000000 0x0000000010000000\n"
        "                vga.vram    4 KiB  0x0000000010000000 0x0000000001000000 0x0000000001000000\n"
        "    /rom@etc/acpi/tables    4 KiB  0x0000000011040000 0x0000000000020000 0x0000000000200000\n"
        "                 pc.bios    4 KiB  0x0000000011000000 0x0000000000040000 0x0000000000040000\n"
        "0000:00:03.0/e1000.rom    4 KiB  0x0000000011040000 0x0000000000040000 0x0000000000080000\n"
        "0000:00:04.0/e1000.rom    4 KiB  0x00000000110c0000 0x0000000000040000 0x0000000000080000\n",
        "              Block Name    PSize              Offset               Used              Total"
        "                HVA  RO\n"
        "                  pc.ram    2 MiB  0x0000000000000000 0x0000000010000000 0x0000000010000000"
        " 0x00007f0000000000  rw\n"
        "      name with blanks 4 KiB  0x0000000011000000 0x0000000000040000 0x0000000000040000"
        " 0x00007f1100000000  ro\n",
    };
    if (index >= 8)
        return 0;
    memcpy(to, heads[index % 3], head_bytes[index % 3]);
    if (index >= 6) { /* the most blocks; the longest row */
        char *text = (char *)to + head_bytes[index % 3];
        text += sprintf(text, "Block Name\n");
        for (unsigned i = 0; i < (index == 6 ? VMM_BLOCKS_MAX : 1); i++)
            text += sprintf(text, "%0*u 4 KiB 0x0 0x1000 0x1000\n", index == 6 ? 1 : VMM_BLOCK_NAME - 1, i);
        if (index == 7)
            text += sprintf(text - 1, "%*s\n", 599 - (VMM_BLOCK_NAME - 1) - 26, "") - 1;
        return (size_t)(text - (char *)to);
    }
    size_t length = strlen(tables[index / 3]);
    memcpy(to + head_bytes[index % 3], tables[index / 3], length);
    return head_bytes[index % 3] + length;
}
