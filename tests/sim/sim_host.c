/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Engines: they live, get events, and what they decide is done to the world. */

#define SPIN_MAX 400 /* steps of both engines without time passing */

static uint64_t local_ns(const struct sim *sim, int index)
{
    return (uint64_t)((int64_t)sim->now_ns + sim->hosts[index].clock_offset_ns);
}

void host_get_status(const struct sim *sim, int index, struct role_status *ret_status)
{
    const struct host *host = &sim->hosts[index];
    if (host->role == ENGINE_PRIMARY)
        primary_get_status(host->primary, ret_status);
    else if (host->role == ENGINE_STANDBY)
        standby_get_status(host->standby, ret_status);
    else
        *ret_status = (struct role_status){0};
}

static void plan_tick(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    uint64_t deadline =
        host->role == ENGINE_PRIMARY ? primary_deadline(host->primary) : standby_deadline(host->standby);
    if (deadline == UINT64_MAX)
        return;
    int64_t at = (int64_t)deadline - host->clock_offset_ns;
    uint64_t at_ns = at > (int64_t)sim->now_ns ? (uint64_t)at : sim->now_ns;
    /* A tick that comes too early does no harm; it plans the next. */
    if (host->tick_at_ns >= sim->now_ns && host->tick_at_ns <= at_ns && host->tick_at_ns)
        return;
    host->tick_at_ns = at_ns;
    uint64_t late = sim_chance(sim, 2) ? sim_between(sim, 0, 20 * MS) : 0; /* a busy machine */
    sim_push(sim, SIM_TICK, at_ns - sim->now_ns + late, index)->a = ++host->tick_stamp;
}

void host_start_engine(struct sim *sim, int index, enum engine_role role, enum engine_start start)
{
    struct host *host = &sim->hosts[index];
    assert(host->up && host->role == ENGINE_NONE);
    struct role_config config = sim->config;
    snprintf(config.host, sizeof config.host, "host%d", index);
    int r;
    if (role == ENGINE_PRIMARY) {
        uint64_t generation = host->stored_generation ? host->stored_generation : 1;
        host->tracker = (struct tracker){0};
        check_closed(sim, index); /* an engine holds output until it knows better */
        for (unsigned i = 0; i < sizeof host->tracker.history; i++)
            host->tracker.history[i] = (uint8_t)sim_random(sim);
        if (start == START_FIRST)
            host->guest.generation = generation;
        r = primary_new(&host->primary, &config, host->tracker.history, generation, local_ns(sim, index));
        if (r == 0 && start == START_TURNED)
            primary_set_right(host->primary, ROLE_RIGHT_TAKEN);
        else if (r == 0 && host->stored_generation && !host->stored_active)
            primary_set_right(host->primary, ROLE_RIGHT_DOUBTFUL);
        if (start == START_FIRST && sim->lineage_count == 0)
            sim->lineage_count = 1;
    } else {
        host->restorer = (struct restorer){0};
        /* What was left behind goes when its place is needed (prepared()). */
        if (start != START_TURNED)
            host->guest = (struct guest){0};
        r = standby_new(&host->standby, &config, host->stored_generation, local_ns(sim, index));
    }
    assert(r == 0);
    host->role = role;
    host->born_ns = sim->now_ns;
    host->tick_at_ns = 0;
    host->frozen_until_ns = 0;
    host->crash_after = 0;
    host->operator_takeover = host->told_to_run = host->handed = false;
    sim_trace(sim, "host%d: %s engine starts, generation %llu", index,
              role == ENGINE_PRIMARY ? "primary" : "standby", (unsigned long long)host->stored_generation);
    host_post(sim, index, 0, EVENT_TICK);
}

void host_kill_engine(struct sim *sim, int index, bool silent)
{
    struct host *host = &sim->hosts[index];
    if (host->role == ENGINE_NONE)
        return;
    sim_trace(sim, "host%d: engine gone", index);
    guest_advance(sim, index);
    net_engine_died(sim, index, silent);
    primary_free(host->primary);
    standby_free(host->standby);
    host->primary = NULL;
    host->standby = NULL;
    host->role = ENGINE_NONE;
    host->life++;
    host->job_count = 0;
    host->job_running = false;
    if (host->guest.state == GUEST_WAITING) /* it has no life of its own yet */
        host->guest = (struct guest){0};
    host->guest.paused = false;
    host->restorer = (struct restorer){0};
    check_closed(sim, index); /* nobody lets output pass */
}

void host_crash(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    host_kill_engine(sim, index, true);
    sim_trace(sim, "host%d: down", index);
    guest_advance(sim, index);
    check_closed(sim, index);
    host->guest = (struct guest){0};
    host->up = false;
}

struct parcel *host_post(struct sim *sim, int index, uint64_t delay_ns, enum role_event_type type)
{
    int parcel_index;
    struct parcel *parcel = sim_parcel(sim, &parcel_index);
    parcel->event.type = type;
    sim_push(sim, SIM_ENGINE, delay_ns, index)->payload = parcel_index;
    return parcel;
}

