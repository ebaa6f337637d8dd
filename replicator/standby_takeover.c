/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standby.h"

/*
 * Theory of operation
 *
 * The right to resume a checkpoint is the generation by which it was made: if the register still holds that
 * one, nobody has shown the world anything newer. So arbitration swaps from the checkpoint's generation, not
 * from the newest we have heard of, and a primary that went on alone makes every older checkpoint lose.
 *
 * Order of a takeover: arbitration won -> primary's host fenced, where that is wanted -> generation stored ->
 * guest's memory whole -> load and run. A crash in between leaves a generation that nobody runs, never two
 * guests of one generation.
 */

bool standby_commit_current(const struct standby *standby, const char **ret_why)
{
    const struct standby_commit *commit = &standby->commit;
    if (commit->broken)
        *ret_why = "the waiting guest is broken";
    else if (!commit->present)
        *ret_why = "no checkpoint was ever committed here";
    else if (commit->overtaken)
        *ret_why = commit->overtaken;
    else if (commit->generation != (standby->raised_from ? standby->raised_from : standby->core.generation))
        *ret_why = "the primary went on alone after the checkpoint here was made";
    else
        return true;
    return false;
}

void standby_lost(struct standby *standby, const char *why)
{
    struct role_core *core = &standby->core;
    const char *not_current = NULL;
    bool current = standby_commit_current(standby, &not_current);
    bool automatic = current && core->config.takeover == ROLE_TAKEOVER_AUTO;
    standby->takeover_at_ns = automatic ? role_silent_at(core) : NEVER;
    role_enter(core, standby->commit.present ? STANDBY_LOST : STANDBY_WAITING);
    if (automatic)
        role_reason(core, "%s; taking over unless the primary is back in time", why);
    else if (current)
        role_reason(core, "%s; epoch %llu can be taken over", why, (unsigned long long)standby->commit.epoch);
    else
        role_reason(core, "%s; %s", why, not_current);
    role_report(core, LOG_LEVEL_WARNING, "session ended: %s", core->reason);
}

void standby_load(struct standby *standby)
{
    if (standby->commit.applying || standby->commit.load == LOAD_UNDER_WAY)
        return; /* the guest is being written: EVENT_APPLIED or EVENT_LOAD_DONE comes first */
    standby->loading = true;
    role_act(&standby->core, ACTION_TAKEOVER)->epoch = standby->commit.epoch;
}

/* The right is ours: our generation is that by which the guest will run. */
static void take_over(struct standby *standby)
{
    struct role_core *core = &standby->core;
    standby->raised_from = 0;
    role_store(core, true);
    if (core->session) /* carries the new generation: the primary yields at once */
        role_send_refuse(core, core->session, WIRE_REFUSE_GENERATION, "the guest is taken over");
    standby_drop_session(standby);
    role_enter(core, STANDBY_TAKING_OVER);
    standby->takeover_at_ns = NEVER;
    role_reason(core, "resuming epoch %llu by generation %llu", (unsigned long long)standby->commit.epoch,
                (unsigned long long)core->generation);
    role_report(core, LOG_LEVEL_WARNING, "taking over: %s", core->reason);
    standby_load(standby);
}

void standby_take_over_now(struct standby *standby, bool force)
{
    struct role_core *core = &standby->core;
    standby->takeover_at_ns = NEVER;
    /* Who hands the guest over has stopped it, and is not switched off for it. */
    bool fence = core->config.fence && !standby->handover_session;
    if ((!core->config.arbiter && !fence) || force) {
        core->generation = later(core->generation, core->claimed) + 1;
        take_over(standby);
        return;
    }
    standby_drop_session(standby);
    role_enter(core, STANDBY_ARBITRATING);
    role_reason(core, !fence                 ? "the arbiter is asked"
                      : core->config.arbiter ? "the arbiter is asked, then the primary's host is fenced"
                                             : "the primary's host is fenced");
    role_arbitrate(core, standby->commit.generation)->fence = fence;
}

