/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/news.h"

#include "base/log.h"

#include <assert.h>

static const struct {
    const char *name;
    enum log_level level;
    const char *message_id;
} kinds[NEWS_KINDS] = {
    [NEWS_STARTED] = {"started", LOG_LEVEL_NOTICE, "50df01e0455f41569cdda94273d74cc6"},
    [NEWS_STOPPED] = {"stopped", LOG_LEVEL_NOTICE, "662f9430eca54c778728a598ec9501cd"},
    [NEWS_ENGINE_FAILED] = {"engine-failed", LOG_LEVEL_ERROR, "1426425eedef4e0bb58a955bd49c85a3"},
    [NEWS_SESSION_LOST] = {"session-lost", LOG_LEVEL_WARNING, "a3670fbf959445ef9a6801d53eea23ab"},
    [NEWS_SESSION_ESTABLISHED] = {"session-established", LOG_LEVEL_INFO, "bf7082b8d21745b0a7c204d56dfdb5ea"},
    [NEWS_COPYING] = {"copying", LOG_LEVEL_INFO, "a84c5c8b2e944586bc3b126c0996cc24"},
    [NEWS_RESYNCHRONISING] = {"resynchronising", LOG_LEVEL_INFO, "5af83f49ae5f47dbb8b8f4674d3ee209"},
    [NEWS_DEGRADED] = {"degraded", LOG_LEVEL_WARNING, "6bc8993421f34ab9b4dcadbb9936f880"},
    [NEWS_PROTECTED] = {"protected", LOG_LEVEL_NOTICE, "7f0e8c986b694785881a4f69ed2117d2"},
    [NEWS_PRIMARY_LOST] = {"primary-lost", LOG_LEVEL_WARNING, "922e44baa36a4db3919def8f49ccd1d1"},
    [NEWS_GUEST_ENDED] = {"guest-ended", LOG_LEVEL_NOTICE, "b11c1545d69048a7bdcff9a458d168b6"},
    [NEWS_GUEST_FAILED] = {"guest-failed", LOG_LEVEL_ERROR, "ab218f322dfb466e9ad47372857df3e3"},
    [NEWS_GUEST_STOPPED] = {"guest-stopped", LOG_LEVEL_NOTICE, "04bb2b7e6629428e9f38442ee47a0276"},
    [NEWS_GUEST_RESUMED] = {"guest-resumed", LOG_LEVEL_NOTICE, "9a54462e280940fd90174fe9a3acb1c9"},
    [NEWS_GUEST_HELD] = {"guest-held", LOG_LEVEL_WARNING, "7a0ae514cec54610922d75a2c38c6c93"},
    [NEWS_GUEST_RELEASED] = {"guest-released", LOG_LEVEL_NOTICE, "fe8d62008fed412cb80de131fc2247a9"},
    [NEWS_OUTPUT_PASSED] = {"output-passed", LOG_LEVEL_WARNING, "425f24e666ff41c3918c3b282936ca69"},
    [NEWS_OUTPUT_HELD] = {"output-held", LOG_LEVEL_INFO, "0e893d4311ad473eacbc5a31cdef782c"},
    [NEWS_ARBITRATING] = {"arbitrating", LOG_LEVEL_NOTICE, "840b1d0a9ec641708995dd7cb215fc09"},
    [NEWS_ARBITRATION_WON] = {"arbitration-won", LOG_LEVEL_NOTICE, "26812d4e9bd64eec9441b41ee034ff89"},
    [NEWS_ARBITRATION_LOST] = {"arbitration-lost", LOG_LEVEL_ERROR, "eebcbe86023645a383d46891d6e461cd"},
    [NEWS_ARBITER_UNREACHABLE] = {"arbiter-unreachable", LOG_LEVEL_ERROR, "caf1185916c547b097098e52035aacaf"},
    [NEWS_YIELDED] = {"yielded", LOG_LEVEL_ERROR, "4a651159885f4c41bd135f9c7a4e32c9"},
    [NEWS_TAKEOVER_BEGUN] = {"takeover-begun", LOG_LEVEL_WARNING, "fe02b180e7ec46378520a5eb11540c81"},
    [NEWS_TAKEOVER_DONE] = {"takeover-done", LOG_LEVEL_NOTICE, "e2191b71d37249c988590861abd59c25"},
    [NEWS_TAKEOVER_FAILED] = {"takeover-failed", LOG_LEVEL_ERROR, "39e3938e364c401197aed4ea6f4ae28a"},
    [NEWS_FENCE_FAILED] = {"fence-failed", LOG_LEVEL_ERROR, "4f748bd6ce14480aaabfcd7d606fc5e6"},
    [NEWS_SWITCHING] = {"switching", LOG_LEVEL_NOTICE, "253c5dce13d24289b96bba255eb109fc"},
    [NEWS_MOVED] = {"moved", LOG_LEVEL_NOTICE, "462a72686ff64e24b63f50f518a8f1ef"},
    [NEWS_REPROTECTING] = {"reprotecting", LOG_LEVEL_NOTICE, "3a0d6f0c8b1e4d55a9c2e7f4610b9d83"},
};

const char *news_name(enum news_kind kind)
{
    assert(kind < NEWS_KINDS);
    return kinds[kind].name;
}

int news_level(enum news_kind kind)
{
    assert(kind < NEWS_KINDS);
    return kinds[kind].level;
}

const char *news_message_id(enum news_kind kind)
{
    assert(kind < NEWS_KINDS);
    return kinds[kind].message_id;
}

const char *news_role(enum role_state state)
{
    return state <= PRIMARY_ENDED || state == STANDBY_ACTIVE ? "primary" : "standby";
}

struct list {
    enum news_kind *kinds;
    unsigned count;
};

