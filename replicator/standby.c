/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "replicator/standby.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * The standby answers. A session is accepted, refused or replaced in on_hello(); every way out of it goes
 * through standby_lost(), the only place where policy looks at what is left.
 */

int standby_new(struct standby **ret_standby, const struct role_config *config, uint64_t generation,
                uint64_t now_ns)
{
    int r = role_config_check(config);
    if (r < 0)
        return r;
    struct standby *standby = calloc(1, sizeof *standby);
    if (!standby)
        return error_errno(-ENOMEM, "standby role");
    role_core_init(&standby->core, config, STANDBY_WAITING, generation, now_ns);
    standby->step_by_ns = standby->takeover_at_ns = standby->turn_at_ns = NEVER;
    role_reason(&standby->core, "no primary yet");
    *ret_standby = standby;
    return 0;
}

void standby_free(struct standby *standby)
{
    free(standby);
}

void standby_drop_session(struct standby *standby)
{
    struct role_core *core = &standby->core;
    if (core->session)
        role_act(core, ACTION_DISCONNECT);
    core->session = 0;
    core->heartbeat_at_ns = NEVER;
    standby->step_by_ns = NEVER;
    standby->prepared = standby->lanes_up = false;
    standby->expecting = standby->finishing = false;
}

void standby_refuse(struct standby *standby, enum wire_refusal code, const char *format, ...)
{
    struct role_core *core = &standby->core;
    char text[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    role_send_refuse(core, core->session, code, text);
    role_report(core, LOG_LEVEL_ERROR, "session refused (%s): %s", wire_refusal_name(code), text);
    standby_drop_session(standby);
    standby_lost(standby, text);
}

/* Refuse a session that never became ours. */
static void turn_away(struct standby *standby, const struct role_event *event, enum wire_refusal code,
                      const char *format, ...) __attribute__((format(printf, 4, 5)));
static void turn_away(struct standby *standby, const struct role_event *event, enum wire_refusal code,
                      const char *format, ...)
{
    char text[160];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    role_send_refuse(&standby->core, event->session, code, text);
    role_act(&standby->core, ACTION_DISCONNECT)->session = event->session;
    role_report(&standby->core, LOG_LEVEL_WARNING, "primary turned away (%s): %s", wire_refusal_name(code),
                text);
}

/* Returns false after turning it away. */
static bool hello_fits(struct standby *standby, const struct role_event *event)
{
    const struct role_core *core = &standby->core;
    const struct message_hello *hello = event->hello;
    if (hello->version_min > WIRE_VERSION || hello->version_max < WIRE_VERSION) {
        turn_away(standby, event, WIRE_REFUSE_VERSION, "you speak versions %u to %u, we speak %u",
                  hello->version_min, hello->version_max, WIRE_VERSION);
        return false;
    }
    if (memcmp(hello->vm_uuid, core->config.vm_uuid, sizeof hello->vm_uuid) != 0) {
        turn_away(standby, event, WIRE_REFUSE_VM, "this standby is for another machine (VM UUID differs)");
        return false;
    }
    if (hello->required & ~WIRE_FEATURES_KNOWN) {
        turn_away(standby, event, WIRE_REFUSE_FEATURE, "unknown required features 0x%llx",
                  (unsigned long long)(hello->required & ~WIRE_FEATURES_KNOWN));
        return false;
    }
    if (hello->required & ~core->config.optional) {
        turn_away(standby, event, WIRE_REFUSE_FEATURE, "required features 0x%llx are switched off here",
                  (unsigned long long)(hello->required & ~core->config.optional));
        return false;
    }
    if (!event->generation) {
        turn_away(standby, event, WIRE_REFUSE_PROTOCOL, "a primary's generation is at least 1, not 0");
        return false;
    }
    if (event->epoch > WIRE_GENERATION_MAX) {
        turn_away(standby, event, WIRE_REFUSE_PROTOCOL, "generation %llu cannot have been asked for",
                  (unsigned long long)event->epoch);
        return false;
    }
    if (event->generation < (standby->raised_from ? standby->raised_from : core->generation)) {
        turn_away(standby, event, WIRE_REFUSE_GENERATION, "your generation %llu is older than %llu",
                  (unsigned long long)event->generation, (unsigned long long)core->generation);
        return false;
    }
    return true;
}

/* While we run the guest, or are about to. */
static void hello_to_rival(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (core->state == STANDBY_ARBITRATING) {
        role_heard(core); /* should the arbiter not answer, the primary is not silent any more */
        turn_away(standby, event, WIRE_REFUSE_BUSY, "takeover is being decided");
        return;
    }
    if (event->generation > core->generation && core->state == STANDBY_ACTIVE) {
        /* The takeover was forced past an arbiter that had let the primary go on. */
        role_act(core, ACTION_YIELD);
        core->generation = event->generation;
        role_store(core, false);
        role_enter(core, STANDBY_FAILED);
        role_reason(core, "yielded to generation %llu: the guest runs elsewhere by right",
                    (unsigned long long)event->generation);
        role_report(core, LOG_LEVEL_ERROR, "guest stopped for good: %s", core->reason);
        turn_away(standby, event, WIRE_REFUSE_BUSY,
                  "this host has just yielded; its operator must prepare it");
        return;
    }
    if (core->state == STANDBY_FAILED || event->generation > core->generation)
        turn_away(standby, event, WIRE_REFUSE_BUSY, "this host is %s; its operator must prepare it",
                  role_state_name(core->state));
    else
        turn_away(standby, event, WIRE_REFUSE_GENERATION, "the guest was taken over here by generation %llu",
                  (unsigned long long)core->generation);
}

static void on_hello(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    const struct message_hello *hello = event->hello;
    if (!hello_fits(standby, event))
        return;
    if (core->state >= STANDBY_ARBITRATING) {
        hello_to_rival(standby, event);
        return;
    }
    if (core->session) {
        /* The same guest comes again: its engine has given the old session up, or is a new one on the same
         * host, and we have not noticed yet. To refuse it as long as the old session lasts would be to take
         * over from a primary that calls us. */
        if (memcmp(hello->history, standby->history, sizeof hello->history) != 0 &&
            strncmp(hello->host, core->peer, sizeof core->peer) != 0) {
            turn_away(standby, event, WIRE_REFUSE_BUSY, "a session with %s is up",
                      core->peer[0] ? core->peer : "a primary");
            return;
        }
        standby_drop_session(standby);
        standby_lost(standby, "the primary connects anew");
    }

    if (standby->commit.load != LOAD_NONE) {
        /* It was to be resumed, and the primary thought better of it. */
        standby->commit.present = false;
        standby->commit.broken = true;
    }
    core->session = event->session;
    role_heard(core);
    memcpy(standby->history, hello->history, sizeof standby->history);
    memcpy(core->peer, hello->host, sizeof core->peer);
    core->peer[sizeof core->peer - 1] = 0;
    core->optional = hello->optional & core->config.optional;
    standby->takeover_at_ns = NEVER;
    standby->arbitrate_pause_ns = 0;
    standby->epoch = 0;
    standby->round = 0;
    standby->between = true;
    if (event->generation > core->generation) {
        core->generation = event->generation;
        standby->raised_from = 0;
        role_store(core, false);
    }
    core->claimed = later(core->claimed, event->epoch);
    if (core->claimed > core->generation) {
        /* Not stored before the primary has followed, which may never hear of it. */
        standby->raised_from = standby->raised_from ? standby->raised_from : core->generation;
        core->generation = core->claimed;
    }
    role_enter(core, STANDBY_GREETED);
    role_reason(core, "session with %s is being set up", core->peer[0] ? core->peer : "the primary");
    standby->step_by_ns = core->now_ns + core->config.setup_ns;
    role_heartbeat_start(core, hello->detect_ms);

    struct message_welcome *welcome = &role_send(core, WIRE_WELCOME)->welcome;
    welcome->version = WIRE_VERSION;
    welcome->detect_ms = (uint32_t)(core->config.detect_ns / NS_PER_MS);
    welcome->optional = core->optional;
    welcome->staging_bytes = core->config.staging_bytes;
    welcome->has_commit = standby->commit.present;
    if (standby->commit.present) {
        welcome->committed_epoch = standby->commit.epoch;
        memcpy(welcome->history, standby->commit.history, sizeof welcome->history);
    }
    memcpy(welcome->host, core->config.host, sizeof welcome->host);
    role_act(core, ACTION_PREPARE)->fresh = standby->commit.broken;
}

void standby_session_ready(struct standby *standby)
{
    if (standby->core.state != STANDBY_GREETED || !standby->prepared || !standby->lanes_up)
        return;
    standby->step_by_ns = NEVER;
    role_enter(&standby->core, STANDBY_RECEIVING);
    role_reason(&standby->core, "the first checkpoint of the session is under way");
}

static void on_prepared(struct standby *standby, const struct role_event *event)
{
    if (standby->core.state != STANDBY_GREETED || standby->prepared)
        return;
    if (event->code < 0) {
        standby_refuse(standby, event->refusal ? (enum wire_refusal)event->refusal : WIRE_REFUSE_GUEST, "%s",
                       event->text ? event->text : "the waiting guest could not be prepared");
        return;
    }
    standby->prepared = true;
    standby->commit.broken = false;
    standby->commit.load = LOAD_NONE;
    role_send(&standby->core, WIRE_ACCEPT);
    standby_session_ready(standby);
}

static void on_session_end(struct standby *standby, const char *what, const char *text)
{
    char why[160];
    snprintf(why, sizeof why, "%s%s%s", what, text ? ": " : "", text ? text : "");
    standby_drop_session(standby);
    standby_lost(standby, why);
}

static void on_goodbye(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    standby_drop_session(standby);
    if (event->reason == WIRE_GOODBYE_GUEST_FAILED) {
        /* Certain knowledge, not silence: there is nothing to wait for. */
        core->heard_ns = core->now_ns - earlier(core->now_ns, core->config.detect_ns);
        standby_lost(standby, "the guest failed on the primary");
        return;
    }
    bool ended = event->reason == WIRE_GOODBYE_GUEST_ENDED;
    standby->commit.overtaken =
        ended ? "it ended in order after the checkpoint here was made" : "it runs on without protection";
    standby_lost(standby, ended ? "the guest ended on the primary" : "the primary's engine was stopped");
}

static void on_stop(struct standby *standby)
{
    struct role_core *core = &standby->core;
    /* Half a takeover would leave no guest at all: what the arbiter may have given must be taken up. An
     * operator who says it twice means it. */
    if (core->state == STANDBY_TAKING_OVER || (core->state == STANDBY_ARBITRATING && !standby->stop_wanted)) {
        standby->stop_wanted = true;
        return;
    }
    standby_stop(standby);
}

void standby_stop(struct standby *standby)
{
    struct role_core *core = &standby->core;
    if (core->session)
        role_send(core, WIRE_GOODBYE)->reason = WIRE_GOODBYE_STOP;
    standby_drop_session(standby);
    role_enter(core, STANDBY_ENDED);
    role_reason(core, "the operator stopped the engine");
    role_act(core, ACTION_EXIT);
}

/* The guest runs here and its standby is to be found: a primary's work. */
static void on_tick(struct standby *standby)
{
    struct role_core *core = &standby->core;
    if (core->state != STANDBY_ACTIVE || core->now_ns < standby->turn_at_ns)
        return;
    role_enter(core, STANDBY_ENDED);
    role_reason(core, "protecting the guest that was taken over here");
    role_act(core, ACTION_TURN);
}

static void handle(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    switch (event->type) {
    case EVENT_TICK:
        on_tick(standby);
        return;
    case EVENT_HELLO:
        on_hello(standby, event);
        return;
    case EVENT_PREPARED:
        on_prepared(standby, event);
        return;
    case EVENT_LANES_UP:
        standby->lanes_up = true;
        standby_session_ready(standby);
        return;
    case EVENT_ROUND_END:
        standby_on_round_end(standby, event);
        return;
    case EVENT_ROUND_COMPLETE:
        standby_on_round_complete(standby, event);
        return;
    case EVENT_APPLIED:
        standby_on_applied(standby, event);
        return;
    case EVENT_LINK_DOWN:
        on_session_end(standby, "the connection ended", event->text);
        return;
    case EVENT_REFUSE:
        on_session_end(standby, "the primary ended the session", event->text);
        return;
    case EVENT_GOODBYE:
        on_goodbye(standby, event);
        return;
    case EVENT_GUEST:
        standby_on_guest(standby, event);
        return;
    case EVENT_ARBITER:
        standby_on_arbiter(standby, event);
        return;
    case EVENT_SWITCH:
        standby_on_switch(standby, event);
        return;
    case EVENT_LOAD_DONE:
        standby_on_load_done(standby, event);
        return;
    case EVENT_HANDOVER:
        standby_on_handover(standby, event);
        return;
    case EVENT_TAKEOVER:
        standby_on_takeover(standby, event);
        return;
    case EVENT_RUNNING:
        standby_on_running(standby, event);
        return;
    case EVENT_STOP:
        on_stop(standby);
        return;
    case EVENT_REPROTECT:
        if (core->state == STANDBY_ACTIVE)
            standby->turn_at_ns = core->now_ns;
        else
            role_report(core, LOG_LEVEL_ERROR, "reprotect: the guest was not taken over here; state is %s",
                        role_state_name(core->state));
        return;
    default:
        return;
    }
}

/* The primary goes on by the generation of our WELCOME. It showed the world nothing by it yet, so that a
 * checkpoint that was current is. */
static void followed(struct standby *standby)
{
    struct role_core *core = &standby->core;
    if (standby->commit.present && standby->commit.generation == standby->raised_from)
        standby->commit.generation = core->generation;
    standby->raised_from = 0;
    role_store(core, false);
}

static bool permitted(struct standby *standby, const struct role_event *event)
{
    struct role_core *core = &standby->core;
    if (role_event_of_session(event->type) && (!core->session || event->session != core->session))
        return false;
    if (!role_event_is_frame(event->type))
        return true;
    role_heard(core);
    if (standby->raised_from && event->generation == core->generation)
        followed(standby);
    if (event->generation != core->generation &&
        !(standby->raised_from && event->generation >= standby->raised_from)) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL, "%s of generation %llu in a session of generation %llu",
                       role_event_frame_name(event), (unsigned long long)event->generation,
                       (unsigned long long)core->generation);
        return false;
    }
    if (!(role_flow(core->state)->frames & EVENT_BIT(event->type))) {
        standby_refuse(standby, WIRE_REFUSE_PROTOCOL, "%s while %s", role_event_frame_name(event),
                       role_state_name(core->state));
        return false;
    }
    return true;
}