void standby_on_takeover(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    const char *why = NULL;
    if (core->state == STANDBY_TAKING_OVER || core->state == STANDBY_ACTIVE ||
        core->state == STANDBY_FAILED) {
        role_report(core, LOG_LEVEL_ERROR, "takeover refused: this standby is %s already",
                    role_state_name(core->state));
        return;
    }
    bool current = standby_commit_current(standby, &why);
    if (!standby->commit.present) {
        role_report(core, LOG_LEVEL_ERROR, "takeover refused: %s", why);
        return;
    }
    if (core->state == STANDBY_ARBITRATING && !event->force)
        return; /* decided already; the answer is awaited */
    if (!current)
        role_report(core, LOG_LEVEL_WARNING, "the operator resumes an outdated checkpoint: %s", why);
    if (event->force && (core->config.arbiter || core->config.fence))
        role_report(core, LOG_LEVEL_WARNING, "the operator overrules the %s",
                    core->config.arbiter ? "arbiter" : "fence");
    standby_take_over_now(standby, event->force);
}

static void decide(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    const char *why = NULL;
    if (!standby->commit.present) {
        /* The guest broke while we asked. Our generation stays, so that the primary may come back. */
        standby_commit_current(standby, &why);
        role_enter(core, STANDBY_WAITING);
        role_reason(core, "no takeover: %s", why);
        standby_handover_failed(standby, WIRE_REFUSE_GUEST, why);
        role_report(core, LOG_LEVEL_ERROR, "%s", core->reason);
        return;
    }
    switch (event->arbiter) {
    case ARBITER_WON:
        standby->arbitrate_pause_ns = 0;
        role_won(core, event);
        take_over(standby);
        return;
    case ARBITER_LOST:
        /* Not taken as our generation: what counts is what the primary itself says when it is back. */
        core->claimed = 0;
        standby->commit.overtaken = "the arbiter let the primary go on alone";
        role_enter(core, STANDBY_WAITING);
        role_reason(core, "arbitration lost: generation %llu is taken",
                    (unsigned long long)event->generation);
        role_report(core, LOG_LEVEL_WARNING, "no takeover: %s", core->reason);
        standby_handover_failed(standby, WIRE_REFUSE_BUSY, core->reason);
        return;
    case ARBITER_UNREACHABLE:
    case ARBITER_UNFENCED:
        break;
    }
    bool again = standby_commit_current(standby, &why) && core->config.takeover == ROLE_TAKEOVER_AUTO;
    if (again)
        standby->takeover_at_ns = core->now_ns + role_backoff(&core->config, &standby->arbitrate_pause_ns);
    role_enter(core, STANDBY_LOST);
    /* What was won under our name is no obstacle to the next attempt. */
    bool unfenced = event->arbiter == ARBITER_UNFENCED;
    role_reason(core, "%s%s%.140s%s",
                unfenced ? "the primary's host is not fenced" : "the arbiter cannot be reached",
                event->text ? ": " : "", event->text ? event->text : "",
                !again     ? ""
                : unfenced ? "; it is tried again"
                           : "; it is asked again");
    role_report(core, LOG_LEVEL_ERROR, "no takeover: %s", core->reason);
    standby_handover_failed(standby, WIRE_REFUSE_INTERNAL, core->reason);
}

void standby_on_arbiter(struct standby *standby, const struct role_event *event)
{
    if (standby->core.state != STANDBY_ARBITRATING)
        return; /* forced meanwhile */
    decide(standby, event);
    if (standby->stop_wanted && standby->core.state != STANDBY_TAKING_OVER)
        standby_stop(standby);
}

void standby_on_running(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (core->state != STANDBY_TAKING_OVER || !standby->loading)
        return;
    standby->loading = false;
    if (event->code < 0) {
        /* The stored right stays: whether the guest ran for a moment is not known. */
        role_enter(core, STANDBY_FAILED);
        role_reason(core, "takeover failed: %s", event->text ? event->text : "no reason given");
        role_report(core, LOG_LEVEL_ERROR, "%s", core->reason);
        standby_handover_failed(standby, WIRE_REFUSE_GUEST, core->reason);
    } else {
        role_enter(core, STANDBY_ACTIVE);
        standby_started(standby);
        role_reason(core, "taken over; no standby protects the guest here");
        /* In a step of its own, so that who waits for this one sees the takeover done. */
        if (core->config.reprotect == ROLE_REPROTECT_AUTO)
            standby->turn_at_ns = core->now_ns;
        role_report(core, LOG_LEVEL_NOTICE, "the guest runs here from epoch %llu on",
                    (unsigned long long)standby->commit.epoch);
    }
    if (standby->stop_wanted) {
        role_enter(core, STANDBY_ENDED);
        role_act(core, ACTION_EXIT)->code = event->code;
    }
}
