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

static uint64_t guest_pages(const struct checkpoint *checkpoint)
{
    uint64_t pages = 0;
    for (size_t i = 0; i < checkpoint->guest.block_count; i++)
        pages += checkpoint->guest.blocks[i].bytes >> VMM_PAGE_SHIFT;
    return pages;
}
#define DISK_LOG_DEFAULT   (64ull << 20)
#define DISK_STALL_DEFAULT (500 * NS_PER_MS)
#define DISK_GATHER_NS     (50 * NS_PER_MS)  /* a round that is only for disks should bring something */
#define WARM_FIRST_BYTES   (16u << 20)       /* of staging, touched beside the first copy; the rest, and */
#define WARM_REST_COMMITS  8                 /* copies of pages, after so many epochs */
#define MEMORY_GATHER_NS   (100 * NS_PER_MS) /* and one that is only for what was found to differ */

static int staging_map(struct checkpoint *checkpoint)
{
    uint64_t pages = checkpoint->config.staging_bytes / VMM_PAGE_BYTES, all = guest_pages(checkpoint);
    if (pages > all)
        pages = all;
    if (pages < PLAN_CHUNK_PAGES)
        pages = PLAN_CHUNK_PAGES;

    size_t bytes = (size_t)pages * VMM_PAGE_BYTES;
    void *staging = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (staging == MAP_FAILED)
        return error_errno(-errno, "staging of %zu bytes", bytes);
    madvise(staging, bytes, MADV_HUGEPAGE); /* fewer faults and TLB misses where it is allowed */
    checkpoint->staging = staging;
    checkpoint->staging_pages = pages;
    return 0;
}

static int new_disks(struct checkpoint *checkpoint)
{
    const struct checkpoint_config *config = &checkpoint->config;
    struct disks_config wanted = {
        .log_bytes = config->disk_log_bytes ? config->disk_log_bytes : DISK_LOG_DEFAULT,
        .stall_ns = config->disk_stall_ns ? config->disk_stall_ns : DISK_STALL_DEFAULT,
        .lost = config->disk_lost,
        .sums_wanted = config->disk_sums_wanted,
        .ctx = config->ctx,
    };
    if (checkpoint->guest.disk_count == 0)
        return 0;
    if (checkpoint->guest.disk_count > VMM_DISKS_MAX || !checkpoint->source->ops->disks_open)
        return error_set(-EOPNOTSUPP, "the guest's %zu disks: the driver '%s' cannot replicate them",
                         checkpoint->guest.disk_count, checkpoint->source->ops->driver);
    if (wanted.log_bytes < DISKS_LOG_MIN)
        return error_set(-EINVAL, "a log of %llu bytes for changes of disks, at least %u are needed",
                         (unsigned long long)wanted.log_bytes, DISKS_LOG_MIN);
    return disks_new(&checkpoint->disks, checkpoint->source, &checkpoint->guest, &wanted);
}

static int new_known(struct checkpoint *checkpoint)
{
    const struct known_config wanted = {.wanted = checkpoint->config.page_sums_wanted,
                                        .ctx = checkpoint->config.ctx};
    return wanted.wanted ? known_new(&checkpoint->known, checkpoint->source, &checkpoint->guest, &wanted) : 0;
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
    checkpoint->state_lz4_allowed = config->state_lz4_allowed;
    checkpoint->delta_allowed = config->delta_allowed;
    checkpoint->session_begins = true;
    source->ops->describe(source, &checkpoint->guest);
    TAILQ_INIT(&checkpoint->disk_round);

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
        r = encoder_init(&checkpoint->lanes[i].encoder, config->delta_bytes > 0);
    if (r == 0)
        r = pageset_init(&checkpoint->pending, &checkpoint->guest);
    if (r == 0)
        r = pageset_init(&checkpoint->inflight, &checkpoint->guest);
    if (r == 0)
        r = pageset_init(&checkpoint->round, &checkpoint->guest);
    if (r == 0)
        r = staging_map(checkpoint);
    if (r == 0 && config->delta_bytes)
        r = cache_init(&checkpoint->cache, config->delta_bytes, guest_pages(checkpoint));
    if (r == 0)
        r = new_disks(checkpoint);
    if (r == 0)
        r = new_known(checkpoint);
    if (r < 0) {
        checkpoint_free(checkpoint);
        return r;
    }
    checkpoint->stats.staging_bytes = checkpoint->staging_pages * VMM_PAGE_BYTES;
    checkpoint_account(checkpoint);
    *ret_checkpoint = checkpoint;
    return 0;
}

/* What the lanes did not take of a round that is over. */
static void drop_records(struct checkpoint *checkpoint)
{
    if (checkpoint->disks)
        disks_release(checkpoint->disks, &checkpoint->plan.records);
}

