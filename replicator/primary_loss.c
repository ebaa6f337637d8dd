/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/primary.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/*
 * Theory of operation
 *
 * primary_lose() is the only place where the loss of a standby is judged:
 *
 *     nothing to lose (not exposed)   the guest runs on
 *     stall                           the guest is held at once
 *     continue, no arbiter            the guest runs on
 *     (and its output, which was held, goes out when the silence is as long as `detect`)
 *     continue, arbiter               asked when the silence is as long as `detect`, as the standby does too:
 *                                     a connection that broke is not yet a standby that died
 */

/* How long after its last sign of life a standby that may take over is called again quickly. */
#define EAGER_DETECTS 16

void primary_hold(struct primary *primary)
{
    if (!primary->held)
        role_act(&primary->core, ACTION_HOLD);
    primary->held = true;
}

void primary_release(struct primary *primary)
{
    if (primary->held)
        role_act(&primary->core, ACTION_RELEASE);
    primary->held = false;
}

static void pass(struct primary *primary)
{
    if (!primary->passing)
        role_act(&primary->core, ACTION_PASS);
    primary->passing = true;
    primary->pass_at_ns = NEVER;
}

/* A primary that has just started knows not yet whether there is an older checkpoint of the guest; until it
 * does, nothing is let out (but see primary_new(), for whom a person decides about takeovers). */
void primary_pass_if_alone(struct primary *primary)
{
    if (!primary->exposed && primary->settled)
        pass(primary);
}

void primary_pass_overdue(struct primary *primary)
{
    primary->exposed = false;
    primary->settled = true;
    role_reason(&primary->core, "%s; the guest runs on alone", primary->core.reason);
    role_report(&primary->core, LOG_LEVEL_WARNING, "not protected: output is not held any more");
    pass(primary);
}

void primary_drop_session(struct primary *primary)
{
    struct role_core *core = &primary->core;
    if (core->state == PRIMARY_PROTECTED || core->state == PRIMARY_SWITCHING)
        primary->unprotected_ns = core->now_ns;
    if (core->session)
        role_act(core, ACTION_DISCONNECT);
    core->session = 0;
    core->heartbeat_at_ns = NEVER;
    primary->step_by_ns = NEVER;
    primary->retry_at_ns = NEVER;
    epoch_end_session(primary);
}

static bool wants_arbiter(const struct primary *primary)
{
    const struct role_config *config = &primary->core.config;
    return config->arbiter && (primary->exposed ? config->loss == ROLE_LOSS_CONTINUE : !primary->settled);
}

