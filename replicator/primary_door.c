/* SPDX-License-Identifier: Apache-2.0 */
#include "base/log.h"
#include "replicator/primary.h"

#include <stdio.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A primary calls its standby. Two engines that both are primaries would call and never be heard: one that
 * took the guest over and protects it now, and the one that ran it before and does not know. So a primary has
 * a door, too. Whoever says HELLO there thinks that he runs the guest, and nobody is let in, but both learn
 * who is right:
 *
 *      his generation is newer      ours is over: yield
 *      it is older                  refused as such; he yields
 *      the same, and we took it     as above: the generation was made by our takeover
 *      the same, ours is in doubt   yield
 *      the same                     nobody can tell; both go on, and say so
 *
 * A guest that was left behind here (YIELDED, MOVED) stays as it is until an engine calls that runs the newer
 * one. Only then, and where the policy or the operator wants it, this engine becomes that one's standby: the
 * right to run the guest may have been given away and its owner have died before it ran, and then what stands
 * still here is the only one left.
 */

static void turn_away(struct primary *primary, const struct role_event *event, enum wire_refusal code,
                      const char *text)
{
    struct role_action *action = role_act(&primary->core, ACTION_TURN_AWAY);
    action->session = event->session;
    action->refusal = code;
    snprintf(action->text, sizeof action->text, "%s", text);
}

static void stand_by(struct primary *primary)
{
    struct role_core *core = &primary->core;
    role_enter(core, PRIMARY_ENDED);
    role_reason(core, "standing by for the guest that runs elsewhere");
    role_act(core, ACTION_TURN);
}

static bool wants_to_stand_by(const struct primary *primary)
{
    if (primary->core.state == PRIMARY_MOVED && primary->switchover.left != ROLE_LEFT_POLICY)
        return primary->switchover.left == ROLE_LEFT_SWAP;
    return primary->core.config.reprotect == ROLE_REPROTECT_AUTO;
}

static void left_behind(struct primary *primary, const struct role_event *event)
{
    if (!wants_to_stand_by(primary)) {
        turn_away(primary, event, WIRE_REFUSE_BUSY,
                  "the guest that was left behind here is kept; say `understudy reprotect` on this host to "
                  "make it the standby");
        return;
    }
    turn_away(primary, event, WIRE_REFUSE_BUSY, "this host is becoming the standby");
    stand_by(primary);
}

static void same_generation(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (primary->right == ROLE_RIGHT_TAKEN) {
        turn_away(primary, event, WIRE_REFUSE_GENERATION, "the guest was taken over here by this generation");
        return;
    }
    if (primary->right == ROLE_RIGHT_DOUBTFUL) {
        turn_away(primary, event, WIRE_REFUSE_BUSY, "this host has just yielded");
        primary_yield(primary, event->generation, "the other host");
        return;
    }
    turn_away(primary, event, WIRE_REFUSE_BUSY, "the guest runs here, too, by the same generation");
    role_report(core, LOG_LEVEL_ERROR,
                "%.63s protects this guest, too, by the same generation %llu; an operator must end one",
                event->hello->host, (unsigned long long)event->generation);
}

void primary_on_hello(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (memcmp(event->hello->vm_uuid, core->config.vm_uuid, sizeof core->config.vm_uuid) != 0)
        turn_away(primary, event, WIRE_REFUSE_VM, "this is the host of another machine (VM UUID differs)");
    else if (event->generation < core->generation)
        turn_away(primary, event, WIRE_REFUSE_GENERATION, "your generation is older than ours");
    else if (primary_guest_gone(primary))
        left_behind(primary, event);
    else if (event->generation == core->generation)
        same_generation(primary, event);
    else {
        /* Not turned into a standby in the same step: HELLO proves that he has a guest, not how it is; the
         * next one comes soon, and is met by a guest that stands still. */
        turn_away(primary, event, WIRE_REFUSE_BUSY, "this host has just yielded");
        primary_yield(primary, event->generation, "the other host");
    }
}

void primary_on_reprotect(struct primary *primary)
{
    struct role_core *core = &primary->core;
    if (!primary_guest_gone(primary)) {
        role_report(core, LOG_LEVEL_ERROR, "reprotect: the guest runs here; its standby is called anyway");
        return;
    }
    stand_by(primary);
}