static void timers(struct standby *standby)
{
    struct role_core *core = &standby->core;
    if (core->session && core->now_ns >= role_silent_at(core)) {
        char why[64];
        snprintf(why, sizeof why, "the primary was silent for %llu ms",
                 (unsigned long long)((core->now_ns - core->heard_ns) / NS_PER_MS));
        standby_drop_session(standby);
        standby_lost(standby, why);
    }
    if (core->now_ns >= standby->step_by_ns)
        standby_refuse(standby, WIRE_REFUSE_INTERNAL, "%s within %llu ms",
                       standby->prepared ? "no data lanes" : "the waiting guest was not ready",
                       (unsigned long long)(core->config.setup_ns / NS_PER_MS));
    if (core->state == STANDBY_LOST && core->now_ns >= standby->takeover_at_ns &&
        core->now_ns >= role_silent_at(core))
        standby_take_over_now(standby, false);
    role_heartbeat_run(core, standby->commit.present ? standby->commit.epoch : 0);
}

void standby_step(struct standby *standby, const struct role_event *event, struct role_actions *ret_actions)
{
    struct role_core *core = &standby->core;
    role_step_begin(core, event, ret_actions);
    if (core->state == STANDBY_ENDED)
        return;
    if (permitted(standby, event))
        handle(standby, event);
    if (core->state != STANDBY_ENDED)
        timers(standby);
}

