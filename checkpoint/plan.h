/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_PLAN_H
#define UNDERSTUDY_CHECKPOINT_PLAN_H

#include "checkpoint/disks.h"
#include "checkpoint/pageset.h"
#include "wire/message.h"

#include <pthread.h>

/*
 * The work of one round, handed out to lanes piece by piece, each piece exactly once.
 *
 *     changes of disks, in order ──►│
 *     device state: pieces ──►│
 *     pages of the set, in ascending order, numbered 0..total                              lanes take from
 *     0            direct              limit                total                          the left
 *     │ read from   │ read from staging │ not to be taken yet │
 *     │ the guest   │ (page - direct)   │                     │
 *
 * A live round is all direct; a capture that fits is all staged; one that does not fit sends its first part
 * direct, while the guest is still stopped. What is staged may be taken from plan_staged() on, and the plan
 * is sealed when the device state is there as well.
 *
 * Changes of disks go first, and under the lock, so that each lane carries ascending numbers: the standby
 * lets a lane wait until all the others have brought what is earlier.
 *
 * One lock; it is held for the taking and the accounting of a piece, never while one is encoded. `busy`
 * counts lanes that are in between, and plan_close() waits for them: after it nobody reads the guest, the
 * staging or the set.
 */
#define PLAN_CHUNK_PAGES 64u
#define PLAN_STATE_PIECE (PLAN_CHUNK_PAGES * VMM_PAGE_BYTES)

#define PLAN_RECORDS_MAX 1024u /* changes of disks in one frame */

enum plan_kind { PLAN_PAGES, PLAN_STATE, PLAN_DISK };

struct plan_item {
    enum plan_kind kind;
    struct disk_records records; /* of disks; the lane's from now on */
    uint64_t first_record;
    uint32_t record_count;
    uint64_t offset, length, total;            /* of the state piece; of the whole state */
    struct vmm_range ranges[PLAN_CHUNK_PAGES]; /* of one block, ascending */
    uint32_t range_count;
    uint32_t pages;
    bool direct;
    uint64_t staged; /* when not direct: where in staging, in pages */
    uint64_t generation, epoch, serial;
    uint32_t round;
};

struct plan {
    pthread_mutex_t lock; /* innermost: nothing else is taken under it */
    pthread_cond_t changed;
    const struct pageset *set;
    struct pageset_cursor cursor;
    uint64_t generation, epoch;
    uint32_t round;
    uint64_t serial; /* grows with every plan_open */
    uint64_t total, limit, direct, taken, done;
    uint64_t direct_done; /* of `done`: only these end the wait of plan_drain() */
    uint64_t state_bytes, state_taken;
    struct disk_records records; /* not taken yet */
    uint64_t next_record;        /* the first one's number */
    unsigned busy;
    bool open;      /* pieces may be taken */
    bool sealed;    /* limit and state are final: the round can complete */
    bool complete;  /* all pieces produced */
    bool cancelled; /* the session is over; stays until plan_rearm() */
    int failure;    /* a lane failed to produce a piece */
    uint64_t opened_ns;
    double page_ns; /* measured: time in which the lanes together carry away one page; 0: not known */
    struct message_totals totals; /* of the frames; `done` counts pages that needed none, too */
};

int plan_init(struct plan *plan);
void plan_fini(struct plan *plan);

/* Forget an earlier cancellation: a round of a living session begins. No round may be open. */
void plan_rearm(struct plan *plan);

/* Open the round: the first `direct` pages of `set` may be taken now. The set must stay as it is until
 * plan_close(). */
void plan_open(struct plan *plan, const struct pageset *set, uint64_t direct, uint64_t generation,
               uint64_t epoch, uint32_t round);

/* Changes of disks, all of the round's, the first of this number; moved out of `records`. Right after
 * plan_open(). What is not taken stays in plan->records after plan_close(). */
void plan_put_records(struct plan *plan, struct disk_records *records, uint64_t first_number);

/* The rest of the set is staged and may be taken. */
void plan_staged(struct plan *plan);

/* The device state is there (0: none), and so is all of the set. Returns true if that completes the round at
 * once; *ret_totals is then set. */
bool plan_seal(struct plan *plan, uint64_t state_bytes, struct message_totals *ret_totals);

/* Wait until all direct pages are produced. -ETIME at the deadline (CLOCK_MONOTONIC), -ECANCELED, or a lane's
 * failure. */
int plan_drain(struct plan *plan, uint64_t deadline_ns);

/* How fast the lanes together carry pages away, as measured in earlier rounds; 0: not known. */
double plan_page_ns(struct plan *plan);
/* That estimate was the ground for giving up: believe it less. */
void plan_gave_up(struct plan *plan);

/* No piece is handed out any more; waits for the lanes that are at one. */
void plan_close(struct plan *plan);

/* Any thread: as plan_close, without waiting, and wakes plan_drain(). */
void plan_cancel(struct plan *plan);

/* A lane: the next piece, or false. Must be followed by plan_done() or plan_failed(). */
bool plan_take(struct plan *plan, struct plan_item *ret_item);

/* The piece is done with: `sent` counts its frames, of which there may be several or none, and the pages in
 * them. Returns true to exactly one caller: the one that completed the round. */
bool plan_done(struct plan *plan, const struct plan_item *item, const struct message_totals *sent,
               struct message_totals *ret_totals);
void plan_failed(struct plan *plan, int code);

#endif
