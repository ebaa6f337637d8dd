/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/primary.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A planned switchover is one more epoch, after which the guest is not resumed, and then two questions:
 *
 *      primary                                            standby
 *      final capture: guest stopped, guarded
 *      COMMIT  ───────────────────────────────────────►   commits
 *        late_ns: no ACK yet ─► guest released, an epoch like any other
 *      ◄──────────────────────────────────────────  ACK
 *      SWITCH  ───────────────────────────────────────►   loads the device state, does not run
 *      ◄────────────────────────────────────────── LOADED
 *      guest kept (not even our death lets it run)
 *      HANDOVER ══════════════════════════════════════►   arbiter's leave, generation stored, runs
 *      ◄────────────────────────────────────────── STARTED
 *      MOVED
 *
 * Up to HANDOVER the standby runs nothing, and would not without a decision of its own, as at any other time.
 * So whatever fails until then is the loss of a session: the guest runs again (or is held, where that is the
 * policy), and nothing was given away. All that takes time or is likely to fail, the load above all, is on
 * that side of the line. And as long as SWITCH was not sent the final epoch can still become one like any
 * other, after which the guest goes on here: when the switchover is cancelled, or when the ACK takes so long
 * that the guest would be down for longer than was asked for (`late_ns`).
 *
 * From HANDOVER on (`handed`) nobody here can know whether the guest runs there. It stays stopped until
 *
 *     the standby says so: STARTED, or a refusal with a newer generation       MOVED
 *     the standby refuses that session by our own generation                   it will not: runs here again
 *     the standby greets us in a new session (WELCOME)                         it does not run it: here again
 *     the arbiter gives us the next generation                                 the standby cannot win: alone
 *     the arbiter says that it is taken                                        MOVED
 *     the operator says continue                                               his word
 *
 * A HANDOVER that is still on its way when the standby greets us belongs to a session that is over, and is
 * ignored there.
 */

#define ANSWER_DETECTS 8  /* the bound on each answer while the guest is stopped */
#define LATE_PART      10 /* so much more, of the downtime, is waited for the last checkpoint's ACK */
#define LATE_PAUSE     (100 * NS_PER_MS) /* until the next attempt; twice as long each time, */
#define LATE_PAUSES    6                 /* so many times */
#define SLOWED_TIMES   5                 /* a guest is slowed for at most so many times the timeout */

uint64_t switch_step_by(const struct primary *primary)
{
    const struct role_config *config = &primary->core.config;
    uint64_t wait_ns = later(ANSWER_DETECTS * config->detect_ns, 4 * primary->switchover.max_downtime_ns);
    return primary->core.now_ns + earlier(config->setup_ns, wait_ns);
}

static void decided(struct primary *primary, enum role_migration state, const char *text)
{
    struct switchover *switchover = &primary->switchover;
    switchover->state = state;
    switchover->until_ns = primary->core.now_ns;
    switchover->by_ns = switchover->late_ns = NEVER;
    switchover->overdue = switchover->throttling = false;
    snprintf(switchover->text, sizeof switchover->text, "%s", text);
}

static void failed(struct primary *primary, const char *why)
{
    decided(primary, MIGRATION_FAILED, why);
    role_report(&primary->core, LOG_LEVEL_WARNING, "migration: %s; the guest stays here", why);
}

static bool under_way(const struct primary *primary)
{
    return primary->switchover.state == MIGRATION_COPYING || primary->switchover.state == MIGRATION_SWITCHING;
}

static void on_migrate(struct primary *primary, const struct role_event *event)
{
    struct switchover *switchover = &primary->switchover;
    struct role_core *core = &primary->core;
    if (under_way(primary) || switchover->handed) {
        role_report(core, LOG_LEVEL_ERROR, "migration: one is under way already");
        return;
    }
    *switchover = (struct switchover){
        .state = MIGRATION_COPYING,
        .since_ns = core->now_ns,
        .by_ns = event->timeout_ns ? core->now_ns + event->timeout_ns : NEVER,
        .late_ns = NEVER,
        .max_downtime_ns = event->downtime_ns,
        .anyway = event->force,
        .left = event->left,
        .throttle = event->throttle,
        .timeout_ns = event->timeout_ns,
    };
    role_report(core, LOG_LEVEL_NOTICE,
                "migration: the guest moves when it would be down for %llu ms at most",
                (unsigned long long)(event->downtime_ns / NS_PER_MS));
    epoch_hurry(primary);
}

void switch_ask(struct primary *primary, struct role_action *round)
{
    struct switchover *switchover = &primary->switchover;
    const struct role_core *core = &primary->core;
    if (switchover->state != MIGRATION_COPYING || core->state != PRIMARY_PROTECTED)
        return;
    if (!(core->optional & WIRE_FEATURE_SWITCH)) {
        failed(primary, "the standby's version cannot be switched over to");
        return;
    }
    round->final = switchover->overdue;
    if (core->now_ns < switchover->not_before_ns && !round->final)
        return;
    switchover->tried = true;
    /* Each checkpoint that was late shows that predictions are too short here: the next must fit into less.
     */
    unsigned parts = switchover->taken_back < LATE_PART / 2 ? switchover->taken_back : LATE_PART / 2;
    round->downtime_ns = switchover->max_downtime_ns - switchover->max_downtime_ns / LATE_PART * parts;
}