uint64_t standby_deadline(const struct standby *standby)
{
    const struct role_core *core = &standby->core;
    uint64_t at_ns = standby->step_by_ns;
    if (core->state == STANDBY_ACTIVE)
        at_ns = earlier(at_ns, standby->turn_at_ns);
    if (core->session)
        at_ns = earlier(at_ns, earlier(core->heartbeat_at_ns, role_silent_at(core)));
    if (core->state == STANDBY_LOST && standby->takeover_at_ns != NEVER) {
        /* Woken often enough that a gap in our own running is told from the primary's silence. */
        uint64_t due_ns = later(standby->takeover_at_ns, role_silent_at(core));
        at_ns = earlier(at_ns, earlier(due_ns, core->now_ns + role_watch_ns(&core->config)));
    }
    return at_ns;
}

void standby_get_status(const struct standby *standby, struct role_status *ret_status)
{
    const struct role_core *core = &standby->core;
    const struct standby_commit *commit = &standby->commit;
    *ret_status = (struct role_status){
        .state = core->state,
        .since_ns = core->since_ns,
        .generation = core->generation,
        .session = core->session,
        .epoch = standby->epoch,
        .committed_epoch = commit->present ? commit->epoch : 0,
        .committed_at_ns = commit->present ? commit->at_ns : 0,
        .interval_ns = core->config.interval_ns,
        .optional = core->session ? core->optional : 0,
        .guest_here = core->state == STANDBY_ACTIVE || core->state == STANDBY_TAKING_OVER,
        /* The session's set-up leaves a reason, its first commit takes it away. */
        .protected_now = core->state == STANDBY_RECEIVING && !core->reason[0],
    };
    memcpy(ret_status->history, commit->history, sizeof ret_status->history);
    memcpy(ret_status->reason, core->reason, sizeof ret_status->reason);
    memcpy(ret_status->peer, core->peer, sizeof ret_status->peer);
}
