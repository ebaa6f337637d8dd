/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_PRIMARY_H
#define UNDERSTUDY_REPLICATOR_PRIMARY_H

#include "replicator/machine.h"

/* The primary's machine, shared by its files: primary.c (sessions), primary_loss.c (what becomes of
 * the guest without one) and primary_epoch.c. */

/* What an epoch waits for. Exactly one thing at a time. */
enum epoch_phase {
    PHASE_NONE,       /* no session */
    PHASE_BEGIN,      /* EVENT_BEGUN */
    PHASE_REST,       /* next_at_ns: the interval, or a pause after a failed capture */
    PHASE_ROUND,      /* EVENT_ROUND and EVENT_ROUND_SENT, in either order */
    PHASE_ROUND_DONE, /* the standby's ROUND_DONE */
    PHASE_ACK,        /* the standby's ACK */
};

struct epoch_loop {
    enum epoch_phase phase;
    uint64_t epoch; /* being made; grows over all sessions, so that no number ever means two contents */
    uint32_t round;
    unsigned live; /* live rounds since the epoch began or a capture failed */
    bool made, sent, captured;
    struct message_totals totals;
    uint64_t state_bytes, state_sum;

    uint64_t next_at_ns;
    uint64_t captured_at_ns; /* when the latest capture stopped the guest; 0: none */
    uint64_t pause_ns;       /* of this epoch's stops so far */
    uint64_t pause_mean_ns;  /* of whole epochs, smoothed */
    unsigned failures;       /* captures that failed in a row */
    bool degraded;           /* and the operator was told */

    uint64_t acked_epoch, acked_at_ns;
    uint64_t unsure_epoch; /* its COMMIT was sent and its ACK has not come; 0: none */
};

struct primary {
    struct role_core core;
    uint8_t history[16];
    bool stored; /* the generation we started with is on disk */

    /* session */
    uint64_t sessions;
    bool lanes_up, accepted, full;
    uint64_t step_by_ns; /* bound on what the peer owes us now */
    uint64_t retry_at_ns, retry_pause_ns;

    /*
     * Going alone. `exposed`: a standby may hold a checkpoint that it could resume by right of our
     * generation, so going on without it needs the policy's leave. True from the first COMMIT that is sent
     * (its ACK may be lost, the commit not), until the arbiter gave us a newer generation or the operator
     * spoke.
     */
    bool exposed, held;
    /* In this engine's life the standby or the arbiter has shown that no newer generation runs. */
    bool settled;
    uint64_t decide_at_ns; /* when to ask the arbiter, unless the standby is back before */
    uint64_t decide_pause_ns;

    struct epoch_loop loop;
};

/* primary_loss.c: the session ends here; the policy decides what becomes of the guest. */
void primary_lose(struct primary *primary, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* As primary_lose, but it is our own doing and the standby is well: come back before anybody can think of
 * going on alone, and do not judge before. */
void primary_restart(struct primary *primary, uint64_t pause_ns, const char *why);
void primary_violation(struct primary *primary, const char *format, ...)
    __attribute__((format(printf, 2, 3)));

/* Close the session, whatever is in flight; nothing is judged. */
void primary_drop_session(struct primary *primary);
void primary_hold(struct primary *primary);
void primary_release(struct primary *primary);
/* A newer generation exists: from here this guest must not run again, whatever else happens. */
void primary_yield(struct primary *primary, uint64_t generation, const char *who);
void primary_arbitrate(struct primary *primary);
void primary_on_arbiter(struct primary *primary, const struct role_event *event);
void primary_on_continue(struct primary *primary, const struct role_event *event);
/* After primary_restart(): when the guest must be held for want of a session; UINT64_MAX: not at all. */
uint64_t primary_overdue_hold(const struct primary *primary);

/* primary_epoch.c */
void epoch_begin_session(struct primary *primary);
void epoch_end_session(struct primary *primary);
/* True when the event was one of the epoch's. */
bool epoch_event(struct primary *primary, const struct role_event *event);
void epoch_timers(struct primary *primary);
/* Is the standby's checkpoint `epoch` of our history what our page sets say it has? Adopts the epoch whose
 * ACK was lost. */
bool epoch_resume(struct primary *primary, uint64_t epoch);
uint64_t epoch_interval(const struct primary *primary);

#endif
