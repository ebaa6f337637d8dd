/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_COMPAT_H
#define UNDERSTUDY_VMM_QEMU_COMPAT_H

#include <linux/fs.h>
#include <linux/types.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>

/*
 * Kernel interfaces newer than the headers that we build with (Debian 12: Linux 6.1). Values are the ABI of
 * linux/userfaultfd.h and linux/fs.h as of Linux 6.7; what the running kernel has is found out at run time.
 */

#ifndef USERFAULTFD_IOC_NEW /* Linux 6.1: a userfaultfd from /dev/userfaultfd */
#define USERFAULTFD_IOC_NEW _IO(0xAA, 0x00)
#endif

#ifndef UFFD_FEATURE_WP_UNPOPULATED /* Linux 6.4: protect pages that do not exist yet, too */
#define UFFD_FEATURE_WP_UNPOPULATED (1ull << 13)
#endif
#ifndef UFFD_FEATURE_WP_ASYNC /* Linux 6.7: a write lifts the protection, nobody is asked */
#define UFFD_FEATURE_WP_ASYNC (1ull << 15)
#endif

#ifndef PAGEMAP_SCAN /* Linux 6.7, Documentation/admin-guide/mm/pagemap.rst */
#define PAGE_IS_WPALLOWED (1ull << 0)
#define PAGE_IS_WRITTEN   (1ull << 1)

#define PM_SCAN_WP_MATCHING   (1ull << 0)
#define PM_SCAN_CHECK_WPASYNC (1ull << 1)

struct page_region {
    __u64 start, end, categories;
};

struct pm_scan_arg {
    __u64 size, flags, start, end, walk_end, vec, vec_len, max_pages;
    __u64 category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define PAGEMAP_SCAN _IOWR('f', 16, struct pm_scan_arg)
#endif

#endif
