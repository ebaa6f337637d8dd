/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/primary.h"

#include <errno.h>
#include <stdio.h>

/*
 * Theory of operation
 *
 * One epoch is in flight. It is made of rounds 0..n; the last is the capture:
 *
 *     REST ─► ROUND ──live──► ROUND_DONE ─► ROUND ─► ... ─► ROUND ──captured──► ACK ─► REST
 *             │ made + sent      SEND ROUND                       SEND COMMIT     COMMITTED
 *             ├ -ETIME ─► REST, then another live round of the same epoch
 *             └ failed ─► the session starts anew: frames may be out that no COMMIT will ever count
 *
 * The guest's thread answers ROUND when the guest runs again; the lanes say SENT when the last frame of the
 * round was produced. They are different threads, so the two come in either order, and nothing is told to the
 * standby before both are there.
 *
 * The next epoch's first round starts one effective interval after the capture stopped the guest, or at the
 * ACK if that is later: a slow standby slows the epochs. The interval stretches so that all stops of an epoch
 * take at most pause_share percent of it. With `eager`, or when no more output can be held, an epoch that
 * output waits for is not drawn out to the interval: only pause_share bounds how soon it ends. Not even that
 * holds up the first try to move the guest: if it succeeds, there is no share to be kept.
 */

#define DEGRADED_AFTER 3 /* failed captures in a row */
#define DEGRADED_PAUSE NS_PER_S

uint64_t epoch_interval(const struct primary *primary)
{
    const struct role_config *config = &primary->core.config;
    return later(config->interval_ns, primary->loop.pause_mean_ns * 100 / config->pause_share);
}

/* How soon after the latest capture the next may stop the guest. */
static uint64_t earliest_ns(const struct primary *primary)
{
    return primary->loop.captured_at_ns +
           primary->loop.pause_mean_ns * 100 / primary->core.config.pause_share;
}

/* When the next epoch's first round is due: after the interval, or sooner when output waits for it. */
static void rest(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    bool soon = loop->output_urgent || (loop->output_waits && primary->core.config.eager) ||
                primary->switchover.state == MIGRATION_COPYING;
    loop->phase = PHASE_REST;
    loop->next_at_ns = switch_first_try(primary) ? loop->captured_at_ns
                       : soon                    ? earliest_ns(primary)
                                                 : loop->captured_at_ns + epoch_interval(primary);
}

void epoch_output(struct primary *primary, bool urgent)
{
    struct epoch_loop *loop = &primary->loop;
    loop->output_waits = true;
    loop->output_urgent |= urgent;
    /* A pause after failures is not shortened: what failed just now would fail again. */
    if (loop->phase == PHASE_REST && !loop->failures)
        rest(primary);
}

void epoch_hurry(struct primary *primary)
{
    if (primary->loop.phase == PHASE_REST && !primary->loop.failures)
        rest(primary);
}

/*
 * Output that comes from here on until the capture's own mark is covered by this epoch, and only what comes
 * after the mark is reported again; so the flags are cleared before the capture and not behind it.
 */
static void start_round(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    loop->phase = PHASE_ROUND;
    loop->output_waits = loop->output_urgent = false;
    primary->passing = false; /* if this round is the capture, output is held from its mark on */
    loop->made = loop->sent = loop->captured = loop->final = false;
    struct role_action *action = role_act(&primary->core, ACTION_ROUND);
    action->epoch = loop->epoch;
    action->round = loop->round;
    action->capture = loop->live >= primary->core.config.rounds_max;
    switch_ask(primary, action);
}

static void start_epoch(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    loop->epoch++;
    loop->round = 0;
    loop->live = 0;
    loop->pause_ns = 0;
    start_round(primary);
}

void epoch_begin_session(struct primary *primary)
{
    struct role_action *action = role_act(&primary->core, ACTION_BEGIN);
    action->full = primary->full;
    primary->loop.phase = PHASE_BEGIN;
}

