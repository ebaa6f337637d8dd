/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "replicator/machine.h"

#include <assert.h>
#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* What a peer may say whenever a session is up at all. */
#define FRAMES_ANY (EVENT_BIT(EVENT_HEARTBEAT) | EVENT_BIT(EVENT_REFUSE) | EVENT_BIT(EVENT_GOODBYE))

/*
 * Primary:
 *
 *     DISCONNECTED ─► CONNECTING ─► GREETING ─► DESCRIBING ─► COPYING ─► PROTECTED
 *       ▲  ▲ │            └────────────┴────────────┴────────────┴──────────┤ session lost
 *       │  │ └───► ARBITRATING ◄─────────┐                                  │
 *       │  └─won───────┘ │ └─unreachable─► STALLED ◄──────── policy: stall ─┤
 *       └────────────────┼──────────────────────────── policy: continue ────┘
 *                        └─lost─► YIELDED                 (from everywhere: ENDED; any newer generation:
 * YIELDED)
 *
 *     PROTECTED ─► SWITCHING ─► MOVED, else as if the session were lost (primary_switch.c)
 *
 *     YIELDED, MOVED ─► ENDED, when who runs the guest calls: the engine goes on as a standby
 * (primary_door.c)
 *
 * Standby:
 *
 *     WAITING ─► GREETED ─► RECEIVING
 *       ▲ ▲         └───────────┤ (RECEIVING ─► SWITCHING ─► ARBITRATING or TAKING_OVER: told to)
 *       │ │                     │ session lost: WAITING without a checkpoint, else
 *       │ └─lost─┐              ▼
 *       │    ARBITRATING ◄──── LOST      (LOST ─► GREETED: the primary is back in time)
 *       │        └─won─► TAKING_OVER ─► ACTIVE, or FAILED
 *
 *     ACTIVE ─► ENDED, and the engine goes on as a primary
 */
