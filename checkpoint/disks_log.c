/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/disks_internal.h"

#include "base/clock.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* The log of changes, and the sink that fills it; disks.c has the theory. */

size_t disks_cost(size_t body)
{
    return sizeof(struct disk_record) + body;
}

bool disks_is_zero(const uint8_t *bytes, size_t length)
{
    uint64_t first;
    memcpy(&first, bytes, sizeof first);
    return first == 0 && memcmp(bytes, bytes + sizeof first, length - sizeof first) == 0;
}

void disks_free_records(struct disk_records *records)
{
    struct disk_record *record;
    while ((record = TAILQ_FIRST(records))) {
        TAILQ_REMOVE(records, record, link);
        free(record);
    }
}

/* --- with the lock held --- */

static void blocks_of(uint64_t offset, uint64_t bytes, uint64_t *ret_first, uint64_t *ret_blocks)
{
    *ret_first = offset / DISKS_BLOCK_BYTES;
    *ret_blocks = (offset + bytes - 1) / DISKS_BLOCK_BYTES + 1 - *ret_first;
}

void disks_add_blocks(struct blockset *set, uint64_t offset, uint64_t bytes)
{
    uint64_t first, blocks;
    blocks_of(offset, bytes, &first, &blocks);
    blockset_add(set, first, blocks);
}

void disks_add_pending(struct disks *disks, uint32_t index, uint64_t offset, uint64_t bytes)
{
    disks_add_blocks(&disks->disks[index].pending, offset, bytes);
    if (disks->session)
        pthread_cond_signal(&disks->work);
}

void disks_add_all(struct disks *disks, uint32_t index)
{
    if (disks->disks[index].bytes)
        disks_add_pending(disks, index, 0, disks->disks[index].bytes);
}

uint64_t disks_pending_blocks(const struct disks *disks)
{
    uint64_t blocks = 0;
    for (size_t i = 0; i < disks->count; i++)
        blocks += disks->disks[i].pending.count;
    return blocks;
}

void disks_take_room(struct disks *disks, size_t bytes)
{
    disks->stats.log_bytes += bytes;
    if (disks->stats.log_bytes > disks->stats.log_peak_bytes)
        disks->stats.log_peak_bytes = disks->stats.log_bytes;
}

void disks_give_room(struct disks *disks, uint64_t bytes)
{
    disks->stats.log_bytes -= bytes;
    pthread_cond_broadcast(&disks->room);
    pthread_cond_signal(&disks->work);
}

size_t disks_place_cost(const struct disk_record *place)
{
    return disks_cost((size_t)place->bytes);
}

void disks_drop_open(struct disks *disks)
{
    struct disk_record *record;
    uint64_t bytes = 0;
    while ((record = TAILQ_FIRST(&disks->open))) {
        TAILQ_REMOVE(&disks->open, record, link);
        disks_add_pending(disks, record->disk, record->offset, record->bytes);
        bytes += record == disks->place ? disks_place_cost(record) : disks_cost(disk_record_body(record));
        free(record);
    }
    disks->place = NULL;
    disks_give_room(disks, bytes);
}

static void overflow(struct disks *disks)
{
    if (disks->overflow)
        return;
    disks->overflow = true;
    disks->stats.overflows++;
    disks_drop_open(disks);
}

static bool logging(const struct disks *disks, uint32_t index)
{
    return disks->session && !disks->cancelled && !disks->overflow && !disks->disks[index].lost;
}

bool disks_is_behind(const struct disks *disks)
{
    if (disks->place || disks->overflow || disks_pending_blocks(disks))
        return true;
    for (size_t i = 0; i < disks->count; i++)
        if (disks->disks[i].lost)
            return true;
    return false;
}

/* --- the driver's threads --- */

