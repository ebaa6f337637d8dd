/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/write.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/uio.h>
#include <unistd.h>

#define VECTORS     256         /* ranges handed to one process_vm_writev */
#define CALL_BYTES  (64u << 20) /* and bytes */
#define PUNCH_PAGES 16          /* shorter runs of zeros keep their memory: they are likely written again */
#define LOOK_PAGES  512         /* pages whose residence is asked for at once */
#define ZERO_PAGES  16

/* /proc/PID/pagemap, Documentation/admin-guide/mm/pagemap.rst */
#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)

static const uint8_t zeros[ZERO_PAGES * VMM_PAGE_BYTES];

struct filler {
    pid_t pid;
    int pagemap;
    const struct qemu_blocks *blocks;
    struct vmm_block *maps;
};

int filler_open(struct filler **ret_filler, pid_t pid, const struct qemu_blocks *blocks,
                struct vmm_block *maps)
{
    struct filler *filler = calloc(1, sizeof *filler);
    if (!filler)
        return error_set(-ENOMEM, "guest memory: no memory");
    *filler = (struct filler){.pid = pid, .blocks = blocks, .maps = maps};
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    filler->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    int r = filler->pagemap < 0 ? error_errno(-errno, "%s", path) : 0;
    for (size_t i = 0; i < blocks->count && r == 0; i++)
        if (blocks->items[i].shared)
            r = blocks_map(pid, &blocks->items[i], true, &maps[i].map);
    if (r < 0) {
        filler_close(filler);
        return r;
    }
    *ret_filler = filler;
    return 0;
}

void filler_close(struct filler *filler)
{
    if (!filler)
        return;
    for (size_t i = 0; i < filler->blocks->count; i++) {
        if (filler->maps[i].map)
            munmap(filler->maps[i].map, filler->blocks->items[i].bytes);
        filler->maps[i].map = NULL;
    }
    if (filler->pagemap >= 0)
        close(filler->pagemap);
    free(filler);
}

static int check_range(const struct filler *filler, const struct vmm_range *range)
{
    if (range->block >= filler->blocks->count)
        return error_set(-EINVAL, "block %u of %zu", range->block, filler->blocks->count);
    const struct qemu_block *block = &filler->blocks->items[range->block];
    uint64_t pages = block->bytes >> VMM_PAGE_SHIFT;
    if (range->first >= pages || range->pages > pages - range->first)
        return error_set(-EINVAL, "block %s of %" PRIu64 " pages: page %" PRIu64 " and %" PRIu64 " more",
                         block->name, pages, range->first, range->pages);
    return 0;
}

static uint64_t remote_address(const struct filler *filler, const struct vmm_range *range)
{
    return filler->blocks->items[range->block].host + (range->first << VMM_PAGE_SHIFT);
}

static int write_vectors(const struct filler *filler, const struct iovec *remote, unsigned long count,
                         const uint8_t *from, size_t bytes)
{
    struct iovec local = {.iov_base = (void *)from, .iov_len = bytes};
    ssize_t put = process_vm_writev(filler->pid, &local, 1, remote, count, 0);
    if (put < 0)
        return error_errno(-errno, "write of %zu bytes to the memory of QEMU %d at %p", bytes, filler->pid,
                           remote[0].iov_base);
    if ((size_t)put != bytes)
        return error_set(-EFAULT, "QEMU %d took %zd of %zu bytes from %p on", filler->pid, put, bytes,
                         remote[0].iov_base);
    return 0;
}

/* Vectors that wait to be written with one call. */
struct batch {
    struct iovec remote[VECTORS];
    unsigned long count;
    const uint8_t *from;
    size_t bytes;
};

static int batch_flush(const struct filler *filler, struct batch *batch)
{
    if (batch->count == 0)
        return 0;
    int r = write_vectors(filler, batch->remote, batch->count, batch->from, batch->bytes);
    batch->from += batch->bytes;
    batch->bytes = 0;
    batch->count = 0;
    return r;
}

static int batch_add(const struct filler *filler, struct batch *batch, uint64_t address, uint64_t bytes)
{
    while (bytes > 0) {
        if (batch->count == VECTORS || batch->bytes == CALL_BYTES) {
            int r = batch_flush(filler, batch);
            if (r < 0)
                return r;
        }
        uint64_t part = CALL_BYTES - batch->bytes < bytes ? CALL_BYTES - batch->bytes : bytes;
        batch->remote[batch->count++] =
            (struct iovec){.iov_base = (void *)(uintptr_t)address, .iov_len = part};
        batch->bytes += part;
        address += part;
        bytes -= part;
    }
    return 0;
}

