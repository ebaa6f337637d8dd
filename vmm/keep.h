/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KEEP_H
#define UNDERSTUDY_VMM_KEEP_H

#include "vmm/vmm.h"

/*
 * A copy of a guest's memory, from its end until another guest of the same name takes its place. Nobody
 * vouches for it: it is what a primary may find there already. Pages of zeros take no room, and filling gives
 * the copy's memory back as it goes.
 */
struct vmm_keep;

/* Read one stretch of pages of the guest that ends. */
typedef int (*vmm_keep_read)(void *ctx, const struct vmm_range *range, void *to);

/* Copy all blocks. -ENOSPC: the host has not so much memory available (MemAvailable of /proc/meminfo), with a
 * sixteenth of all to spare; then nothing is kept. */
int vmm_keep_new(struct vmm_keep **ret_keep, const struct vmm_block *blocks, size_t count, vmm_keep_read read,
                 void *ctx);

/* Write what was kept of blocks that a target has by name and size. *ret_bytes: how much that was. Once. */
int vmm_keep_fill(struct vmm_keep *keep, struct vmm *target, uint64_t *ret_bytes);

void vmm_keep_free(struct vmm_keep *keep); /* takes NULL */

#endif
