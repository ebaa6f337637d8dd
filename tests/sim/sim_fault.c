/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <string.h>

/* What goes wrong, what mends by itself, and the operator who mends the rest. */

enum fault {
    FAULT_KILL_PRIMARY,
    FAULT_KILL_STANDBY,
    FAULT_KILL_HALFWAY,
    FAULT_CRASH_PRIMARY,
    FAULT_CRASH_STANDBY,
    FAULT_CUT,
    FAULT_CUT_ONE_WAY,
    FAULT_RESET,
    FAULT_CORRUPT,
    FAULT_FREEZE_PRIMARY,
    FAULT_FREEZE_STANDBY,
    FAULT_SLOW,
    FAULT_GUEST_FAILS,
    FAULT_GUEST_ENDS,
    FAULT_ARBITER,
    FAULT_ARBITER_UNCLEAR,
    FAULT_TAKEOVER,
    FAULT_CONTINUE,
    FAULT_STOP_PRIMARY,
    FAULT_LOST_PRIMARY,
    FAULT_STOP_STANDBY,
    FAULTS
};

static const char *const names[FAULTS] = {
    "kill primary engine",
    "kill standby engine",
    "kill an engine halfway",
    "crash primary host",
    "crash standby host",
    "cut",
    "cut one way",
    "reset",
    "corrupt",
    "freeze primary",
    "freeze standby",
    "slow link",
    "guest fails",
    "guest ends",
    "arbiter out of reach",
    "arbiter's answers are lost",
    "operator: takeover",
    "operator: continue",
    "operator: stop primary",
    "the engine loses its guest's monitor",
    "operator: stop standby",
};

enum repair { REPAIR_REVIVE, REPAIR_HEAL, REPAIR_ARBITER, REPAIR_SPEED, REPAIR_CONTINUE };

static int with_role(const struct sim *sim, enum engine_role role)
{
    for (int i = 0; i < HOSTS; i++)
        if (sim->hosts[i].role == role)
            return i;
    return -1;
}

bool world_is_well(const struct sim *sim)
{
    struct role_status status;
    int primary = with_role(sim, ENGINE_PRIMARY);
    if (primary < 0 || sim->hosts[!primary].role != ENGINE_STANDBY)
        return false;
    const struct guest *guest = &sim->hosts[primary].guest;
    host_get_status(sim, primary, &status);
    if (!status.protected_now || guest->state != GUEST_ALIVE || guest->held)
        return false;
    host_get_status(sim, !primary, &status);
    return status.protected_now;
}

/* An operator wants the guest elsewhere, about when things go wrong. */
static void plan_migration(struct sim *sim, uint64_t about_ns)
{
    if (!sim_chance(sim, 50))
        return;
    uint64_t at_ns = about_ns + sim_between(sim, 0, 25 * MS);
    at_ns -= at_ns > 20 * MS ? 20 * MS : at_ns;
    sim_push(sim, SIM_MIGRATE, at_ns, 0)->a = 0;
    if (sim->faults > 1 && sim_chance(sim, 30))
        sim_push(sim, SIM_MIGRATE, at_ns + sim_between(sim, 0, 30 * MS), 0)->a = 1;
}

void fault_plan(struct sim *sim)
{
    sim->faults = sim_chance(sim, 45) ? 1 : (unsigned)sim_between(sim, 2, 7);
    sim->flaky = sim->faults > 1 && sim_chance(sim, 60); /* else a failed takeover were a second failure */
    uint64_t at_ns = sim_between(sim, sim->faults == 1 ? 100 * MS : 0, 400 * MS);
    for (unsigned i = 0; i < sim->faults; i++) {
        sim_push(sim, SIM_FAULT, at_ns, 0)->a = i;
        plan_migration(sim, at_ns);
        at_ns += sim_between(sim, 0, sim_chance(sim, 50) ? 30 * MS : 4 * sim->config.detect_ns);
    }
}