int filler_write(struct filler *filler, const struct vmm_range *ranges, size_t count, const void *from)
{
    const uint8_t *next = from;
    struct batch batch = {.from = from};
    for (size_t i = 0; i < count; i++) {
        int r = check_range(filler, &ranges[i]);
        if (r < 0)
            return r;
        uint64_t bytes = ranges[i].pages << VMM_PAGE_SHIFT;
        uint8_t *map = filler->maps[ranges[i].block].map;
        if (map) {
            /* The batch is one piece of `from`, so a range that does not belong to it ends it. */
            r = batch_flush(filler, &batch);
            memcpy(map + (ranges[i].first << VMM_PAGE_SHIFT), next, bytes);
            batch.from = next + bytes;
        } else {
            r = batch_add(filler, &batch, remote_address(filler, &ranges[i]), bytes);
        }
        if (r < 0)
            return r;
        next += bytes;
    }
    return batch_flush(filler, &batch);
}

/*
 * Shared: not resident is a hole or swapped out, and MADV_REMOVE makes a hole of both. A backing that cannot
 * have holes (some files, part of a huge page) is written.
 */
static int zero_shared(uint8_t *at, uint64_t pages)
{
    if (pages >= PUNCH_PAGES && madvise(at, pages << VMM_PAGE_SHIFT, MADV_REMOVE) == 0)
        return 0;
    uint8_t resident[LOOK_PAGES];
    for (uint64_t done = 0; done < pages;) {
        uint64_t count = pages - done < LOOK_PAGES ? pages - done : LOOK_PAGES;
        uint8_t *part = at + (done << VMM_PAGE_SHIFT);
        if (mincore(part, count << VMM_PAGE_SHIFT, resident) < 0)
            return error_errno(-errno, "mincore");
        for (uint64_t i = 0; i < count; i++) {
            uint8_t *page = part + (i << VMM_PAGE_SHIFT);
            if ((resident[i] & 1) || madvise(page, VMM_PAGE_BYTES, MADV_REMOVE) < 0)
                memset(page, 0, VMM_PAGE_BYTES);
        }
        done += count;
    }
    return 0;
}

static bool remote_is_zero(const struct filler *filler, uint64_t address, uint64_t bytes)
{
    uint8_t copy[ZERO_PAGES * VMM_PAGE_BYTES];
    struct iovec local = {.iov_base = copy, .iov_len = bytes};
    struct iovec remote = {.iov_base = (void *)(uintptr_t)address, .iov_len = bytes};
    return process_vm_readv(filler->pid, &local, 1, &remote, 1, 0) == (ssize_t)bytes &&
           memcmp(copy, zeros, bytes) == 0;
}

/* Anonymous: what was never touched is zero. What is there is looked at, since writing zeros over zeros would
 * split huge pages and give memory to what shows the kernel's one page of zeros. */
static int zero_anonymous(const struct filler *filler, uint64_t address, uint64_t pages)
{
    uint64_t entries[LOOK_PAGES];
    for (uint64_t done = 0; done < pages;) {
        uint64_t count = pages - done < LOOK_PAGES ? pages - done : LOOK_PAGES;
        uint64_t base = address + (done << VMM_PAGE_SHIFT);
        ssize_t wanted = (ssize_t)(count * sizeof *entries);
        if (pread(filler->pagemap, entries, (size_t)wanted,
                  (off_t)((base >> VMM_PAGE_SHIFT) * sizeof *entries)) != wanted)
            return error_set(-EIO, "pagemap of QEMU %d at 0x%" PRIx64, filler->pid, base);
        for (uint64_t i = 0; i < count;) {
            uint64_t run = 0;
            while (i + run < count && run < ZERO_PAGES &&
                   (entries[i + run] & (PAGEMAP_PRESENT | PAGEMAP_SWAPPED)))
                run++;
            uint64_t at = base + (i << VMM_PAGE_SHIFT), bytes = run << VMM_PAGE_SHIFT;
            if (run && !remote_is_zero(filler, at, bytes)) {
                struct iovec remote = {.iov_base = (void *)(uintptr_t)at, .iov_len = bytes};
                int r = write_vectors(filler, &remote, 1, zeros, bytes);
                if (r < 0)
                    return r;
            }
            i += run ? run : 1;
        }
        done += count;
    }
    return 0;
}

int filler_zero(struct filler *filler, const struct vmm_range *range)
{
    int r = check_range(filler, range);
    if (r < 0)
        return r;
    uint8_t *map = filler->maps[range->block].map;
    if (map)
        return zero_shared(map + (range->first << VMM_PAGE_SHIFT), range->pages);
    return zero_anonymous(filler, remote_address(filler, range), range->pages);
}