static void arbitrate(struct sim *sim, int index, const struct role_action *action)
{
    if (sim->hosts[index].role == ENGINE_STANDBY)
        check_decision(sim, index);
    sim_trace(sim, "host%d: asks the arbiter %llu -> %llu", index, (unsigned long long)action->from,
              (unsigned long long)action->to);
    struct sim_event *event = sim_push(sim, SIM_ARBITER, sim_between(sim, 0, 5 * MS), index);
    event->a = action->from;
    event->b = action->to;
    event->payload = action->fence ? 0 : -1;
}

static void store(struct sim *sim, int index, const struct role_action *action)
{
    struct host *host = &sim->hosts[index];
    if (action->to < host->stored_generation)
        check_fail(sim, "host%d stores generation %llu after %llu", index, (unsigned long long)action->to,
                   (unsigned long long)host->stored_generation);
    if (host->role == ENGINE_STANDBY && action->active && !sim->config.arbiter && !sim->config.fence)
        check_decision(sim, index);
    if (host->role == ENGINE_STANDBY && action->active)
        check_fence(sim, index);
    host->stored_generation = action->to;
    host->stored_active = action->active;
    if (host->role == ENGINE_PRIMARY && action->active) {
        host->guest.generation = action->to;
        host->guest.by_right = true;
    }
}

/* A gate that lets everything pass is taken away by an engine that ends; one that holds stays shut. */
static void host_exit(struct sim *sim, int index)
{
    bool passed = sim->hosts[index].role == ENGINE_PRIMARY && sim->hosts[index].guest.state == GUEST_ALIVE &&
                  check_is_open(sim, index);
    host_kill_engine(sim, index, false);
    if (passed)
        check_left(sim, index);
}

/* The engine goes on in its other role; its host, its guest and its record stay. */
static void host_turn(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    enum engine_role role = host->role == ENGINE_PRIMARY ? ENGINE_STANDBY : ENGINE_PRIMARY;
    if (host->role == ENGINE_PRIMARY && host->guest.state == GUEST_ALIVE)
        check_fail(sim, "host%d stands by, and its guest runs", index);
    if (host->role == ENGINE_STANDBY && host->guest.state == GUEST_WAITING)
        check_fail(sim, "host%d protects a guest that waits", index);
    sim_trace(sim, "host%d: changes its role", index);
    host_kill_engine(sim, index, false);
    host_start_engine(sim, index, role, START_TURNED);
    sim->turns++;
}

static void perform(struct sim *sim, int index, const struct role_action *action)
{
    struct host *host = &sim->hosts[index];
    struct job job = {.session = action->session, .epoch = action->epoch, .round = action->round};
    switch (action->type) {
    case ACTION_SEND:
        host->handed |= action->send == WIRE_HANDOVER;
        net_send(sim, index, action);
        return;
    case ACTION_DISCONNECT:
        net_disconnect(sim, index, action->session);
        job_cancel(sim, index, action->session);
        if (host->role == ENGINE_PRIMARY) {
            job.type = JOB_ABANDON;
            job_add(sim, index, &job);
        }
        return;
    case ACTION_ARBITRATE:
        arbitrate(sim, index, action);
        return;
    case ACTION_STORE:
        store(sim, index, action);
        return;
    case ACTION_REPORT:
        sim_trace(sim, "host%d: \"%s\"", index, action->text);
        return;
    case ACTION_EXIT:
        sim_trace(sim, "host%d: exits with %d", index, action->code);
        host_exit(sim, index);
        return;
    case ACTION_TURN:
        host_turn(sim, index);
        return;
    case ACTION_TURN_AWAY: {
        struct role_action refuse = *action;
        refuse.send = WIRE_REFUSE;
        net_send(sim, index, &refuse);
        net_disconnect(sim, index, action->session);
        return;
    }
    case ACTION_PASS:
        sim_trace(sim, "host%d: output passes", index);
        check_alone(sim, index);
        return;
    case ACTION_CONNECT:
        net_connect(sim, index, action->session);
        return;
    case ACTION_OPEN_LANES:
        net_open_lanes(sim, index, action->session);
        return;
    case ACTION_BEGIN:
        job.type = JOB_BEGIN;
        job.full = action->full;
        if (action->full)
            sim->fulls++;
        else
            sim->deltas++;
        job_add(sim, index, &job);
        return;
    case ACTION_ROUND:
        job.type = JOB_ROUND;
        job.capture = action->capture;
        job.final = action->final;
        job.downtime_ns = action->downtime_ns;
        job_add(sim, index, &job);
        return;
    case ACTION_COMMITTED:
    case ACTION_ADOPT:
        check_committed(sim, index, action->epoch);
        sim->adopts += action->type == ACTION_ADOPT;
        job.type = JOB_COMMITTED;
        if (action->type == ACTION_COMMITTED)
            job_add(sim, index, &job);
        return;
    case ACTION_KEEP:
        sim_trace(sim, "host%d: guest kept stopped", index);
        guest_stop(sim, index, true);
        host->held_by = host->life;
        host_post(sim, index, sim_between(sim, 0, MS), EVENT_KEPT)->event.session = action->session;
        return;
    case ACTION_HOLD:
        sim_trace(sim, "host%d: guest held", index);
        if (host->guest.state == GUEST_ALIVE && !host->guest.held &&
            !host->guest.paused) /* else it stays as it is */
            check_hold(sim, index);
        guest_stop(sim, index, true);
        host->held_by = host->life;
        sim->holds++;
        return;
    case ACTION_RELEASE:
        sim_trace(sim, "host%d: guest released", index);
        check_release(sim, index);
        guest_stop(sim, index, false);
        host->guest.paused = false;
        sim->releases++;
        return;
    case ACTION_YIELD:
        sim_trace(sim, "host%d: yields", index);
        guest_advance(sim, index);
        check_closed(sim, index);
        if (host->guest.state == GUEST_ALIVE)
            host->guest.state = GUEST_YIELDED;
        host->guest.by_right = false;
        sim->yields++;
        return;
    case ACTION_PREPARE:
        job.type = JOB_PREPARE;
        host->restore_session = action->session;
        job.fresh = action->fresh;
        job_add(sim, index, &job);
        return;
    case ACTION_EXPECT:
        restorer_expect(sim, index, action);
        return;
    case ACTION_COMMIT:
        sim->commits++;
        restorer_commit(sim, index, action->epoch);
        return;
    case ACTION_APPLY:
        job.type = JOB_APPLY;
        job_add(sim, index, &job);
        return;
    case ACTION_LOAD:
        job.type = JOB_LOAD;
        job_add(sim, index, &job);
        return;
    case ACTION_TAKEOVER:
        job.type = JOB_TAKEOVER;
        job_add(sim, index, &job);
        return;
    }
}