void epoch_end_session(struct primary *primary)
{
    primary->loop.phase = PHASE_NONE;
}

static void on_begun(struct primary *primary, const struct role_event *event)
{
    if (primary->loop.phase != PHASE_BEGIN)
        return;
    if (event->code < 0)
        primary_lose(primary, LOG_LEVEL_ERROR, "tracking the guest's writes failed: %s",
                     event->text ? event->text : "no reason given");
    else
        start_epoch(primary);
}

static void round_failed(struct primary *primary, const struct role_event *event)
{
    struct epoch_loop *loop = &primary->loop;
    const struct role_config *config = &primary->core.config;
    const char *text = event->text             ? event->text
                       : event->code == -ETIME ? "it would stop the guest too long"
                                               : "no reason given";
    loop->failures++;
    loop->live = 0; /* what the capture could not take, live rounds make smaller */
    uint64_t pause_ns = config->interval_ns << (loop->failures < 6 ? loop->failures : 6);
    pause_ns = earlier(pause_ns, later(DEGRADED_PAUSE, config->interval_ns));
    if (loop->failures >= DEGRADED_AFTER && !loop->degraded) {
        role_report(&primary->core, LOG_LEVEL_WARNING,
                    "degraded: epoch %llu: %u captures in a row failed: %s; trying on",
                    (unsigned long long)loop->epoch, loop->failures, text);
        loop->degraded = true;
    }
    char why[160];
    snprintf(why, sizeof why, "%u capture%s in a row failed: %s", loop->failures,
             loop->failures == 1 ? "" : "s", text);
    if (event->code != -ETIME) {
        primary_restart(primary, pause_ns, why);
        return;
    }
    loop->next_at_ns = primary->core.now_ns + pause_ns;
    loop->phase = PHASE_REST;
    if (loop->failures >= DEGRADED_AFTER)
        role_reason(&primary->core, "%s", why);
}

static void round_finished(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    struct role_core *core = &primary->core;
    struct role_action *action = role_send(core, loop->captured ? WIRE_COMMIT : WIRE_ROUND);
    action->epoch = loop->epoch;
    action->round = loop->round;
    action->totals = loop->totals;
    primary->step_by_ns = core->now_ns + core->config.setup_ns;
    if (!loop->captured) {
        loop->phase = PHASE_ROUND_DONE;
        return;
    }
    action->commit = (struct message_commit){.round = loop->round,
                                             .totals = loop->totals,
                                             .state_bytes = loop->state_bytes,
                                             .state_sum = loop->state_sum};
    loop->phase = PHASE_ACK;
    if (loop->final)
        primary->step_by_ns = switch_step_by(primary);
    loop->unsure_epoch = loop->epoch;
    primary->exposed = true;
}

static void on_round(struct primary *primary, const struct role_event *event)
{
    struct epoch_loop *loop = &primary->loop;
    if (loop->phase != PHASE_ROUND || loop->made || event->epoch != loop->epoch ||
        event->round != loop->round)
        return;
    loop->pause_ns += event->pause_ns;
    if (event->code < 0) {
        round_failed(primary, event);
        return;
    }
    loop->made = true;
    loop->captured = event->captured;
    if (event->captured) {
        uint64_t now_ns = primary->core.now_ns;
        loop->captured_at_ns = now_ns - earlier(event->pause_ns, now_ns);
        loop->pause_mean_ns =
            loop->pause_mean_ns ? (3 * loop->pause_mean_ns + loop->pause_ns) / 4 : loop->pause_ns;
        loop->state_bytes = event->state_bytes;
        loop->state_sum = event->state_sum;
        if (loop->degraded)
            role_report(&primary->core, LOG_LEVEL_NOTICE, "captures succeed again");
        if (loop->degraded)
            role_reason(&primary->core, "%s", "");
        loop->failures = 0;
        loop->degraded = false;
        loop->final = event->final;
        if (event->final)
            switch_captured(primary, event->after_ns);
    }
    if (loop->sent)
        round_finished(primary);
}

