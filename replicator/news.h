/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_NEWS_H
#define UNDERSTUDY_REPLICATOR_NEWS_H

#include "replicator/role.h"

/*
 * What people and programs outside are told of a machine, derived from the steps of its role machine: each
 * kind stands for a transition or an action there. The names are a promise to scripts; docs/events.md
 * describes them.
 */
enum news_kind {
    NEWS_STARTED,
    NEWS_STOPPED,
    NEWS_ENGINE_FAILED,
    /* sessions */
    NEWS_SESSION_LOST,
    NEWS_SESSION_ESTABLISHED,
    NEWS_COPYING,
    NEWS_RESYNCHRONISING,
    /* protection */
    NEWS_DEGRADED,
    NEWS_PROTECTED,
    NEWS_PRIMARY_LOST,
    /* the guest and its output */
    NEWS_GUEST_ENDED,
    NEWS_GUEST_FAILED,
    NEWS_GUEST_STOPPED,
    NEWS_GUEST_RESUMED,
    NEWS_GUEST_HELD,
    NEWS_GUEST_RELEASED,
    NEWS_OUTPUT_PASSED,
    NEWS_OUTPUT_HELD,
    /* who may run it */
    NEWS_ARBITRATING,
    NEWS_ARBITRATION_WON,
    NEWS_ARBITRATION_LOST,
    NEWS_ARBITER_UNREACHABLE,
    NEWS_YIELDED,
    NEWS_TAKEOVER_BEGUN,
    NEWS_TAKEOVER_DONE,
    NEWS_TAKEOVER_FAILED,
    NEWS_FENCE_FAILED,
    NEWS_SWITCHING,
    NEWS_MOVED,
    NEWS_REPROTECTING,
    NEWS_KINDS,
};

const char *news_name(enum news_kind kind);
/* enum log_level. */
int news_level(enum news_kind kind);
/* MESSAGE_ID of the journal: 32 hexadecimal digits. */
const char *news_message_id(enum news_kind kind);

/* "primary", also for a standby whose guest was taken over, or "standby". */
const char *news_role(enum role_state state);

/* One step of a role machine. */
struct news_step {
    const struct role_status *before, *after;
    const struct role_event *event;
    const struct role_actions *actions;
    bool gated; /* there is a gate that holds the guest's output */
};

#define NEWS_STEP_MAX 12
/* The news of one step, in the order in which they are told: what was lost, what became of the guest, who
 * decided what, what was won. `*output_passes` is carried from step to step (false at first). Returns how
 * many. */
unsigned news_derive(const struct news_step *step, bool *output_passes,
                     enum news_kind ret_kinds[NEWS_STEP_MAX]);

/* Why: the machine's reason, else what it reported in this step, else "". Borrowed from the step. */
const char *news_reason(const struct news_step *step);

#endif
