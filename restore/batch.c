/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/batch.h"

int batch_flush(struct batch *batch)
{
    unsigned count = batch->count;
    batch->count = 0;
    return count ? batch->guest->ops->write(batch->guest, batch->ranges, count, batch->from) : 0;
}

int batch_add(struct batch *batch, uint32_t block, uint64_t first, uint64_t pages, const uint8_t *from)
{
    if (batch->count && batch->end == from) {
        struct vmm_range *last = &batch->ranges[batch->count - 1];
        if (last->block == block && last->first + last->pages == first) {
            last->pages += pages;
            batch->end += pages << VMM_PAGE_SHIFT;
            return 0;
        }
        if (batch->count < BATCH_RANGES) {
            batch->ranges[batch->count++] = (struct vmm_range){block, first, pages};
            batch->end += pages << VMM_PAGE_SHIFT;
            return 0;
        }
    }
    int r = batch_flush(batch);
    if (r < 0)
        return r;
    batch->ranges[batch->count++] = (struct vmm_range){block, first, pages};
    batch->from = from;
    batch->end = from + (pages << VMM_PAGE_SHIFT);
    return 0;
}
