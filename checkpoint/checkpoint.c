/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* Populated at once: the first touch of a page costs more than its copy, and would come inside a pause. */
static int staging_map(struct checkpoint *checkpoint)
{
    uint64_t guest_pages = 0;
    for (size_t i = 0; i < checkpoint->guest.block_count; i++)
        guest_pages += checkpoint->guest.blocks[i].bytes >> VMM_PAGE_SHIFT;
    uint64_t pages = checkpoint->config.staging_bytes / VMM_PAGE_BYTES;
    if (pages > guest_pages)
        pages = guest_pages;
    if (pages < PLAN_CHUNK_PAGES)
        pages = PLAN_CHUNK_PAGES;

    size_t bytes = (size_t)pages * VMM_PAGE_BYTES;
    void *staging = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (staging == MAP_FAILED)
        return error_errno(-errno, "staging of %zu bytes", bytes);
    madvise(staging, bytes, MADV_HUGEPAGE); /* fewer faults and TLB misses where it is allowed */
    memset(staging, 0, bytes);
    checkpoint->staging = staging;
    checkpoint->staging_pages = pages;
    return 0;
}

int checkpoint_new(struct checkpoint **ret_checkpoint, struct vmm *source,
                   const struct checkpoint_config *config)
{
    if (config->lanes < 1 || config->lanes > WIRE_LANES_MAX)
        return error_set(-EINVAL, "checkpoint: %u lanes, 1 to %d are possible", config->lanes,
                         WIRE_LANES_MAX);
    struct checkpoint *checkpoint = calloc(1, sizeof *checkpoint);
    if (!checkpoint)
        return error_errno(-ENOMEM, "checkpoint");
    checkpoint->config = *config;
    checkpoint->source = source;
    checkpoint->lz4_allowed = config->lz4_allowed;
    source->ops->describe(source, &checkpoint->guest);

    int r = plan_init(&checkpoint->plan);
    if (r < 0) {
        free(checkpoint);
        return r;
    }
    r = copier_init(&checkpoint->copier);
    if (r < 0) {
        plan_fini(&checkpoint->plan);
        free(checkpoint);
        return r;
    }
    pthread_mutex_init(&checkpoint->lock, NULL);
    size_t lanes_bytes = config->lanes * sizeof *checkpoint->lanes;
    checkpoint->lanes = aligned_alloc(_Alignof(struct checkpoint_lane), lanes_bytes);
    checkpoint->scratch = aligned_alloc(VMM_PAGE_BYTES, (size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES);
    if (!checkpoint->lanes || !checkpoint->scratch)
        r = error_errno(-ENOMEM, "checkpoint of %u lanes", config->lanes);
    if (checkpoint->lanes)
        memset(checkpoint->lanes, 0, lanes_bytes);
    for (unsigned i = 0; r == 0 && i < config->lanes; i++)
        r = encoder_init(&checkpoint->lanes[i].encoder);
    if (r == 0)
        r = pageset_init(&checkpoint->pending, &checkpoint->guest);
    if (r == 0)
        r = pageset_init(&checkpoint->inflight, &checkpoint->guest);
    if (r == 0)
        r = pageset_init(&checkpoint->round, &checkpoint->guest);
    if (r == 0)
        r = staging_map(checkpoint);
    if (r < 0) {
        checkpoint_free(checkpoint);
        return r;
    }
    checkpoint->stats.staging_bytes = checkpoint->staging_pages * VMM_PAGE_BYTES;
    checkpoint_account(checkpoint);
    *ret_checkpoint = checkpoint;
    return 0;
}

void checkpoint_free(struct checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    copier_fini(&checkpoint->copier);
    for (unsigned i = 0; checkpoint->lanes && i < checkpoint->config.lanes; i++)
        encoder_fini(&checkpoint->lanes[i].encoder);
    free(checkpoint->lanes);
    free(checkpoint->scratch);
    free(checkpoint->state);
    if (checkpoint->staging)
        munmap(checkpoint->staging, (size_t)checkpoint->staging_pages * VMM_PAGE_BYTES);
    pageset_fini(&checkpoint->pending);
    pageset_fini(&checkpoint->inflight);
    pageset_fini(&checkpoint->round);
    vmm_ranges_free(&checkpoint->marked);
    plan_fini(&checkpoint->plan);
    pthread_mutex_destroy(&checkpoint->lock);
    free(checkpoint);
}

void checkpoint_account(struct checkpoint *checkpoint)
{
    uint64_t bytes = sizeof *checkpoint + checkpoint->staging_pages * VMM_PAGE_BYTES +
                     (uint64_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES + checkpoint->pending.memory_bytes +
                     checkpoint->inflight.memory_bytes + checkpoint->round.memory_bytes +
                     checkpoint->marked.room * sizeof *checkpoint->marked.items + checkpoint->state_room;
    for (unsigned i = 0; i < checkpoint->config.lanes; i++)
        bytes += sizeof checkpoint->lanes[i] + checkpoint->lanes[i].encoder.memory_bytes;
    scope_lock(&checkpoint->lock);
    checkpoint->stats.memory_bytes = bytes;
}

void checkpoint_set_lz4(struct checkpoint *checkpoint, bool allowed)
{
    scope_lock(&checkpoint->lock);
    checkpoint->lz4_allowed = allowed;
}

int checkpoint_set_probe(struct checkpoint *checkpoint, const char *block, uint64_t offset)
{
    for (size_t i = 0; i < checkpoint->guest.block_count; i++) {
        const struct vmm_block *candidate = &checkpoint->guest.blocks[i];
        if (strcmp(candidate->name, block))
            continue;
        if (offset >= candidate->bytes || offset % VMM_PAGE_BYTES > VMM_PAGE_BYTES - sizeof(uint64_t))
            return error_set(-EINVAL,
                             "probe at %s+0x%llx: 8 bytes within one page of the block's %llu expected",
                             block, (unsigned long long)offset, (unsigned long long)candidate->bytes);
        checkpoint->probe_block = (uint32_t)i;
        checkpoint->probe_offset = offset;
        checkpoint->probe_set = true;
        return 0;
    }
    return error_set(-ENOENT, "probe: the guest has no block '%s'", block);
}

int checkpoint_take_marks(struct checkpoint *checkpoint)
{
    struct vmm *source = checkpoint->source;
    checkpoint->marked.count = 0;
    int r = source->ops->scan(source, true, &checkpoint->marked);
    if (r < 0) {
        /* Some marks may be gone without having been told. */
        pageset_fill(&checkpoint->pending);
        return error_add(r, "taking the marks of written pages");
    }
    for (size_t i = 0; i < checkpoint->marked.count; i++) {
        const struct vmm_range *range = &checkpoint->marked.items[i];
        pageset_add(&checkpoint->pending, range->block, range->first, range->pages);
    }
    return 0;
}

int checkpoint_begin(struct checkpoint *checkpoint)
{
    struct vmm *source = checkpoint->source;
    checkpoint_all_pending(checkpoint);
    if (!checkpoint->tracking) {
        int r = source->ops->track(source);
        if (r < 0)
            return error_add(r, "start tracking");
        checkpoint->tracking = true;
    }
    int r = source->ops->pause(source);
    if (r < 0)
        return error_add(r, "baseline");
    r = fault_point(FAULT_BASELINE);
    if (r == 0)
        r = checkpoint_take_marks(checkpoint);
    int resumed = source->ops->resume(source);
    if (r == 0)
        r = resumed;
    return r < 0 ? error_add(r, "baseline") : 0;
}

void checkpoint_all_pending(struct checkpoint *checkpoint)
{
    checkpoint_abandoned(checkpoint);
    pageset_fill(&checkpoint->pending);
    pace_restart(&checkpoint->pace);
}

int checkpoint_estimate(struct checkpoint *checkpoint, struct checkpoint_estimate *ret_estimate)
{
    struct vmm *source = checkpoint->source;
    checkpoint->marked.count = 0;
    int r = source->ops->scan(source, false, &checkpoint->marked);
    if (r < 0)
        return error_add(r, "estimate");
    uint64_t dirty = checkpoint->pending.count;
    for (size_t i = 0; i < checkpoint->marked.count; i++) {
        const struct vmm_range *range = &checkpoint->marked.items[i];
        dirty += pageset_missing(&checkpoint->pending, range->block, range->first, range->pages);
    }
    *ret_estimate = (struct checkpoint_estimate){
        .dirty_pages = dirty,
        .pause_ns = pace_pause_ns(&checkpoint->pace, dirty),
        .wants_round = pace_wants_round(&checkpoint->pace, dirty, checkpoint->staging_pages,
                                        checkpoint->config.pause_budget_ns),
    };
    return 0;
}

void checkpoint_start_round(struct checkpoint *checkpoint)
{
    /* A round that lanes did not finish is not on the standby, whatever the caller believes. */
    plan_close(&checkpoint->plan);
    if (!checkpoint->plan.complete)
        checkpoint_abandoned(checkpoint);
    plan_rearm(&checkpoint->plan);
}

void checkpoint_publish(struct checkpoint *checkpoint, uint64_t direct, uint64_t generation, uint64_t epoch,
                        uint32_t round)
{
    pageset_clear(&checkpoint->round);
    pageset_swap(&checkpoint->round, &checkpoint->pending);
    plan_open(&checkpoint->plan, &checkpoint->round, direct, generation, epoch, round);
}

void checkpoint_seal(struct checkpoint *checkpoint, uint64_t state_bytes)
{
    uint64_t epoch = checkpoint->plan.epoch;
    uint32_t round = checkpoint->plan.round;
    pageset_merge(&checkpoint->inflight, &checkpoint->round);
    struct message_totals totals;
    if (plan_seal(&checkpoint->plan, state_bytes, &totals))
        checkpoint->config.round_sent(checkpoint->config.ctx, epoch, round, &totals);
    checkpoint->config.ready(checkpoint->config.ctx);
}

void checkpoint_unpublish(struct checkpoint *checkpoint)
{
    plan_close(&checkpoint->plan);
    pageset_merge(&checkpoint->pending, &checkpoint->round);
}

static int stop_and_take_marks(struct checkpoint *checkpoint, struct pace_times *times)
{
    struct vmm *source = checkpoint->source;
    uint64_t start_ns = clock_now_ns();
    int r = source->ops->pause(source);
    if (r < 0)
        return r;
    uint64_t stopped_ns = clock_now_ns();
    r = checkpoint_take_marks(checkpoint);
    uint64_t scanned_ns = clock_now_ns();
    int resumed = source->ops->resume(source);
    times->stop_ns = stopped_ns - start_ns;
    times->scan_ns = scanned_ns - stopped_ns;
    times->resume_ns = clock_now_ns() - scanned_ns;
    return r < 0 ? r : resumed;
}

int checkpoint_round(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch, uint32_t round,
                     uint64_t *ret_pages)
{
    checkpoint_start_round(checkpoint);
    struct pace_times times = {0};
    int r = fault_point(FAULT_COPY_ROUND);
    if (r == 0)
        r = stop_and_take_marks(checkpoint, &times);
    checkpoint_account(checkpoint);
    if (r < 0)
        return error_add(r, "epoch %llu, round %u", (unsigned long long)epoch, round);

    uint64_t pages = checkpoint->pending.count;
    pace_round(&checkpoint->pace, &times, pages);
    {
        scope_lock(&checkpoint->lock);
        checkpoint->stats.rounds_live++;
    }
    checkpoint_publish(checkpoint, pages, generation, epoch, round);
    *ret_pages = pages;
    checkpoint_seal(checkpoint, 0);
    return 0;
}

void checkpoint_committed(struct checkpoint *checkpoint)
{
    plan_close(&checkpoint->plan);
    if (!checkpoint->plan.complete)
        checkpoint_abandoned(checkpoint);
    pageset_clear(&checkpoint->inflight);
}

void checkpoint_abandoned(struct checkpoint *checkpoint)
{
    plan_close(&checkpoint->plan);
    pageset_merge(&checkpoint->pending, &checkpoint->inflight);
    pageset_clear(&checkpoint->inflight);
    pace_restart(&checkpoint->pace);
}

void checkpoint_cancel(struct checkpoint *checkpoint)
{
    plan_cancel(&checkpoint->plan);
}

void checkpoint_get_stats(struct checkpoint *checkpoint, struct checkpoint_stats *ret_stats)
{
    scope_lock(&checkpoint->lock);
    *ret_stats = checkpoint->stats;
    ret_stats->compressing =
        checkpoint->lz4_allowed &&
        (checkpoint->config.compression == CHECKPOINT_COMPRESS_LZ4 ||
         (checkpoint->config.compression == CHECKPOINT_COMPRESS_AUTO && checkpoint->rate.compressing));
}
