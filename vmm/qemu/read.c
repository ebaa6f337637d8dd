/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/read.h"

#include "base/error.h"

#include <errno.h>
#include <inttypes.h>
#include <limits.h>
#include <string.h>
#include <sys/uio.h>

struct batch {
    pid_t pid;
    struct iovec remote[IOV_MAX];
    size_t count, bytes;
    char *to; /* where the batch's first byte goes */
};

/* process_vm_readv() may stop early at an iovec's boundary (and, says its manual page, only there); then the
 * rest is asked for again, so that an error shows itself as an error. It never transfers more than about 2
 * GiB at once either. */
static int flush(struct batch *batch)
{
    size_t done = 0, first = 0;
    while (done < batch->bytes) {
        struct iovec local = {batch->to + done, batch->bytes - done};
        ssize_t got = process_vm_readv(batch->pid, &local, 1, batch->remote + first, batch->count - first, 0);
        if (got < 0)
            return error_errno(-errno, "process %d: process_vm_readv at 0x%" PRIxPTR, batch->pid,
                               (uintptr_t)batch->remote[first].iov_base);
        if (got == 0)
            return error_set(-EIO, "process %d: process_vm_readv gave nothing", batch->pid);
        done += (size_t)got;
        for (size_t left = (size_t)got; left > 0;) {
            struct iovec *vector = &batch->remote[first];
            size_t part = left < vector->iov_len ? left : vector->iov_len;
            vector->iov_base = (char *)vector->iov_base + part;
            vector->iov_len -= part;
            left -= part;
            if (vector->iov_len == 0)
                first++;
        }
    }
    batch->to += batch->bytes;
    batch->count = batch->bytes = 0;
    return 0;
}

int read_ranges(pid_t pid, const struct qemu_blocks *blocks, const struct vmm_block *maps,
                const struct vmm_range *ranges, size_t count, void *to)
{
    struct batch batch; /* 16 KiB: not zeroed */
    batch.pid = pid;
    batch.count = batch.bytes = 0;
    batch.to = to;
    for (size_t i = 0; i < count; i++) {
        const struct vmm_range *range = &ranges[i];
        if (range->block >= blocks->count)
            return error_set(-EINVAL, "read: no block %u", range->block);
        const struct qemu_block *block = &blocks->items[range->block];
        uint64_t pages = block->bytes >> VMM_PAGE_SHIFT;
        if (range->first >= pages || range->pages > pages - range->first)
            return error_set(-EINVAL, "read: block %s has no %" PRIu64 " pages from %" PRIu64, block->name,
                             range->pages, range->first);
        uint64_t offset = range->first << VMM_PAGE_SHIFT, bytes = range->pages << VMM_PAGE_SHIFT;
        const char *map = maps[range->block].map;
        int r = 0;
        if (map) {
            if (batch.count)
                r = flush(&batch);
            if (r < 0)
                return r;
            memcpy(batch.to, map + offset, bytes);
            batch.to += bytes;
            continue;
        }
        batch.remote[batch.count++] = (struct iovec){(void *)(uintptr_t)(block->host + offset), bytes};
        batch.bytes += bytes;
        if (batch.count == IOV_MAX)
            r = flush(&batch);
        if (r < 0)
            return r;
    }
    return batch.count ? flush(&batch) : 0;
}
