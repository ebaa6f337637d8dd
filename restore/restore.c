/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/internal.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

static int new_disks(struct restore *restore)
{
    const struct restore_config *config = &restore->config;
    if (restore->description.disk_count == 0)
        return 0;
    struct journal_config journal = {.path = config->journal_path,
                                     .bytes_max = config->journal_bytes_max,
                                     .sync = config->journal_sync,
                                     .disks = restore->description.disks,
                                     .disk_count = (uint32_t)restore->description.disk_count};
    memcpy(journal.vm_uuid, config->vm_uuid, sizeof journal.vm_uuid);
    return restore_disks_new(&restore->disks, restore->target, &restore->description, &journal,
                             config->notice, config->ctx);
}

int restore_new(struct restore **ret_restore, struct vmm *target, const struct restore_config *config)
{
    struct restore *restore = calloc(1, sizeof *restore);
    if (!restore)
        return error_set(-ENOMEM, "restore: out of memory");
    restore->target = target;
    restore->config = *config;
    restore->filled = config->filled;
    target->ops->describe(target, &restore->description);
    uint64_t bytes = config->staging_bytes;
    for (size_t i = 0; !config->staging_bytes && i < restore->description.block_count; i++)
        bytes += restore->description.blocks[i].bytes;
    pthread_mutex_init(&restore->lock, NULL);
    account_init(&restore->account);
    state_init(&restore->state, bytes);
    int r =
        staging_init(&restore->staging, restore->description.blocks, restore->description.block_count, bytes);
    if (r == 0)
        r = new_disks(restore);
    if (r < 0) {
        restore_free(restore);
        return r;
    }
    *ret_restore = restore;
    return 0;
}

void restore_free(struct restore *restore)
{
    if (!restore)
        return;
    restore_disks_free(restore->disks);
    staging_fini(&restore->staging);
    state_fini(&restore->state);
    account_fini(&restore->account);
    pthread_mutex_destroy(&restore->lock);
    free(restore);
}

enum commit_state restore_commit_state(struct restore *restore)
{
    scope_lock(&restore->lock);
    return restore->commit;
}

int restore_settle(struct restore *restore, const char *what)
{
    int r = restore_apply(restore);
    if (r < 0)
        return error_add(r, "%s", what);
    scope_lock(&restore->lock);
    if (restore->commit == COMMIT_APPLIED)
        return 0;
    return error_set(-ENODATA, "%s: no checkpoint is committed here%s%s", what,
                     restore->broken[0] ? ", the guest is broken since " : "", restore->broken);
}

int restore_session(struct restore *restore, const uint32_t *map, uint32_t map_count)
{
    assert(map_count <= WIRE_BLOCKS_MAX);
    restore_abort(restore);
    int r = restore_apply(restore);
    if (r < 0)
        return r;
    staging_drop(&restore->staging);
    state_drop(&restore->state);
    restore->filled |= restore->map_count > 0; /* by the session before */
    for (uint32_t i = 0; i < map_count; i++) {
        assert(map[i] < restore->description.block_count);
        restore->map[i] = map[i];
    }
    restore->map_count = map_count;
    restore->way = restore_commit_state(restore) == COMMIT_NONE ? DECODE_DIRECT : DECODE_COMPARE;
    r = restore->disks ? restore_disks_session(restore->disks, restore->way == DECODE_DIRECT) : 0;
    if (r < 0)
        return r;
    atomic_store(&restore->direct_pages, 0);
    pool_reopen(&restore->staging.pool);
    account_open(&restore->account);
    return 0;
}

void restore_abort(struct restore *restore)
{
    account_close(&restore->account);
    pool_cancel(&restore->staging.pool);
    if (restore->disks)
        restore_disks_abort(restore->disks);
}

