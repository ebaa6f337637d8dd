/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/disks_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/* Reads pending blocks into their places in the log; disks.c has the theory. */

bool disks_may_copy(const struct disks *disks)
{
    if (!disks->session || disks->cancelled || disks->still ||
        disks->stats.log_bytes > disks->config.log_bytes / 2)
        return false;
    for (size_t i = 0; i < disks->count; i++)
        if (disks->disks[i].pending.count && !disks->disks[i].lost)
            return true;
    return false;
}

/* What is read next, and which of its blocks the standby may have already (disks_sums.c). */
struct stretch {
    uint32_t disk;
    uint64_t first, blocks;
    uint64_t trusted;                  /* bit i: what the standby says of block first + i holds */
    const struct disks_window *window; /* and where it says so; with trusted */
};

/* The next pending blocks, wherever they are; disks_may_copy() says that there are some. */
static void next_anywhere(struct disks *disks, struct stretch *ret_stretch)
{
    struct disk *disk = &disks->disks[disks->turn];
    while (!disk->pending.count || disk->lost) {
        disks->turn = (disks->turn + 1) % (uint32_t)disks->count;
        disks->turn_block = 0;
        disk = &disks->disks[disks->turn];
    }
    ret_stretch->disk = disks->turn;
    blockset_next(&disk->pending, disks->turn_block, COPY_BLOCKS, &ret_stretch->first, &ret_stretch->blocks);
    disks->turn_block = ret_stretch->first + ret_stretch->blocks;
}

/* Take a stretch of pending blocks, and a place in the log. NULL: out of memory. */
static struct disk_record *take_place(struct disks *disks, const struct stretch *stretch)
{
    struct disk *disk = &disks->disks[stretch->disk];
    struct disk_record *place = malloc(sizeof *place);
    if (!place)
        return NULL;
    blockset_remove(&disk->pending, stretch->first, stretch->blocks);
    place->disk = stretch->disk;
    place->op = WIRE_DISK_ZERO; /* no data in it */
    place->offset = stretch->first * DISKS_BLOCK_BYTES;
    place->bytes = stretch->blocks * DISKS_BLOCK_BYTES;
    if (place->bytes > disk->bytes - place->offset)
        place->bytes = disk->bytes - place->offset;
    TAILQ_INSERT_TAIL(&disks->open, place, link);
    disks_take_room(disks, disks_place_cost(place));
    disks->place = place;
    return place;
}

enum content { CONTENT_DATA, CONTENT_ZERO, CONTENT_KNOWN };

static enum content content_of(const struct stretch *stretch, size_t at, const uint8_t *bytes, size_t length)
{
    uint64_t index = at / DISKS_BLOCK_BYTES;
    if (stretch->trusted & UINT64_C(1) << index &&
        disks_compare_known(stretch->window, stretch->first + index, bytes, length))
        return CONTENT_KNOWN;
    return disks_is_zero(bytes, length) ? CONTENT_ZERO : CONTENT_DATA;
}

struct made {
    size_t cost;
    uint64_t records, known_bytes;
};

/* Blocks as records: one for each stretch that is zero, or that is not; none for what the standby has. */
static int make_records(const struct disks *disks, const struct stretch *stretch,
                        const struct disk_record *what, struct disk_records *to, struct made *made)
{
    const uint8_t *bytes = disks->buffer;
    for (size_t at = 0, end; at < what->bytes; at = end) {
        enum content content = CONTENT_DATA;
        for (end = at; end < what->bytes;) {
            size_t left = (size_t)what->bytes - end;
            size_t block = left < DISKS_BLOCK_BYTES ? left : DISKS_BLOCK_BYTES;
            enum content this_content = content_of(stretch, end, bytes + end, block);
            if (end > at && this_content != content)
                break;
            content = this_content;
            end += block;
        }
        if (content == CONTENT_KNOWN) {
            made->known_bytes += end - at;
            continue;
        }
        size_t body = content == CONTENT_ZERO ? 0 : end - at;
        struct disk_record *record = malloc(disks_cost(body));
        if (!record)
            return error_errno(-ENOMEM, "a record of %zu bytes", body);
        record->disk = what->disk;
        record->op = content == CONTENT_ZERO ? WIRE_DISK_ZERO : WIRE_DISK_RAW;
        record->offset = what->offset + at;
        record->bytes = end - at;
        memcpy(record->data, bytes + at, body);
        TAILQ_INSERT_TAIL(to, record, link);
        made->cost += disks_cost(body);
        made->records++;
    }
    return 0;
}

