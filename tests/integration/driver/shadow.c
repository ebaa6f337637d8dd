/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/integration/driver/shadow.h"

#include "base/error.h"
#include "tests/unit/unit.h"

#include <stdlib.h>
#include <sys/mman.h>

#define CHUNK_PAGES 1024

static uint8_t chunk[CHUNK_PAGES * VMM_PAGE_BYTES];

static void must(int code, const char *what)
{
    if (code < 0)
        fail_msg("%s: %s", what, error_text());
}

/* Zeros over zeros are not written, so that the shadow of a large guest that hardly uses its memory takes
 * none either. */
static void copy(struct shadow *shadow, const struct vmm_range *range)
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    for (uint64_t at = 0; at < range->pages; at += CHUNK_PAGES) {
        uint64_t pages = range->pages - at < CHUNK_PAGES ? range->pages - at : CHUNK_PAGES;
        struct vmm_range part = {range->block, range->first + at, pages};
        must(shadow->source->ops->read(shadow->source, &part, 1, chunk), "read");
        for (uint64_t i = 0; i < pages; i++) {
            const uint8_t *from = chunk + i * VMM_PAGE_BYTES;
            uint8_t *to = shadow->blocks[range->block] + (part.first + i) * VMM_PAGE_BYTES;
            if (memcmp(from, zeros, VMM_PAGE_BYTES) != 0 || memcmp(to, zeros, VMM_PAGE_BYTES) != 0)
                memcpy(to, from, VMM_PAGE_BYTES);
        }
    }
}

static void compare_all(struct shadow *shadow)
{
    for (uint32_t i = 0; i < shadow->description.block_count; i++) {
        const struct vmm_block *block = &shadow->description.blocks[i];
        uint64_t total = block->bytes / VMM_PAGE_BYTES;
        for (uint64_t first = 0; first < total; first += CHUNK_PAGES) {
            struct vmm_range part = {i, first, total - first < CHUNK_PAGES ? total - first : CHUNK_PAGES};
            must(shadow->source->ops->read(shadow->source, &part, 1, chunk), "read");
            const uint8_t *mine = shadow->blocks[i] + first * VMM_PAGE_BYTES;
            if (memcmp(chunk, mine, part.pages * VMM_PAGE_BYTES) == 0)
                continue;
            for (uint64_t page = 0; page < part.pages; page++)
                if (memcmp(chunk + page * VMM_PAGE_BYTES, mine + page * VMM_PAGE_BYTES, VMM_PAGE_BYTES) != 0)
                    fail_msg("block %s: page %lu was written without a mark", block->name, first + page);
        }
    }
}

void shadow_begin(struct shadow *shadow, struct vmm *source)
{
    memset(shadow, 0, sizeof *shadow);
    shadow->source = source;
    source->ops->describe(source, &shadow->description);
    must(source->ops->track(source), "track");
    struct vmm_ranges marked = {0};
    must(source->ops->pause(source), "pause");
    must(source->ops->scan(source, true, &marked), "scan");
    must(source->ops->resume(source), "resume");
    vmm_ranges_free(&marked);
    for (uint32_t i = 0; i < shadow->description.block_count; i++) {
        uint64_t bytes = shadow->description.blocks[i].bytes;
        void *map =
            mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        assert_ptr_not_equal(map, MAP_FAILED);
        shadow->blocks[i] = map;
        copy(shadow, &(struct vmm_range){i, 0, bytes / VMM_PAGE_BYTES});
    }
}

void shadow_epoch(struct shadow *shadow, bool compare, bool save)
{
    struct vmm *source = shadow->source;
    struct vmm_ranges marked = {0};
    must(source->ops->pause(source), "pause");
    if (save)
        must(source->ops->save_begin(source), "save_begin");
    must(source->ops->scan(source, true, &marked), "scan");
    for (size_t i = 0; i < marked.count; i++)
        copy(shadow, &marked.items[i]);
    if (compare)
        compare_all(shadow);
    if (save) {
        const void *state;
        size_t bytes = 0;
        must(source->ops->save_end(source, &state, &bytes), "save_end");
        assert_true(bytes > 1000);
        /* QEVM, version 3, and the configuration section */
        assert_memory_equal(state, "QEVM\0\0\0\3\7", 9);
    }
    must(source->ops->resume(source), "resume");
    shadow->dirty += vmm_ranges_pages(&marked);
    vmm_ranges_free(&marked);
}

void shadow_peek(struct shadow *shadow)
{
    struct vmm_ranges marked = {0};
    must(shadow->source->ops->scan(shadow->source, false, &marked), "scan");
    vmm_ranges_free(&marked);
}

void shadow_free(struct shadow *shadow)
{
    for (uint32_t i = 0; i < VMM_BLOCKS_MAX; i++)
        if (shadow->blocks[i])
            munmap(shadow->blocks[i], shadow->description.blocks[i].bytes);
    memset(shadow, 0, sizeof *shadow);
}