/* A round has all its frames. A capture must also have a whole device state, a live round none. */
static void finish(struct restore *restore, struct account_verdict *verdict)
{
    if (verdict->code == 0) {
        if (verdict->capture)
            verdict->code =
                state_check(&restore->state, verdict->commit.state_bytes, verdict->commit.state_sum);
        else if (state_any(&restore->state))
            verdict->code = error_set(-EBADMSG, "a device state came with a live round");
        /* A journal that cannot be written must be known before anybody is told of a commit. */
        if (verdict->code == 0 && verdict->capture && restore->disks)
            verdict->code = restore_disks_seal(restore->disks, verdict->epoch);
        if (verdict->code < 0) {
            error_add(verdict->code, "epoch %" PRIu64 ", round %" PRIu32, verdict->epoch, verdict->round);
            account_unseal(&restore->account);
        }
    }
    restore->config.round_complete(restore->config.ctx, verdict->epoch, verdict->round, verdict->capture,
                                   verdict->code, verdict->code < 0 ? error_text() : NULL);
}

/* Where a frame's pages go: `block` is the source's. */
static int decode_begin(struct restore *restore, const char *what, uint32_t block, struct decode *ret_decode)
{
    if (block >= restore->map_count)
        return error_set(-EPROTO, "%s: block %" PRIu32 ", the guest has %" PRIu32, what, block,
                         restore->map_count);
    uint32_t index = restore->map[block];
    *ret_decode = (struct decode){.target = restore->target,
                                  .block = &restore->description.blocks[index],
                                  .block_index = index,
                                  .way = restore->way};
    return staging_enter(&restore->staging, &ret_decode->writer);
}

static int place_pages(struct restore *restore, struct message_pages *pages)
{
    struct decode decode;
    int r = decode_begin(restore, "PAGES", pages->block, &decode);
    if (r < 0)
        return r;
    if (decode.way == DECODE_DIRECT)
        pool_warm(&restore->staging.pool); /* what comes next is staged */
    r = decode_pages(&decode, pages);
    staging_leave(decode.writer);
    if (r == 0 && decode.way == DECODE_DIRECT)
        atomic_fetch_add_explicit(&restore->direct_pages, pages->page_count, memory_order_relaxed);
    return r;
}

/* The frame's content has found its place, or has not (`r`). One that fails has entered and never leaves, so
 * its round can never be complete. */
static int leave(struct restore *restore, const struct wire_frame *frame, uint64_t pages, int r)
{
    if (r < 0)
        return error_add(r, "epoch %" PRIu64, frame->epoch);
    struct account_verdict verdict;
    if (account_leave(&restore->account, frame, pages, &verdict))
        finish(restore, &verdict);
    return 0;
}

int restore_pages(struct restore *restore, const struct wire_frame *frame)
{
    struct message_pages pages;
    int r = fault_point(FAULT_STAGE_PAGES);
    if (r == 0)
        r = message_pages_parse(frame, &pages);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, &pages.round);
    return r < 0 ? r : leave(restore, frame, pages.page_count, place_pages(restore, &pages));
}

static int place_delta(struct restore *restore, struct message_delta *delta)
{
    struct decode decode;
    if (restore->way == DECODE_DIRECT)
        return error_set(-EPROTO, "DELTA: there is no checkpoint here that anything could be a change of");
    /* Until then the guest's memory is no checkpoint at all. */
    int r = staging_wait_applied(&restore->staging);
    if (r == 0)
        r = decode_begin(restore, "DELTA", delta->block, &decode);
    if (r < 0)
        return r;
    r = decode_delta(&decode, delta);
    staging_leave(decode.writer);
    return r;
}

int restore_delta(struct restore *restore, const struct wire_frame *frame)
{
    struct message_delta delta;
    int r = fault_point(FAULT_STAGE_PAGES);
    if (r == 0)
        r = message_delta_parse(frame, &delta);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, &delta.round);
    return r < 0 ? r : leave(restore, frame, delta.page_count, place_delta(restore, &delta));
}

