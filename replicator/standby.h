/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_STANDBY_H
#define UNDERSTUDY_REPLICATOR_STANDBY_H

#include "replicator/machine.h"

/* The standby's machine, shared by its files: standby.c (sessions), standby_epoch.c and
 * standby_takeover.c. */

/* What could be resumed here. */
struct standby_commit {
    bool present;
    /*
     * The guest's memory matches no checkpoint any more (apply failed, or its process is gone). The next
     * session must bring everything into a fresh guest.
     */
    bool broken;
    bool applying; /* EVENT_APPLIED is awaited */
    /* The guest holds the checkpoint's device state, so it can be resumed, but take no other checkpoint. */
    enum standby_load { LOAD_NONE, LOAD_UNDER_WAY, LOAD_DONE } load;
    /* Why what is here is older than what the guest has shown to the world since (the primary left in order,
     * or somebody else won the generation). Never resumed without an operator then. NULL: it is not. */
    const char *overtaken;
    uint8_t history[16];
    uint64_t epoch, at_ns;
    uint64_t generation; /* by whose right it was made */
};

struct standby {
    struct role_core core;
    struct standby_commit commit;

    /* session */
    uint8_t history[16]; /* of the guest that the session replicates */
    bool prepared, lanes_up;
    uint64_t step_by_ns;
    /* the epoch that arrives */
    uint64_t epoch; /* the latest seen in this session, 0: none yet */
    uint32_t round; /* the next one */
    bool between;   /* the latest epoch is committed; round 0 of the next follows */
    bool expecting, expecting_commit;
    bool finishing; /* verified; waits for the former epoch's APPLIED */

    /* Our generation was raised past this one by what we claimed (see primary.c), and the primary has not
     * followed yet. 0: it has. */
    uint64_t raised_from;

    /* takeover */
    uint64_t takeover_at_ns; /* LOST: when the silence is long enough, or the arbiter is asked again */
    uint64_t arbitrate_pause_ns;
    bool loading;              /* ACTION_TAKEOVER was issued */
    uint64_t handover_session; /* whose primary waits to hear that the guest runs; 0: none */
    bool stop_wanted;
    uint64_t turn_at_ns; /* ACTIVE: when the engine changes its role */
};

/* standby.c */
/* Close the session; what is not committed is dropped. */
void standby_drop_session(struct standby *standby);
/* End the session by refusing it. The committed checkpoint stays. */
void standby_refuse(struct standby *standby, enum wire_refusal code, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* RECEIVING, once the waiting guest and the lanes are there. */
void standby_session_ready(struct standby *standby);

/* standby_epoch.c */
void standby_on_round_end(struct standby *standby, const struct role_event *event);
void standby_on_round_complete(struct standby *standby, const struct role_event *event);
void standby_on_applied(struct standby *standby, const struct role_event *event);
void standby_on_guest(struct standby *standby, const struct role_event *event);

/* standby.c: as the operator said. */
void standby_stop(struct standby *standby);

/* standby_takeover.c */
/* The session is over: lost, waiting, or taking over, as policy and checkpoint say. */
void standby_lost(struct standby *standby, const char *why);
void standby_take_over_now(struct standby *standby, bool force);
void standby_on_takeover(struct standby *standby, const struct role_event *event);
void standby_on_arbiter(struct standby *standby, const struct role_event *event);
void standby_on_running(struct standby *standby, const struct role_event *event);
void standby_on_switch(struct standby *standby, const struct role_event *event);
void standby_on_load_done(struct standby *standby, const struct role_event *event);
void standby_on_handover(struct standby *standby, const struct role_event *event);
/* SWITCHING waited for the guest's memory to be whole. */
void standby_load_early(struct standby *standby);
/* Tell the primary that handed the guest over, if one did, that it will not run here. */
void standby_handover_failed(struct standby *standby, enum wire_refusal code, const char *why);
/* Tell it that it does. */
void standby_started(struct standby *standby);
/* The waiting guest is of no use any more: whatever was under way ends. */
void standby_guest_broken(struct standby *standby, const char *why);
/* As standby_guest_broken(): `doing` ("applying") the committed epoch failed, as the event says. */
void standby_guest_failed(struct standby *standby, const char *doing, const struct role_event *event);
/* TAKING_OVER waited for the guest's memory to be whole. */
void standby_load(struct standby *standby);
/* May the checkpoint here be resumed without asking anybody? Else `ret_why` says why not. */
bool standby_commit_current(const struct standby *standby, const char **ret_why);

#endif
