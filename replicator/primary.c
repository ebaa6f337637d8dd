/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "replicator/primary.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * The guest runs whatever happens to a session, until the policy says otherwise. A step is: the event changes
 * the machine (begin, validate, finish), then what has become due by its time is done. Every way out of a
 * session goes through primary_lose(), in primary_loss.c.
 */

/* Connecting and WELCOME need no guest: a standby that is there answers soon, and one whose host is gone must
 * not keep us from trying again for as long as a guest may take to start. */
#define GREETING_DETECTS 8

/* A primary that was never protected in this life asks the arbiter only when a first session had ample time.
 */
#define FIRST_CONTACT_DETECTS 4

int primary_new(struct primary **ret_primary, const struct role_config *config, const uint8_t history[16],
                uint64_t generation, uint64_t now_ns)
{
    int r = role_config_check(config);
    if (r < 0)
        return r;
    if (!generation)
        return error_set(-EINVAL, "a primary needs a generation of at least 1");
    struct primary *primary = calloc(1, sizeof *primary);
    if (!primary)
        return error_errno(-ENOMEM, "primary role");
    role_core_init(&primary->core, config, PRIMARY_DISCONNECTED, generation, now_ns);
    memcpy(primary->history, history, sizeof primary->history);
    primary->step_by_ns = primary->pass_at_ns = primary->switchover.by_ns = primary->switchover.late_ns =
        NEVER;
    primary->retry_at_ns = now_ns;
    primary->unprotected_ns = now_ns;
    /* Who ran here before us may have been protected, and the standby may have taken over since. Nothing says
     * so until either the standby or the arbiter is reached. */
    primary->decide_at_ns = config->arbiter ? now_ns + FIRST_CONTACT_DETECTS * config->detect_ns : NEVER;
    /* With nobody but a person to decide about a takeover, the guest's output is not held for ever for want
     * of contact. */
    if (!config->arbiter && config->takeover == ROLE_TAKEOVER_MANUAL)
        primary->pass_at_ns = now_ns + FIRST_CONTACT_DETECTS * config->detect_ns;
    role_reason(&primary->core, "no standby yet");
    *ret_primary = primary;
    return 0;
}

void primary_free(struct primary *primary)
{
    free(primary);
}

void primary_set_right(struct primary *primary, enum role_right right)
{
    primary->right = right;
    if (right == ROLE_RIGHT_STORED)
        return;
    primary->stored = true; /* taken: it is on disk already; doubtful: not before it is known */
    if (right == ROLE_RIGHT_DOUBTFUL)
        return;
    primary->settled = true;
    primary->decide_at_ns = primary->pass_at_ns = NEVER;
}

/* Nobody else runs the guest: what was in doubt is our right. */
static void confirm_right(struct primary *primary)
{
    if (primary->right != ROLE_RIGHT_DOUBTFUL)
        return;
    primary->right = ROLE_RIGHT_STORED;
    role_store(&primary->core, true);
}

static uint64_t greeting_by(const struct role_core *core)
{
    return core->now_ns + earlier(core->config.setup_ns, GREETING_DETECTS * core->config.detect_ns);
}

static void connect_standby(struct primary *primary)
{
    struct role_core *core = &primary->core;
    primary->retry_at_ns = NEVER;
    primary->lanes_up = primary->accepted = false;
    core->session = ++primary->sessions;
    primary->step_by_ns = greeting_by(core);
    role_enter(core, PRIMARY_CONNECTING);
    role_act(core, ACTION_CONNECT);
}

/*
 * A generation that one of us two asked the arbiter for, and made no use of, would stand between the other
 * and the register for ever. So the session that follows goes by that generation, and both need a newer one
 * from there on:
 *
 *     HELLO g, what the primary claimed  ─►   what both claimed is G: from now on we ask for more than G,
 *                                             though still as who comes from g
 *     we ask as who comes from G         ◄─   WELCOME G: no guest runs here
 *     anything by G                      ─►   we ask as who comes from G, too
 *
 * Whoever comes from G knows that the other asks for more than G; so a register that holds G holds what
 * nobody uses.
 */
