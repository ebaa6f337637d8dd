/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include "base/clock.h"
#include "base/error.h"

#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A history is one life of a protected guest on two hosts, drawn from a seed: configuration, delays, faults,
 * and where they strike. The role machines in it are the real ones. Each host has a clock of its own, so that
 * nothing can rest on clocks being in step. When the faults are over, an operator does what an operator does,
 * and the world must come right.
 *
 * What must hold, at every step:
 *
 * - Rights: never do two hosts run the guest by right of the same generation. (Two may run it by different
 *   ones: the older cannot know yet. When it is told, by a frame or by the arbiter, it has stopped when the
 *   step ends.)
 *
 * - Wholeness: a guest is resumed only from an epoch that was verified whole and committed, with every page
 *   and the counter exactly as they were when that epoch was captured. An epoch is committed only over one
 *   that is applied; a broken guest is never used again.
 *
 * - Output commit: output that was released by an acknowledgement is never lost. What is resumed is at least
 *   as new, and after a takeover the old primary releases nothing newer than what was resumed. This holds
 *   whatever and however much fails.
 *
 * - Going alone, with an arbiter: output that a primary released while alone is not lost by an automatic
 *   takeover, and a primary does not go alone after a takeover.
 *
 * - Fencing: where it is wanted nobody takes over before a fence has said that the other host is off,
 *   but who was handed the guest.
 *
 * - Holding: a guest is held only where the policy is to stall, or the arbiter cannot be reached, and never
 * let go after it was resumed elsewhere. Where the policy is to stall, a primary that knows of the loss of
 * its standby has stopped when that takes over.
 *
 * - Causes: a standby takes over by itself only by policy, after a silence of `detect`, or when the primary
 *   itself said that its guest is dead; never after an orderly end, nor because it slept itself.
 *
 * - Life: machines never spin; once faults are over the guest runs protected within LIMIT_NS; one failure
 * never loses the guest.
 *
 * - Switchover: a guest that was handed over starts when the one left behind is stopped, and that one never
 * runs again unless nobody else does.
 *
 * Exempt from rights, going alone and the second half of output commit is what an operator forces past the
 * arbiter, or past a stall where there is none; exempt from going alone what he takes over by hand.
 */

#define LIMIT_NS (30000 * MS)

static void choose(struct sim *sim)
{
    static const uint64_t intervals_ms[] = {10, 20, 50};
    struct role_config *config = &sim->config;
    uint64_t policy = sim_between(sim, 0, 6);
    *config = (struct role_config){
        .interval_ns = intervals_ms[sim_between(sim, 0, 2)] * MS,
        .detect_ns = sim_between(sim, 50, 250) * MS,
        .retry_ns = sim_between(sim, 5, 50) * MS,
        .retry_max_ns = sim_between(sim, 50, 400) * MS,
        .setup_ns = 2000 * MS,
        .eager = sim_chance(sim, 50),
        .pause_share = (unsigned)sim_between(sim, 10, 50),
        .rounds_max = (unsigned)sim_between(sim, 0, 4),
        .reprotect = sim_chance(sim, 60) ? ROLE_REPROTECT_AUTO : ROLE_REPROTECT_MANUAL,
        .takeover = policy & 1 ? ROLE_TAKEOVER_AUTO : ROLE_TAKEOVER_MANUAL,
        .loss = policy & 2 ? ROLE_LOSS_STALL : ROLE_LOSS_CONTINUE,
        .arbiter = policy & 4 || policy == 1,
        .fence = sim_chance(sim, 25),
        .optional = WIRE_FEATURES_KNOWN,
        .vm_uuid = {1},
    };
    sim->delay_ns = MS / 5;
    sim->register_owner = -1;
    for (int i = 0; i < HOSTS; i++) {
        sim->hosts[i].up = true;
        sim->hosts[i].arbiter_reachable = true;
        sim->hosts[i].clock_offset_ns = (int64_t)sim_between(sim, 0, 1000000000 * MS);
    }
}

static void register_set(struct sim *sim, int host, uint64_t to)
{
    sim->register_generation = to;
    sim->register_owner = host;
    sim->register_revision++;
}

