/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_DISKS_INTERNAL_H
#define UNDERSTUDY_CHECKPOINT_DISKS_INTERNAL_H

#include "base/blockset.h"
#include "checkpoint/disks.h"

#include <pthread.h>
#include <stdbool.h>

/* Shared by disks.c (the owner's calls; theory of operation), disks_log.c and disks_copier.c. */
#define COPY_BYTES  ((size_t)WIRE_DISK_BODY_MAX)
#define COPY_BLOCKS (COPY_BYTES / DISKS_BLOCK_BYTES)

static_assert(VMM_DISKS_MAX <= WIRE_DISKS_MAX && VMM_DISK_SECTOR == WIRE_DISK_SECTOR, "a disk is a disk");

struct disk {
    uint64_t bytes;
    struct blockset pending, sent;
    struct blockset
        touched; /* while comparing: in some record since, so what the standby had is not what it has */
    bool lost;   /* not told of, or not readable: nothing of it is copied before disks_repair() */
};

/*
 * A stretch of blocks of which the standby was asked what it has. disks_sums.c has the theory.
 */
struct disks_window {
    enum { WINDOW_NONE, WINDOW_WANTED, WINDOW_ASKED, WINDOW_HERE } state;
    uint32_t disk, count;
    uint64_t first;
    uint64_t deadline_ns;                              /* for the answer */
    uint8_t digests[WIRE_SUMS_MAX][WIRE_DIGEST_BYTES]; /* WINDOW_HERE: the copier's alone */
};

#define DISKS_WINDOWS 2 /* one is read while the other is asked for */

struct disks_compare {
    bool on;
    struct disks_window windows[DISKS_WINDOWS];
    unsigned current; /* the window that is read next */
    uint32_t disk;    /* the place from which the next window begins */
    uint64_t block;
};

struct disks {
    struct vmm *source;
    struct disks_config config;
    size_t count;
    pthread_t copier;
    bool copier_started;
    uint8_t *buffer; /* the copier's */

    pthread_mutex_t lock; /* what follows; leaf */
    pthread_cond_t room;  /* the log shrank, the copier paused, or nobody is to wait any more */
    pthread_cond_t work;  /* for the copier */
    struct disk disks[VMM_DISKS_MAX];
    struct disk_records open;
    struct disk_record
        *place;           /* in `open`: what the copier reads now; NULL when none, or when it was dropped */
    uint64_t next_number; /* of the epoch's records */
    bool opened, session, cancelled, pausing, overflow;
    bool reading; /* the copier is in disk_read() */
    bool still;   /* the copier is to stay out of it */
    bool ending;
    uint32_t turn; /* the disk to be copied next, and from where */
    uint64_t turn_block;
    struct disks_compare compare;
    struct disks_stats stats;
};

/* What a record with such a body takes of the log. */
size_t disks_cost(size_t body);
/* The room that a place takes is that of what will be read. */
size_t disks_place_cost(const struct disk_record *place);
bool disks_is_zero(const uint8_t *bytes, size_t length); /* at least 8 bytes */
void disks_add_blocks(struct blockset *set, uint64_t offset, uint64_t bytes);
void disks_free_records(struct disk_records *records);

/* With the lock held. */
void disks_add_pending(struct disks *disks, uint32_t index, uint64_t offset, uint64_t bytes);
void disks_add_all(struct disks *disks, uint32_t index); /* all of the disk is pending */
uint64_t disks_pending_blocks(const struct disks *disks);
void disks_take_room(struct disks *disks, size_t bytes);
void disks_give_room(struct disks *disks, uint64_t bytes);
void disks_drop_open(struct disks *disks); /* what is open becomes pending blocks again */
bool disks_is_behind(const struct disks *disks);
bool disks_may_copy(const struct disks *disks);

/* The sink (struct vmm_disk_sink), on the driver's threads. */
void disks_on_change(void *ctx, uint32_t index, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                     const void *data);
void disks_on_lost(void *ctx, uint32_t index, const char *why);

/* disks_sums.c, by the copier, with the lock held. */
/* Ask for what comes next; gives the lock up for that. */
void disks_compare_ask(struct disks *disks);
/* 0: a stretch of pending blocks within the current window. -EAGAIN: the answer is awaited, until
 * *ret_deadline_ns. -ENOENT: comparing is over. */
int disks_compare_next(struct disks *disks, uint64_t limit, uint64_t *ret_first, uint64_t *ret_blocks,
                       const struct disks_window **ret_window, uint64_t *ret_deadline_ns);
/* Of those blocks, what the digests speak for: bit i for block first + i. */
uint64_t disks_compare_trusted(const struct disks *disks, uint32_t disk, uint64_t first, uint64_t blocks);
/* Without the lock: does the standby have this block of the window? */
bool disks_compare_known(const struct disks_window *window, uint64_t block, const uint8_t *bytes,
                         size_t length);

/* The copier's thread. */
void *disks_run_copier(void *disks);

#endif
