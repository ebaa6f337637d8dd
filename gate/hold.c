/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/hold.h"
#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define ROOM_MIN 256

void hold_init(struct hold *hold, uint64_t bytes_max)
{
    memset(hold, 0, sizeof *hold);
    histogram_reset(&hold->delay_us);
    hold_set_bound(hold, bytes_max);
    hold->passing = true;
}

void hold_set_bound(struct hold *hold, uint64_t bytes_max)
{
    hold->bytes_max = bytes_max;
    hold->frames_max = bytes_max / HOLD_FRAME_COST;
    if (hold->frames_max < ROOM_MIN)
        hold->frames_max = ROOM_MIN;
}

void hold_free(struct hold *hold)
{
    free(hold->frames);
    hold->frames = NULL;
    hold->room = hold->front = hold->end = 0;
}

static struct held_frame *at(const struct hold *hold, uint64_t place)
{
    return &hold->frames[place & (hold->room - 1)];
}

static int grow(struct hold *hold)
{
    uint64_t room = hold->room ? hold->room * 2 : ROOM_MIN;
    struct held_frame *frames = malloc(room * sizeof *frames);
    if (!frames)
        return error_set(-ENOMEM, "gate: no memory for %" PRIu64 " held frames", room);
    for (uint64_t place = hold->front; place != hold->end; place++)
        frames[place & (room - 1)] = *at(hold, place);
    free(hold->frames);
    hold->frames = frames;
    hold->room = room;
    return 0;
}

int hold_push(struct hold *hold, const struct held_frame *frame)
{
    if (hold->shut || hold_frames(hold) >= hold->frames_max || hold->bytes > hold->bytes_max ||
        frame->bytes > hold->bytes_max - hold->bytes) {
        hold->dropped++;
        return -ENOBUFS;
    }
    if (hold_frames(hold) == hold->room) {
        int rc = grow(hold);
        if (rc) {
            hold->dropped++;
            return rc;
        }
    }
    struct held_frame *place = at(hold, hold->end);
    *place = *frame;
    place->held = !hold->passing;
    hold->end++;
    hold->bytes += frame->bytes;
    if (hold->bytes > hold->bytes_peak)
        hold->bytes_peak = hold->bytes;
    if (hold->passing)
        hold->open_end = hold->end;
    return 0;
}

/* Where the open epoch begins. */
static uint64_t open_epoch(const struct hold *hold)
{
    return hold->mark_count ? hold->marks[hold->mark_count - 1].end : hold->open_end;
}

struct held_frame *hold_newest(const struct hold *hold)
{
    return !hold->shut && hold->end > open_epoch(hold) ? at(hold, hold->end - 1) : NULL;
}

bool hold_extend(struct hold *hold, uint32_t bytes)
{
    if (hold->bytes > hold->bytes_max || bytes > hold->bytes_max - hold->bytes)
        return false;
    hold_newest(hold)->bytes += bytes;
    hold->bytes += bytes;
    if (hold->bytes > hold->bytes_peak)
        hold->bytes_peak = hold->bytes;
    return true;
}

int hold_mark(struct hold *hold, uint64_t epoch)
{
    if (hold->shut)
        return error_set(-ESHUTDOWN, "gate: mark of epoch %" PRIu64 ": the gate is shut", epoch);
    if (!hold->passing && epoch < hold->latest_epoch)
        return error_set(-EINVAL, "gate: mark of epoch %" PRIu64 " after epoch %" PRIu64, epoch,
                         hold->latest_epoch);
    if (hold->passing) { /* frames that still wait for their way out have been let out already */
        hold->passing = false;
        hold->mark_count = 0;
    }
    hold->latest_epoch = epoch;
    hold->waiting_told = false;
    if (hold->end == open_epoch(hold))
        return 0; /* an epoch without frames needs no mark */
    bool again = hold->mark_count && hold->marks[hold->mark_count - 1].epoch == epoch;
    if (!again && hold->mark_count < HOLD_MARKS_MAX)
        hold->mark_count++;
    hold->marks[hold->mark_count - 1].epoch = epoch;
    hold->marks[hold->mark_count - 1].end = hold->end;
    return 0;
}

void hold_release(struct hold *hold, uint64_t epoch)
{
    unsigned count = 0;
    while (count < hold->mark_count && hold->marks[count].epoch <= epoch)
        hold->open_end = hold->marks[count++].end;
    hold->mark_count -= count;
    memmove(hold->marks, hold->marks + count, hold->mark_count * sizeof *hold->marks);
    hold->full_told = false;
}

void hold_pass(struct hold *hold)
{
    if (hold->shut)
        return;
    hold->passing = true;
    hold->mark_count = 0;
    hold->latest_epoch = 0;
    hold->open_end = hold->end;
    hold->full_told = false;
}

void hold_shut(struct hold *hold)
{
    hold->shut = true;
    hold->passing = false;
    hold->mark_count = 0;
    hold->open_end = hold->front;
}

void hold_reopen(struct hold *hold)
{
    assert(hold->shut && hold->front == hold->end);
    hold->shut = false;
    hold_pass(hold);
}

const struct held_frame *hold_ready_at(const struct hold *hold, uint64_t ahead)
{
    return hold->open_end - hold->front > ahead ? at(hold, hold->front + ahead) : NULL;
}

const struct held_frame *hold_ready(const struct hold *hold)
{
    return hold_ready_at(hold, 0);
}

static struct held_frame take(struct hold *hold)
{
    struct held_frame frame = *at(hold, hold->front++);
    assert(hold->bytes >= frame.bytes);
    hold->bytes -= frame.bytes;
    return frame;
}

void hold_pop(struct hold *hold, uint64_t now_ns)
{
    assert(hold->front != hold->open_end);
    struct held_frame frame = take(hold);
    hold->frames_out++;
    hold->bytes_out += frame.bytes;
    if (frame.held)
        histogram_add(&hold->delay_us,
                      now_ns > frame.arrived_ns ? (now_ns - frame.arrived_ns) / NS_PER_US : 0);
}

bool hold_drop(struct hold *hold, struct held_frame *ret_frame)
{
    if (hold->front == hold->end)
        return false;
    bool open = hold->front != hold->open_end;
    *ret_frame = take(hold);
    if (!open)
        hold->open_end = hold->front;
    hold->dropped++;
    return true;
}

unsigned hold_take_events(struct hold *hold)
{
    unsigned events = 0;
    if (hold->passing || hold->shut)
        return 0;
    if (!hold->waiting_told && hold->end > open_epoch(hold)) {
        hold->waiting_told = true;
        events |= HOLD_WAITING;
    }
    if (!hold->full_told &&
        (hold->bytes >= hold->bytes_max / 2 || hold_frames(hold) >= hold->frames_max / 2)) {
        hold->full_told = true;
        events |= HOLD_FULL;
    }
    return events;
}