static void add(struct list *list, bool condition, enum news_kind kind)
{
    if (!condition)
        return;
    assert(list->count < NEWS_STEP_MAX);
    list->kinds[list->count++] = kind;
}

static const struct role_action *find(const struct news_step *step, enum role_action_type type)
{
    for (unsigned i = 0; i < step->actions->count; i++)
        if (step->actions->items[i].type == type)
            return &step->actions->items[i];
    return NULL;
}

static bool is_switching(const struct role_status *status)
{
    return status->state == PRIMARY_SWITCHING || status->state == STANDBY_SWITCHING;
}

/* Both sides know each other and checkpoints flow, or have flown. */
static bool is_up(const struct role_status *status)
{
    return status->session && (status->state == PRIMARY_COPYING || status->state == PRIMARY_PROTECTED ||
                               status->state == STANDBY_RECEIVING || is_switching(status));
}

static bool is_arbitrating(const struct role_status *status)
{
    return status->state == PRIMARY_ARBITRATING || status->state == STANDBY_ARBITRATING;
}

static bool has_ended(const struct role_status *status)
{
    return status->state == PRIMARY_ENDED || status->state == STANDBY_ENDED;
}

static void add_guest(struct list *list, const struct news_step *step)
{
    if (step->event->type != EVENT_GUEST)
        return;
    enum vmm_event guest = step->event->guest;
    add(list, guest == VMM_EVENT_ENDED, NEWS_GUEST_ENDED);
    add(list, guest == VMM_EVENT_FAILED, NEWS_GUEST_FAILED);
    add(list, guest == VMM_EVENT_STOPPED, NEWS_GUEST_STOPPED);
    add(list, guest == VMM_EVENT_RESUMED, NEWS_GUEST_RESUMED);
}

static void add_output(struct list *list, const struct news_step *step, bool *output_passes)
{
    const struct role_event *event = step->event;
    /* A capture that is done has set its mark: what the guest says from there on waits. */
    bool held = *output_passes && event->type == EVENT_ROUND && event->captured && event->code == 0;
    bool passed = find(step, ACTION_PASS) != NULL;
    add(list, passed && step->gated, NEWS_OUTPUT_PASSED);
    add(list, held && !passed && step->gated, NEWS_OUTPUT_HELD);
    *output_passes = passed || (*output_passes && !held);
}

static void add_right(struct list *list, const struct news_step *step)
{
    const struct role_status *before = step->before, *after = step->after;
    add(list, is_arbitrating(after) && !is_arbitrating(before), NEWS_ARBITRATING);
    if (step->event->type == EVENT_ARBITER && is_arbitrating(before)) {
        add(list, step->event->arbiter == ARBITER_WON, NEWS_ARBITRATION_WON);
        add(list, step->event->arbiter == ARBITER_LOST, NEWS_ARBITRATION_LOST);
        add(list, step->event->arbiter == ARBITER_UNREACHABLE, NEWS_ARBITER_UNREACHABLE);
        add(list, step->event->arbiter == ARBITER_UNFENCED, NEWS_FENCE_FAILED);
    }
    add(list, find(step, ACTION_YIELD) != NULL && after->state != PRIMARY_MOVED, NEWS_YIELDED);
    add(list, is_switching(after) && !is_switching(before), NEWS_SWITCHING);
    add(list, after->state == PRIMARY_MOVED && before->state != PRIMARY_MOVED, NEWS_MOVED);
    add(list, after->state == STANDBY_TAKING_OVER && before->state != STANDBY_TAKING_OVER,
        NEWS_TAKEOVER_BEGUN);
    /* By the answer, not by the state: a stop that waited for it may have ended the machine in the same step.
     */
    if (before->state == STANDBY_TAKING_OVER && after->state != STANDBY_TAKING_OVER)
        add(list, true, step->event->code < 0 ? NEWS_TAKEOVER_FAILED : NEWS_TAKEOVER_DONE);
}

unsigned news_derive(const struct news_step *step, bool *output_passes,
                     enum news_kind ret_kinds[NEWS_STEP_MAX])
{
    struct list list = {.kinds = ret_kinds};
    const struct role_status *before = step->before, *after = step->after;
    bool same = is_up(before) && is_up(after) && before->session == after->session;
    add(&list, is_up(before) && !same, NEWS_SESSION_LOST);
    add(&list, before->protected_now && !after->protected_now, NEWS_DEGRADED);
    add(&list, after->state == STANDBY_LOST && before->state != STANDBY_LOST && !is_arbitrating(before),
        NEWS_PRIMARY_LOST);
    add_guest(&list, step);
    add(&list, find(step, ACTION_HOLD) != NULL, NEWS_GUEST_HELD);
    add(&list, find(step, ACTION_RELEASE) != NULL, NEWS_GUEST_RELEASED);
    add_output(&list, step, output_passes);
    add_right(&list, step);
    add(&list, is_up(after) && !same, NEWS_SESSION_ESTABLISHED);
    const struct role_action *begin = find(step, ACTION_BEGIN);
    add(&list, begin && begin->full, NEWS_COPYING);
    add(&list, begin && !begin->full, NEWS_RESYNCHRONISING);
    add(&list, after->protected_now && !before->protected_now, NEWS_PROTECTED);
    bool turns = find(step, ACTION_TURN) != NULL;
    add(&list, turns, NEWS_REPROTECTING);
    add(&list, has_ended(after) && !has_ended(before) && !turns, NEWS_STOPPED);
    return list.count;
}

const char *news_reason(const struct news_step *step)
{
    if (step->after->reason[0])
        return step->after->reason;
    const struct role_action *report = find(step, ACTION_REPORT);
    return report ? report->text : "";
}
