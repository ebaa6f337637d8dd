/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/track.h"

#include "vmm/qemu/compat.h"
#include "vmm/qemu/inject.h"

#include "base/error.h"
#include "base/scope.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* A fixed name: what an engine that was killed half-way left under it is replaced, not added to. */
#define DEVICE_NAME "understudy-userfaultfd"
#define DEVICE_PATH "/dev/userfaultfd"
#define COMMAND_MS  10000

#define FEATURES (UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED | UFFD_FEATURE_WP_HUGETLBFS_SHMEM)

/* Protecting holds the address space's lock for reading: 64 MiB of 4 KiB pages take about a millisecond. */
#define PIECE_BYTES (UINT64_C(64) << 20)

#define REGIONS 16384

struct tracker {
    int uffd, pagemap;
    const struct qemu_blocks *blocks;
    size_t registered; /* the first so many blocks */
    struct page_region regions[REGIONS];
};

/* The number that /dev/userfaultfd has in QEMU, now that QEMU was handed it. */
static int device_in(pid_t pid)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fd", pid);
    DIR *directory cleanup_closedir = opendir(path);
    if (!directory)
        return error_errno(-errno, "%s", path);
    struct dirent *entry;
    while ((entry = readdir(directory))) {
        char target[64];
        ssize_t length = readlinkat(dirfd(directory), entry->d_name, target, sizeof target - 1);
        if (length < 0)
            continue;
        target[length] = '\0';
        if (strcmp(target, DEVICE_PATH) == 0)
            return atoi(entry->d_name);
    }
    return error_set(-ESRCH, "process %d did not get %s: it is not the QEMU behind the monitor", pid,
                     DEVICE_PATH);
}

static int get_userfaultfd(struct qmp *qmp, pid_t pid, int *ret_fd)
{
    int device cleanup_close = open(DEVICE_PATH, O_RDWR | O_CLOEXEC);
    if (device < 0)
        return error_errno(errno == ENOENT ? -EOPNOTSUPP : -errno, "%s (Linux 6.1)", DEVICE_PATH);
    int r = qmp_call_fd(qmp, COMMAND_MS, NULL, device, "getfd", "{s:s}", "fdname", DEVICE_NAME);
    if (r < 0)
        return r;
    int fd = -1;
    int remote = device_in(pid);
    r = remote < 0 ? remote : inject_userfaultfd(pid, remote, &fd);
    char reason[ERROR_TEXT_MAX];
    snprintf(reason, sizeof reason, "%s", error_text());
    int closed = qmp_call(qmp, COMMAND_MS, NULL, "closefd", "{s:s}", "fdname", DEVICE_NAME);
    if (r < 0)
        return error_set(r, "%s", reason);
    if (closed < 0) {
        close(fd);
        return closed;
    }
    *ret_fd = fd;
    return 0;
}

static struct uffdio_range range_of(const struct qemu_block *block)
{
    return (struct uffdio_range){.start = block->host, .len = block->bytes};
}

