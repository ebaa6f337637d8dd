/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_BATCH_H
#define UNDERSTUDY_RESTORE_BATCH_H

#include "vmm/vmm.h"

/*
 * Writing to a guest whose memory is not mapped here costs a system call, so stretches of pages whose new
 * content lies one behind the other are written together. Where memory is mapped they are copied range by
 * range, which is much faster than page by page. Nothing is copied twice: the content must stay in place
 * until the flush.
 */
#define BATCH_RANGES 256

struct batch {
    struct vmm *guest;
    const struct vmm_block *block; /* of all ranges */
    uint32_t block_index;
    struct vmm_range ranges[BATCH_RANGES];
    unsigned count;
    const uint8_t *from, *end;
};

static inline void batch_begin(struct batch *batch, struct vmm *guest, const struct vmm_block *block,
                               uint32_t block_index)
{
    batch->guest = guest;
    batch->block = block;
    batch->block_index = block_index;
    batch->count = 0;
}

int batch_flush(struct batch *batch);
int batch_add(struct batch *batch, uint64_t first, uint64_t pages, const uint8_t *from);

#endif