static void raise_generation(struct primary *primary, uint64_t generation)
{
    struct role_core *core = &primary->core;
    if (generation <= core->generation)
        return;
    core->generation = generation;
    if (primary->right != ROLE_RIGHT_DOUBTFUL)
        role_store(core, true);
}

static void on_control_up(struct primary *primary)
{
    struct role_core *core = &primary->core;
    if (core->state != PRIMARY_CONNECTING)
        return;
    role_enter(core, PRIMARY_GREETING);
    primary->step_by_ns = greeting_by(core);
    role_send(core, WIRE_HELLO)->epoch = core->claimed;
    role_heartbeat_start(core, 0);
}

static void on_welcome(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    const struct message_welcome *welcome = event->welcome;
    if (welcome->version != WIRE_VERSION) {
        primary_violation(primary, "WELCOME chooses version %u, we offered %u", welcome->version,
                          WIRE_VERSION);
        return;
    }
    if (welcome->optional & ~core->config.optional) {
        primary_violation(primary, "WELCOME chooses features 0x%llx, we offered 0x%llx",
                          (unsigned long long)welcome->optional, (unsigned long long)core->config.optional);
        return;
    }
    core->optional = welcome->optional;
    memcpy(core->peer, welcome->host, sizeof core->peer);
    core->peer[sizeof core->peer - 1] = 0;
    role_heartbeat_start(core, welcome->detect_ms);

    /* A standby that greets us runs no guest: nobody went on elsewhere. And without a checkpoint it cannot.
     */
    primary->settled = true;
    raise_generation(primary, event->generation);
    confirm_right(primary);
    primary->decide_at_ns = NEVER;
    primary->decide_pause_ns = 0;
    primary->pass_at_ns = NEVER;
    primary->exposed = welcome->has_commit;
    switch_returned(primary);
    primary_pass_if_alone(primary);

    primary->full = !welcome->has_commit ||
                    memcmp(welcome->history, primary->history, sizeof primary->history) != 0 ||
                    !epoch_resume(primary, welcome->committed_epoch);
    role_enter(core, PRIMARY_DESCRIBING);
    primary->step_by_ns = core->now_ns + core->config.setup_ns;
    role_act(core, ACTION_OPEN_LANES);
    role_send(core, WIRE_DESCRIBE);
}

static void session_ready(struct primary *primary)
{
    struct role_core *core = &primary->core;
    if (core->state != PRIMARY_DESCRIBING || !primary->lanes_up || !primary->accepted)
        return;
    primary->step_by_ns = NEVER;
    role_enter(core, PRIMARY_COPYING);
    role_reason(core, primary->full ? "the first full copy is under way" : "changes are being copied");
    role_report(core, LOG_LEVEL_INFO, "session with %s: %s", core->peer[0] ? core->peer : "the standby",
                primary->full ? "full copy" : "it kept its checkpoint; only what changed is copied");
    primary_release(primary);
    epoch_begin_session(primary);
}

static void on_refuse(struct primary *primary, const struct role_event *event)
{
    /* The standby that runs the guest wins a tie: it was told to by an operator who overruled the arbiter. */
    if (event->refusal == WIRE_REFUSE_GENERATION && event->generation >= primary->core.generation)
        primary_yield(primary, event->generation, "the standby");
    else {
        /* A standby that refuses the very session it was told to run the guest in does not run it, unless it
         * has taken the right already. */
        if (primary->core.state == PRIMARY_SWITCHING && event->generation <= primary->core.generation)
            primary->switchover.handed = false;
        primary_lose(primary, LOG_LEVEL_WARNING, "the standby refuses (%s): %s",
                     wire_refusal_name(event->refusal), event->text ? event->text : "no reason given");
    }
}

