/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standby.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * Theory of operation
 *
 * What the standby holds changes in exactly one place, commit_epoch(): everything before leaves
 * the committed checkpoint alone, so every failure on the way is answered the same way: refuse with the
 * reason, disconnect, keep what is committed.
 *
 *     ROUND/COMMIT ─► EXPECT ─► ROUND_COMPLETE ─┬ live ─► SEND ROUND_DONE
 *                                               └ commit ─► [former APPLY done?] ─► COMMIT, SEND ACK, APPLY
 *
 * The former epoch must be in the guest's memory before the next becomes the committed one: staging has room
 * for the epoch being applied and the one that arrives, and the one place that may be torn is the memory,
 * while the epoch that repairs it is still staged.
 */

void standby_on_round_end(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    const char *frame = role_event_frame_name(event);
    if (!standby->prepared || standby->expecting || standby->finishing) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL, "%s before %s", frame,
                       standby->prepared ? "the former round was answered" : "ACCEPT");
        return;
    }
    uint64_t floor = standby->epoch;
    if (!floor && standby->commit.present &&
        !memcmp(standby->history, standby->commit.history, sizeof standby->history))
        floor = standby->commit.epoch;
    bool fits = standby->between ? event->epoch > floor && event->round == 0
                                 : event->epoch == standby->epoch && event->round == standby->round;
    if (!fits) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL,
                       "%s of round %u of epoch %llu; %s round %u of epoch %llu", frame, event->round,
                       (unsigned long long)event->epoch,
                       standby->between ? "expected is round 0 after the end of" : "expected is",
                       standby->between ? 0 : standby->round,
                       (unsigned long long)(standby->between ? floor : standby->epoch));
        return;
    }
    standby->lanes_up = true; /* a round cannot be there unless they are; the lanes' own word is on its way */
    standby_session_ready(standby);
    standby->epoch = event->epoch;
    standby->round = event->round;
    standby->between = false;
    standby->expecting = true;
    standby->expecting_commit = event->captured;
    struct role_action *action = role_act(core, ACTION_EXPECT);
    action->epoch = event->epoch;
    action->round = event->round;
    action->totals = event->totals;
    action->capture = event->captured;
    if (event->captured && event->commit)
        action->commit = *event->commit;
}

static void commit_epoch(struct standby *standby)
{
    struct role_core *core = &standby->core;
    struct standby_commit *commit = &standby->commit;
    standby->finishing = false;
    standby->between = true;
    role_act(core, ACTION_COMMIT)->epoch = standby->epoch;
    bool first = core->reason[0]; /* of the session: its set-up left a reason */
    commit->present = true;
    commit->overtaken = NULL;
    commit->epoch = standby->epoch;
    commit->at_ns = core->now_ns;
    commit->generation = core->generation;
    memcpy(commit->history, standby->history, sizeof commit->history);
    role_send(core, WIRE_ACK)->epoch = standby->epoch;
    commit->applying = true;
    role_act(core, ACTION_APPLY)->epoch = standby->epoch;
    role_reason(core, "%s", "");
    if (first)
        role_report(core, LOG_LEVEL_NOTICE, "protecting %s: epoch %llu is committed here",
                    core->peer[0] ? core->peer : "the primary", (unsigned long long)standby->epoch);
}

static enum wire_refusal refusal_for(int code)
{
    switch (code) {
    case -EBADMSG:
        return WIRE_REFUSE_CORRUPT;
    case -ENOSPC:
        return WIRE_REFUSE_STAGING;
    case -EPROTO:
    case -EMSGSIZE:
        return WIRE_REFUSE_PROTOCOL;
    default:
        return WIRE_REFUSE_INTERNAL;
    }
}