static int write_protect(struct tracker *tracker, const struct qemu_block *block, bool protect)
{
    for (uint64_t at = 0; at < block->bytes; at += PIECE_BYTES) {
        uint64_t length = block->bytes - at < PIECE_BYTES ? block->bytes - at : PIECE_BYTES;
        struct uffdio_writeprotect piece = {.range = {.start = block->host + at, .len = length},
                                            .mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
        while (ioctl(tracker->uffd, UFFDIO_WRITEPROTECT, &piece) < 0)
            if (errno != EAGAIN) /* the address space is changing: try again */
                return error_errno(-errno, "block %s: UFFDIO_WRITEPROTECT", block->name);
    }
    return 0;
}

static int register_blocks(struct tracker *tracker)
{
    struct uffdio_api api = {.api = UFFD_API, .features = FEATURES};
    if (ioctl(tracker->uffd, UFFDIO_API, &api) < 0)
        return error_errno(errno == EINVAL ? -EOPNOTSUPP : -errno,
                           "userfaultfd: asynchronous write-protection (Linux 6.7)");
    for (size_t i = 0; i < tracker->blocks->count; i++) {
        const struct qemu_block *block = &tracker->blocks->items[i];
        struct uffdio_register request = {.range = range_of(block), .mode = UFFDIO_REGISTER_MODE_WP};
        if (ioctl(tracker->uffd, UFFDIO_REGISTER, &request) < 0) {
            if (errno == EBUSY)
                return error_set(-EBUSY, "block %s: another engine is attached to this QEMU already",
                                 block->name);
            return error_errno(errno == EINVAL ? -EOPNOTSUPP : -errno, "block %s: UFFDIO_REGISTER",
                               block->name);
        }
        tracker->registered = i + 1;
    }
    return 0;
}

int track_open(struct tracker **ret_tracker, struct qmp *qmp, pid_t pid, const struct qemu_blocks *blocks)
{
    struct tracker *tracker = calloc(1, sizeof *tracker);
    if (!tracker)
        return error_set(-ENOMEM, "tracker: no memory");
    tracker->uffd = tracker->pagemap = -1;
    tracker->blocks = blocks;
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/pagemap", pid);
    tracker->pagemap = open(path, O_RDONLY | O_CLOEXEC);
    int r =
        tracker->pagemap < 0 ? error_errno(-errno, "%s", path) : get_userfaultfd(qmp, pid, &tracker->uffd);
    if (r == 0)
        r = register_blocks(tracker);
    if (r < 0) {
        track_close(tracker);
        return r;
    }
    *ret_tracker = tracker;
    return 0;
}

void track_close(struct tracker *tracker)
{
    if (!tracker)
        return;
    for (size_t i = 0; i < tracker->registered; i++) {
        /* Unregistering lifts the protection too, but with the address space locked against all faults for as
         * long as that takes; in pieces beforehand the guest hardly notices. */
        const struct qemu_block *block = &tracker->blocks->items[i];
        write_protect(tracker, block, false);
        struct uffdio_range range = range_of(block);
        ioctl(tracker->uffd, UFFDIO_UNREGISTER, &range);
    }
    if (tracker->uffd >= 0)
        close(tracker->uffd);
    if (tracker->pagemap >= 0)
        close(tracker->pagemap);
    free(tracker);
}

int track_protect(struct tracker *tracker)
{
    for (size_t i = 0; i < tracker->blocks->count; i++) {
        int r = write_protect(tracker, &tracker->blocks->items[i], true);
        if (r < 0)
            return r;
    }
    return 0;
}

static int scan_block(struct tracker *tracker, uint32_t index, bool clear, struct vmm_ranges *to)
{
    const struct qemu_block *block = &tracker->blocks->items[index];
    uint64_t end = block->host + block->bytes;
    /* Ask for PAGE_IS_WRITTEN and nothing else: with further categories in the masks, kernels before upstream
     * commit 07b4377bdbe7 miss entries that are not populated. */
    struct pm_scan_arg scan = {
        .size = sizeof scan,
        .flags = PM_SCAN_CHECK_WPASYNC | (clear ? PM_SCAN_WP_MATCHING : 0),
        .start = block->host,
        .end = end,
        .vec = (uintptr_t)tracker->regions,
        .vec_len = REGIONS,
        .category_mask = PAGE_IS_WRITTEN,
        .return_mask = PAGE_IS_WRITTEN,
    };
    /* A full vector ends the pass early: nothing behind walk_end was looked at, nor protected. */
    while (scan.start < end) {
        int found = ioctl(tracker->pagemap, PAGEMAP_SCAN, &scan);
        if (found < 0)
            return error_errno(-errno, "block %s: PAGEMAP_SCAN", block->name);
        for (int i = 0; i < found; i++) {
            const struct page_region *region = &tracker->regions[i];
            int r = vmm_ranges_add(to, index, (region->start - block->host) >> VMM_PAGE_SHIFT,
                                   (region->end - region->start) >> VMM_PAGE_SHIFT);
            if (r < 0)
                return r;
        }
        if (scan.walk_end <= scan.start)
            return error_set(-EIO, "block %s: PAGEMAP_SCAN does not get past 0x%" PRIx64, block->name,
                             (uint64_t)scan.start);
        scan.start = scan.walk_end;
    }
    return 0;
}

int track_scan(struct tracker *tracker, bool clear, struct vmm_ranges *to)
{
    for (size_t i = 0; i < tracker->blocks->count; i++) {
        int r = scan_block(tracker, (uint32_t)i, clear, to);
        if (r < 0)
            return r;
    }
    return 0;
}
