/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/preflight.h"

#include "vmm/qemu/compat.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <string.h>
#include <sys/mman.h>

#define PROBE_BYTES (UINT64_C(4) << 20)
#define HUGE_BYTES  (UINT64_C(2) << 20)

/* A userfaultfd of our own address space with the features that tracking needs. */
static int own_userfaultfd(void)
{
    int device cleanup_close = open("/dev/userfaultfd", O_RDWR | O_CLOEXEC);
    if (device < 0)
        return -errno;
    int fd cleanup_close = ioctl(device, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return -errno;
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_WP_ASYNC | UFFD_FEATURE_WP_UNPOPULATED |
                                         UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    if (ioctl(fd, UFFDIO_API, &api) < 0)
        return errno == EINVAL ? -EOPNOTSUPP : -errno;
    return take_fd(&fd);
}

/* Register and scan one range of our own; with `protect`, as protected; with `punch`, after a hole was
 * punched into that file. Returns 1 if all of it is reported as written, 0 if not. */
static int is_seen(int uffd, uint64_t start, bool protect, int punch)
{
    struct uffdio_register request = {.range = {.start = start, .len = HUGE_BYTES},
                                      .mode = UFFDIO_REGISTER_MODE_WP};
    struct uffdio_writeprotect protection = {.range = request.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
    struct page_region region = {0};
    struct pm_scan_arg scan = {.size = sizeof scan,
                               .flags = PM_SCAN_CHECK_WPASYNC,
                               .start = start,
                               .end = start + HUGE_BYTES,
                               .vec = (uintptr_t)&region,
                               .vec_len = 1,
                               .category_mask = PAGE_IS_WRITTEN,
                               .return_mask = PAGE_IS_WRITTEN};
    int pagemap cleanup_close = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
    if (pagemap < 0)
        return error_errno(-errno, "/proc/self/pagemap");
    if (ioctl(uffd, UFFDIO_REGISTER, &request) < 0)
        return error_errno(-errno, "preflight: UFFDIO_REGISTER");
    if (protect && ioctl(uffd, UFFDIO_WRITEPROTECT, &protection) < 0)
        return error_errno(-errno, "preflight: UFFDIO_WRITEPROTECT");
    if (punch >= 0 && fallocate(punch, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, HUGE_BYTES) < 0)
        return error_errno(-errno, "preflight: fallocate");
    int found = ioctl(pagemap, PAGEMAP_SCAN, &scan);
    if (found < 0)
        return error_errno(-errno, "preflight: PAGEMAP_SCAN");
    return found == 1 && region.start == start && region.end == start + HUGE_BYTES;
}

/*
 * A discarded 2 MiB range has no page table, and kernels before upstream commit 40de8160ca7f do not report it
 * as written. A range that was never touched, registered but not protected, has none either and goes the same
 * way through the kernel; it must be reported.
 */
static int anonymous_discards_are_seen(int uffd)
{
    char *area =
        mmap(NULL, PROBE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (area == MAP_FAILED)
        return error_errno(-errno, "preflight: mmap");
    int r = is_seen(uffd, ((uintptr_t)area + HUGE_BYTES - 1) & ~(HUGE_BYTES - 1), false, -1);
    munmap(area, PROBE_BYTES);
    return r;
}

/* In shared memory the protection outlives the page: what a punched hole made zero counts as not written. */
static int shared_discards_are_seen(int uffd)
{
    int fd cleanup_close = memfd_create("understudy-preflight", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, HUGE_BYTES) < 0)
        return error_errno(-errno, "preflight: memfd");
    char *area = mmap(NULL, HUGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (area == MAP_FAILED)
        return error_errno(-errno, "preflight: mmap");
    memset(area, 1, HUGE_BYTES);
    int r = is_seen(uffd, (uintptr_t)area, true, fd);
    munmap(area, HUGE_BYTES);
    return r;
}

int preflight_host(struct preflight *preflight, struct preflight_discards *ret_seen)
{
    int uffd cleanup_close = own_userfaultfd();
    if (uffd == -ENOENT)
        return preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, "kernel",
                             "there is no /dev/userfaultfd; a kernel of version 6.7 or later with "
                             "CONFIG_USERFAULTFD is needed");
    if (uffd == -EOPNOTSUPP)
        return preflight_add(
            preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, "kernel",
            "no asynchronous write-protection (UFFD_FEATURE_WP_ASYNC); Linux 6.7 or later is "
            "needed");
    if (uffd == -EACCES || uffd == -EPERM)
        return preflight_add(
            preflight, -EPERM, QEMU_FINDING_REFUSED, "rights",
            "/dev/userfaultfd may not be opened; run as root (CAP_SYS_PTRACE, CAP_SYS_ADMIN)");
    if (uffd < 0)
        return error_errno(uffd, "/dev/userfaultfd");
    int anonymous = anonymous_discards_are_seen(uffd);
    int shared = anonymous < 0 ? anonymous : shared_discards_are_seen(uffd);
    if (shared < 0)
        return shared;
    *ret_seen = (struct preflight_discards){.anonymous = anonymous, .shared = shared};
    int r = preflight_add(preflight, 0, QEMU_FINDING_OK, "kernel", "tracks writes (UFFD_FEATURE_WP_ASYNC)");
    if (r == 0 && !anonymous)
        r = preflight_add(
            preflight, 0, QEMU_FINDING_WARNING, "kernel",
            "does not report discarded ranges as written (fixed upstream by 40de8160ca7f): devices "
            "that discard guest memory are refused");
    return r;
}