/* A transaction whose author does not listen any more. */
static void late_swap(struct sim *sim, const struct sim_event *event)
{
    if (sim->register_revision != event->a)
        return;
    register_set(sim, event->host, event->b);
    sim_trace(sim, "arbiter: late, host%d has %llu", event->host, (unsigned long long)event->b);
}

/* The other host is switched off, and comes back in a while; or is switched off but nobody knows; or is not.
 */
static void fence(struct sim *sim, int host)
{
    unsigned chance = (unsigned)sim_between(sim, 0, 99);
    bool said = chance < 70, off = said || chance < 80;
    if (off)
        fault_fence(sim, !host);
    struct parcel *parcel =
        host_post(sim, host, sim_between(sim, 0, 3) * sim->config.detect_ns, EVENT_ARBITER);
    sim->hosts[host].other_fenced = said;
    parcel->event.arbiter = said ? ARBITER_WON : ARBITER_UNFENCED;
    parcel->event.generation = sim->register_generation;
    sim_trace(sim, "host%d: fence of host%d %s", host, !host, said ? "done" : off ? "unclear" : "failed");
}

static void arbiter_answers(struct sim *sim, const struct sim_event *event)
{
    struct host *host = &sim->hosts[event->host];
    uint64_t from = event->a, to = event->b;
    bool reachable = host->arbiter_reachable && !host->arbiter_unclear, won = false;
    bool free = sim->register_generation <= from || sim->register_owner == event->host;
    to = to > sim->register_generation ? to : sim->register_generation + 1;
    if (!sim->config.arbiter) { /* asked only for the fence's sake */
        fence(sim, event->host);
        return;
    }
    /* The request may have arrived though the answer does not; or may be under way still when the engine has
     * long given it up, and dies and comes back meanwhile. Then it counts if the register was not changed
     * since it was read. */
    if (reachable || sim_chance(sim, host->arbiter_unclear ? 50 : 30)) {
        won = free;
        if (free)
            register_set(sim, event->host, to);
    } else if (free && host->arbiter_unclear) {
        struct sim_event *late =
            sim_push(sim, SIM_SWAP, sim_between(sim, 1, 8) * sim->config.detect_ns, event->host);
        late->a = sim->register_revision;
        late->b = to;
    }
    host->unreachable = reachable ? 0 : host->unreachable + 1;
    if (reachable && won && event->payload == 0) {
        fence(sim, event->host);
        return;
    }
    struct parcel *parcel = host_post(sim, event->host, reachable ? 0 : 100 * MS, EVENT_ARBITER);
    parcel->event.arbiter = !reachable ? ARBITER_UNREACHABLE : won ? ARBITER_WON : ARBITER_LOST;
    parcel->event.generation = sim->register_generation;
    sim_trace(sim, "arbiter: host%d %s, register %llu", event->host,
              !reachable ? "out of reach"
              : won      ? "won"
                         : "lost",
              (unsigned long long)sim->register_generation);
}

static void tick(struct sim *sim, const struct sim_event *event)
{
    struct host *host = &sim->hosts[event->host];
    struct role_event role_event = {.type = EVENT_TICK};
    if (event->a != host->tick_stamp)
        return;
    host->tick_at_ns = 0;
    host_deliver(sim, event->host, &role_event);
}

static void engine_event(struct sim *sim, int host, int payload)
{
    struct role_event event = sim->parcels[payload].event;
    sim_parcel_free(sim, payload);
    host_deliver(sim, host, &event);
}

/* False: the engine is gone or asleep, and the event dealt with. */
static bool awake(struct sim *sim, const struct sim_event *event)
{
    struct host *host = &sim->hosts[event->host];
    if (event->life != host->life || host->role == ENGINE_NONE) {
        if (event->payload >= 0)
            sim_parcel_free(sim, event->payload);
        return false;
    }
    if (host->frozen_until_ns <= sim->now_ns)
        return true;
    struct sim_event *again = sim_push(sim, event->kind, host->frozen_until_ns - sim->now_ns, event->host);
    again->a = event->a;
    again->b = event->b;
    again->payload = event->payload;
    return false;
}

