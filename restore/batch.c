/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/batch.h"

#include <string.h>

static void copy(const struct batch *batch)
{
    const uint8_t *from = batch->from;
    for (unsigned i = 0; i < batch->count; i++) {
        size_t bytes = batch->ranges[i].pages << VMM_PAGE_SHIFT;
        memcpy((uint8_t *)batch->block->map + (batch->ranges[i].first << VMM_PAGE_SHIFT), from, bytes);
        from += bytes;
    }
}

int batch_flush(struct batch *batch)
{
    int r = 0;
    if (batch->count && batch->block->map)
        copy(batch);
    else if (batch->count)
        r = batch->guest->ops->write(batch->guest, batch->ranges, batch->count, batch->from);
    batch->count = 0;
    return r;
}

int batch_add(struct batch *batch, uint64_t first, uint64_t pages, const uint8_t *from)
{
    struct vmm_range *last = batch->count ? &batch->ranges[batch->count - 1] : NULL;
    if (last && batch->end == from && last->first + last->pages == first) {
        last->pages += pages;
        batch->end += pages << VMM_PAGE_SHIFT;
        return 0;
    }
    if (batch->count == BATCH_RANGES || (last && batch->end != from)) {
        int r = batch_flush(batch);
        if (r < 0)
            return r;
    }
    if (batch->count == 0)
        batch->from = from;
    batch->ranges[batch->count++] = (struct vmm_range){batch->block_index, first, pages};
    batch->end = from + (pages << VMM_PAGE_SHIFT);
    return 0;
}
