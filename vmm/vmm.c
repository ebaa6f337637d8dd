/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm.h"

#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int vmm_ranges_add(struct vmm_ranges *ranges, uint32_t block, uint64_t first, uint64_t pages)
{
    assert(pages > 0);
    if (ranges->count) {
        struct vmm_range *last = &ranges->items[ranges->count - 1];
        if (last->block == block && last->first + last->pages == first) {
            last->pages += pages;
            return 0;
        }
    }
    if (ranges->count == ranges->room) {
        size_t room = ranges->room ? ranges->room * 2 : 64;
        struct vmm_range *items = reallocarray(ranges->items, room, sizeof *items);
        if (!items)
            return error_set(-ENOMEM, "list of %zu page ranges: out of memory", room);
        ranges->items = items;
        ranges->room = room;
    }
    ranges->items[ranges->count++] = (struct vmm_range){.block = block, .first = first, .pages = pages};
    return 0;
}

void vmm_ranges_free(struct vmm_ranges *ranges)
{
    if (!ranges)
        return;
    free(ranges->items);
    *ranges = (struct vmm_ranges){0};
}

uint64_t vmm_ranges_pages(const struct vmm_ranges *ranges)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < ranges->count; i++)
        pages += ranges->items[i].pages;
    return pages;
}

/* How much of a line an error text shows, and how much of what two long lines share it shows before the
 * place where they part. */
#define SHOWN        150
#define SHOWN_BEFORE 60

static int refuse_lines(const char *primary, size_t primary_length, const char *standby,
                        size_t standby_length)
{
    if (primary_length == 0 || standby_length == 0)
        return error_set(
            -EXDEV, "machines differ: only the %s has '%.*s'", primary_length ? "primary" : "standby",
            (int)(primary_length + standby_length < SHOWN ? primary_length + standby_length : SHOWN),
            primary_length ? primary : standby);
    size_t common = 0;
    while (common < primary_length && common < standby_length && primary[common] == standby[common])
        common++;
    size_t skip = common > SHOWN_BEFORE ? common - SHOWN_BEFORE : 0;
    primary_length -= skip;
    standby_length -= skip;
    return error_set(-EXDEV, "machines differ: the primary has '%s%.*s', the standby '%s%.*s'",
                     skip ? "..." : "", (int)(primary_length < SHOWN ? primary_length : SHOWN),
                     primary + skip, skip ? "..." : "",
                     (int)(standby_length < SHOWN ? standby_length : SHOWN), standby + skip);
}

static int match_texts(const char *primary, const char *standby)
{
    while (*primary || *standby) {
        size_t primary_length = strcspn(primary, "\n"), standby_length = strcspn(standby, "\n");
        if (primary_length != standby_length || memcmp(primary, standby, primary_length))
            return refuse_lines(primary, primary_length, standby, standby_length);
        primary += primary_length + (primary[primary_length] == '\n');
        standby += standby_length + (standby[standby_length] == '\n');
    }
    return 0;
}

static const struct vmm_block *find_block(const struct vmm_description *description, const char *name)
{
    for (size_t i = 0; i < description->block_count; i++)
        if (!strcmp(description->blocks[i].name, name))
            return &description->blocks[i];
    return NULL;
}

int vmm_description_match(const struct vmm_description *source, const struct vmm_description *target,
                          uint32_t ret_map[VMM_BLOCKS_MAX])
{
    if (source->block_count > VMM_BLOCKS_MAX || target->block_count > VMM_BLOCKS_MAX)
        return error_set(-EXDEV, "machines have %zu (primary) and %zu (standby) RAM blocks, at most %d work",
                         source->block_count, target->block_count, VMM_BLOCKS_MAX);
    /* The text first: a difference there explains most differences of blocks. */
    int r = match_texts(source->text, target->text);
    if (r < 0)
        return r;

    uint32_t map[VMM_BLOCKS_MAX];
    uint64_t taken = 0; /* a bit for each target block: two source blocks must not land in one */
    static_assert(VMM_BLOCKS_MAX <= 64, "one bit a block");
    for (size_t i = 0; i < source->block_count; i++) {
        const struct vmm_block *block = &source->blocks[i], *twin = find_block(target, block->name);
        if (!twin)
            return error_set(-EXDEV,
                             "machines differ: RAM block '%.100s' of %" PRIu64
                             " bytes on the primary, no such block on the standby",
                             block->name, block->bytes);
        if (twin->bytes != block->bytes)
            return error_set(-EXDEV,
                             "machines differ: RAM block '%.100s' has %" PRIu64
                             " bytes on the primary, %" PRIu64 " on the standby",
                             block->name, block->bytes, twin->bytes);
        map[i] = (uint32_t)(twin - target->blocks);
        if (taken & 1ull << map[i])
            return error_set(-EXDEV, "machines differ: the primary has two RAM blocks '%.100s'", block->name);
        taken |= 1ull << map[i];
    }
    for (size_t i = 0; i < target->block_count; i++)
        if (!(taken & 1ull << i))
            return error_set(-EXDEV,
                             "machines differ: RAM block '%.100s' of %" PRIu64
                             " bytes on the standby, no such block on the primary",
                             target->blocks[i].name, target->blocks[i].bytes);
    memcpy(ret_map, map, source->block_count * sizeof map[0]);
    return 0;
}
