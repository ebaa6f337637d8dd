/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_MACHINE_H
#define UNDERSTUDY_REPLICATOR_MACHINE_H

#include "base/clock.h"
#include "base/log.h"
#include "replicator/role.h"

/*
 * What both role machines share: the state with its flow table, the action list, signs of life.
 * Internal to the role library.
 */

#define NEVER UINT64_MAX

#define EVENT_BIT(event) (UINT64_C(1) << (event))
#define STATE_BIT(state) (UINT64_C(1) << (state))

/*
 * A state of either role. `frames`: what the peer may say in it; another frame of the present session breaks
 * the protocol and ends the session. `exits`: where role_enter() lets it go.
 */
struct role_flow {
    const char *name;
    uint64_t frames; /* EVENT_BIT */
    uint64_t exits;  /* STATE_BIT */
};

struct role_core {
    struct role_config config;
    enum role_state state;
    uint64_t since_ns;
    uint64_t generation;
    /* The newest one that we asked the arbiter for, or the peer did, and that was not taken up: the answer
     * was lost, or the fence failed. The register may hold it. 0: none. */
    uint64_t claimed;
    uint64_t session; /* 0: none */
    uint64_t optional;
    char reason[200];
    char peer[64];

    uint64_t now_ns;   /* of the step under way; never goes back */
    uint64_t gap_ns;   /* since the step before */
    uint64_t heard_ns; /* latest sign of life of the peer, of whatever session */
    uint64_t heartbeat_ns, heartbeat_at_ns;

    struct role_actions *actions; /* of the step under way */
};

const struct role_flow *role_flow(enum role_state state);

void role_core_init(struct role_core *core, const struct role_config *config, enum role_state state,
                    uint64_t generation, uint64_t now_ns);

/*
 * A step begins. Time in which we did not run at all (stopped, starved) is no silence of the peer: what it
 * said meanwhile still waits to be read. So the part of the gap that is beyond our own ticks is not counted.
 */
void role_step_begin(struct role_core *core, const struct role_event *event, struct role_actions *actions);

/* The one way into a state; asserts that the flow table has the exit. */
void role_enter(struct role_core *core, enum role_state state);

/* A new action, zeroed but for the type and the present session. */
struct role_action *role_act(struct role_core *core, enum role_action_type type);
struct role_action *role_send(struct role_core *core, enum wire_type type);
void role_store(struct role_core *core, bool active);
void role_report(struct role_core *core, enum log_level level, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
/* Why we are where we are, for status. */
void role_reason(struct role_core *core, const char *format, ...) __attribute__((format(printf, 2, 3)));
void role_send_refuse(struct role_core *core, uint64_t session, enum wire_refusal code, const char *text);

/*
 * The arbiter is asked for a generation beyond all that we know of, by who runs the guest, or would resume
 * it, by `from`; and the answer was: won. The same generation is never asked for twice, since the peer may
 * have been told meanwhile that no use is made of it.
 */
struct role_action *role_arbitrate(struct role_core *core, uint64_t from);
void role_won(struct role_core *core, const struct role_event *event);

/* The peer's detect_ms is known: heartbeat often enough for both. */
void role_heartbeat_start(struct role_core *core, uint32_t peer_detect_ms);
/* Sends what is due. */
void role_heartbeat_run(struct role_core *core, uint64_t committed_epoch);
void role_heard(struct role_core *core);
/* When the silence becomes too long. */
uint64_t role_silent_at(const struct role_core *core);
/* How often a machine that watches for silence wants to be woken, so that a gap means what it says. */
uint64_t role_watch_ns(const struct role_config *config);

/* Does the event belong to one session, and is it a frame of the peer's? */
bool role_event_of_session(enum role_event_type type);
bool role_event_is_frame(enum role_event_type type);
const char *role_event_frame_name(const struct role_event *event);

/* Doubles `*pause_ns` within the configured bounds and returns the former value. */
uint64_t role_backoff(const struct role_config *config, uint64_t *pause_ns);

static inline uint64_t earlier(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

static inline uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

#endif