int restore_state(struct restore *restore, const struct wire_frame *frame)
{
    struct message_state piece;
    int r = fault_point(FAULT_STAGE_STATE);
    if (r == 0)
        r = message_state_parse(frame, &piece);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, NULL);
    return r < 0 ? r : leave(restore, frame, 0, state_put(&restore->state, &piece));
}

static int place_disk(struct restore *restore, struct message_disk *message)
{
    return restore->disks ? restore_disks_put(restore->disks, message, restore->way)
                          : error_set(-EPROTO, "DISK: the guest has no disks");
}

int restore_disk(struct restore *restore, const struct wire_frame *frame)
{
    struct message_disk message;
    int r = message_disk_parse(frame, &message);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, &message.round);
    return r < 0 ? r : leave(restore, frame, 0, place_disk(restore, &message));
}

int restore_disk_sums(struct restore *restore, const struct message_sums *wanted, uint8_t *ret_digests)
{
    return restore->disks ? restore_disks_sums(restore->disks, wanted, ret_digests)
                          : error_set(-EPROTO, "SUMS_WANTED: the guest has no disks");
}

int restore_frame(struct restore *restore, const struct wire_frame *frame)
{
    switch (frame->type) {
    case WIRE_PAGES:
        return restore_pages(restore, frame);
    case WIRE_DELTA:
        return restore_delta(restore, frame);
    case WIRE_STATE:
    case WIRE_STATE_LZ4:
        return restore_state(restore, frame);
    case WIRE_DISK:
        return restore_disk(restore, frame);
    default:
        return error_set(-EPROTO, "%s is not expected on a data lane", wire_type_name(frame->type));
    }
}

int restore_expect(struct restore *restore, uint64_t epoch, uint32_t round,
                   const struct message_totals *totals, const struct message_commit *commit)
{
    int r = commit ? fault_point(FAULT_VERIFY_EPOCH) : 0;
    if (r < 0)
        return r;
    struct account_verdict verdict;
    r = account_expect(&restore->account, epoch, round, totals, commit, &verdict);
    if (r > 0)
        finish(restore, &verdict);
    return r < 0 ? r : 0;
}

int restore_commit(struct restore *restore, uint64_t epoch)
{
    assert(restore_commit_state(restore) != COMMIT_PENDING);
    if (restore->disks)
        restore_disks_commit(restore->disks);
    staging_turn(&restore->staging);
    state_turn(&restore->state);
    restore->way = DECODE_STAGE;
    pthread_mutex_lock(&restore->lock);
    restore->commit = COMMIT_PENDING;
    restore->committed_epoch = epoch;
    restore->committed_direct_pages = atomic_exchange(&restore->direct_pages, 0);
    restore->broken[0] = 0;
    pthread_mutex_unlock(&restore->lock);
    /* Last, since it lets the next epoch's frames in. */
    account_commit(&restore->account, epoch);
    return 0;
}

void restore_get_stats(struct restore *restore, struct restore_stats *ret_stats)
{
    struct restore_stats stats = {.staging_bytes = restore->staging.pool.map_bytes};
    staging_use(&restore->staging, &stats.staged_bytes, &stats.staged_peak_bytes);
    stats.memory_bytes =
        sizeof *restore + staging_memory_bytes(&restore->staging) + state_memory_bytes(&restore->state);
    if (restore->disks) {
        struct restore_disks_use use;
        restore_disks_get_use(restore->disks, &use);
        stats.journal_bytes = use.journal_bytes;
        stats.journal_peak_bytes = use.journal_peak_bytes;
        stats.disk_bytes_applied = use.applied_bytes;
        stats.memory_bytes += use.memory_bytes;
    }
    pthread_mutex_lock(&restore->lock);
    stats.committed_epoch = restore->commit == COMMIT_NONE ? 0 : restore->committed_epoch;
    stats.epochs = restore->epochs;
    stats.pages = restore->pages;
    stats.bytes = restore->pages << VMM_PAGE_SHIFT;
    pthread_mutex_unlock(&restore->lock);
    *ret_stats = stats;
}