void checkpoint_free(struct checkpoint *checkpoint)
{
    if (!checkpoint)
        return;
    drop_records(checkpoint);
    known_free(checkpoint->known);
    disks_free(checkpoint->disks);
    copier_fini(&checkpoint->copier);
    for (unsigned i = 0; checkpoint->lanes && i < checkpoint->config.lanes; i++)
        encoder_fini(&checkpoint->lanes[i].encoder);
    free(checkpoint->lanes);
    cache_fini(&checkpoint->cache);
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
    bytes += checkpoint->cache.memory_bytes;
    scope_lock(&checkpoint->lock);
    checkpoint->stats.memory_bytes = bytes;
    checkpoint->stats.delta_memory_bytes = checkpoint->cache.memory_bytes;
}

void checkpoint_set_lz4(struct checkpoint *checkpoint, bool allowed)
{
    scope_lock(&checkpoint->lock);
    checkpoint->lz4_allowed = allowed;
}

void checkpoint_set_state_lz4(struct checkpoint *checkpoint, bool allowed)
{
    scope_lock(&checkpoint->lock);
    checkpoint->state_lz4_allowed = allowed;
}

void checkpoint_set_delta(struct checkpoint *checkpoint, bool allowed)
{
    scope_lock(&checkpoint->lock);
    checkpoint->delta_allowed = allowed;
    checkpoint->session_begins = true;
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

int checkpoint_pause(struct checkpoint *checkpoint)
{
    struct vmm *source = checkpoint->source;
    if (checkpoint->disks)
        disks_pausing(checkpoint->disks, true);
    int r = source->ops->pause(source);
    if (r < 0 && checkpoint->disks)
        disks_pausing(checkpoint->disks, false);
    return r;
}

int checkpoint_resume(struct checkpoint *checkpoint)
{
    struct vmm *source = checkpoint->source;
    int r = source->ops->resume(source);
    if (checkpoint->disks)
        disks_pausing(checkpoint->disks, false);
    return r;
}

#define SLOW_ASK_NS (10 * NS_PER_MS)

int checkpoint_slow_guest(struct checkpoint *checkpoint, uint64_t stop_ns, bool (*ended)(void *ctx))
{
    int r = checkpoint_pause(checkpoint);
    if (r < 0)
        return error_add(r, "slow the guest");
    uint64_t now_ns, until_ns = clock_now_ns() + stop_ns;
    while ((now_ns = clock_now_ns()) < until_ns && !(ended && ended(checkpoint->config.ctx))) {
        uint64_t left_ns = until_ns - now_ns;
        struct timespec rest = {.tv_nsec = (long)(left_ns < SLOW_ASK_NS ? left_ns : SLOW_ASK_NS)};
        nanosleep(&rest, NULL);
    }
    r = fault_point(FAULT_THROTTLE_STOPPED);
    int resumed = checkpoint_resume(checkpoint);
    return r < 0 || (r = resumed) < 0 ? error_add(r, "slow the guest") : 0;
}

int checkpoint_take_marks(struct checkpoint *checkpoint)
{
    struct vmm *source = checkpoint->source;
    checkpoint->marked.count = 0;
    int r = source->ops->scan(source, true, &checkpoint->marked);
    if (r < 0) {
        /* Some marks may be gone without having been told. */
        pageset_fill(&checkpoint->pending);
        if (checkpoint->known)
            known_abandon(checkpoint->known, &checkpoint->pending);
        return error_add(r, "taking the marks of written pages");
    }
    if (checkpoint->known)
        known_written(checkpoint->known, checkpoint->marked.items, checkpoint->marked.count);
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
    int r = checkpoint->disks ? disks_open(checkpoint->disks) : 0;
    if (r < 0)
        return r;
    r = checkpoint_pause(checkpoint);
    if (r < 0)
        return error_add(r, "baseline");
    r = fault_point(FAULT_BASELINE);
    if (r == 0)
        r = checkpoint_take_marks(checkpoint);
    int resumed = checkpoint_resume(checkpoint);
    if (r == 0)
        r = resumed;
    return r < 0 ? error_add(r, "baseline") : 0;
}

int checkpoint_repair_disks(struct checkpoint *checkpoint)
{
    return checkpoint->disks ? disks_repair(checkpoint->disks) : 0;
}

void checkpoint_all_pending(struct checkpoint *checkpoint)
{
    checkpoint_abandoned(checkpoint);
    cache_clear(&checkpoint->cache);
    checkpoint->delta_bases = false;
    pageset_fill(&checkpoint->pending);
    if (checkpoint->disks)
        disks_all_pending(checkpoint->disks);
    pace_restart(&checkpoint->pace);
}

uint64_t checkpoint_uncompared(struct checkpoint *checkpoint)
{
    struct known_stats stats = {0};
    if (checkpoint->known)
        known_get_stats(checkpoint->known, &stats);
    return stats.waiting_pages;
}

int checkpoint_estimate(struct checkpoint *checkpoint, struct checkpoint_estimate *ret_estimate)
{
    struct vmm *source = checkpoint->source;
    if (checkpoint->disks)
        disks_session(checkpoint->disks);
    checkpoint->marked.count = 0;
    int r = source->ops->scan(source, false, &checkpoint->marked);
    if (r < 0)
        return error_add(r, "estimate");
    uint64_t waiting = checkpoint_uncompared(checkpoint), dirty = checkpoint->pending.count + waiting;
    for (size_t i = 0; i < checkpoint->marked.count; i++) {
        const struct vmm_range *range = &checkpoint->marked.items[i];
        dirty += pageset_missing(&checkpoint->pending, range->block, range->first, range->pages);
    }
    bool behind =
        waiting || checkpoint->compare_next || (checkpoint->disks && disks_behind(checkpoint->disks));
    struct disks_stats disks = {0};
    if (checkpoint->disks)
        disks_get_stats(checkpoint->disks, &disks);
    double sent_pages = (double)dirty + (double)disks.log_bytes / VMM_PAGE_BYTES;
    *ret_estimate = (struct checkpoint_estimate){
        .dirty_pages = dirty,
        .pause_ns = pace_pause_ns(&checkpoint->pace, dirty),
        .fixed_pause_ns = pace_pause_ns(&checkpoint->pace, 0),
        .send_ns = (uint64_t)(plan_page_ns(&checkpoint->plan) * sent_pages),
        .disk_bytes = disks.log_bytes,
        .behind = behind,
        .wants_round = behind || pace_wants_round(&checkpoint->pace, dirty, checkpoint->staging_pages,
                                                  checkpoint->config.pause_budget_ns),
    };
    return 0;
}

/* Here and not when it is said, since only now are the lanes out of the former session's last round, and is
 * what the owner was told about its end done. */
static void begin_session(struct checkpoint *checkpoint)
{
    {
        scope_lock(&checkpoint->lock);
        if (!checkpoint->session_begins)
            return;
        checkpoint->session_begins = false;
        checkpoint->delta_on = checkpoint->delta_allowed && checkpoint->cache.sets;
    }
    checkpoint->delta_bases = false;
    cache_clear(&checkpoint->cache);
}

void checkpoint_start_round(struct checkpoint *checkpoint)
{
    /* A round that lanes did not finish is not on the standby, whatever the caller believes. */
    plan_close(&checkpoint->plan);
    bool compare = checkpoint->compare_next;
    if (!checkpoint->plan.complete)
        checkpoint_abandoned(checkpoint);
    begin_session(checkpoint);
    checkpoint->compare_next = false;
    if (compare)
        known_begin(checkpoint->known, &checkpoint->pending);
    plan_rearm(&checkpoint->plan);
    if (checkpoint->disks)
        disks_session(checkpoint->disks);
}

void checkpoint_publish(struct checkpoint *checkpoint, uint64_t direct, uint64_t generation, uint64_t epoch,
                        uint32_t round)
{
    pageset_clear(&checkpoint->round);
    pageset_swap(&checkpoint->round, &checkpoint->pending);
    plan_open(&checkpoint->plan, &checkpoint->round, direct, generation, epoch, round);
    if (!TAILQ_EMPTY(&checkpoint->disk_round)) {
        uint64_t first = disks_publish(checkpoint->disks, &checkpoint->disk_round);
        plan_put_records(&checkpoint->plan, &checkpoint->disk_round, first);
    }
}

static size_t first_staging_bytes(const struct checkpoint *checkpoint)
{
    size_t bytes = (size_t)checkpoint->staging_pages * VMM_PAGE_BYTES;
    return bytes < WARM_FIRST_BYTES ? bytes : WARM_FIRST_BYTES;
}

/* While the lanes carry the first round. Earlier it would only keep them from being made, since whatever maps
 * memory waits for it. No more than a capture needs that is to be short: a guest that only moves makes no
 * other. */
static void warm_first(struct checkpoint *checkpoint)
{
    if (checkpoint->warmed)
        return;
    checkpoint->warmed = true;
    copier_warm(&checkpoint->copier, checkpoint->staging, first_staging_bytes(checkpoint));
}

/* It is protected for a while: the rest. */
static void warm_rest(struct checkpoint *checkpoint)
{
    size_t first = first_staging_bytes(checkpoint),
           bytes = (size_t)checkpoint->staging_pages * VMM_PAGE_BYTES;
    if (checkpoint->cache.sets)
        copier_warm(&checkpoint->copier, checkpoint->cache.contents, checkpoint->cache.map_bytes);
    if (bytes > first)
        copier_warm(&checkpoint->copier, checkpoint->staging + first, bytes - first);
}

void checkpoint_seal(struct checkpoint *checkpoint, uint64_t state_bytes)
{
    warm_first(checkpoint);
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
    cache_abandoned(&checkpoint->cache);
    drop_records(checkpoint);
    pageset_merge(&checkpoint->pending, &checkpoint->round);
}

static int stop_and_take_marks(struct checkpoint *checkpoint, struct pace_times *times)
{
    uint64_t start_ns = clock_now_ns();
    int r = checkpoint_pause(checkpoint);
    if (r < 0)
        return r;
    uint64_t stopped_ns = clock_now_ns();
    r = checkpoint_take_marks(checkpoint);
    uint64_t scanned_ns = clock_now_ns();
    int resumed = checkpoint_resume(checkpoint);
    times->stop_ns = stopped_ns - start_ns;
    times->scan_ns = scanned_ns - stopped_ns;
    times->resume_ns = clock_now_ns() - scanned_ns;
    return r < 0 ? r : resumed;
}

int checkpoint_round(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch, uint32_t round,
                     uint64_t *ret_pages)
{
    checkpoint_start_round(checkpoint);
    if (checkpoint->disks)
        disks_gather(checkpoint->disks, DISK_GATHER_NS);
    if (checkpoint->known &&
        known_take(checkpoint->known, MEMORY_GATHER_NS, &checkpoint->pending, &checkpoint->inflight))
        pace_restart(&checkpoint->pace); /* how much was found to differ says nothing of what is written */
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
    if (checkpoint->disks)
        disks_cut(checkpoint->disks, false, &checkpoint->disk_round);
    if (checkpoint->known)
        known_sending(checkpoint->known, pages);
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
    else
        checkpoint->delta_bases = checkpoint->delta_on;
    if (++checkpoint->commits == WARM_REST_COMMITS)
        warm_rest(checkpoint);
    pageset_clear(&checkpoint->inflight);
    cache_committed(&checkpoint->cache);
    if (checkpoint->disks)
        disks_committed(checkpoint->disks);
}

void checkpoint_abandoned(struct checkpoint *checkpoint)
{
    plan_close(&checkpoint->plan);
    cache_abandoned(&checkpoint->cache);
    drop_records(checkpoint);
    if (checkpoint->disks)
        disks_abandon(checkpoint->disks);
    pageset_merge(&checkpoint->pending, &checkpoint->inflight);
    pageset_clear(&checkpoint->inflight);
    if (checkpoint->known)
        known_abandon(checkpoint->known, &checkpoint->pending);
    checkpoint->compare_next = false;
    pace_restart(&checkpoint->pace);
}

void checkpoint_cancel(struct checkpoint *checkpoint)
{
    plan_cancel(&checkpoint->plan);
    if (checkpoint->known)
        known_cancel(checkpoint->known);
    if (checkpoint->disks)
        disks_cancel(checkpoint->disks);
}

void checkpoint_compare_memory(struct checkpoint *checkpoint)
{
    checkpoint->compare_next = checkpoint->known != NULL;
}

void checkpoint_page_sums(struct checkpoint *checkpoint, const struct message_page_sums *sums)
{
    if (checkpoint->known)
        known_sums(checkpoint->known, sums);
}

void checkpoint_compare_disks(struct checkpoint *checkpoint)
{
    if (checkpoint->disks)
        disks_compare(checkpoint->disks);
}

void checkpoint_disk_sums(struct checkpoint *checkpoint, const struct message_sums *sums)
{
    if (checkpoint->disks)
        disks_sums(checkpoint->disks, sums->disk, sums->first, sums->count, sums->digests);
}

void checkpoint_get_stats(struct checkpoint *checkpoint, struct checkpoint_stats *ret_stats)
{
    struct disks_stats disks = {0};
    struct known_stats known = {0};
    if (checkpoint->disks)
        disks_get_stats(checkpoint->disks, &disks);
    if (checkpoint->known)
        known_get_stats(checkpoint->known, &known);
    scope_lock(&checkpoint->lock);
    *ret_stats = checkpoint->stats;
    ret_stats->pages_compared = known.compared_pages;
    ret_stats->pages_known = known.known_pages;
    ret_stats->disks = disks;
    ret_stats->memory_bytes += disks.memory_bytes + known.memory_bytes;
    ret_stats->compressing =
        checkpoint->lz4_allowed &&
        (checkpoint->config.compression == CHECKPOINT_COMPRESS_LZ4 ||
         (checkpoint->config.compression == CHECKPOINT_COMPRESS_AUTO && checkpoint->rate.compressing));
}