static void end(struct primary *primary, uint32_t goodbye, int code)
{
    struct role_core *core = &primary->core;
    /* From WELCOME on: before, the standby may be one that runs the guest. */
    bool told = core->state >= PRIMARY_DESCRIBING && core->state <= PRIMARY_SWITCHING;
    if (role_flow(core->state)->frames)
        role_send(core, WIRE_GOODBYE)->reason = goodbye;
    if (goodbye == WIRE_GOODBYE_STOP)
        switch_lost(primary, core->reason);
    else
        switch_over(primary, core->reason);
    primary_drop_session(primary);
    primary->decide_at_ns = NEVER;
    /* An operator who stops the engine wants the guest to run on, so its output goes out, unless the standby,
     * which was not told, may resume it all the same. What a guest said last before it ended is not let out:
     * nobody may ever have heard of its end. */
    bool resumes = !told && (primary->exposed || !primary->settled) &&
                   (core->config.arbiter || core->config.takeover == ROLE_TAKEOVER_AUTO);
    if (goodbye == WIRE_GOODBYE_STOP && code == 0 && core->state != PRIMARY_YIELDED &&
        core->state != PRIMARY_MOVED && !resumes)
        role_act(core, ACTION_PASS);
    if (goodbye != WIRE_GOODBYE_STOP)
        role_store(core, false);
    role_enter(core, PRIMARY_ENDED);
    role_act(core, ACTION_EXIT)->code = code;
}

static void stop(struct primary *primary, const char *why, int code)
{
    if (primary->switchover.handed && primary->core.state == PRIMARY_SWITCHING) {
        primary->switchover.stop_wanted = true; /* who runs the guest is about to be known */
        return;
    }
    role_reason(&primary->core, "%s", why);
    end(primary, WIRE_GOODBYE_STOP, code);
}

static void on_guest(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    switch (event->guest) {
    case VMM_EVENT_ENDED:
        role_reason(core, "the guest ended");
        role_report(core, LOG_LEVEL_NOTICE, "%s", core->reason);
        end(primary, WIRE_GOODBYE_GUEST_ENDED, 0);
        return;
    case VMM_EVENT_FAILED:
        role_reason(core, "the guest failed");
        role_report(core, LOG_LEVEL_ERROR, "%s", core->reason);
        end(primary, WIRE_GOODBYE_GUEST_FAILED, -EIO);
        return;
    case VMM_EVENT_LOST:
        role_report(core, LOG_LEVEL_ERROR,
                    "the guest cannot be reached any more, though it has not ended: it goes on without "
                    "protection, and its output is held, until an engine is started again");
        stop(primary, "the guest cannot be reached any more", -EIO);
        return;
    case VMM_EVENT_STOPPED:
        role_report(core, LOG_LEVEL_WARNING, "somebody else stopped the guest; checkpoints go on");
        return;
    case VMM_EVENT_RESUMED:
        role_report(core, LOG_LEVEL_NOTICE, "somebody else let the guest run again");
        return;
    case VMM_EVENT_NONE:
        return;
    }
}

static void handle(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (epoch_event(primary, event) || switch_event(primary, event))
        return;
    switch (event->type) {
    case EVENT_CONTROL_UP:
        on_control_up(primary);
        return;
    case EVENT_WELCOME:
        on_welcome(primary, event);
        return;
    case EVENT_LANES_UP:
        primary->lanes_up = true;
        session_ready(primary);
        return;
    case EVENT_ACCEPT:
        primary->accepted = true;
        session_ready(primary);
        return;
    case EVENT_LINK_DOWN:
        primary_lose(primary, LOG_LEVEL_WARNING, "%s%s",
                     core->state == PRIMARY_CONNECTING ? "the standby cannot be reached: "
                                                       : "the connection ended: ",
                     event->text ? event->text : "no reason given");
        return;
    case EVENT_REFUSE:
        on_refuse(primary, event);
        return;
    case EVENT_GOODBYE:
        primary_lose(primary, LOG_LEVEL_WARNING, "the standby's engine was stopped");
        return;
    case EVENT_GUEST:
        on_guest(primary, event);
        return;
    case EVENT_ARBITER:
        primary_on_arbiter(primary, event);
        return;
    case EVENT_OUTPUT:
        epoch_output(primary, event->urgent);
        return;
    case EVENT_CONTINUE:
        primary_on_continue(primary, event);
        return;
    case EVENT_HELLO:
        primary_on_hello(primary, event);
        return;
    case EVENT_REPROTECT:
        primary_on_reprotect(primary);
        return;
    case EVENT_STOP:
        stop(primary, "the operator stopped the engine", 0);
        return;
    default:
        return;
    }
}

