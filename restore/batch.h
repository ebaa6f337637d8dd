/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_BATCH_H
#define UNDERSTUDY_RESTORE_BATCH_H

#include "vmm/vmm.h"

/*
 * Writing to a guest whose memory is not mapped here costs a system call, so stretches of pages whose new
 * content lies one behind the other are written together. Nothing is copied: the content must stay in place
 * until the flush.
 */
#define BATCH_RANGES 256

struct batch {
    struct vmm *guest;
    struct vmm_range ranges[BATCH_RANGES];
    unsigned count;
    const uint8_t *from, *end;
};

static inline void batch_begin(struct batch *batch, struct vmm *guest)
{
    batch->guest = guest;
    batch->count = 0;
}

int batch_flush(struct batch *batch);
int batch_add(struct batch *batch, uint32_t block, uint64_t first, uint64_t pages, const uint8_t *from);

#endif
