/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_STAGING_H
#define UNDERSTUDY_RESTORE_STAGING_H

#include "restore/pool.h"
#include "wire/wire.h"

#include <assert.h>
#include <stdatomic.h>

/*
 * Where the pages of two epochs wait: one that is being received ("filling") and one that is committed and
 * being applied. See staging.c.
 */

/* An index entry: what a stage holds for a page. Any other value is slot + STAGE_SLOT. */
enum { STAGE_ABSENT = 0, STAGE_ZERO = 1, STAGE_SLOT = 2 };

#define STAGE_GROUP_PAGES 512u /* pages for which one byte says that the index holds something */

/* Free slots, each holding the number of the next in its first 4 bytes. */
struct slot_chain {
    uint32_t first, last, count; /* first and last mean nothing while count is 0 */
};

struct stage {
    _Atomic uint32_t *index; /* by position */
    atomic_uchar *touched;   /* by group */

    /* Guarded by pool.lock: */
    uint32_t *chunks; /* that this stage took */
    uint32_t chunk_count;
    struct slot_chain recycled; /* slots whose pages were replaced */
    uint64_t slots;             /* that hold a page */
    uint64_t pages;             /* that the index holds, zero or in a slot */
};

struct staging_block {
    uint32_t first_group;
    uint64_t pages;
};

struct staging_writer;

struct staging {
    struct pool pool;
    struct stage stages[2];
    unsigned filling; /* index of the stage that lanes fill; changes only while no writer is out */
    struct staging_block blocks[VMM_BLOCKS_MAX];
    unsigned block_count;
    uint32_t groups;

    /* Guarded by pool.lock: */
    struct staging_writer *idle;
    struct staging_writer *writers[WIRE_LANES_MAX];
    unsigned writer_count, writers_out;
    uint64_t slots_peak;
};

/* A lane's tool for the time of one frame. */
struct staging_writer {
    struct staging *staging;
    struct stage *stage;
    struct staging_writer *next_idle;
    uint32_t next, end;         /* consecutive free slots of one chunk */
    struct slot_chain recycled; /* free slots */
    int64_t slots, pages;       /* changes of the stage's that are not yet in it */
    uint8_t *scratch;           /* STAGING_SCRATCH_PAGES */
};
#define STAGING_SCRATCH_PAGES (2 * WIRE_RUN_BODY_PAGES_MAX)

int staging_init(struct staging *staging, const struct vmm_block *blocks, size_t block_count, uint64_t bytes);
void staging_fini(struct staging *staging);

int staging_enter(struct staging *staging, struct staging_writer **ret_writer);
void staging_leave(struct staging_writer *writer);

/* Get at least one and at most `pages` consecutive free slots; returns how many, or -ENOSPC (the text tells
 * the bound), -ECANCELED. Waits while memory is short only because a committed epoch is still being applied.
 */
long staging_take(struct staging_writer *writer, unsigned pages, uint32_t *ret_slot);
/* Get `pages` consecutive free slots if that costs nothing; else false. */
bool staging_take_run(struct staging_writer *writer, unsigned pages, uint32_t *ret_slot);
/* A slot that was taken and not put is free again. */
void staging_return(struct staging_writer *writer, uint32_t slot);
/* The stage now holds `entry` for the page; a slot that held it before is free. */
void staging_put(struct staging_writer *writer, uint64_t position, uint32_t entry);
/* Tell the stage that positions from `position` on, within one block, are about to be put. */
void staging_touch(struct staging_writer *writer, uint64_t position, uint64_t pages);

static inline uint64_t staging_position(const struct staging *staging, uint32_t block, uint64_t page)
{
    assert(block < staging->block_count && page < staging->blocks[block].pages);
    return (uint64_t)staging->blocks[block].first_group * STAGE_GROUP_PAGES + page;
}

static inline uint8_t *staging_slot(const struct staging *staging, uint32_t slot)
{
    return pool_slot(&staging->pool, slot);
}

/* The following are for the time when no writer is out; they tell nobody and so need no cooperation. */
void staging_turn(struct staging *staging); /* the filled stage is the committed one now */
void staging_drop(struct staging *staging); /* forget what was filled */
/* This one, by the committed stage's owner, at any time: its pages are where they belong. */
void staging_applied(struct staging *staging);

static inline struct stage *staging_committed(struct staging *staging)
{
    return &staging->stages[!staging->filling];
}

/* Any thread: wait until the committed stage is applied, if it is not yet. -ECANCELED. */
int staging_wait_applied(struct staging *staging);

/* Pages that the committed stage holds. */
uint64_t staging_committed_pages(struct staging *staging);
uint64_t staging_memory_bytes(struct staging *staging);
void staging_use(struct staging *staging, uint64_t *ret_bytes, uint64_t *ret_peak_bytes);

#endif