void operator_migrates(struct sim *sim, bool cancel)
{
    int primary = with_role(sim, ENGINE_PRIMARY);
    if (primary < 0 || sim->healthy)
        return;
    struct role_event *event =
        &host_post(sim, primary, 0, cancel ? EVENT_MIGRATE_CANCEL : EVENT_MIGRATE)->event;
    sim_trace(sim, "operator: migrate%s", cancel ? " no more" : "");
    event->downtime_ns = 50 * MS;
    event->timeout_ns = sim_chance(sim, 50) ? 0 : sim_between(sim, 1, 60 * MS);
    event->force = sim_chance(sim, 50);
    event->left = (enum role_left)sim_between(sim, 0, 2);
}

static void repair_later(struct sim *sim, enum repair what, int host, uint64_t delay_ns)
{
    sim_push(sim, SIM_REPAIR, delay_ns, host)->a = what;
}

static void post(struct sim *sim, int index, enum role_event_type type, bool force)
{
    if (sim->hosts[index].role != ENGINE_NONE)
        host_post(sim, index, 0, type)->event.force = force;
}

/* The operator, or systemd, brings up what is down, in the role that fits what is there. */
static void revive(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    host->up = true;
    if (host->role != ENGINE_NONE)
        return;
    guest_advance(sim, index);
    if (host->guest.state == GUEST_ALIVE)
        host_start_engine(sim, index, ENGINE_PRIMARY, START_AGAIN);
    else if (host->guest.state == GUEST_NONE)
        host_start_engine(sim, index, ENGINE_STANDBY, START_AGAIN);
}

static void guest_gone(struct sim *sim, int index, enum vmm_event event)
{
    struct host *host = &sim->hosts[index];
    if (host->guest.state == GUEST_NONE)
        return;
    guest_advance(sim, index);
    check_closed(sim, index);
    if (host->guest.state == GUEST_ALIVE && event == VMM_EVENT_ENDED)
        sim->ended = true;
    host->guest = (struct guest){0};
    host->restorer.committed = false;
    host->restorer.broken = true;
    if (host->role != ENGINE_NONE)
        host_post(sim, index, 0, EVENT_GUEST)->event.guest = event;
}

/* The guest goes on, and its engine cannot stop or save it any more. */
static void guest_lost(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    if (host->role == ENGINE_PRIMARY && host->guest.state == GUEST_ALIVE)
        host_post(sim, index, 0, EVENT_GUEST)->event.guest = VMM_EVENT_LOST;
}

/* Longest that anything lasts, so that a check of what may happen meanwhile has a bound. */
static uint64_t a_while(struct sim *sim)
{
    return sim_chance(sim, 30) ? sim_between(sim, 0, 20 * MS)
                               : sim_between(sim, 0, 6 * sim->config.detect_ns);
}