static const struct role_flow flows[] = {
    [PRIMARY_DISCONNECTED] = {"disconnected", 0,
                              STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_CONNECTING) |
                                  STATE_BIT(PRIMARY_ARBITRATING) | STATE_BIT(PRIMARY_YIELDED) |
                                  STATE_BIT(PRIMARY_MOVED) | STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_CONNECTING] = {"connecting", 0,
                            STATE_BIT(PRIMARY_GREETING) | STATE_BIT(PRIMARY_DISCONNECTED) |
                                STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_ARBITRATING) |
                                STATE_BIT(PRIMARY_YIELDED) | STATE_BIT(PRIMARY_MOVED) |
                                STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_GREETING] = {"greeting", FRAMES_ANY | EVENT_BIT(EVENT_WELCOME),
                          STATE_BIT(PRIMARY_DESCRIBING) | STATE_BIT(PRIMARY_DISCONNECTED) |
                              STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_ARBITRATING) |
                              STATE_BIT(PRIMARY_YIELDED) | STATE_BIT(PRIMARY_MOVED) |
                              STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_DESCRIBING] = {"describing", FRAMES_ANY | EVENT_BIT(EVENT_ACCEPT),
                            STATE_BIT(PRIMARY_COPYING) | STATE_BIT(PRIMARY_DISCONNECTED) |
                                STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_ARBITRATING) |
                                STATE_BIT(PRIMARY_YIELDED) | STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_COPYING] = {"copying", FRAMES_ANY | EVENT_BIT(EVENT_ROUND_DONE) | EVENT_BIT(EVENT_ACK),
                         STATE_BIT(PRIMARY_PROTECTED) | STATE_BIT(PRIMARY_DISCONNECTED) |
                             STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_YIELDED) |
                             STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_PROTECTED] = {"protected", FRAMES_ANY | EVENT_BIT(EVENT_ROUND_DONE) | EVENT_BIT(EVENT_ACK),
                           STATE_BIT(PRIMARY_SWITCHING) | STATE_BIT(PRIMARY_DISCONNECTED) |
                               STATE_BIT(PRIMARY_STALLED) | STATE_BIT(PRIMARY_YIELDED) |
                               STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_SWITCHING] = {"switching-over", FRAMES_ANY | EVENT_BIT(EVENT_LOADED) | EVENT_BIT(EVENT_STARTED),
                           STATE_BIT(PRIMARY_DISCONNECTED) | STATE_BIT(PRIMARY_STALLED) |
                               STATE_BIT(PRIMARY_YIELDED) | STATE_BIT(PRIMARY_MOVED) |
                               STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_ARBITRATING] = {"arbitrating", 0,
                             STATE_BIT(PRIMARY_DISCONNECTED) | STATE_BIT(PRIMARY_STALLED) |
                                 STATE_BIT(PRIMARY_MOVED) | STATE_BIT(PRIMARY_YIELDED) |
                                 STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_STALLED] = {"stalled", 0,
                         STATE_BIT(PRIMARY_CONNECTING) | STATE_BIT(PRIMARY_ARBITRATING) |
                             STATE_BIT(PRIMARY_DISCONNECTED) | STATE_BIT(PRIMARY_YIELDED) |
                             STATE_BIT(PRIMARY_MOVED) | STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_YIELDED] = {"yielded", 0, STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_MOVED] = {"moved", 0, STATE_BIT(PRIMARY_ENDED)},
    [PRIMARY_ENDED] = {"ended", 0, 0},

    [STANDBY_WAITING] = {"waiting", 0,
                         STATE_BIT(STANDBY_GREETED) | STATE_BIT(STANDBY_ARBITRATING) |
                             STATE_BIT(STANDBY_TAKING_OVER) | STATE_BIT(STANDBY_ENDED)},
    /* ROUND and COMMIT too: the primary may see the data lanes up before we do. */
    [STANDBY_GREETED] = {"greeted", FRAMES_ANY | EVENT_BIT(EVENT_ROUND_END),
                         STATE_BIT(STANDBY_RECEIVING) | STATE_BIT(STANDBY_LOST) | STATE_BIT(STANDBY_WAITING) |
                             STATE_BIT(STANDBY_ARBITRATING) | STATE_BIT(STANDBY_TAKING_OVER) |
                             STATE_BIT(STANDBY_ENDED)},
    [STANDBY_RECEIVING] = {"receiving", FRAMES_ANY | EVENT_BIT(EVENT_ROUND_END) | EVENT_BIT(EVENT_SWITCH),
                           STATE_BIT(STANDBY_SWITCHING) | STATE_BIT(STANDBY_LOST) |
                               STATE_BIT(STANDBY_WAITING) | STATE_BIT(STANDBY_ARBITRATING) |
                               STATE_BIT(STANDBY_TAKING_OVER) | STATE_BIT(STANDBY_ENDED)},
    [STANDBY_SWITCHING] = {"switching-over", FRAMES_ANY | EVENT_BIT(EVENT_HANDOVER),
                           STATE_BIT(STANDBY_LOST) | STATE_BIT(STANDBY_WAITING) |
                               STATE_BIT(STANDBY_ARBITRATING) | STATE_BIT(STANDBY_TAKING_OVER) |
                               STATE_BIT(STANDBY_ENDED)},
    [STANDBY_LOST] = {"lost", 0,
                      STATE_BIT(STANDBY_GREETED) | STATE_BIT(STANDBY_WAITING) |
                          STATE_BIT(STANDBY_ARBITRATING) | STATE_BIT(STANDBY_TAKING_OVER) |
                          STATE_BIT(STANDBY_ENDED)},
    [STANDBY_ARBITRATING] = {"arbitrating", 0,
                             STATE_BIT(STANDBY_WAITING) | STATE_BIT(STANDBY_LOST) |
                                 STATE_BIT(STANDBY_TAKING_OVER) | STATE_BIT(STANDBY_ENDED)},
    [STANDBY_TAKING_OVER] = {"taking-over", 0, STATE_BIT(STANDBY_ACTIVE) | STATE_BIT(STANDBY_FAILED)},
    [STANDBY_ACTIVE] = {"active", 0, STATE_BIT(STANDBY_FAILED) | STATE_BIT(STANDBY_ENDED)},
    [STANDBY_FAILED] = {"failed", 0, STATE_BIT(STANDBY_ENDED)},
    [STANDBY_ENDED] = {"ended", 0, 0},
};

/* Frames, by the event they become. */
static const struct {
    bool of_session;
    const char *frame; /* NULL: no frame */
} kinds[] = {
    [EVENT_TICK] = {false, NULL},
    [EVENT_LINK_DOWN] = {true, NULL},
    [EVENT_LANES_UP] = {true, NULL},
    [EVENT_HEARTBEAT] = {true, "HEARTBEAT"},
    [EVENT_REFUSE] = {true, "REFUSE"},
    [EVENT_GOODBYE] = {true, "GOODBYE"},
    [EVENT_GUEST] = {false, NULL},
    [EVENT_ARBITER] = {false, NULL},
    [EVENT_STOP] = {false, NULL},
    [EVENT_REPROTECT] = {false, NULL},
    [EVENT_CONTROL_UP] = {true, NULL},
    [EVENT_WELCOME] = {true, "WELCOME"},
    [EVENT_ACCEPT] = {true, "ACCEPT"},
    [EVENT_BEGUN] = {true, NULL},
    [EVENT_ROUND] = {true, NULL},
    [EVENT_ROUND_SENT] = {true, NULL},
    [EVENT_ROUND_DONE] = {true, "ROUND_DONE"},
    [EVENT_ACK] = {true, "ACK"},
    [EVENT_MIGRATE] = {false, NULL},
    [EVENT_MIGRATE_CANCEL] = {false, NULL},
    [EVENT_LOADED] = {true, "LOADED"},
    [EVENT_KEPT] = {true, NULL},
    [EVENT_STARTED] = {true, "STARTED"},
    [EVENT_SWITCH] = {true, "SWITCH"},
    [EVENT_LOAD_DONE] = {false, NULL},
    [EVENT_HANDOVER] = {true, "HANDOVER"},
    [EVENT_OUTPUT] = {false, NULL},
    [EVENT_CONTINUE] = {false, NULL},
    /* HELLO opens a session of its own, so it is judged apart. */
    [EVENT_HELLO] = {false, NULL},
    [EVENT_PREPARED] = {true, NULL},
    [EVENT_ROUND_END] = {true, "ROUND or COMMIT"},
    [EVENT_ROUND_COMPLETE] = {true, NULL},
    /* The guest is at work for us, whatever became of the session that caused it. */
    [EVENT_APPLIED] = {false, NULL},
    [EVENT_TAKEOVER] = {false, NULL},
    [EVENT_RUNNING] = {false, NULL},
};