static void on_round_sent(struct primary *primary, const struct role_event *event)
{
    struct epoch_loop *loop = &primary->loop;
    if (loop->phase != PHASE_ROUND || loop->sent || event->epoch != loop->epoch ||
        event->round != loop->round)
        return;
    loop->sent = true;
    loop->totals = event->totals;
    if (loop->made)
        round_finished(primary);
}

static void on_round_done(struct primary *primary, const struct role_event *event)
{
    struct epoch_loop *loop = &primary->loop;
    if (loop->phase != PHASE_ROUND_DONE || event->epoch != loop->epoch || event->round != loop->round) {
        primary_violation(primary, "ROUND_DONE for round %u of epoch %llu; present is round %u of epoch %llu",
                          event->round, (unsigned long long)event->epoch, loop->round,
                          (unsigned long long)loop->epoch);
        return;
    }
    primary->step_by_ns = NEVER;
    loop->round++;
    loop->live++;
    start_round(primary);
}

static void acknowledged(struct primary *primary, uint64_t epoch)
{
    primary->loop.acked_epoch = epoch;
    primary->loop.acked_at_ns = primary->core.now_ns;
    primary->loop.unsure_epoch = 0;
}

static void on_ack(struct primary *primary, const struct role_event *event)
{
    struct epoch_loop *loop = &primary->loop;
    struct role_core *core = &primary->core;
    if (loop->phase != PHASE_ACK || event->epoch != loop->epoch) {
        primary_violation(primary, "ACK for epoch %llu; present is epoch %llu, %s",
                          (unsigned long long)event->epoch, (unsigned long long)loop->epoch,
                          loop->phase == PHASE_ACK ? "committed" : "not committed");
        return;
    }
    switch_check_late(primary);
    primary->step_by_ns = NEVER;
    acknowledged(primary, event->epoch);
    role_act(core, ACTION_COMMITTED)->epoch = event->epoch;
    if (core->state != PRIMARY_PROTECTED) {
        role_enter(core, PRIMARY_PROTECTED);
        role_reason(core, "%s", "");
        role_report(core, LOG_LEVEL_NOTICE, "protected: %s holds epoch %llu",
                    core->peer[0] ? core->peer : "the standby", (unsigned long long)event->epoch);
        primary->retry_pause_ns = 0;
        primary->unprotected_ns = 0;
    }
    if (loop->final)
        switch_acknowledged(primary);
    else
        rest(primary);
}

bool epoch_resume(struct primary *primary, uint64_t epoch)
{
    struct epoch_loop *loop = &primary->loop;
    if (!epoch)
        return false;
    if (epoch == loop->unsure_epoch) {
        role_act(&primary->core, ACTION_ADOPT)->epoch = epoch;
        acknowledged(primary, epoch);
    }
    /* An older checkpoint of ours lacks pages that we have forgotten; a newer one cannot be. */
    return epoch == loop->acked_epoch;
}

bool epoch_event(struct primary *primary, const struct role_event *event)
{
    switch (event->type) {
    case EVENT_BEGUN:
        on_begun(primary, event);
        return true;
    case EVENT_ROUND:
        on_round(primary, event);
        return true;
    case EVENT_ROUND_SENT:
        on_round_sent(primary, event);
        return true;
    case EVENT_ROUND_DONE:
        on_round_done(primary, event);
        return true;
    case EVENT_ACK:
        on_ack(primary, event);
        return true;
    default:
        return false;
    }
}

void epoch_timers(struct primary *primary)
{
    struct epoch_loop *loop = &primary->loop;
    if (loop->phase != PHASE_REST || primary->core.now_ns < loop->next_at_ns)
        return;
    if (loop->failures)
        start_round(primary);
    else
        start_epoch(primary);
}