/* What may be the guest's last stop here need not wait until it has run for long enough since the one before.
 */
bool switch_first_try(const struct primary *primary)
{
    return primary->switchover.state == MIGRATION_COPYING && !primary->switchover.tried;
}

/* The final epoch becomes one like any other, after which the guest goes on here. */
static void take_back(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    primary->switchover.stopped = loop->final = false;
    if (loop->phase == PHASE_ACK)
        primary->step_by_ns = primary->core.now_ns + primary->core.config.setup_ns;
    /* It stood still for longer than the capture took. */
    loop->pause_mean_ns = later(loop->pause_mean_ns, primary->core.now_ns - loop->captured_at_ns);
    role_act(&primary->core, ACTION_RELEASE);
}

void switch_captured(struct primary *primary, uint64_t after_ns)
{
    struct switchover *switchover = &primary->switchover;
    switchover->stopped = true;
    if (switchover->state != MIGRATION_COPYING) { /* cancelled while it was being captured */
        take_back(primary);
        return;
    }
    uint64_t most_ns = switchover->max_downtime_ns + switchover->max_downtime_ns / LATE_PART;
    switchover->late_ns = switchover->overdue
                              ? NEVER
                              : primary->loop.captured_at_ns + (most_ns > after_ns ? most_ns - after_ns : 0);
    switchover->state = MIGRATION_SWITCHING;
    switchover->asked_by_ns = switchover->by_ns;
    switchover->by_ns = NEVER;
}

/*
 * What is left to do would keep the guest down for longer than was asked for. What was learnt from this
 * checkpoint goes into the next prediction, which has to be shorter besides, and must wait: a guest that is
 * stopped again and again for nothing would hardly run.
 */
void switch_check_late(struct primary *primary)
{
    struct switchover *switchover = &primary->switchover;
    uint64_t now_ns = primary->core.now_ns;
    if (now_ns < switchover->late_ns)
        return;
    assert(switchover->state == MIGRATION_SWITCHING && switchover->stopped && !switchover->handed);
    switchover->late_ns = NEVER;
    switchover->lost_ns += now_ns - primary->loop.captured_at_ns;
    switchover->not_before_ns =
        now_ns +
        (LATE_PAUSE << (switchover->taken_back < LATE_PAUSES ? switchover->taken_back : LATE_PAUSES));
    switchover->taken_back++;
    switchover->state = MIGRATION_COPYING;
    switchover->by_ns = switchover->asked_by_ns;
    take_back(primary);
    role_report(
        &primary->core, LOG_LEVEL_NOTICE,
        "migration: the last checkpoint takes longer than was expected; the guest runs on here, and it "
        "is tried again");
}

void switch_late_capture(struct primary *primary)
{
    struct role_core *core = &primary->core;
    const struct role_config *config = &core->config;
    if (primary->held || core->state == PRIMARY_YIELDED || core->state == PRIMARY_MOVED)
        return;
    bool together = core->state == PRIMARY_COPYING || core->state == PRIMARY_PROTECTED;
    if (together || !primary->exposed || !(config->arbiter || config->loss == ROLE_LOSS_STALL)) {
        role_act(core, ACTION_RELEASE);
        return;
    }
    /* Somebody is about to decide whether it may run. */
    primary_hold(primary);
    if (core->state == PRIMARY_DISCONNECTED)
        role_enter(core, PRIMARY_STALLED);
}

void switch_acknowledged(struct primary *primary)
{
    struct role_core *core = &primary->core;
    primary->loop.phase = PHASE_SWITCH;
    primary->switchover.late_ns = NEVER;
    role_enter(core, PRIMARY_SWITCHING);
    role_reason(core, "the guest is being switched over to %s", core->peer[0] ? core->peer : "the standby");
    role_send(core, WIRE_SWITCH)->epoch = primary->loop.epoch;
    primary->step_by_ns = switch_step_by(primary);
}

static void on_loaded(struct primary *primary, const struct role_event *event)
{
    if (primary->switchover.handed || event->epoch != primary->loop.epoch) {
        primary_violation(primary, "LOADED for epoch %llu; present is epoch %llu",
                          (unsigned long long)event->epoch, (unsigned long long)primary->loop.epoch);
        return;
    }
    primary->step_by_ns = switch_step_by(primary);
    role_act(&primary->core, ACTION_KEEP);
}

static void on_kept(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (core->state != PRIMARY_SWITCHING || primary->switchover.handed)
        return;
    if (event->code < 0) {
        primary_restart(primary, 0, event->text ? event->text : "the guest cannot be kept stopped");
        return;
    }
    primary->switchover.handed = true;
    role_send(core, WIRE_HANDOVER)->epoch = primary->loop.epoch;
    primary->step_by_ns = switch_step_by(primary);
}