const struct role_flow *role_flow(enum role_state state)
{
    assert((unsigned)state < array_length(flows));
    return &flows[state];
}

const char *role_state_name(enum role_state state)
{
    return (unsigned)state < array_length(flows) ? flows[state].name : "unknown";
}

bool role_event_of_session(enum role_event_type type)
{
    assert((unsigned)type < array_length(kinds));
    return kinds[type].of_session;
}

bool role_event_is_frame(enum role_event_type type)
{
    assert((unsigned)type < array_length(kinds));
    return kinds[type].frame != NULL;
}

const char *role_event_frame_name(const struct role_event *event)
{
    if (event->type == EVENT_ROUND_END)
        return event->captured ? "COMMIT" : "ROUND";
    return kinds[event->type].frame ? kinds[event->type].frame : "?";
}

static int check_bounds(const char *name, uint64_t value, uint64_t low, uint64_t high)
{
    if (value < low || value > high)
        return error_set(-EINVAL, "%s is %llu; allowed are %llu to %llu", name, (unsigned long long)value,
                         (unsigned long long)low, (unsigned long long)high);
    return 0;
}

int role_config_check(const struct role_config *config)
{
    const struct {
        const char *name;
        uint64_t value, low, high;
    } bounds[] = {
        {"interval (ns)", config->interval_ns, NS_PER_MS, 60 * NS_PER_S},
        /* A tenth of it is the coarsest that timers and schedulers can be trusted with. */
        {"detect (ns)", config->detect_ns, 10 * NS_PER_MS, 60 * NS_PER_S},
        {"retry (ns)", config->retry_ns, NS_PER_MS, 60 * NS_PER_S},
        {"longest retry (ns)", config->retry_max_ns, config->retry_ns, 600 * NS_PER_S},
        {"set-up bound (ns)", config->setup_ns, config->detect_ns, 600 * NS_PER_S},
        {"pause-share (percent)", config->pause_share, 1, 100},
        {"live rounds", config->rounds_max, 0, 1000},
    };
    for (unsigned i = 0; i < array_length(bounds); i++) {
        int r = check_bounds(bounds[i].name, bounds[i].value, bounds[i].low, bounds[i].high);
        if (r < 0)
            return r;
    }
    if (config->takeover != ROLE_TAKEOVER_MANUAL && config->takeover != ROLE_TAKEOVER_AUTO)
        return error_set(-EINVAL, "takeover is %d, neither manual nor auto", (int)config->takeover);
    if (config->loss != ROLE_LOSS_CONTINUE && config->loss != ROLE_LOSS_STALL)
        return error_set(-EINVAL, "standby-loss is %d, neither continue nor stall", (int)config->loss);
    if (config->reprotect != ROLE_REPROTECT_MANUAL && config->reprotect != ROLE_REPROTECT_AUTO)
        return error_set(-EINVAL, "reprotect is %d, neither manual nor auto", (int)config->reprotect);
    if (config->takeover == ROLE_TAKEOVER_AUTO && config->loss == ROLE_LOSS_CONTINUE && !config->arbiter)
        return error_set(-EINVAL,
                         "takeover=auto with standby-loss=continue needs an arbiter: when the link is "
                         "cut, both hosts would run the guest%s",
                         config->fence
                             ? ". A fence is no arbiter: the primary that it ends may have let out, "
                               "alone, what the standby does not know"
                             : "");
    if (config->optional & ~WIRE_FEATURES_KNOWN)
        return error_set(-EINVAL, "unknown features 0x%llx are offered",
                         (unsigned long long)(config->optional & ~WIRE_FEATURES_KNOWN));
    if (!config->host[0] || !memchr(config->host, 0, sizeof config->host))
        return error_set(-EINVAL, "the host has no name, or one of more than %zu characters",
                         sizeof config->host - 1);
    return 0;
}

