/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_READ_H
#define UNDERSTUDY_VMM_QEMU_READ_H

#include "vmm/qemu/blocks.h"

/* Copy the pages of `ranges`, in order, from QEMU's blocks to `to`: a block with a map (`maps[i]`, ours) by
 * memcpy, the others with process_vm_readv. Any thread. -EINVAL: a range lies outside its block. */
int read_ranges(pid_t pid, const struct qemu_blocks *blocks, const struct vmm_block *maps,
                const struct vmm_range *ranges, size_t count, void *to);

#endif
