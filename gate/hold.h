/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_HOLD_H
#define UNDERSTUDY_GATE_HOLD_H

#include "base/histogram.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Which of the guest's frames may go out: the bookkeeping of nfqueue and relay, without any I/O.
 *
 * Theory of operation. Frames have places 0, 1, 2 ... in the order in which they came. A mark says "all
 * places below P belong to epoch E or earlier"; a release of E moves `open_end` up to the P of the latest
 * mark that is not above E. Everything below `open_end` may go out, in order:
 *
 *     front               open_end        marks[0].end     marks[1].end      end
 *       │  may go            │  epoch 7, sent   │  epoch 8, captured │  open   │
 *
 * A frame that is pushed late counts for a later epoch, and so waits longer; never the other way round. For
 * the same reason marks may be merged when there are too many: the older of two takes the later one's epoch,
 * and its frames go out a release later.
 *
 * While it passes (before the first mark, after hold_pass()) each frame may go out at once. It is still
 * pushed and popped, because the way out may be blocked and order must be kept.
 *
 * Not locked: one owner. Time is handed in.
 */

#define HOLD_MARKS_MAX 64
/* A frame of a few bytes takes several hundred in the kernel and here: the bound on frames. */
#define HOLD_FRAME_COST 256

struct held_frame {
    uint64_t arrived_ns;
    union {
        uint32_t packet_id; /* nfqueue */
        void *data;         /* relay */
    };
    uint32_t bytes;
    uint16_t port;
    bool held; /* it came while the gate held: its delay counts */
};

enum hold_event {
    HOLD_WAITING = 1, /* first frame since the latest mark */
    HOLD_FULL = 2,    /* half the bound is used, told once for each release */
};

struct hold {
    struct held_frame *frames; /* ring of `room`, a power of two; place P lies at P % room */
    uint64_t room, front, end, open_end;
    struct {
        uint64_t epoch, end;
    } marks[HOLD_MARKS_MAX];
    unsigned mark_count;
    uint64_t latest_epoch; /* highest marked since the gate began to hold */
    bool passing, shut, waiting_told, full_told;
    uint64_t bytes_max, frames_max;

    uint64_t bytes, bytes_peak, frames_out, bytes_out, dropped;
    struct histogram delay_us;
};

/* Passing. `bytes_max` bounds the sum of lengths; the number of frames is bounded by it, too. */
void hold_init(struct hold *hold, uint64_t bytes_max);
/* Another bound. What is held beyond it stays. */
void hold_set_bound(struct hold *hold, uint64_t bytes_max);
/* The ring alone: data of frames that are still in it are the owner's to free. */
void hold_free(struct hold *hold);

/* -ENOBUFS: over the bound, or shut: the frame is counted as dropped and stays the caller's. -ENOMEM too. */
int hold_push(struct hold *hold, const struct held_frame *frame);
/* The newest frame, if it may not go and nothing was marked behind it: it can be extended, in order. Else
 * NULL. */
struct held_frame *hold_newest(const struct hold *hold);
/* It has so much more. False: over the bound, and it has not. */
bool hold_extend(struct hold *hold, uint32_t bytes);
/* What has come since epoch or an earlier one. -EINVAL: an epoch below one that is marked already;
 * -ESHUTDOWN. */
int hold_mark(struct hold *hold, uint64_t epoch);
/* Unknown epochs release what belongs to lower ones. */
void hold_release(struct hold *hold, uint64_t epoch);
void hold_pass(struct hold *hold);
/* Nothing may go any more; what is held is taken out with hold_drop(). */
void hold_shut(struct hold *hold);
/* One that is shut, and empty, passes again. */
void hold_reopen(struct hold *hold);

/* The oldest frame, if it may go; else NULL. Valid until the next push or pop. */
const struct held_frame *hold_ready(const struct hold *hold);
/* As hold_ready(), `ahead` places after the oldest. */
const struct held_frame *hold_ready_at(const struct hold *hold, uint64_t ahead);
/* The oldest frame went out. */
void hold_pop(struct hold *hold, uint64_t now_ns);
/* The oldest frame, taken out and counted as dropped; false when there is none. */
bool hold_drop(struct hold *hold, struct held_frame *ret_frame);

static inline uint64_t hold_frames(const struct hold *hold)
{
    return hold->end - hold->front;
}

/* Events (enum hold_event) that are due and have not been told. Telling is the caller's. */
unsigned hold_take_events(struct hold *hold);

#endif