void fault_strike(struct sim *sim, unsigned index)
{
    /* A single failure is one that meets a protected guest, or one that moves. */
    if (sim->faults == 1 && !world_is_well(sim) && !sim->handovers) {
        sim_push(sim, SIM_FAULT, 20 * MS, 0)->a = index;
        return;
    }
    enum fault fault = (enum fault)sim_between(sim, 0, FAULTS - 1);
    int primary = with_role(sim, ENGINE_PRIMARY), standby = with_role(sim, ENGINE_STANDBY);
    int any = (int)sim_between(sim, 0, 1);
    if (primary < 0)
        primary = any;
    if (standby < 0)
        standby = !primary;
    uint64_t lasts_ns = a_while(sim);
    sim->struck++;
    sim_trace(sim, "FAULT: %s (host%d primary, any host%d)", names[fault], primary, any);
    switch (fault) {
    case FAULT_KILL_PRIMARY:
    case FAULT_KILL_STANDBY: {
        int victim = fault == FAULT_KILL_PRIMARY ? primary : standby;
        host_kill_engine(sim, victim, false);
        repair_later(sim, REPAIR_REVIVE, victim, lasts_ns);
        break;
    }
    case FAULT_KILL_HALFWAY:
        sim->hosts[any].crash_after = (int)sim_between(sim, 1, 30);
        break;
    case FAULT_CRASH_PRIMARY:
    case FAULT_CRASH_STANDBY: {
        int victim = fault == FAULT_CRASH_PRIMARY ? primary : standby;
        host_crash(sim, victim);
        repair_later(sim, REPAIR_REVIVE, victim, lasts_ns + 200 * MS);
        break;
    }
    case FAULT_CUT:
        sim->cut[0] = sim->cut[1] = true;
        repair_later(sim, REPAIR_HEAL, 0, lasts_ns);
        break;
    case FAULT_CUT_ONE_WAY:
        sim->cut[any] = true;
        repair_later(sim, REPAIR_HEAL, 0, lasts_ns);
        break;
    case FAULT_RESET:
        net_reset(sim);
        break;
    case FAULT_CORRUPT:
        net_corrupt(sim);
        break;
    case FAULT_FREEZE_PRIMARY:
    case FAULT_FREEZE_STANDBY:
        sim->only_standby_froze = sim->faults == 1 && fault == FAULT_FREEZE_STANDBY;
        sim->hosts[fault == FAULT_FREEZE_PRIMARY ? primary : standby].frozen_until_ns =
            sim->now_ns + lasts_ns;
        break;
    case FAULT_SLOW:
        sim->delay_ns = sim_between(sim, 1 * MS, 40 * MS);
        repair_later(sim, REPAIR_SPEED, 0, lasts_ns);
        break;
    case FAULT_GUEST_FAILS:
        guest_gone(sim, primary, VMM_EVENT_FAILED);
        break;
    case FAULT_GUEST_ENDS:
        sim->orderly = sim->faults == 1;
        guest_gone(sim, primary, VMM_EVENT_ENDED);
        break;
    case FAULT_ARBITER:
        sim->hosts[any].arbiter_reachable = false;
        repair_later(sim, REPAIR_ARBITER, any, lasts_ns + 100 * MS);
        break;
    case FAULT_ARBITER_UNCLEAR:
        sim->hosts[any].arbiter_unclear = true;
        repair_later(sim, REPAIR_ARBITER, any, lasts_ns + 100 * MS);
        break;
    case FAULT_TAKEOVER:
        post(sim, standby, EVENT_TAKEOVER, sim->faults > 1 && sim_chance(sim, 20));
        break;
    case FAULT_CONTINUE:
        /* Mostly an operator says so when he sees the guest held. */
        if (!sim->hosts[primary].guest.held && any) {
            repair_later(sim, REPAIR_CONTINUE, primary, 10 * MS);
            break;
        }
        post(sim, primary, EVENT_CONTINUE, sim->faults > 1 && sim_chance(sim, 20));
        break;
    case FAULT_STOP_PRIMARY:
    case FAULT_LOST_PRIMARY:
        sim->orderly = sim->faults == 1;
        if (fault == FAULT_STOP_PRIMARY)
            post(sim, primary, EVENT_STOP, false);
        else
            guest_lost(sim, primary);
        repair_later(sim, REPAIR_REVIVE, primary, lasts_ns);
        break;
    case FAULT_STOP_STANDBY:
        post(sim, standby, EVENT_STOP, false);
        repair_later(sim, REPAIR_REVIVE, standby, lasts_ns);
        break;
    case FAULTS:
        break;
    }
    if (sim->struck == sim->faults)
        sim_push(sim, SIM_OPERATOR, 7 * sim->config.detect_ns + 300 * MS, 0)->a = sim->act;
}

void fault_fence(struct sim *sim, int host)
{
    if (!sim->hosts[host].up)
        return;
    host_crash(sim, host);
    repair_later(sim, REPAIR_REVIVE, host, a_while(sim) + 200 * MS);
}

