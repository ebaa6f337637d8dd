/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/internal.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"
#include "restore/batch.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Fewer zero pages than this are written: to take their memory away costs a call each, and a page that lived
 * lately will be used again soon. */
#define ZERO_PAGES_RELEASED 16

struct apply {
    struct restore *restore;
    const struct stage *stage;
    const struct vmm_block *block;
    uint32_t block_index;
    struct vmm_range zeros; /* not yet written; pages 0: none */
    struct batch batch;
    uint64_t done, total; /* pages */
};

static int flush_zeros(struct apply *apply)
{
    struct vmm_range zeros = apply->zeros;
    apply->zeros.pages = 0;
    if (zeros.pages == 0)
        return 0;
    if (apply->block->map && zeros.pages < ZERO_PAGES_RELEASED) {
        memset((uint8_t *)apply->block->map + (zeros.first << VMM_PAGE_SHIFT), 0,
               zeros.pages << VMM_PAGE_SHIFT);
        return 0;
    }
    return apply->restore->target->ops->zero(apply->restore->target, &zeros);
}

static int apply_zero(struct apply *apply, uint64_t page)
{
    if (apply->zeros.pages && apply->zeros.first + apply->zeros.pages == page) {
        apply->zeros.pages++;
        return 0;
    }
    int r = flush_zeros(apply);
    apply->zeros = (struct vmm_range){apply->block_index, page, 1};
    return r;
}

static int halfway(struct apply *apply)
{
    int r = flush_zeros(apply);
    if (r == 0)
        r = batch_flush(&apply->batch);
    return r < 0 ? r : fault_point(FAULT_APPLY_HALF);
}

static int apply_group(struct apply *apply, uint32_t group, uint64_t first, uint64_t pages)
{
    const _Atomic uint32_t *index = &apply->stage->index[(size_t)group * STAGE_GROUP_PAGES];
    for (uint64_t i = 0; i < pages; i++) {
        uint32_t entry = atomic_load_explicit(&index[i], memory_order_relaxed);
        if (entry == STAGE_ABSENT)
            continue;
        int r = 0;
        uint64_t page = first + i;
        if (apply->done++ == apply->total / 2)
            r = halfway(apply);
        if (r < 0)
            return r;
        if (entry == STAGE_ZERO)
            r = apply_zero(apply, page);
        else
            r = batch_add(&apply->batch, page, 1, staging_slot(&apply->restore->staging, entry - STAGE_SLOT));
        if (r < 0)
            return r;
    }
    return 0;
}

static int apply_block(struct apply *apply)
{
    const struct staging_block *place = &apply->restore->staging.blocks[apply->block_index];
    int r = 0;
    batch_begin(&apply->batch, apply->restore->target, apply->block, apply->block_index);
    for (uint64_t first = 0; r == 0 && first < place->pages; first += STAGE_GROUP_PAGES) {
        uint32_t group = place->first_group + (uint32_t)(first / STAGE_GROUP_PAGES);
        uint64_t left = place->pages - first;
        if (atomic_load_explicit(&apply->stage->touched[group], memory_order_relaxed))
            r = apply_group(apply, group, first, left < STAGE_GROUP_PAGES ? left : STAGE_GROUP_PAGES);
    }
    if (r == 0)
        r = flush_zeros(apply);
    if (r == 0)
        r = batch_flush(&apply->batch);
    if (r < 0)
        return error_add(r, "block '%s'", apply->block->name);
    return 0;
}

static int apply_stage(struct restore *restore, uint64_t *ret_pages)
{
    struct apply apply = {.restore = restore, .stage = staging_committed(&restore->staging)};
    apply.total = staging_committed_pages(&restore->staging);
    int r = fault_point(FAULT_APPLY_BEGIN);
    if (r == 0 && apply.total == 0)
        r = fault_point(FAULT_APPLY_HALF);
    for (uint32_t i = 0; r == 0 && apply.total && i < restore->description.block_count; i++) {
        apply.block = &restore->description.blocks[i];
        apply.block_index = i;
        r = apply_block(&apply);
    }
    if (r == 0 && restore->disks)
        r = restore_disks_apply(restore->disks);
    if (r == 0)
        r = fault_point(FAULT_APPLY_END);
    *ret_pages = apply.total;
    return r;
}

/* The guest is between two checkpoints now, so there is none. */
static void broke(struct restore *restore)
{
    restore_abort(restore);
    state_drop_committed(&restore->state);
    scope_lock(&restore->lock);
    restore->commit = COMMIT_NONE;
    snprintf(restore->broken, sizeof restore->broken, "%s", error_text());
}

int restore_apply(struct restore *restore)
{
    if (restore_commit_state(restore) != COMMIT_PENDING)
        return 0;
    uint64_t pages = 0;
    int r = apply_stage(restore, &pages);
    if (r < 0) {
        error_add(r, "applying epoch %" PRIu64 " to the guest", restore->committed_epoch);
        broke(restore);
    }
    staging_applied(&restore->staging);
    if (r < 0)
        return r;
    scope_lock(&restore->lock);
    restore->commit = COMMIT_APPLIED;
    restore->epochs++;
    restore->pages += pages + restore->committed_direct_pages;
    return 0;
}