static const char *owed(const struct primary *primary)
{
    switch (primary->core.state) {
    case PRIMARY_CONNECTING:
        return "no connection";
    case PRIMARY_GREETING:
        return "no WELCOME";
    case PRIMARY_DESCRIBING:
        return primary->accepted ? "no data lanes" : "no ACCEPT";
    default:
        return primary->loop.phase == PHASE_SWITCH ? (primary->switchover.handed ? "no STARTED" : "no LOADED")
               : primary->loop.phase == PHASE_ACK  ? "no ACK"
                                                   : "no ROUND_DONE";
    }
}

static void timers(struct primary *primary)
{
    struct role_core *core = &primary->core;
    uint64_t now_ns = core->now_ns;
    /* Until WELCOME the standby owes no heartbeats; step_by_ns bounds that. */
    bool watched = core->state == PRIMARY_DESCRIBING || core->state == PRIMARY_COPYING ||
                   core->state == PRIMARY_PROTECTED ||
                   (core->state == PRIMARY_SWITCHING && !primary->switchover.handed);
    if (watched && now_ns >= role_silent_at(core))
        primary_lose(primary, LOG_LEVEL_WARNING, "the standby was silent for %llu ms",
                     (unsigned long long)((now_ns - core->heard_ns) / NS_PER_MS));
    if (now_ns >= primary->step_by_ns)
        primary_lose(primary, LOG_LEVEL_WARNING, "%s from the standby in time", owed(primary));
    if (now_ns >= primary->pass_at_ns)
        primary_pass_overdue(primary);
    if (now_ns >= primary->decide_at_ns) {
        if (core->session) { /* an attempt to connect that came to nothing yet */
            primary_drop_session(primary);
            role_enter(core, primary->held ? PRIMARY_STALLED : PRIMARY_DISCONNECTED);
        }
        primary_arbitrate(primary);
    }
    /* After primary_restart(): held no later than a standby that missed us may take over. */
    if (primary_overdue_hold(primary) <= now_ns) {
        primary_hold(primary);
        role_report(core, LOG_LEVEL_WARNING, "the standby was silent too long; the guest is held");
        if (core->state == PRIMARY_DISCONNECTED)
            role_enter(core, PRIMARY_STALLED);
    }
    if (now_ns >= primary->retry_at_ns)
        connect_standby(primary);
    epoch_timers(primary);
    switch_timers(primary);
    role_heartbeat_run(core, primary->loop.acked_epoch);
}

/* May this event change the machine? Ends the session where the peer broke the protocol. */
static bool permitted(struct primary *primary, const struct role_event *event)
{
    struct role_core *core = &primary->core;
    if (role_event_of_session(event->type) && (!core->session || event->session != core->session)) {
        if (event->type == EVENT_ROUND && event->final && event->code == 0)
            switch_late_capture(primary);
        return false;
    }
    if (!role_event_is_frame(event->type))
        return true;
    role_heard(core);
    if (event->generation > core->generation && event->type != EVENT_REFUSE && event->type != EVENT_WELCOME) {
        primary_yield(primary, event->generation, "the standby");
        return false;
    }
    if (!(role_flow(core->state)->frames & EVENT_BIT(event->type))) {
        primary_violation(primary, "%s while %s", role_event_frame_name(event), role_state_name(core->state));
        return false;
    }
    return true;
}

/*
 * We slept so long that the standby has given us up, and may have taken over. What it said before still waits
 * to be read, and is not true any more: an ACCEPT among it would let a held guest go. But a refusal, or a
 * newer generation, stays true.
 */
static void give_up_after_sleep(struct primary *primary, const struct role_event *event)
{
    const struct role_core *core = &primary->core;
    if (event->type == EVENT_REFUSE || event->generation > core->generation)
        return;
    uint64_t bound_ns = primary->held ? core->config.detect_ns / 2 : core->config.detect_ns;
    if (core->session && core->state != PRIMARY_CONNECTING && core->gap_ns >= bound_ns)
        primary_lose(primary, LOG_LEVEL_WARNING, "this engine did not run for %llu ms",
                     (unsigned long long)(core->gap_ns / NS_PER_MS));
}

