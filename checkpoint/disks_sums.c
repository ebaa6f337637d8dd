/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/disks_internal.h"

#include "base/clock.h"
#include "base/scope.h"
#include "wire/message.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A standby that was the guest's host before has nearly all of its disks. So the first time that everything
 * is pending, the copier asks before it sends, window after window, in the order in which it reads:
 *
 *      disk 0   │ read, sent or known │ window: digests here │ window: asked for │ not yet │
 *                                     ▲ the copier
 *
 * A block whose content, as it was read here, has the digest that the standby gave is *known*: no record of
 * it is made, which is the same as a record that writes there what is there. What was said of a read's place
 * in the order (disks.c) holds for it unchanged: changes that were told later stand behind it.
 *
 * A digest speaks for the standby's image as long as nothing of the block was sent. So a block that is in any
 * record since comparing began is *touched*, and what is said of it is not believed; whether the standby took
 * its digest before or after such a record reached it does not matter then.
 *
 * An epoch that is lost ends none of this: nothing but records changes the image. A new full copy does, since
 * it may be to another standby.
 *
 * A standby that does not answer in time is not asked again: everything else is sent.
 */

#define ANSWER_NS (5 * NS_PER_S)

static void end(struct disks *disks)
{
    disks->compare.on = false;
    pthread_cond_signal(&disks->work);
}

void disks_compare(struct disks *disks)
{
    scope_lock(&disks->lock);
    struct disks_compare *compare = &disks->compare;
    for (size_t i = 0; i < DISKS_WINDOWS; i++)
        compare->windows[i].state = WINDOW_NONE;
    for (size_t i = 0; i < disks->count; i++)
        blockset_clear(&disks->disks[i].touched);
    compare->on = disks->config.sums_wanted != NULL;
    compare->current = 0;
    compare->disk = 0;
    compare->block = 0;
    pthread_cond_signal(&disks->work);
}

void disks_sums(struct disks *disks, uint32_t disk, uint64_t first, uint32_t count, const uint8_t *digests)
{
    scope_lock(&disks->lock);
    for (size_t i = 0; disks->compare.on && i < DISKS_WINDOWS; i++) {
        struct disks_window *window = &disks->compare.windows[i];
        if (window->state != WINDOW_ASKED || window->disk != disk || window->first != first ||
            window->count != count)
            continue;
        memcpy(window->digests, digests, (size_t)count * WIRE_DIGEST_BYTES);
        window->state = WINDOW_HERE;
        pthread_cond_signal(&disks->work);
        return;
    }
}

/* --- the copier's, with the lock held --- */

/* The next stretch of all disks, for a window that is free. False: there is none any more. */
static bool place_window(struct disks *disks, struct disks_window *window)
{
    struct disks_compare *compare = &disks->compare;
    for (; compare->disk < disks->count; compare->disk++, compare->block = 0) {
        uint64_t blocks = disks->disks[compare->disk].pending.blocks;
        if (compare->block >= blocks)
            continue;
        uint64_t left = blocks - compare->block;
        window->disk = compare->disk;
        window->first = compare->block;
        window->count = left < WIRE_SUMS_MAX ? (uint32_t)left : WIRE_SUMS_MAX;
        window->state = WINDOW_WANTED;
        compare->block += window->count;
        return true;
    }
    return false;
}

void disks_compare_ask(struct disks *disks)
{
    struct disks_compare *compare = &disks->compare;
    for (unsigned i = 0; compare->on && disks->session && i < DISKS_WINDOWS; i++) {
        struct disks_window *window = &compare->windows[(compare->current + i) % DISKS_WINDOWS];
        if (window->state != WINDOW_NONE || !place_window(disks, window))
            continue;
        window->state = WINDOW_ASKED;
        window->deadline_ns = clock_now_ns() + ANSWER_NS;
        uint32_t disk = window->disk, count = window->count;
        uint64_t first = window->first;
        pthread_mutex_unlock(&disks->lock);
        disks->config.sums_wanted(disks->config.ctx, disk, first, count);
        pthread_mutex_lock(&disks->lock);
    }
}

int disks_compare_next(struct disks *disks, uint64_t limit, uint64_t *ret_first, uint64_t *ret_blocks,
                       const struct disks_window **ret_window, uint64_t *ret_deadline_ns)
{
    struct disks_compare *compare = &disks->compare;
    while (compare->on) {
        struct disks_window *window = &compare->windows[compare->current];
        if (window->state == WINDOW_NONE) {
            end(disks); /* everything was asked for and read */
            break;
        }
        const struct disk *disk = &disks->disks[window->disk];
        uint64_t first, blocks;
        bool some = !disk->lost && blockset_next(&disk->pending, window->first, limit, &first, &blocks) &&
                    first >= window->first && first < window->first + window->count;
        if (!some) { /* read, or to be copied after a repair */
            window->state = WINDOW_NONE;
            compare->current = (compare->current + 1) % DISKS_WINDOWS;
            disks_compare_ask(disks);
            continue;
        }
        if (window->state != WINDOW_HERE) {
            if (clock_now_ns() < window->deadline_ns) {
                *ret_deadline_ns = window->deadline_ns;
                return -EAGAIN;
            }
            end(disks);
            break;
        }
        uint64_t room = window->first + window->count - first;
        *ret_window = window;
        *ret_first = first;
        *ret_blocks = blocks < room ? blocks : room;
        return 0;
    }
    return -ENOENT;
}

uint64_t disks_compare_trusted(const struct disks *disks, uint32_t disk, uint64_t first, uint64_t blocks)
{
    uint64_t trusted = 0;
    assert(blocks <= 64);
    for (uint64_t i = 0; i < blocks; i++)
        if (!blockset_has_any(&disks->disks[disk].touched, first + i, 1))
            trusted |= UINT64_C(1) << i;
    return trusted;
}

bool disks_compare_known(const struct disks_window *window, uint64_t block, const uint8_t *bytes,
                         size_t length)
{
    uint8_t digest[WIRE_DIGEST_BYTES];
    assert(block >= window->first && block - window->first < window->count);
    return wire_digest(bytes, length, digest) == 0 &&
           memcmp(digest, window->digests[block - window->first], sizeof digest) == 0;
}
