/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standby.h"

#include <stdio.h>

/*
 * Theory of operation
 *
 * The standby's half of a planned switchover (primary_switch.c has both):
 *
 *     SWITCH    ─► [APPLY done?] ─► LOAD ─► LOADED     the guest has the last epoch's device state, stopped
 *     HANDOVER  ─► the way of every takeover: arbiter, generation stored, run ─► STARTED
 *
 * A checkpoint that is loaded is still one that can be taken over: the session may end here, and policy says
 * what then. But the waiting guest cannot take another, so the next session begins with a fresh one.
 *
 * From HANDOVER on the machine has no session any more, so that nothing that becomes of the connection
 * disturbs the takeover; the connection itself stays open for the answer.
 */

void standby_load_early(struct standby *standby)
{
    if (standby->commit.applying || standby->commit.load != LOAD_NONE)
        return;
    standby->commit.load = LOAD_UNDER_WAY;
    role_act(&standby->core, ACTION_LOAD)->epoch = standby->commit.epoch;
}

void standby_on_switch(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (!(core->optional & WIRE_FEATURE_SWITCH) || !standby->commit.present || !standby->between ||
        standby->expecting || standby->finishing || event->epoch != standby->epoch ||
        event->epoch != standby->commit.epoch) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL, "SWITCH to epoch %llu; committed is %llu",
                       (unsigned long long)event->epoch, (unsigned long long)standby->commit.epoch);
        return;
    }
    role_enter(core, STANDBY_SWITCHING);
    role_reason(core, "the guest is being moved here");
    standby_load_early(standby);
}

void standby_on_load_done(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (standby->commit.load != LOAD_UNDER_WAY)
        return;
    standby->commit.load = LOAD_NONE;
    if (standby->commit.broken)
        return; /* known already */
    if (event->code < 0) {
        standby_guest_failed(standby, "loading", event);
        return;
    }
    standby->commit.load = LOAD_DONE;
    if (core->state == STANDBY_TAKING_OVER)
        standby_load(standby);
    else if (core->state == STANDBY_SWITCHING)
        role_send(core, WIRE_LOADED)->epoch = standby->commit.epoch;
}

void standby_on_handover(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (standby->commit.load != LOAD_DONE || event->epoch != standby->commit.epoch) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL, "HANDOVER of epoch %llu before LOADED",
                       (unsigned long long)event->epoch);
        return;
    }
    standby->handover_session = core->session;
    core->session = 0;
    core->heartbeat_at_ns = NEVER;
    standby_take_over_now(standby, false);
}

static void hang_up(struct standby *standby)
{
    role_act(&standby->core, ACTION_DISCONNECT)->session = standby->handover_session;
    standby->handover_session = 0;
}

void standby_handover_failed(struct standby *standby, enum wire_refusal code, const char *why)
{
    if (!standby->handover_session)
        return;
    role_send_refuse(&standby->core, standby->handover_session, code, why);
    role_heard(
        &standby->core); /* it waited for this; taking over all the same would need a silence from here on */
    hang_up(standby);
}

void standby_started(struct standby *standby)
{
    if (!standby->handover_session)
        return;
    struct role_action *action = role_send(&standby->core, WIRE_STARTED);
    action->session = standby->handover_session;
    action->epoch = standby->commit.epoch;
    hang_up(standby);
}