void role_core_init(struct role_core *core, const struct role_config *config, enum role_state state,
                    uint64_t generation, uint64_t now_ns)
{
    *core = (struct role_core){
        .config = *config,
        .state = state,
        .since_ns = now_ns,
        .generation = generation,
        .now_ns = now_ns,
        .heard_ns = now_ns,
        .heartbeat_at_ns = NEVER,
    };
}

void role_step_begin(struct role_core *core, const struct role_event *event, struct role_actions *actions)
{
    actions->count = 0;
    core->actions = actions;
    /* Events are stamped where they happen, on several threads: one may be overtaken by another. */
    uint64_t now_ns = later(event->now_ns, core->now_ns);
    uint64_t own_ns = 2 * role_watch_ns(&core->config);
    core->gap_ns = now_ns - core->now_ns;
    if (core->gap_ns > own_ns)
        core->heard_ns = earlier(core->heard_ns + (core->gap_ns - own_ns), now_ns);
    core->now_ns = now_ns;
}

void role_enter(struct role_core *core, enum role_state state)
{
    if (state == core->state)
        return;
    assert(role_flow(core->state)->exits & STATE_BIT(state));
    core->state = state;
    core->since_ns = core->now_ns;
}

struct role_action *role_act(struct role_core *core, enum role_action_type type)
{
    assert(core->actions->count < ROLE_ACTIONS_MAX);
    struct role_action *action = &core->actions->items[core->actions->count++];
    *action = (struct role_action){.type = type, .session = core->session};
    return action;
}

struct role_action *role_send(struct role_core *core, enum wire_type type)
{
    struct role_action *action = role_act(core, ACTION_SEND);
    action->send = type;
    return action;
}

void role_store(struct role_core *core, bool active)
{
    struct role_action *action = role_act(core, ACTION_STORE);
    action->to = core->generation;
    action->active = active;
}

void role_report(struct role_core *core, enum log_level level, const char *format, ...)
{
    struct role_action *action = role_act(core, ACTION_REPORT);
    va_list arguments;
    action->level = (int)level;
    va_start(arguments, format);
    vsnprintf(action->text, sizeof action->text, format, arguments);
    va_end(arguments);
}

void role_reason(struct role_core *core, const char *format, ...)
{
    char fresh[sizeof core->reason]; /* the arguments may point into the present reason */
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(fresh, sizeof fresh, format, arguments);
    va_end(arguments);
    memcpy(core->reason, fresh, sizeof fresh);
}

void role_send_refuse(struct role_core *core, uint64_t session, enum wire_refusal code, const char *text)
{
    struct role_action *action = role_send(core, WIRE_REFUSE);
    action->session = session;
    action->refusal = code;
    snprintf(action->text, sizeof action->text, "%s", text);
}

struct role_action *role_arbitrate(struct role_core *core, uint64_t from)
{
    struct role_action *action = role_act(core, ACTION_ARBITRATE);
    action->from = from;
    action->to = core->claimed = later(core->generation, core->claimed) + 1;
    return action;
}

void role_won(struct role_core *core, const struct role_event *event)
{
    core->generation = later(core->claimed, event->generation);
    core->claimed = 0;
}

uint64_t role_watch_ns(const struct role_config *config)
{
    return config->detect_ns / 5;
}

void role_heartbeat_start(struct role_core *core, uint32_t peer_detect_ms)
{
    core->heartbeat_ns = role_watch_ns(&core->config);
    /* A peer that gives no figure, or one that would have us do nothing but beat, gets ours. */
    if (peer_detect_ms >= 10)
        core->heartbeat_ns = earlier(core->heartbeat_ns, peer_detect_ms * NS_PER_MS / 5);
    core->heartbeat_at_ns = core->now_ns + core->heartbeat_ns;
}

void role_heartbeat_run(struct role_core *core, uint64_t committed_epoch)
{
    if (!core->session || core->now_ns < core->heartbeat_at_ns)
        return;
    role_send(core, WIRE_HEARTBEAT)->epoch = committed_epoch;
    core->heartbeat_at_ns = core->now_ns + core->heartbeat_ns;
}

void role_heard(struct role_core *core)
{
    core->heard_ns = core->now_ns;
}

uint64_t role_silent_at(const struct role_core *core)
{
    return core->heard_ns + core->config.detect_ns;
}

uint64_t role_backoff(const struct role_config *config, uint64_t *pause_ns)
{
    uint64_t pause = later(*pause_ns, config->retry_ns);
    *pause_ns = earlier(pause * 2, config->retry_max_ns);
    return pause;
}