void switch_moved(struct primary *primary, uint64_t generation)
{
    struct switchover *switchover = &primary->switchover;
    struct role_core *core = &primary->core;
    const char *to = core->peer[0] ? core->peer : "the standby";
    switchover->stopped = false;
    switchover->handed = false;
    role_act(core, ACTION_YIELD);
    primary_drop_session(primary);
    primary->decide_at_ns = NEVER;
    core->generation = later(core->generation, generation);
    role_store(core, false);
    role_enter(core, PRIMARY_MOVED);
    role_reason(core, "moved to %s, which runs the guest by generation %llu; here it is stopped for good", to,
                (unsigned long long)core->generation);
    role_report(core, LOG_LEVEL_NOTICE, "%s", core->reason);
    switchover->downtime_ns = core->now_ns - primary->loop.captured_at_ns;
    decided(primary, MIGRATION_MOVED, core->reason);
    if (switchover->stop_wanted) {
        role_enter(core, PRIMARY_ENDED);
        role_act(core, ACTION_EXIT);
    }
}

static void on_started(struct primary *primary, const struct role_event *event)
{
    /* By a newer generation it would have been believed before it came here. */
    primary_violation(primary, "STARTED by generation %llu, which is ours",
                      (unsigned long long)event->generation);
}

void switch_returned(struct primary *primary)
{
    if (primary->switchover.handed)
        role_report(&primary->core, LOG_LEVEL_NOTICE, "migration: nobody runs the guest elsewhere");
    primary->switchover.handed = false;
    /* With nothing committed there it cannot run later either, so there is nothing to wait for. */
    if (primary->switchover.doubt && !primary->exposed)
        primary_release(primary);
    primary->switchover.doubt = false;
}

void switch_over(struct primary *primary, const char *why)
{
    if (under_way(primary))
        decided(primary, MIGRATION_FAILED, why);
    primary->switchover.stopped = primary->switchover.handed = false;
}

/*
 * The standby may have won the arbitration (a refusal that says it will not may be old), and we are about to
 * ask. A guest that runs stays running till the answer, but one that is stopped need not be started for that
 * long.
 */
static bool may_be_taken(const struct primary *primary)
{
    return primary->core.config.arbiter && primary->exposed;
}

void switch_lost(struct primary *primary, const char *why)
{
    struct switchover *switchover = &primary->switchover;
    if (switchover->state == MIGRATION_SWITCHING && switchover->handed)
        decided(primary, MIGRATION_FAILED,
                "the standby was told to run the guest and was lost; who runs it is not "
                "known here yet");
    else if (under_way(primary))
        failed(primary, why);
    if (!switchover->stopped)
        return;
    switchover->stopped = false;
    bool by_policy = primary->exposed && primary->core.config.loss == ROLE_LOSS_STALL;
    switchover->doubt = !by_policy && (switchover->handed || may_be_taken(primary));
    if (by_policy || switchover->doubt)
        primary_hold(primary);
    else
        role_act(&primary->core, ACTION_RELEASE);
}

static void on_cancel(struct primary *primary)
{
    struct switchover *switchover = &primary->switchover;
    if (switchover->handed) {
        role_report(&primary->core, LOG_LEVEL_WARNING,
                    "migration: too late to cancel, the standby was told to run the guest");
        return;
    }
    if (!under_way(primary))
        return;
    bool loading = primary->core.state == PRIMARY_SWITCHING;
    failed(primary, "cancelled");
    if (switchover->stopped)
        take_back(primary);
    /* What the standby has loaded takes no further epoch. */
    if (loading)
        primary_restart(primary, 0, "the migration was cancelled");
}

bool switch_event(struct primary *primary, const struct role_event *event)
{
    switch (event->type) {
    case EVENT_MIGRATE:
        on_migrate(primary, event);
        return true;
    case EVENT_MIGRATE_CANCEL:
        on_cancel(primary);
        return true;
    case EVENT_LOADED:
        on_loaded(primary, event);
        return true;
    case EVENT_KEPT:
        on_kept(primary, event);
        return true;
    case EVENT_STARTED:
        on_started(primary, event);
        return true;
    default:
        return false;
    }
}

void switch_timers(struct primary *primary)
{
    struct switchover *switchover = &primary->switchover;
    switch_check_late(primary);
    if (primary->core.now_ns < switchover->by_ns)
        return;
    switchover->by_ns = NEVER;
    if (!under_way(primary))
        return;
    if (switchover->anyway) {
        switchover->overdue = true;
        epoch_hurry(primary);
        return;
    }
    if (switchover->throttle && !switchover->throttling) {
        switchover->throttling = true;
        switchover->by_ns = primary->core.now_ns + SLOWED_TIMES * switchover->timeout_ns;
        role_report(&primary->core, LOG_LEVEL_WARNING,
                    "migration: the downtime does not fit; the guest is slowed until it does");
        return;
    }
    failed(primary, switchover->throttling
                        ? "the downtime did not fit in the time that was given, though the guest was slowed"
                        : "the downtime did not fit in the time that was given");
}

uint64_t switch_deadline(const struct primary *primary)
{
    return earlier(primary->switchover.by_ns, primary->switchover.late_ns);
}
