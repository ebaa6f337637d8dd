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
    PHASE_SWITCH,     /* nothing more: the epoch was the last */
};

struct epoch_loop {
    enum epoch_phase phase;
    uint64_t epoch; /* being made; grows over all sessions, so that no number ever means two contents */
    uint32_t round;
    unsigned live; /* live rounds since the epoch began or a capture failed */
    bool made, sent, captured;
    bool final; /* captured, and the guest was left stopped */
    struct message_totals totals;
    uint64_t state_bytes, state_sum;

    uint64_t next_at_ns;
    uint64_t captured_at_ns; /* when the latest capture stopped the guest; 0: none */
    uint64_t pause_ns;       /* of this epoch's stops so far */
    uint64_t pause_mean_ns;  /* of whole epochs, smoothed */
    bool output_waits;       /* some output belongs to the epoch that no capture has ended yet */
    bool output_urgent;
    unsigned failures; /* captures that failed in a row */
    bool degraded;     /* and the operator was told */

    uint64_t acked_epoch, acked_at_ns;
    uint64_t unsure_epoch; /* its COMMIT was sent and its ACK has not come; 0: none */
};

/* A planned switchover; primary_switch.c has the theory. */
struct switchover {
    enum role_migration state;
    uint64_t since_ns, until_ns, by_ns, max_downtime_ns, downtime_ns;
    enum role_left left;
    bool anyway;   /* when the time is up: switch over all the same */
    bool throttle; /* or slow the guest, for some times as long */
    uint64_t timeout_ns;
    bool throttling;
    bool overdue;
    bool tried; /* a round was asked for the final capture */
    /* A checkpoint that is not acknowledged by then came too late for its guest to be down no longer than was
     * asked for: the guest runs on. NEVER: it is waited for. */
    uint64_t late_ns;
    uint64_t asked_by_ns;   /* `by_ns`, while the final checkpoint is on its way */
    unsigned taken_back;    /* how often that happened, and */
    uint64_t lost_ns;       /* how long the guest stood still for it in all */
    uint64_t not_before_ns; /* the next attempt */
    bool stopped; /* a final capture left the guest stopped, and what becomes of it is not decided */
    /* HANDOVER was sent: the standby may run the guest, so that only it, or the arbiter, or a person can give
     * it back. */
    bool handed;
    bool doubt; /* lost, and held not by policy, but until it is known that nobody else runs it */
    bool stop_wanted;
    char text[200];
};

struct primary {
    struct role_core core;
    uint8_t history[16];
    bool stored;  /* the generation we started with is on disk */
    bool started; /* the first step is done */
    enum role_right right;

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
    /* The guest's output goes out unhindered: ACTION_PASS was the last word on it. */
    bool passing;
    uint64_t pass_at_ns; /* no arbiter and standby-loss=continue: when the silence means going alone */
    uint64_t unprotected_ns;

    struct epoch_loop loop;
    struct switchover switchover;
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
/* The guest here is stopped for good: it runs elsewhere by right. */
bool primary_guest_gone(const struct primary *primary);
/* Let the guest's output out, if nobody could resume an older state of the guest. */
void primary_pass_if_alone(struct primary *primary);
/* The silence was as long as `detect`, and there is no arbiter to ask. */
void primary_pass_overdue(struct primary *primary);
void primary_arbitrate(struct primary *primary);
void primary_on_arbiter(struct primary *primary, const struct role_event *event);
void primary_on_continue(struct primary *primary, const struct role_event *event);
/* After primary_restart(): when the guest must be held for want of a session; UINT64_MAX: not at all. */
uint64_t primary_overdue_hold(const struct primary *primary);

/* primary_switch.c */
/* True when the event was one of a switchover's. */
bool switch_event(struct primary *primary, const struct role_event *event);
/* What the round that starts is to be. */
void switch_ask(struct primary *primary, struct role_action *round);
/* The next round would be the first to be asked for the final capture. */
bool switch_first_try(const struct primary *primary);
/* The final capture was made, and `after_ns` are wanted from its ACK on; its epoch was acknowledged. */
void switch_captured(struct primary *primary, uint64_t after_ns);
void switch_acknowledged(struct primary *primary);
/* Before an ACK is believed to be in time, and with the timers. */
void switch_check_late(struct primary *primary);
/* A final capture of a session that is over. */
void switch_late_capture(struct primary *primary);
/* The session ends: let the guest run again, unless the standby may run it or the policy is to hold it. */
void switch_lost(struct primary *primary, const char *why);
/* There is no guest here any more that could run again: whatever was under way ends. */
void switch_over(struct primary *primary, const char *why);
/* The guest runs elsewhere by `generation`, which we gave it. */
void switch_moved(struct primary *primary, uint64_t generation);
/* Nobody took the guest that was handed over. */
void switch_returned(struct primary *primary);
void switch_timers(struct primary *primary);
uint64_t switch_deadline(const struct primary *primary);
uint64_t switch_step_by(const struct primary *primary);

/* primary_door.c */
/* An engine that thinks that it runs the guest called us. */
void primary_on_hello(struct primary *primary, const struct role_event *event);
/* The operator wants this engine to stand by. */
void primary_on_reprotect(struct primary *primary);

/* primary_epoch.c */
/* Do not rest: the next round is due now. */
void epoch_hurry(struct primary *primary);
/* Output waits: end the epoch as early as the policy allows. */
void epoch_output(struct primary *primary, bool urgent);
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