/* With the lock held: the place becomes what was read; nothing, if it was dropped meanwhile. */
static void fill_place(struct disks *disks, struct disk_records *records, const struct made *made)
{
    struct disk_record *place = disks->place, *record;
    if (!place)
        return;
    while ((record = TAILQ_FIRST(records))) {
        TAILQ_REMOVE(records, record, link);
        if (disks->compare.on)
            disks_add_blocks(&disks->disks[record->disk].touched, record->offset, record->bytes);
        TAILQ_INSERT_BEFORE(place, record, link);
    }
    TAILQ_REMOVE(&disks->open, place, link);
    disks->place = NULL;
    disks->stats.records += made->records;
    disks->stats.copied_bytes += place->bytes;
    disks->stats.known_bytes += made->known_bytes;
    disks_give_room(disks, disks_place_cost(place));
    disks_take_room(disks, made->cost);
    free(place);
}

static void drop_place(struct disks *disks)
{
    struct disk_record *place = disks->place;
    if (!place)
        return;
    TAILQ_REMOVE(&disks->open, place, link);
    disks->place = NULL;
    disks_add_pending(disks, place->disk, place->offset, place->bytes);
    disks_give_room(disks, disks_place_cost(place));
    free(place);
}

/* With the lock held: until something happens, or that time. */
static void rest_until(struct disks *disks, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    pthread_cond_timedwait(&disks->work, &disks->lock, &until);
}

/* One stretch; called and left with the lock held. */
static void copy_stretch(struct disks *disks, const struct stretch *stretch)
{
    struct disk_record *place = take_place(disks, stretch);
    if (!place) {
        /* Memory may come back; nobody waits for this thread but a round, which comes again. */
        rest_until(disks, clock_now_ns() + NS_PER_S);
        return;
    }
    struct disk_record what = {.disk = place->disk, .offset = place->offset, .bytes = place->bytes};
    disks->reading = true;
    pthread_mutex_unlock(&disks->lock);

    struct disk_records records = TAILQ_HEAD_INITIALIZER(records);
    struct made made = {0};
    int r = disks->source->ops->disk_read(disks->source, what.disk, what.offset, (size_t)what.bytes,
                                          disks->buffer);
    if (r == 0)
        r = make_records(disks, stretch, &what, &records, &made);

    pthread_mutex_lock(&disks->lock);
    disks->reading = false;
    if (r == 0)
        fill_place(disks, &records, &made);
    else
        drop_place(disks);
    bool news = r < 0 && !disks->disks[what.disk].lost;
    if (r < 0)
        disks->disks[what.disk].lost = true;
    pthread_cond_broadcast(&disks->room);
    pthread_mutex_unlock(&disks->lock);
    disks_free_records(&records);
    if (news && disks->config.lost)
        disks->config.lost(disks->config.ctx, what.disk, error_text());
    pthread_mutex_lock(&disks->lock);
}

/* With the lock held, when disks_may_copy(). */
static void copy_some(struct disks *disks)
{
    struct stretch stretch = {0};
    uint64_t deadline_ns;
    if (disks->compare.on) {
        disks_compare_ask(disks);
        int r = disks_compare_next(disks, COPY_BLOCKS, &stretch.first, &stretch.blocks, &stretch.window,
                                   &deadline_ns);
        if (r == -EAGAIN)
            rest_until(disks, deadline_ns);
        if (r < 0)
            return; /* what is true may have changed: look again */
        stretch.disk = stretch.window->disk;
        stretch.trusted = disks_compare_trusted(disks, stretch.disk, stretch.first, stretch.blocks);
    } else {
        next_anywhere(disks, &stretch);
    }
    copy_stretch(disks, &stretch);
}

void *disks_run_copier(void *argument)
{
    struct disks *disks = argument;
    scope_lock(&disks->lock);
    while (!disks->ending) {
        if (disks_may_copy(disks))
            copy_some(disks);
        else
            pthread_cond_wait(&disks->work, &disks->lock);
    }
    return NULL;
}