void primary_lose(struct primary *primary, enum log_level level, const char *format, ...)
{
    struct role_core *core = &primary->core;
    char why[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(why, sizeof why, format, arguments);
    va_end(arguments);

    bool was_up = core->state == PRIMARY_COPYING || core->state == PRIMARY_PROTECTED ||
                  core->state == PRIMARY_SWITCHING;
    switch_lost(primary, why);
    primary_drop_session(primary);
    uint64_t pause_ns = role_backoff(&core->config, &primary->retry_pause_ns);
    /* A standby that slept takes over unless we are back soon after it wakes. */
    if (primary->exposed && core->now_ns < core->heard_ns + EAGER_DETECTS * core->config.detect_ns)
        pause_ns = earlier(pause_ns, core->config.detect_ns / 4);
    primary->retry_at_ns = core->now_ns + pause_ns;
    if (wants_arbiter(primary) && primary->decide_at_ns == NEVER)
        primary->decide_at_ns = later(core->now_ns, role_silent_at(core));

    /* While it keeps failing the same way, once is enough. */
    bool news = was_up || strncmp(core->reason, why, strlen(why)) != 0;
    if (primary->exposed && core->config.loss == ROLE_LOSS_STALL)
        primary_hold(primary);
    role_enter(core, primary->held ? PRIMARY_STALLED : PRIMARY_DISCONNECTED);
    primary_pass_if_alone(primary);
    if (primary->exposed && core->config.loss == ROLE_LOSS_CONTINUE && !core->config.arbiter &&
        primary->pass_at_ns == NEVER && !primary->switchover.handed)
        primary->pass_at_ns = later(core->now_ns, role_silent_at(core));
    role_reason(core, "%s%s", why, primary->held ? "; the guest is held" : "");
    if (news)
        role_report(core, level, "%s: %s", was_up ? "not protected" : "no session", core->reason);
}

void primary_restart(struct primary *primary, uint64_t pause_ns, const char *why)
{
    struct role_core *core = &primary->core;
    role_send_refuse(core, core->session, WIRE_REFUSE_INTERNAL, why);
    switch_lost(primary, why);
    primary_drop_session(primary);
    primary->retry_at_ns = core->now_ns + earlier(pause_ns, core->config.detect_ns / 4);
    if (wants_arbiter(primary))
        primary->decide_at_ns = role_silent_at(core);
    role_enter(core, PRIMARY_DISCONNECTED);
    primary_pass_if_alone(primary);
    role_reason(core, "%s", why);
}

void primary_violation(struct primary *primary, const char *format, ...)
{
    char text[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    role_send_refuse(&primary->core, primary->core.session, WIRE_REFUSE_PROTOCOL, text);
    primary_lose(primary, LOG_LEVEL_ERROR, "the standby broke the protocol: %s", text);
}

void primary_yield(struct primary *primary, uint64_t generation, const char *who)
{
    struct role_core *core = &primary->core;
    if (primary->switchover.handed) {
        switch_moved(primary, generation);
        return;
    }
    role_act(core, ACTION_YIELD);
    switch_over(primary, "the guest was taken over");
    primary_drop_session(primary);
    primary->decide_at_ns = NEVER;
    uint64_t own = core->generation;
    core->generation = later(core->generation, generation);
    role_store(core, false);
    role_enter(core, PRIMARY_YIELDED);
    role_reason(core, "%s has generation %llu, ours is %llu: the guest runs elsewhere by right", who,
                (unsigned long long)generation, (unsigned long long)own);
    role_report(core, LOG_LEVEL_ERROR, "guest stopped for good: %s", core->reason);
}

void primary_arbitrate(struct primary *primary)
{
    struct role_core *core = &primary->core;
    primary_drop_session(primary);
    primary->decide_at_ns = NEVER;
    role_enter(core, PRIMARY_ARBITRATING);
    role_arbitrate(core, core->generation);
}

static void go_alone(struct primary *primary)
{
    struct role_core *core = &primary->core;
    switch_returned(primary);
    primary->exposed = false;
    primary->settled = true;
    primary->decide_at_ns = NEVER;
    primary->decide_pause_ns = 0;
    pass(primary);
    primary_release(primary);
    role_enter(core, PRIMARY_DISCONNECTED);
    primary->retry_at_ns = core->now_ns;
    role_reason(core, "running alone by generation %llu", (unsigned long long)core->generation);
    role_report(core, LOG_LEVEL_WARNING, "not protected: %s", core->reason);
}

void primary_on_arbiter(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (core->state != PRIMARY_ARBITRATING)
        return;
    switch (event->arbiter) {
    case ARBITER_WON:
        role_won(core, event);
        primary->right = ROLE_RIGHT_STORED;
        role_store(core, true);
        go_alone(primary);
        return;
    case ARBITER_LOST:
        primary_yield(primary, event->generation, "the arbiter");
        return;
    case ARBITER_UNREACHABLE:
    case ARBITER_UNFENCED: /* a primary fences nobody */
        break;
    }
    /* Without exposure nobody has anything to resume by our generation: no reason to stop the guest. */
    if (primary->exposed)
        primary_hold(primary);
    if (wants_arbiter(primary))
        primary->decide_at_ns = core->now_ns + role_backoff(&core->config, &primary->decide_pause_ns);
    role_enter(core, primary->held ? PRIMARY_STALLED : PRIMARY_DISCONNECTED);
    primary->retry_at_ns = core->now_ns;
    bool news = strncmp(core->reason, "the arbiter", 11) != 0;
    role_reason(core, "the arbiter cannot be reached%s%.140s%s", event->text ? ": " : "",
                event->text ? event->text : "", primary->held ? "; the guest is held" : "");
    if (news)
        role_report(core, LOG_LEVEL_ERROR, "not protected: %s", core->reason);
}

void primary_on_continue(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    bool output_held = !primary->passing && core->state < PRIMARY_DESCRIBING;
    if ((!primary->held && !output_held) || core->state == PRIMARY_ARBITRATING) {
        role_report(core, LOG_LEVEL_NOTICE, "the operator says continue; %s",
                    core->state == PRIMARY_ARBITRATING ? "the arbiter is being asked"
                                                       : "neither the guest nor its output is held");
        return;
    }
    if (core->config.arbiter && !event->force) {
        primary_drop_session(primary);
        if (core->state != PRIMARY_DISCONNECTED)
            role_enter(core, primary->held ? PRIMARY_STALLED : PRIMARY_DISCONNECTED);
        primary_arbitrate(primary);
        return;
    }
    primary_drop_session(primary);
    go_alone(primary);
}

uint64_t primary_overdue_hold(const struct primary *primary)
{
    const struct role_core *core = &primary->core;
    bool apart = core->state <= PRIMARY_GREETING;
    return apart && primary->exposed && !primary->held && core->config.loss == ROLE_LOSS_STALL
               ? role_silent_at(core)
               : NEVER;
}
