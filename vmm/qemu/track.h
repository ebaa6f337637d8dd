/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_TRACK_H
#define UNDERSTUDY_VMM_QEMU_TRACK_H

#include "vmm/qemu/blocks.h"

/*
 * Written-marks on the pages of a QEMU: userfaultfd's asynchronous write-protection, read with PAGEMAP_SCAN
 * (Documentation/admin-guide/mm/userfaultfd.rst and pagemap.rst). A page has its mark while it is not
 * protected; a write lifts the protection inside the kernel, and nobody waits for anybody.
 */
struct tracker;

/* Get a userfaultfd of QEMU's address space and register the blocks. Nothing is protected yet: every page has
 * its mark. -EBUSY: another engine is attached; -EOPNOTSUPP: the kernel cannot. `blocks` must outlive the
 * tracker. */
int track_open(struct tracker **ret_tracker, struct qmp *qmp, pid_t pid, const struct qemu_blocks *blocks);

/* Lift all protection and let go. Takes NULL. When the process that tracks dies the kernel does the same. */
void track_close(struct tracker *tracker);

/* Take the marks of all pages while the guest runs. In pieces, so that a guest that faults meanwhile waits
 * for a piece only. Marks taken here say nothing: a scan at a pause must follow before anything is relied on.
 */
int track_protect(struct tracker *tracker);

/* Append the pages that have their mark. With `clear` the marks are taken by the same pass, which is exact
 * only while the guest is stopped and its I/O drained. */
int track_scan(struct tracker *tracker, bool clear, struct vmm_ranges *to);

#endif