bool primary_guest_gone(const struct primary *primary)
{
    return primary->core.state == PRIMARY_YIELDED || primary->core.state == PRIMARY_MOVED;
}

void primary_step(struct primary *primary, const struct role_event *event, struct role_actions *ret_actions)
{
    struct role_core *core = &primary->core;
    role_step_begin(core, event, ret_actions);
    if (core->state == PRIMARY_ENDED)
        return;
    if (primary_guest_gone(primary) && event->type != EVENT_STOP && event->type != EVENT_GUEST &&
        event->type != EVENT_HELLO && event->type != EVENT_REPROTECT)
        return;
    if (!primary->stored)
        role_store(core, true);
    primary->stored = true;
    if (!primary->started)
        primary_pass_if_alone(primary);
    primary->started = true;
    give_up_after_sleep(primary, event);
    if (permitted(primary, event))
        handle(primary, event);
    if (core->state != PRIMARY_ENDED && !primary_guest_gone(primary))
        timers(primary);
}

uint64_t primary_deadline(const struct primary *primary)
{
    const struct role_core *core = &primary->core;
    if (core->state == PRIMARY_ENDED || primary_guest_gone(primary))
        return NEVER;
    if (!primary->started)
        return core->now_ns;
    uint64_t at_ns = earlier(primary->step_by_ns, earlier(primary->retry_at_ns, primary->decide_at_ns));
    at_ns = earlier(at_ns, primary->pass_at_ns);
    if (primary_overdue_hold(primary) != NEVER) /* and often enough that a gap in our own running is seen */
        at_ns = earlier(at_ns,
                        earlier(primary_overdue_hold(primary), core->now_ns + role_watch_ns(&core->config)));
    if (core->session)
        at_ns = earlier(at_ns, core->heartbeat_at_ns);
    if (core->state >= PRIMARY_DESCRIBING && core->state <= PRIMARY_SWITCHING && !primary->switchover.handed)
        at_ns = earlier(at_ns, role_silent_at(core));
    if (primary->loop.phase == PHASE_REST)
        at_ns = earlier(at_ns, primary->loop.next_at_ns);
    return earlier(at_ns, switch_deadline(primary));
}

void primary_get_status(const struct primary *primary, struct role_status *ret_status)
{
    const struct role_core *core = &primary->core;
    const struct epoch_loop *loop = &primary->loop;
    /* The operator asks whether the guest is held, not which connection attempt is under way. */
    bool stalled = primary->held && core->state < PRIMARY_COPYING;
    *ret_status = (struct role_status){
        .state = stalled ? PRIMARY_STALLED : core->state,
        .since_ns = core->since_ns,
        .generation = core->generation,
        .session = core->session,
        .epoch = loop->epoch,
        .committed_epoch = loop->acked_epoch,
        .committed_at_ns = loop->acked_at_ns,
        .interval_ns = epoch_interval(primary),
        .optional = core->session ? core->optional : 0,
        .guest_here = !primary_guest_gone(primary),
        .protected_now = core->state == PRIMARY_PROTECTED,
        .unprotected_ns = primary->unprotected_ns,
        .migration = primary->switchover.state,
        .migration_since_ns = primary->switchover.since_ns,
        .migration_until_ns = primary->switchover.until_ns,
        .downtime_ns = primary->switchover.downtime_ns,
        .max_downtime_ns = primary->switchover.max_downtime_ns,
        .migration_taken_back = primary->switchover.taken_back,
        .migration_lost_ns = primary->switchover.lost_ns,
        .throttle = primary->switchover.throttling,
    };
    memcpy(ret_status->migration_text, primary->switchover.text, sizeof ret_status->migration_text);
    memcpy(ret_status->history, primary->history, sizeof ret_status->history);
    memcpy(ret_status->reason, core->reason, sizeof ret_status->reason);
    memcpy(ret_status->peer, core->peer, sizeof ret_status->peer);
}