void standby_on_round_complete(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    /* A failure may come before the end of its round was announced: pages that do not fit, or do not decode.
     */
    bool announced = standby->expecting && event->epoch == standby->epoch && event->round == standby->round;
    if (!announced && (event->code == 0 || !standby->prepared))
        return;
    standby->expecting = false;
    if (event->code < 0) {
        standby_refuse(standby, refusal_for(event->code), "epoch %llu round %u: %s",
                       (unsigned long long)event->epoch, event->round,
                       event->text ? event->text : "it is not whole");
        return;
    }
    if (!standby->expecting_commit) {
        struct role_action *action = role_send(core, WIRE_ROUND_DONE);
        action->epoch = standby->epoch;
        action->round = standby->round;
        standby->round++;
        return;
    }
    standby->finishing = true;
    if (!standby->commit.applying)
        commit_epoch(standby);
}

void standby_guest_broken(struct standby *standby, const char *why)
{
    struct role_core *core = &standby->core;
    bool had = standby->commit.present;
    standby->commit.present = false;
    standby->commit.broken = true;
    if (core->state == STANDBY_TAKING_OVER) {
        role_enter(core, STANDBY_FAILED);
        role_reason(core, "takeover failed: %s", why);
        standby_handover_failed(standby, WIRE_REFUSE_GUEST, why);
        role_report(core, LOG_LEVEL_ERROR, "%s", core->reason);
        if (standby->stop_wanted) {
            role_enter(core, STANDBY_ENDED);
            role_act(core, ACTION_EXIT)->code = -EIO;
        }
        return;
    }
    role_report(core, LOG_LEVEL_ERROR, "%s%s", why,
                had ? "; nothing can be resumed here until a full copy is committed" : "");
    if (core->session)
        standby_refuse(standby, WIRE_REFUSE_GUEST, "%s", why);
    else if (core->state == STANDBY_WAITING) /* it was of no use yet */
        role_reason(core, "%s", why);
    else if (core->state != STANDBY_ARBITRATING) /* else the answer finds nothing to resume */
        standby_lost(standby, why);
}

void standby_guest_failed(struct standby *standby, const char *doing, const struct role_event *event)
{
    char why[160];
    snprintf(why, sizeof why, "%s epoch %llu in the waiting guest failed: %s", doing,
             (unsigned long long)standby->commit.epoch, event->text ? event->text : "no reason given");
    standby_guest_broken(standby, why);
}

void standby_on_applied(struct standby *standby, const struct role_event *event)
{
    if (!standby->commit.applying)
        return;
    standby->commit.applying = false;
    if (event->code < 0 && standby->commit.broken)
        return; /* the waiting guest is gone, as we know already */
    if (event->code < 0) {
        standby_guest_failed(standby, "applying", event);
        return;
    }
    if (standby->finishing)
        commit_epoch(standby);
    if (standby->core.state == STANDBY_TAKING_OVER)
        standby_load(standby);
    else if (standby->core.state == STANDBY_SWITCHING)
        standby_load_early(standby);
}

void standby_on_guest(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    bool is_lost = event->guest == VMM_EVENT_LOST;
    if (event->guest != VMM_EVENT_ENDED && event->guest != VMM_EVENT_FAILED && !is_lost)
        return;
    const char *what = event->guest == VMM_EVENT_ENDED ? "ended"
                       : is_lost                       ? "cannot be reached any more"
                                                       : "failed";
    if (core->state == STANDBY_ACTIVE) {
        role_reason(core, "the guest %s", what);
        role_report(core, event->guest == VMM_EVENT_ENDED ? LOG_LEVEL_NOTICE : LOG_LEVEL_ERROR, "%s",
                    core->reason);
        if (!is_lost) /* it may run, by right */
            role_store(core, false);
        role_enter(core, STANDBY_ENDED);
        role_act(core, ACTION_EXIT)->code = event->guest == VMM_EVENT_ENDED ? 0 : -EIO;
        return;
    }
    /* While it loads, EVENT_RUNNING tells. */
    if (core->state == STANDBY_FAILED || (core->state == STANDBY_TAKING_OVER && standby->loading))
        return;
    char why[64];
    snprintf(why, sizeof why, "the waiting guest %s", what);
    standby_guest_broken(standby, why);
}