/* A primary that has been told of a newer generation must have stopped its guest when the step ends. */
static void check_told(struct sim *sim, int index, const struct role_event *event,
                       const struct role_status *was)
{
    struct role_status status;
    if (sim->hosts[index].role != ENGINE_PRIMARY)
        return;
    host_get_status(sim, index, &status);
    bool frame = event->session && event->session == was->session && event->type != EVENT_WELCOME &&
                 (event->type != EVENT_REFUSE || event->refusal == WIRE_REFUSE_GENERATION);
    bool told =
        (frame && event->generation > was->generation) ||
        (event->type == EVENT_HELLO && event->generation > was->generation && was->state != PRIMARY_YIELDED &&
         was->state != PRIMARY_MOVED) ||
        (event->type == EVENT_ARBITER && event->arbiter == ARBITER_LOST && was->state == PRIMARY_ARBITRATING);
    if (told && ((status.state != PRIMARY_YIELDED && status.state != PRIMARY_MOVED) ||
                 sim->hosts[index].guest.state == GUEST_ALIVE))
        check_fail(sim, "host%d was told of generation %llu and is %s", index,
                   (unsigned long long)event->generation, role_state_name(status.state));
}

void host_deliver(struct sim *sim, int index, struct role_event *event)
{
    struct host *host = &sim->hosts[index];
    struct role_actions actions;
    struct role_status was, is;
    if (host->role == ENGINE_NONE)
        return;
    if (event->type == EVENT_TAKEOVER)
        host->operator_takeover = true;
    if (event->type == EVENT_TAKEOVER && event->force && (sim->config.arbiter || sim->config.fence))
        sim->forced = true;
    if (event->type == EVENT_STOP && host->role == ENGINE_PRIMARY)
        check_stop(sim, index);
    if (event->type == EVENT_CONTINUE)
        sim->forced = sim->forced || !sim->config.arbiter || event->force;
    host_get_status(sim, index, &was);
    event->now_ns = local_ns(sim, index);
    sim->steps++;
    sim->same_time_steps = sim->now_ns == sim->last_step_ns ? sim->same_time_steps + 1 : 0;
    sim->last_step_ns = sim->now_ns;
    if (sim->same_time_steps > SPIN_MAX)
        check_fail(sim, "host%d spins: %u steps without time passing", index, SPIN_MAX);

    if (host->role == ENGINE_PRIMARY)
        primary_step(host->primary, event, &actions);
    else
        standby_step(host->standby, event, &actions);
    host_get_status(sim, index, &is);
    if (is.state != was.state)
        sim_trace(sim, "host%d: %s -> %s (%s)", index, role_state_name(was.state), role_state_name(is.state),
                  is.reason);
    if (is.state == STANDBY_GREETED)
        host->operator_takeover = false;
    if (is.state == STANDBY_LOST || is.state == STANDBY_WAITING || is.state == STANDBY_GREETED)
        host->told_to_run = false;
    sim->moves += is.state == PRIMARY_MOVED && was.state != PRIMARY_MOVED;
    sim->taken_back += is.migration_taken_back > was.migration_taken_back;

    uint32_t life = host->life;
    for (unsigned i = 0; i < actions.count && host->life == life; i++) {
        perform(sim, index, &actions.items[i]);
        if (host->life == life && host->crash_after && --host->crash_after == 0) {
            sim_trace(sim, "host%d: dies after action %d", index, (int)actions.items[i].type);
            host_kill_engine(sim, index, false);
        }
    }
    if (host->life != life)
        return;
    check_told(sim, index, event, &was);
    plan_tick(sim, index);
}
