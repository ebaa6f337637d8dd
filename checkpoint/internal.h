/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_INTERNAL_H
#define UNDERSTUDY_CHECKPOINT_INTERNAL_H

#include "checkpoint/cache.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/copier.h"
#include "checkpoint/disks.h"
#include "checkpoint/encode.h"
#include "checkpoint/known.h"
#include "checkpoint/pace.h"
#include "checkpoint/pageset.h"
#include "checkpoint/plan.h"
#include "checkpoint/rate.h"

#include <pthread.h>

/* Of one lane's thread alone. */
struct checkpoint_lane {
    struct encoder encoder;
    struct plan_item item;
    uint64_t given_ns, given_bytes; /* when the lane last went away with frames, and how much */
    uint64_t given_serial;          /* of which plan */
} __attribute__((aligned(64)));

struct checkpoint {
    struct checkpoint_config config;
    struct vmm *source;
    struct vmm_description guest;

    /* Owner's thread. Lanes read `round`, `staging` and `state` between plan_open() and plan_close(). */
    struct pageset pending, inflight;
    struct pageset round; /* being sent */
    struct pace pace;
    struct vmm_ranges marked;
    bool tracking;
    uint8_t *staging;
    uint64_t staging_pages;
    bool warmed;      /* captures' first memory was touched, or is just being */
    uint64_t commits; /* acknowledged epochs */
    uint8_t *state;   /* copy of the driver's device state */
    size_t state_room;
    uint32_t probe_block;
    uint64_t probe_offset;
    bool probe_set;
    uint8_t *scratch; /* a chunk of pages */
    struct copier copier;
    struct cache cache; /* without sets: none is wanted */
    /* Lanes read these two like `round`. */
    bool delta_on;                  /* this session may send changes: the cache is kept */
    bool delta_bases;               /* and does, since the standby has acknowledged an epoch of it */
    struct known *known;            /* NULL: nobody can be asked; has its own lock */
    bool compare_next;              /* owner's thread: the next round begins with known_begin() */
    struct disks *disks;            /* NULL: the guest has none; has its own lock */
    struct disk_records disk_round; /* cut, not published yet */

    struct plan plan; /* has its own lock */

    pthread_mutex_t lock; /* of what follows; never held together with plan.lock */
    struct rate rate;
    bool lz4_allowed, state_lz4_allowed, delta_allowed;
    bool session_begins; /* the next round is the first of a session */
    struct checkpoint_stats stats;

    struct checkpoint_lane *lanes; /* config.lanes of them, for lane 1.. */
};

/* A round begins: the former one is over, or is abandoned now. */
void checkpoint_start_round(struct checkpoint *checkpoint);

/* The source's pause() and resume(); no change of a disk waits in between. */
int checkpoint_pause(struct checkpoint *checkpoint);
int checkpoint_resume(struct checkpoint *checkpoint);

/* Between pause() and resume(): take the marks into pending. Whatever goes wrong, no cleared mark is lost. */
int checkpoint_take_marks(struct checkpoint *checkpoint);

/* Pending and the disks' changes that were cut become the round, and its first `direct` pages and all of the
 * changes can be produced. */
void checkpoint_publish(struct checkpoint *checkpoint, uint64_t direct, uint64_t generation, uint64_t epoch,
                        uint32_t round);

/* The round is whole: what was staged and the device state can be produced too, and the epoch accounts for
 * all of it. */
void checkpoint_seal(struct checkpoint *checkpoint, uint64_t state_bytes);

/* The round that was published will not be finished: its pages are pending again. */
void checkpoint_unpublish(struct checkpoint *checkpoint);

/* Pages that have to be compared or sent in live rounds before anything can be captured. */
uint64_t checkpoint_uncompared(struct checkpoint *checkpoint);

/* Recount what the checkpoint holds. */
void checkpoint_account(struct checkpoint *checkpoint);

#endif
