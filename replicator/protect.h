/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_PROTECT_H
#define UNDERSTUDY_REPLICATOR_PROTECT_H

#include "base/histogram.h"
#include "checkpoint/checkpoint.h"
#include "replicator/hub.h"

#include <stdatomic.h>

/* The primary's daemon; internal to replicator/protect*.c. */

struct protect_verify {
    uint64_t client; /* 0: none under way */
    uint32_t block;
    uint64_t first; /* next page to compare */
    uint32_t slice_pages;
    bool awaited; /* a slice is with the standby */
    uint64_t awaited_by_ns;
    struct checkpoint_verify slice; /* of the capture that is under way */
    bool slice_taken;
    uint64_t pages, differing, slices, pause_max_ns;
    json_t *blocks; /* one object for each block finished */
    uint64_t block_differing;
    json_t *block_pages; /* numbers of differing pages, the first few */
};

struct protect {
    struct hub hub; /* first: the hub's callbacks cast */
    struct primary *machine;
    struct vmm *guest;
    struct vmm_description description;
    struct checkpoint *checkpoint;
    uint8_t history[16];
    int attach_code;
    bool attached;
    bool begun;                        /* guest's thread */
    bool held;                         /* guest's thread: we stopped the guest (stall, yield) */
    atomic_uint_fast64_t session;      /* whose rounds are being sent */
    atomic_uint_fast64_t live_session; /* that may send rounds; 0: none */
    struct role_action round;          /* the latest ACTION_ROUND */
    bool round_waits;                  /* it has not been started */
    uint64_t heartbeats;
    uint64_t sessions;

    /* figures */
    struct histogram pause_us, dirty, part_us[5]; /* parts: stop, scan, copy, state, resume */
    uint64_t last_pause_us, last_dirty, checkpoints;
    uint64_t copy_began_ns, copy_ns, copy_bytes_before, copy_bytes,
        copy_rounds; /* the session's first epoch */
    bool copying, copied;
    uint64_t probe_captured, probe_acknowledged;
    uint64_t first_protected_ns;
    struct protect_verify verify;
};

/* protect.c: run an event through the role machine and perform what it says. */
void protect_step(void *daemon, struct role_event *event);

/* protect_guest.c */
int protect_attach(struct protect *protect);
void protect_begin(struct protect *protect, const struct role_action *action);
/* Start the round that waits, if nothing keeps it. */
void protect_start_round(struct protect *protect);
enum protect_deed {
    PROTECT_COMMITTED,
    PROTECT_ABANDONED,
    PROTECT_HOLD,
    PROTECT_RELEASE,
    PROTECT_HALT,
    PROTECT_WATCH,
    PROTECT_DETACH,
};
void protect_guest_do(struct protect *protect, enum protect_deed deed);

/* protect_status.c */
json_t *protect_status(struct protect *protect);
void protect_progress(void *daemon, char *ret_line, size_t room);

/* protect_verify.c */
void protect_verify_request(struct protect *protect, uint64_t client, json_t *request);
bool protect_verify_awaited(const struct protect *protect);
/* When an answer is overdue; UINT64_MAX: none is awaited. */
uint64_t protect_verify_deadline(const struct protect *protect);
/* The slice that the next capture should take, NULL for none. */
struct checkpoint_verify *protect_verify_slice(struct protect *protect);
/* The epoch with the slice was committed: send it. */
void protect_verify_committed(struct protect *protect, uint64_t session, uint64_t generation, uint64_t epoch);
void protect_verify_answer(struct protect *protect, const struct wire_frame *frame);
void protect_verify_broken(struct protect *protect, const char *why);

#endif