static void handle(struct sim *sim, const struct sim_event *event)
{
    switch (event->kind) {
    case SIM_TICK:
        if (awake(sim, event))
            tick(sim, event);
        return;
    case SIM_ENGINE:
        if (awake(sim, event))
            engine_event(sim, event->host, event->payload);
        return;
    case SIM_JOB:
        if (awake(sim, event))
            job_finished(sim, event->host);
        return;
    case SIM_ARBITER:
        if (event->life == sim->hosts[event->host].life)
            arbiter_answers(sim, event);
        return;
    case SIM_SWAP:
        late_swap(sim, event);
        return;
    case SIM_PUMP:
        net_pump(sim, (unsigned)event->a, (enum channel)event->b);
        return;
    case SIM_FAULT:
        fault_strike(sim, (unsigned)event->a);
        return;
    case SIM_REPAIR:
        fault_repair(sim, event->host, event->a);
        return;
    case SIM_OPERATOR:
        if (event->a == sim->act)
            operator_acts(sim);
        return;
    case SIM_MIGRATE:
        operator_migrates(sim, event->a);
        return;
    }
}

/* All is well: things go wrong again, with the roles as they are now. */
static void next_act(struct sim *sim)
{
    sim->act++;
    sim->act_began_ns = sim->now_ns;
    sim->struck = 0;
    sim->healthy = sim->only_standby_froze = sim->orderly = false;
    sim_trace(sim, "act %u", sim->act + 1);
    fault_plan(sim);
}

static void sim_run(struct sim *sim, uint64_t steps)
{
    struct sim_event event;
    uint64_t end_ns = UINT64_MAX;
    choose(sim);
    sim_trace(sim, "takeover=%s standby-loss=%s arbiter=%s interval %llu ms detect %llu ms",
              sim->config.takeover == ROLE_TAKEOVER_AUTO ? "auto" : "manual",
              sim->config.loss == ROLE_LOSS_STALL ? "stall" : "continue", sim->config.arbiter ? "yes" : "no",
              (unsigned long long)(sim->config.interval_ns / MS),
              (unsigned long long)(sim->config.detect_ns / MS));
    sim->hosts[0].guest = (struct guest){.state = GUEST_ALIVE};
    host_start_engine(sim, 1, ENGINE_STANDBY, START_FIRST);
    host_start_engine(sim, 0, ENGINE_PRIMARY, START_FIRST);
    sim->acts = sim_chance(sim, 30) ? ACTS_MAX : 1;
    fault_plan(sim);
    while (!sim->violation[0] && sim->steps < steps && sim_pop(sim, &event)) {
        sim->now_ns = event.at_ns;
        handle(sim, &event);
        check_world(sim);
        /* What an orderly end should not cause would come soon. */
        if (sim->ended && end_ns == UINT64_MAX)
            end_ns = sim->now_ns + 4 * sim->config.detect_ns;
        if (sim->lost || sim->now_ns > end_ns)
            break;
        if (event.kind == SIM_OPERATOR && sim->healthy && world_is_well(sim)) {
            /* What an operator forced he answers for, to the end. */
            if (sim->act + 1 >= sim->acts || sim->forced)
                break;
            next_act(sim);
        }
        if (sim->now_ns > sim->act_began_ns + LIMIT_NS)
            check_fail(sim,
                       sim->healthy ? "the guest is not protected again, %llu ms after the last fault"
                                    : "the guest was never protected within %llu ms",
                       (unsigned long long)((sim->now_ns - sim->healthy_since_ns) / MS));
    }
    /* A standby that dies between storing its right and running leaves the guest stopped and whole at the
     * other host, for a person to start. */
    if (sim->lost && sim->faults == 1 && !sim->handovers)
        check_fail(sim, "one failure lost the guest");
}

static void sim_clean(struct sim *sim)
{
    for (int i = 0; i < HOSTS; i++) {
        primary_free(sim->hosts[i].primary);
        standby_free(sim->hosts[i].standby);
    }
    free(sim->heap);
    free(sim->parcels);
}

static void sim_seed(struct sim *sim, uint64_t seed)
{
    memset(sim, 0, offsetof(struct sim, sessions));
    for (unsigned i = 0; i < SESSIONS_MAX; i++)
        memset(&sim->sessions[i], 0, offsetof(struct session, queues));
    sim->seed = seed;
    sim->parcel_free = -1;
    /* splitmix64 spreads neighbouring seeds. */
    for (int i = 0; i < 2; i++) {
        uint64_t z = seed += 0x9e3779b97f4a7c15u;
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
        z = (z ^ z >> 27) * 0x94d049bb133111ebu;
        sim->random[i] = z ^ z >> 31;
    }
}

