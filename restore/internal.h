/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_INTERNAL_H
#define UNDERSTUDY_RESTORE_INTERNAL_H

#include "restore/account.h"
#include "restore/decode.h"
#include "restore/disks.h"
#include "restore/restore.h"
#include "restore/staging.h"
#include "restore/state.h"

/*
 * What is committed, and whether the guest's memory has it:
 *
 *      NONE     nothing, ever, or not since the guest broke: pages go straight to the guest
 *        │ commit (its staging is empty)
 *        ▼
 *      PENDING  committed, not in the guest's memory yet ◄──┐
 *        │ apply                                            │ commit
 *        ▼                                                  │
 *      APPLIED  the guest's memory is the checkpoint ───────┘
 *
 * A failed apply leads from PENDING to NONE, and `broken` keeps the cause.
 */
enum commit_state { COMMIT_NONE, COMMIT_PENDING, COMMIT_APPLIED };

struct restore {
    struct vmm *target;
    struct vmm_description description;
    struct restore_config config;
    struct staging staging;
    struct account account;
    struct state state;
    struct restore_disks *disks; /* NULL: the guest has none of its own */

    /* Change only while no frame is inside; account_enter() makes them visible to lanes. */
    uint32_t map[WIRE_BLOCKS_MAX];
    uint32_t map_count;
    enum decode_way way;

    atomic_ullong direct_pages; /* of the present epoch, written to the guest */

    bool filled; /* the guest's thread: its memory holds more than a fresh guest's */
    bool loaded; /* the guest's thread: the target holds the device state and takes no other checkpoint */

    /* Leaf lock of what follows; never held together with that of account, state or staging. */
    pthread_mutex_t lock;
    enum commit_state commit;
    uint64_t committed_epoch;
    uint64_t committed_direct_pages;
    uint64_t epochs, pages; /* applied */
    char broken[256];
};

enum commit_state restore_commit_state(struct restore *restore);

/* Make sure that a checkpoint is committed and applied. -ENODATA, or as restore_apply(). `what` wants to
 * know. */
int restore_settle(struct restore *restore, const char *what);

#endif