/* Wait until the log has room for `bytes`; false: not in time, or there is no log any more. */
static bool wait_for_room(struct disks *disks, uint32_t index, size_t bytes, uint64_t *deadline_ns)
{
    uint64_t start_ns = 0;
    bool late = false;
    while (logging(disks, index) && !disks->pausing && !late &&
           disks->stats.log_bytes + bytes > disks->config.log_bytes) {
        if (!start_ns)
            start_ns = clock_now_ns();
        if (!*deadline_ns)
            *deadline_ns = start_ns + disks->config.stall_ns;
        struct timespec until = {.tv_sec = (time_t)(*deadline_ns / NS_PER_S),
                                 .tv_nsec = (long)(*deadline_ns % NS_PER_S)};
        late = pthread_cond_timedwait(&disks->room, &disks->lock, &until) == ETIMEDOUT;
    }
    if (start_ns) {
        disks->stats.stalls++;
        disks->stats.stall_ns += clock_now_ns() - start_ns;
    }
    bool room = disks->stats.log_bytes + bytes <= disks->config.log_bytes * (disks->pausing ? 2 : 1);
    if (!room && logging(disks, index))
        overflow(disks);
    return room && logging(disks, index);
}

/* False when it must become pending blocks. */
static bool log_change(struct disks *disks, uint32_t index, uint8_t op, uint64_t offset, uint64_t bytes,
                       const void *data, uint64_t *deadline_ns)
{
    if (op == WIRE_DISK_RAW && disks_is_zero(data, (size_t)bytes))
        op = WIRE_DISK_ZERO;
    size_t body = op == WIRE_DISK_RAW ? (size_t)bytes : 0;
    uint64_t first, blocks;
    blocks_of(offset, bytes, &first, &blocks);
    {
        scope_lock(&disks->lock);
        if (!logging(disks, index))
            return false;
        if (blockset_has_all(&disks->disks[index].pending, first, blocks))
            return true;
        if (!wait_for_room(disks, index, disks_cost(body), deadline_ns))
            return false;
        disks_take_room(disks, disks_cost(body));
    }
    struct disk_record *record = malloc(disks_cost(body));
    if (record) {
        record->disk = index;
        record->op = op;
        record->offset = offset;
        record->bytes = bytes;
        if (body)
            memcpy(record->data, data, body);
    }
    scope_lock(&disks->lock);
    /* An overflow in between does not matter: this one stands behind what it made pending. */
    if (!record || !disks->session) {
        free(record);
        disks_give_room(disks, disks_cost(body));
        return false;
    }
    TAILQ_INSERT_TAIL(&disks->open, record, link);
    if (disks->compare.on)
        disks_add_blocks(&disks->disks[index].touched, offset, bytes);
    disks->stats.records++;
    disks->stats.logged_bytes += bytes;
    return true;
}

void disks_on_change(void *ctx, uint32_t index, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                     const void *data)
{
    static const uint8_t wire_ops[] = {[VMM_DISK_WRITE] = WIRE_DISK_RAW,
                                       [VMM_DISK_ZERO] = WIRE_DISK_ZERO,
                                       [VMM_DISK_DISCARD] = WIRE_DISK_DISCARD};
    struct disks *disks = ctx;
    assert(index < disks->count && bytes && bytes % VMM_DISK_SECTOR == 0 && offset % VMM_DISK_SECTOR == 0);
    assert(offset < disks->disks[index].bytes && bytes <= disks->disks[index].bytes - offset);
    bool loggable = fault_point(FAULT_DISK_CHANGE) == 0;
    uint64_t deadline_ns = 0;
    while (bytes) {
        uint64_t piece = op == VMM_DISK_WRITE && bytes > WIRE_DISK_BODY_MAX ? WIRE_DISK_BODY_MAX : bytes;
        if (!loggable || !log_change(disks, index, wire_ops[op], offset, piece, data, &deadline_ns)) {
            scope_lock(&disks->lock);
            disks_add_pending(disks, index, offset, bytes);
            return;
        }
        offset += piece;
        bytes -= piece;
        data = data ? (const uint8_t *)data + piece : NULL;
    }
}

void disks_on_lost(void *ctx, uint32_t index, const char *why)
{
    struct disks *disks = ctx;
    bool news;
    {
        scope_lock(&disks->lock);
        news = !disks->disks[index].lost;
        disks->disks[index].lost = true;
        disks_add_all(disks, index);
        pthread_cond_broadcast(&disks->room);
    }
    if (news && disks->config.lost)
        disks->config.lost(disks->config.ctx, index, why);
}
