/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_WRITE_H
#define UNDERSTUDY_VMM_QEMU_WRITE_H

#include "vmm/qemu/blocks.h"

/*
 * The memory of a QEMU that waits, to be filled from outside. All calls from any thread, for disjoint pages;
 * -EINVAL: a range lies outside its block.
 */
struct filler;

/* Maps the shared blocks (also into `maps`, of blocks->count, for everybody to use). `blocks` must outlive
 * the filler. */
int filler_open(struct filler **ret_filler, pid_t pid, const struct qemu_blocks *blocks,
                struct vmm_block *maps);

/* Takes NULL. Unmaps. */
void filler_close(struct filler *filler);

/* Copy to the pages of `ranges`, in order. */
int filler_write(struct filler *filler, const struct vmm_range *ranges, size_t count, const void *from);

/* Make the pages read as zeros. A page that has no memory gets none; long runs of a shared block give theirs
 * back. */
int filler_zero(struct filler *filler, const struct vmm_range *range);

#endif
