/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/keep.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define CHUNK_PAGES 64u            /* one word of `there` */
#define LOOK_CHUNKS 256u           /* how much memory is left is looked at each 64 MiB */
#define SPARE_BYTES (256ull << 20) /* and what is left to the host at least */

struct kept_block {
    struct vmm_block block; /* `map` is the copy */
    uint64_t *there;        /* for each chunk, one bit for each page that was kept: it is not zero */
};

struct vmm_keep {
    size_t count;
    struct kept_block blocks[VMM_BLOCKS_MAX];
};

static uint64_t chunks_of(const struct vmm_block *block)
{
    return ((block->bytes >> VMM_PAGE_SHIFT) + CHUNK_PAGES - 1) / CHUNK_PAGES;
}

static int available_bytes(uint64_t *ret_bytes)
{
    FILE *file cleanup_fclose = fopen("/proc/meminfo", "re");
    char line[128];
    uint64_t kib;
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "MemAvailable: %" SCNu64 " kB", &kib) == 1) {
            *ret_bytes = kib << 10;
            return 0;
        }
    return error_set(-EIO, "/proc/meminfo: no MemAvailable");
}

static int check_available(uint64_t all_bytes)
{
    uint64_t spare = all_bytes / 16 > SPARE_BYTES ? all_bytes / 16 : SPARE_BYTES, available = 0;
    int r = available_bytes(&available);
    if (r < 0 || available >= spare)
        return r;
    return error_set(-ENOSPC, "only %" PRIu64 " MiB of memory are available", available >> 20);
}

/* The pages of a chunk that are not zero. */
static uint64_t find_content(const uint8_t *bytes, uint64_t pages)
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    uint64_t there = 0;
    for (uint64_t i = 0; i < pages; i++)
        there |= (uint64_t)(memcmp(bytes + (i << VMM_PAGE_SHIFT), zeros, sizeof zeros) != 0) << i;
    return there;
}

static struct vmm_range chunk_range(const struct vmm_block *block, uint32_t index, uint64_t chunk)
{
    uint64_t first = chunk * CHUNK_PAGES, left = (block->bytes >> VMM_PAGE_SHIFT) - first;
    return (struct vmm_range){index, first, left < CHUNK_PAGES ? left : CHUNK_PAGES};
}

static int keep_block(struct vmm_keep *keep, uint32_t index, uint64_t all_bytes, uint8_t *chunk_bytes,
                      vmm_keep_read read, void *ctx)
{
    struct kept_block *kept = &keep->blocks[index];
    struct vmm_block *block = &kept->block;
    uint64_t chunks = chunks_of(block);
    kept->there = calloc(chunks, sizeof *kept->there);
    void *map =
        mmap(NULL, block->bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    block->map = map == MAP_FAILED ? NULL : map;
    if (!kept->there || !block->map)
        return error_set(-ENOSPC, "no room for %" PRIu64 " bytes", block->bytes);
    for (uint64_t chunk = 0; chunk < chunks; chunk++) {
        struct vmm_range range = chunk_range(block, index, chunk);
        int r = chunk % LOOK_CHUNKS ? 0 : check_available(all_bytes);
        if (r == 0)
            r = read(ctx, &range, chunk_bytes);
        if (r < 0)
            return r;
        kept->there[chunk] = find_content(chunk_bytes, range.pages);
        for (uint64_t left = kept->there[chunk]; left; left &= left - 1) {
            size_t at = (size_t)__builtin_ctzll(left) << VMM_PAGE_SHIFT;
            memcpy((uint8_t *)block->map + (range.first << VMM_PAGE_SHIFT) + at, chunk_bytes + at,
                   VMM_PAGE_BYTES);
        }
    }
    return 0;
}

int vmm_keep_new(struct vmm_keep **ret_keep, const struct vmm_block *blocks, size_t count, vmm_keep_read read,
                 void *ctx)
{
    struct vmm_keep *keep = calloc(1, sizeof *keep);
    uint8_t *chunk cleanup_free = malloc((size_t)CHUNK_PAGES << VMM_PAGE_SHIFT);
    int r = keep && chunk ? fault_point(FAULT_KEEP_MEMORY) : error_set(-ENOSPC, "no memory");
    uint64_t all_bytes = 0;
    for (size_t i = 0; i < count; i++)
        all_bytes += blocks[i].bytes;
    for (size_t i = 0; r == 0 && i < count; i++) {
        keep->blocks[i].block = blocks[i];
        keep->blocks[i].block.map = NULL;
        keep->count++;
        r = keep_block(keep, (uint32_t)i, all_bytes, chunk, read, ctx);
        if (r < 0)
            error_add(r, "keep block %s of %" PRIu64 " MiB", blocks[i].name, blocks[i].bytes >> 20);
    }
    if (r < 0) {
        vmm_keep_free(keep);
        return r;
    }
    *ret_keep = keep;
    return 0;
}

static int fill_chunk(const struct kept_block *kept, struct vmm *target, uint32_t index, uint64_t chunk,
                      uint64_t *ret_bytes)
{
    struct vmm_range range = chunk_range(&kept->block, index, chunk);
    uint8_t *from = (uint8_t *)kept->block.map + (range.first << VMM_PAGE_SHIFT);
    uint64_t there = kept->there[chunk];
    int r = 0;
    for (uint64_t i = 0; r == 0 && i < range.pages; i++) {
        if (!(there >> i & 1))
            continue;
        struct vmm_range run = {index, range.first + i, 1};
        while (i + run.pages < range.pages && there >> (i + run.pages) & 1)
            run.pages++;
        r = target->ops->write(target, &run, 1, from + (i << VMM_PAGE_SHIFT));
        *ret_bytes += run.pages << VMM_PAGE_SHIFT;
        i += run.pages;
    }
    madvise(from, range.pages << VMM_PAGE_SHIFT, MADV_DONTNEED);
    return r;
}

int vmm_keep_fill(struct vmm_keep *keep, struct vmm *target, uint64_t *ret_bytes)
{
    struct vmm_description description;
    uint64_t bytes = 0;
    int r = fault_point(FAULT_KEEP_FILL);
    if (r < 0)
        return r;
    target->ops->describe(target, &description);
    for (size_t i = 0; i < keep->count; i++) {
        const struct kept_block *kept = &keep->blocks[i];
        for (size_t k = 0; k < description.block_count; k++) {
            if (strcmp(description.blocks[k].name, kept->block.name) != 0 ||
                description.blocks[k].bytes != kept->block.bytes)
                continue;
            for (uint64_t chunk = 0; chunk < chunks_of(&kept->block); chunk++) {
                r = fill_chunk(kept, target, (uint32_t)k, chunk, &bytes);
                if (r < 0)
                    return error_add(r, "fill block %s", kept->block.name);
            }
        }
    }
    *ret_bytes = bytes;
    return 0;
}

void vmm_keep_free(struct vmm_keep *keep)
{
    if (!keep)
        return;
    for (size_t i = 0; i < keep->count; i++) {
        if (keep->blocks[i].block.map)
            munmap(keep->blocks[i].block.map, keep->blocks[i].block.bytes);
        free(keep->blocks[i].there);
    }
    free(keep);
}
