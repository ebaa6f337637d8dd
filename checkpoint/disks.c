/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/disks_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

/*
 * Theory of operation
 *
 * Blocks (64 KiB) whose content at the standby is not known to be the guest's are *pending*; they must be
 * read. For all others every change is *logged* as it is told. One list holds both, in the order in which the
 * standby applies them:
 *
 *     change ──► append ─────────────────────────────────┐
 *     copier ──► append a place ─► read ─► fill it        ▼
 *                                        open: │ change │ copy │ change │ (place) │ change │
 *                                              └──────── cut ──────────┘
 *                                                live round: up to a place;  capture: everything
 *
 * Why a place, taken before the read begins: what the read returns holds every change that was told before
 * (they stand in front of the place and are overwritten by the same bytes), and parts of changes that are
 * told later (they stand behind it and are applied over whatever was torn). So no read must be done again,
 * and a guest that writes one block without end cannot keep the copier from it. A change that lies in pending
 * blocks alone need not be logged: the read that comes will have it.
 *
 * The log is bounded. A change that finds no room waits, `stall_ns` at most; then the log *overflows*: what
 * is open is forgotten, its blocks are pending, and so are those of later changes until a live round has
 * taken what the copier read. Between pause() and
 * resume() nothing waits, since the guest stops only when its changes are through: the log may grow to twice
 * its bound there, and overflows beyond that.
 *
 * Before what is read is sent, the standby may be asked whether it has it: disks_sums.c.
 *
 * `sent` holds the blocks of records that left the list in this epoch, so that an epoch that is lost can be
 * turned back into pending blocks though its data are gone. Data are freed as soon as a lane has them in a
 * frame; so a disk of any size is copied within one epoch.
 *
 * One lock. It is held to link and to unlink, never while data are copied, read or compared, except that an
 * overflow frees what it forgets.
 */

static int init_disk(struct disk *disk, uint64_t bytes)
{
    uint64_t blocks = bytes / DISKS_BLOCK_BYTES + (bytes % DISKS_BLOCK_BYTES != 0);
    disk->bytes = bytes;
    int r = blockset_init(&disk->pending, blocks);
    if (r == 0)
        r = blockset_init(&disk->sent, blocks);
    return r < 0 ? r : blockset_init(&disk->touched, blocks);
}

int disks_new(struct disks **ret_disks, struct vmm *source, const struct vmm_description *guest,
              const struct disks_config *config)
{
    assert(config->log_bytes >= DISKS_LOG_MIN && guest->disk_count && guest->disk_count <= VMM_DISKS_MAX);
    struct disks *disks = calloc(1, sizeof *disks);
    if (!disks)
        return error_errno(-ENOMEM, "the guest's disks");
    disks->source = source;
    disks->config = *config;
    disks->count = guest->disk_count;
    TAILQ_INIT(&disks->open);
    pthread_mutex_init(&disks->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&disks->room, &monotonic);
    pthread_cond_init(&disks->work, &monotonic);
    pthread_condattr_destroy(&monotonic);

    int r = 0;
    disks->buffer = aligned_alloc(VMM_PAGE_BYTES, COPY_BYTES);
    if (!disks->buffer)
        r = error_errno(-ENOMEM, "the guest's disks");
    disks->stats.memory_bytes = sizeof *disks + COPY_BYTES;
    for (size_t i = 0; r == 0 && i < disks->count; i++) {
        r = init_disk(&disks->disks[i], guest->disks[i].bytes);
        disks->stats.disks++;
        disks->stats.bytes += guest->disks[i].bytes;
        disks->stats.memory_bytes += 3 * blockset_memory_bytes(&disks->disks[i].pending);
    }
    if (r < 0) {
        disks_free(disks);
        return r;
    }
    *ret_disks = disks;
    return 0;
}

void disks_free(struct disks *disks)
{
    if (!disks)
        return;
    disks_abandon(disks); /* so that nobody waits for room */
    if (disks->copier_started) {
        pthread_mutex_lock(&disks->lock);
        disks->ending = true;
        pthread_cond_signal(&disks->work);
        pthread_mutex_unlock(&disks->lock);
        pthread_join(disks->copier, NULL);
    }
    if (disks->opened)
        disks->source->ops->disks_close(disks->source);
    for (size_t i = 0; i < disks->count; i++) {
        blockset_fini(&disks->disks[i].pending);
        blockset_fini(&disks->disks[i].sent);
        blockset_fini(&disks->disks[i].touched);
    }
    free(disks->buffer);
    pthread_cond_destroy(&disks->room);
    pthread_cond_destroy(&disks->work);
    pthread_mutex_destroy(&disks->lock);
    free(disks);
}

static int tell_me(struct disks *disks)
{
    const struct vmm_disk_sink sink = {.change = disks_on_change, .lost = disks_on_lost, .ctx = disks};
    return disks->source->ops->disks_open(disks->source, &sink);
}

int disks_open(struct disks *disks)
{
    if (!disks->copier_started) {
        int r = pthread_create(&disks->copier, NULL, disks_run_copier, disks);
        if (r)
            return error_errno(-r, "a thread that reads the guest's disks");
        disks->copier_started = true;
    }
    if (disks->opened)
        return 0;
    {
        scope_lock(&disks->lock);
        for (uint32_t i = 0; i < disks->count; i++)
            disks_add_all(disks, i);
    }
    int r = tell_me(disks);
    if (r < 0)
        return error_add(r, "the guest's disks");
    disks->opened = true;
    return 0;
}

