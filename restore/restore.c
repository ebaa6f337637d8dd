/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/internal.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>

int restore_new(struct restore **ret_restore, struct vmm *target, const struct restore_config *config)
{
    struct restore *restore = calloc(1, sizeof *restore);
    if (!restore)
        return error_set(-ENOMEM, "restore: out of memory");
    restore->target = target;
    restore->config = *config;
    target->ops->describe(target, &restore->description);
    uint64_t bytes = config->staging_bytes;
    for (size_t i = 0; !config->staging_bytes && i < restore->description.block_count; i++)
        bytes += restore->description.blocks[i].bytes;
    pthread_mutex_init(&restore->lock, NULL);
    account_init(&restore->account);
    state_init(&restore->state, bytes);
    int r =
        staging_init(&restore->staging, restore->description.blocks, restore->description.block_count, bytes);
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
    for (uint32_t i = 0; i < map_count; i++) {
        assert(map[i] < restore->description.block_count);
        restore->map[i] = map[i];
    }
    restore->map_count = map_count;
    restore->way = restore_commit_state(restore) == COMMIT_NONE ? DECODE_DIRECT : DECODE_COMPARE;
    atomic_store(&restore->direct_pages, 0);
    pool_reopen(&restore->staging.pool);
    account_open(&restore->account);
    return 0;
}

void restore_abort(struct restore *restore)
{
    account_close(&restore->account);
    pool_cancel(&restore->staging.pool);
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
        if (verdict->code < 0) {
            error_add(verdict->code, "epoch %" PRIu64 ", round %" PRIu32, verdict->epoch, verdict->round);
            account_unseal(&restore->account);
        }
    }
    restore->config.round_complete(restore->config.ctx, verdict->epoch, verdict->round, verdict->capture,
                                   verdict->code, verdict->code < 0 ? error_text() : NULL);
}

static int place_pages(struct restore *restore, struct message_pages *pages)
{
    if (pages->block >= restore->map_count)
        return error_set(-EPROTO, "PAGES: block %" PRIu32 ", the guest has %" PRIu32, pages->block,
                         restore->map_count);
    uint32_t index = restore->map[pages->block];
    struct decode decode = {.target = restore->target,
                            .block = &restore->description.blocks[index],
                            .block_index = index,
                            .way = restore->way};
    int r = staging_enter(&restore->staging, &decode.writer);
    if (r < 0)
        return r;
    r = decode_pages(&decode, pages);
    staging_leave(decode.writer);
    if (r == 0 && decode.way == DECODE_DIRECT)
        atomic_fetch_add_explicit(&restore->direct_pages, pages->page_count, memory_order_relaxed);
    return r;
}

int restore_pages(struct restore *restore, const struct wire_frame *frame)
{
    struct message_pages pages;
    int r = fault_point(FAULT_STAGE_PAGES);
    if (r == 0)
        r = message_pages_parse(frame, &pages);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, &pages.round);
    if (r < 0)
        return r;
    /* A frame that fails here has entered and never leaves, so its round can never be complete. */
    r = place_pages(restore, &pages);
    if (r < 0)
        return error_add(r, "epoch %" PRIu64, frame->epoch);
    struct account_verdict verdict;
    if (account_leave(&restore->account, frame, pages.page_count, &verdict))
        finish(restore, &verdict);
    return 0;
}

int restore_state(struct restore *restore, const struct wire_frame *frame)
{
    struct message_state piece;
    int r = fault_point(FAULT_STAGE_STATE);
    if (r == 0)
        r = message_state_parse(frame, &piece);
    if (r == 0)
        r = account_enter(&restore->account, frame->epoch, NULL);
    if (r < 0)
        return r;
    r = state_put(&restore->state, &piece);
    if (r < 0)
        return error_add(r, "epoch %" PRIu64, frame->epoch);
    struct account_verdict verdict;
    if (account_leave(&restore->account, frame, 0, &verdict))
        finish(restore, &verdict);
    return 0;
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
    pthread_mutex_lock(&restore->lock);
    stats.committed_epoch = restore->commit == COMMIT_NONE ? 0 : restore->committed_epoch;
    stats.epochs = restore->epochs;
    stats.pages = restore->pages;
    stats.bytes = restore->pages << VMM_PAGE_SHIFT;
    pthread_mutex_unlock(&restore->lock);
    *ret_stats = stats;
}