void fault_repair(struct sim *sim, int host, uint64_t what)
{
    switch ((enum repair)what) {
    case REPAIR_REVIVE:
        revive(sim, host);
        return;
    case REPAIR_HEAL:
        sim->cut[0] = sim->cut[1] = false;
        net_healed(sim);
        return;
    case REPAIR_ARBITER:
        sim->hosts[host].arbiter_reachable = true;
        sim->hosts[host].arbiter_unclear = false;
        return;
    case REPAIR_CONTINUE:
        if (sim->hosts[host].guest.held)
            post(sim, host, EVENT_CONTINUE, false);
        else if (!sim->healthy)
            repair_later(sim, REPAIR_CONTINUE, host, 10 * MS);
        return;
    case REPAIR_SPEED:
        sim->delay_ns = MS / 5;
        return;
    }
}

/* Where the guest was taken over, the roles change: that engine protects it, the other host stands by. */
static void reverse_roles(struct sim *sim, int index)
{
    struct host *other = &sim->hosts[!index];
    if (other->guest.state == GUEST_ALIVE)
        return; /* its engine is about to be told */
    sim_trace(sim, "operator: host%d protects the guest from now on", index);
    host_kill_engine(sim, index, false);
    host_start_engine(sim, index, ENGINE_PRIMARY, START_AGAIN);
}

static bool resumable(const struct sim *sim, int index)
{
    struct role_status status;
    if (sim->hosts[index].role != ENGINE_STANDBY)
        return false;
    host_get_status(sim, index, &status);
    return status.committed_epoch && status.state != STANDBY_FAILED;
}

void operator_acts(struct sim *sim)
{
    struct role_status status[HOSTS];
    bool alive = false, hope = false;
    if (!sim->healthy) {
        sim->healthy = true;
        sim->healthy_since_ns = sim->now_ns;
        sim->flaky = false;
        for (int i = 0; i < HOSTS; i++)
            sim->hosts[i].crash_after = 0;
        sim_trace(sim, "no more faults from here");
    }
    for (int i = 0; i < HOSTS; i++) {
        struct host *host = &sim->hosts[i];
        /* Yielded; or two engines that both protect and so never meet: the older generation goes. */
        const struct guest *other = &sim->hosts[!i].guest;
        bool outdated = host->role == ENGINE_PRIMARY && sim->hosts[!i].role == ENGINE_PRIMARY &&
                        host->stored_generation < sim->hosts[!i].stored_generation;
        if (other->state == GUEST_ALIVE && (host->guest.state == GUEST_YIELDED || outdated)) {
            sim_trace(sim, "operator: host%d stands by from now on", i);
            host_kill_engine(sim, i, false);
            host->guest = (struct guest){0};
        }
        revive(sim, i);
        host_get_status(sim, i, &status[i]);
        alive = alive || host->guest.state == GUEST_ALIVE;
        hope = hope || resumable(sim, i) || status[i].state == STANDBY_TAKING_OVER;
    }
    if (!alive && !hope) {
        sim->lost = true;
        return;
    }
    for (int i = 0; i < HOSTS; i++) {
        struct host *host = &sim->hosts[i];
        if (host->role == ENGINE_STANDBY && status[i].state == STANDBY_ACTIVE) {
            reverse_roles(sim, i);
            break; /* what was read of the states is old now */
        }
        if (resumable(sim, i) && !alive &&
            (status[i].state == STANDBY_LOST || status[i].state == STANDBY_WAITING)) {
            bool force = sim->now_ns > sim->healthy_since_ns + 1000 * MS;
            sim_trace(sim, "operator: takeover on host%d%s", i, force ? ", by force" : "");
            post(sim, i, EVENT_TAKEOVER, force);
        }
        /* An engine died while it held its guest: who attaches next finds it stopped by somebody else. */
        if (host->role == ENGINE_PRIMARY && host->guest.held && host->held_by != host->life &&
            status[i].state == PRIMARY_PROTECTED)
            guest_stop(sim, i, false);
        /* A failed takeover, or a generation without a guest: engines and rights are sorted out by hand. */
        if (status[i].state == STANDBY_FAILED ||
            (host->guest.state == GUEST_YIELDED && !sim->hosts[!i].guest.state))
            sim->lost = true;
    }
    sim_push(sim, SIM_OPERATOR, 100 * MS, 0)->a = sim->act;
}