int disks_repair(struct disks *disks)
{
    bool lost[VMM_DISKS_MAX];
    if (!disks->opened)
        return disks_open(disks);
    {
        scope_lock(&disks->lock);
        /* No read while the driver opens the disks anew. */
        disks->still = true;
        while (disks->reading)
            pthread_cond_wait(&disks->room, &disks->lock);
        for (size_t i = 0; i < disks->count; i++) {
            lost[i] = disks->disks[i].lost;
            disks->disks[i].lost = false; /* so that another loss is seen */
        }
    }
    int r = tell_me(disks);
    scope_lock(&disks->lock);
    for (uint32_t i = 0; i < disks->count; i++) {
        if (!lost[i])
            continue;
        if (r < 0)
            disks->disks[i].lost = true;
        disks_add_all(disks, i); /* also what was logged of it while it was opened */
    }
    disks->still = false;
    pthread_cond_signal(&disks->work);
    return r < 0 ? error_add(r, "the guest's disks, anew") : 0;
}

void disks_all_pending(struct disks *disks)
{
    disks_abandon(disks);
    scope_lock(&disks->lock);
    disks->compare.on = false;
    for (uint32_t i = 0; i < disks->count; i++)
        disks_add_all(disks, i);
}

void disks_session(struct disks *disks)
{
    scope_lock(&disks->lock);
    if (disks->session && !disks->cancelled)
        return;
    disks->session = true;
    disks->cancelled = false;
    pthread_cond_signal(&disks->work);
}

void disks_abandon(struct disks *disks)
{
    scope_lock(&disks->lock);
    disks->session = disks->overflow = false;
    for (size_t i = 0; i < disks->count; i++) {
        blockset_merge(&disks->disks[i].pending, &disks->disks[i].sent);
        blockset_clear(&disks->disks[i].sent);
    }
    disks_drop_open(disks);
    disks->next_number = 0;
}

void disks_committed(struct disks *disks)
{
    scope_lock(&disks->lock);
    for (size_t i = 0; i < disks->count; i++)
        blockset_clear(&disks->disks[i].sent);
    disks->next_number = 0;
}

void disks_cancel(struct disks *disks)
{
    scope_lock(&disks->lock);
    disks->cancelled = true;
    pthread_cond_broadcast(&disks->room);
}

void disks_pausing(struct disks *disks, bool pausing)
{
    scope_lock(&disks->lock);
    disks->pausing = pausing;
    pthread_cond_broadcast(&disks->room);
}

bool disks_behind(struct disks *disks)
{
    scope_lock(&disks->lock);
    return disks_is_behind(disks);
}

void disks_gather(struct disks *disks, uint64_t limit_ns)
{
    uint64_t deadline_ns = clock_now_ns() + limit_ns;
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    scope_lock(&disks->lock);
    while (!disks->cancelled && (disks->place || disks_may_copy(disks)) &&
           disks->stats.log_bytes < disks->config.log_bytes / 4)
        if (pthread_cond_timedwait(&disks->room, &disks->lock, &until) == ETIMEDOUT)
            break;
}

int disks_cut(struct disks *disks, bool capture, struct disk_records *to)
{
    scope_lock(&disks->lock);
    if (capture && disks_is_behind(disks))
        return error_set(-ETIME, "%" PRIu64 " KiB of the guest's disks must be copied first",
                         disks_pending_blocks(disks) * (DISKS_BLOCK_BYTES / 1024));
    struct disk_record *record;
    while ((record = TAILQ_FIRST(&disks->open)) && record != disks->place && !capture) {
        TAILQ_REMOVE(&disks->open, record, link);
        TAILQ_INSERT_TAIL(to, record, link);
    }
    if (capture)
        TAILQ_CONCAT(to, &disks->open, link);
    else
        disks->overflow = false;
    return 0;
}

void disks_uncut(struct disks *disks, struct disk_records *records)
{
    scope_lock(&disks->lock);
    TAILQ_CONCAT(records, &disks->open, link);
    TAILQ_CONCAT(&disks->open, records, link);
}

uint64_t disks_publish(struct disks *disks, const struct disk_records *records)
{
    const struct disk_record *record;
    uint64_t count = 0;
    scope_lock(&disks->lock);
    TAILQ_FOREACH(record, records, link)
    {
        disks_add_blocks(&disks->disks[record->disk].sent, record->offset, record->bytes);
        count++;
    }
    disks->next_number += count;
    return disks->next_number - count;
}

void disks_release(struct disks *disks, struct disk_records *records)
{
    const struct disk_record *record;
    uint64_t bytes = 0;
    TAILQ_FOREACH(record, records, link)
    bytes += disks_cost(disk_record_body(record));
    disks_free_records(records);
    if (!bytes)
        return;
    scope_lock(&disks->lock);
    disks_give_room(disks, bytes);
}

void disks_get_stats(struct disks *disks, struct disks_stats *ret_stats)
{
    scope_lock(&disks->lock);
    *ret_stats = disks->stats;
    ret_stats->pending_bytes = 0;
    for (size_t i = 0; i < disks->count; i++) {
        const struct disk *disk = &disks->disks[i];
        uint64_t bytes = disk->pending.count * DISKS_BLOCK_BYTES;
        ret_stats->pending_bytes += bytes < disk->bytes ? bytes : disk->bytes;
        ret_stats->lost += disk->lost;
    }
    ret_stats->memory_bytes += disks->stats.log_bytes;
}