struct totals {
    uint64_t histories, steps, simulated_ns, takeovers, alone, yields, holds, adopts, deltas, fulls, commits,
        lost, ended, handovers, moves, taken_back, turns;
};

static void add(struct totals *totals, const struct sim *sim)
{
    totals->histories++;
    totals->steps += sim->steps;
    totals->simulated_ns += sim->now_ns;
    totals->takeovers += sim->takeovers;
    totals->alone += sim->alone;
    totals->yields += sim->yields;
    totals->holds += sim->holds;
    totals->adopts += sim->adopts;
    totals->deltas += sim->deltas;
    totals->fulls += sim->fulls;
    totals->commits += sim->commits;
    totals->lost += sim->lost;
    totals->ended += sim->ended;
    totals->handovers += sim->handovers;
    totals->moves += sim->moves;
    totals->taken_back += sim->taken_back;
    totals->turns += sim->turns;
}

static int usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--seed N [--steps N]] [--first N] [--histories N] [--seconds S]\n"
            "  --seed N       one history, with its trace; --steps N ends it after N steps\n"
            "  --first N      seed of the first history (default 1)\n"
            "  --histories N  how many (default 10000)\n"
            "  --seconds S    as many as fit instead\n",
            program);
    return 2;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},    {"steps", required_argument, NULL, 'n'},
        {"first", required_argument, NULL, 'f'},   {"histories", required_argument, NULL, 'h'},
        {"seconds", required_argument, NULL, 't'}, {0},
    };
    static struct sim sim;
    struct totals totals = {0};
    uint64_t first = 1, histories = 10000, seconds = 0, steps = UINT64_MAX, failed = 0;
    bool one = false;
    int option;
    while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
        uint64_t value = optarg ? strtoull(optarg, NULL, 0) : 0;
        if (option == 's')
            one = true;
        if (option == 's' || option == 'f')
            first = value;
        else if (option == 'n')
            steps = value;
        else if (option == 'h')
            histories = value;
        else if (option == 't')
            seconds = value;
        else
            return usage(argv[0]);
    }
    if (optind != argc)
        return usage(argv[0]);

    uint64_t start_ns = clock_now_ns();
    uint64_t last = one ? first : seconds ? UINT64_MAX : first + histories - 1;
    for (uint64_t seed = first; seed <= last && failed < 5; seed++) {
        if (seconds && clock_now_ns() - start_ns > seconds * NS_PER_S)
            break;
        sim_seed(&sim, seed);
        sim.trace = one;
        sim_run(&sim, steps);
        add(&totals, &sim);
        if (sim.violation[0]) {
            printf("seed %llu: %s\n  reproduce: %s --seed %llu\n", (unsigned long long)seed, sim.violation,
                   argv[0], (unsigned long long)seed);
            failed++;
        }
        sim_clean(&sim);
    }
    printf("%llu histories, %llu steps, %.0f s simulated in %.1f s: %llu commits, %llu takeovers, %llu times "
           "alone, "
           "%llu yields, %llu holds, %llu full and %llu partial copies, %llu adopted, %llu handed over and "
           "%llu moved, %llu taken back, %llu roles changed, "
           "%llu ended, %llu lost "
           "to several "
           "failures\n",
           (unsigned long long)totals.histories, (unsigned long long)totals.steps,
           (double)totals.simulated_ns / 1e9, (double)(clock_now_ns() - start_ns) / 1e9,
           (unsigned long long)totals.commits, (unsigned long long)totals.takeovers,
           (unsigned long long)totals.alone, (unsigned long long)totals.yields,
           (unsigned long long)totals.holds, (unsigned long long)totals.fulls,
           (unsigned long long)totals.deltas, (unsigned long long)totals.adopts,
           (unsigned long long)totals.handovers, (unsigned long long)totals.moves,
           (unsigned long long)totals.taken_back, (unsigned long long)totals.turns,
           (unsigned long long)totals.ended, (unsigned long long)totals.lost);
    return failed ? 1 : 0;
}
