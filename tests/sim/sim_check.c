/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void check_fail(struct sim *sim, const char *format, ...)
{
    if (sim->violation[0])
        return;
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(sim->violation, sizeof sim->violation, format, arguments);
    va_end(arguments);
    sim_trace(sim, "VIOLATION: %s", sim->violation);
}

struct snapshot *check_snapshot(struct sim *sim, const uint8_t history[16], uint64_t epoch)
{
    uint64_t kept = sim->snapshot_count < SNAPSHOTS_MAX ? sim->snapshot_count : SNAPSHOTS_MAX;
    for (uint64_t i = 1; i <= kept; i++) {
        struct snapshot *snapshot = &sim->snapshots[(sim->snapshot_count - i) % SNAPSHOTS_MAX];
        if (snapshot->epoch == epoch && !memcmp(snapshot->history, history, 16))
            return snapshot;
    }
    return NULL;
}

static struct lineage *lineage_of(struct sim *sim, int index)
{
    return &sim->lineages[sim->hosts[index].guest.lineage % LINEAGES_MAX];
}

void check_committed(struct sim *sim, int index, uint64_t epoch)
{
    struct snapshot *snapshot = check_snapshot(sim, sim->hosts[index].tracker.history, epoch);
    if (!snapshot) {
        check_fail(sim, "host%d releases epoch %llu, which was never captured", index,
                   (unsigned long long)epoch);
        return;
    }
    if (!snapshot->verified)
        check_fail(sim, "host%d releases epoch %llu, which no standby committed", index,
                   (unsigned long long)epoch);
    /* The snapshot's, since the guest may have ended since. */
    struct lineage *lineage = &sim->lineages[snapshot->lineage % LINEAGES_MAX];
    if (lineage->forked && snapshot->counter > lineage->forked_at && !sim->forced)
        check_fail(sim, "host%d releases output at %llu; the guest was resumed elsewhere from %llu", index,
                   (unsigned long long)snapshot->counter, (unsigned long long)lineage->forked_at);
    if (snapshot->counter > lineage->released)
        lineage->released = snapshot->counter;
}

void check_alone(struct sim *sim, int index)
{
    sim->alone++;
    if (sim->hosts[index].guest.state == GUEST_NONE)
        return; /* it ended, and its engine has not heard of that yet */
    struct lineage *lineage = lineage_of(sim, index);
    guest_advance(sim, index);
    /* Without an arbiter a person decided about the takeover, and answers for the guest left behind. */
    bool persons = !sim->config.arbiter && sim->config.takeover == ROLE_TAKEOVER_MANUAL;
    persons |= lineage->left; /* the engine was stopped, and its farewell is still on its way, or lost */
    if (lineage->forked && !sim->forced && !persons)
        check_fail(sim, "host%d goes on alone at %llu; the guest was resumed elsewhere from %llu", index,
                   (unsigned long long)sim->hosts[index].guest.counter,
                   (unsigned long long)lineage->forked_at);
    lineage->is_open = true;
}

/* The engine was stopped by an operator, who wants the guest to run on; its farewell may be lost. */
void check_left(struct sim *sim, int index)
{
    lineage_of(sim, index)->is_open = true;
    lineage_of(sim, index)->left = true;
}

void check_stop(struct sim *sim, int index)
{
    lineage_of(sim, index)->left = true;
}

bool check_is_open(struct sim *sim, int index)
{
    return lineage_of(sim, index)->is_open;
}

void check_closed(struct sim *sim, int index)
{
    struct lineage *lineage = lineage_of(sim, index);
    guest_advance(sim, index);
    if (lineage->is_open)
        lineage->alone = sim->hosts[index].guest.counter;
    lineage->is_open = false;
}

void check_hold(struct sim *sim, int index)
{
    const struct host *host = &sim->hosts[index];
    bool by_policy = sim->config.loss == ROLE_LOSS_STALL;
    bool by_arbiter = sim->config.arbiter && host->unreachable > 0;
    if (!by_policy && !by_arbiter)
        check_fail(sim, "host%d holds its guest though the policy is to continue", index);
}

void check_release(struct sim *sim, int index)
{
    /* A guest that a final capture stopped, and that was not handed over, is as good as one that runs: it may
     * go on until somebody tells of the takeover that a person made. */
    bool persons = sim->hosts[index].guest.paused && !sim->hosts[index].handed &&
                   (lineage_of(sim, index)->by_hand ||
                    (!sim->config.arbiter && sim->config.takeover == ROLE_TAKEOVER_MANUAL));
    bool lives = sim->hosts[index].guest.state == GUEST_ALIVE;
    if (lives && lineage_of(sim, index)->forked && !sim->forced && !persons)
        check_fail(sim, "host%d lets its guest run again, which was resumed elsewhere", index);
}

/* A standby takes over; what it was handed, its primary has stopped (check_takeover() looks). */
void check_fence(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    if (sim->config.fence && !host->other_fenced && !host->told_to_run && !sim->forced)
        check_fail(sim, "host%d takes over, and nobody fenced host%d", index, !index);
    host->other_fenced = false;
}

/* A standby decides to take over. */
void check_decision(struct sim *sim, int index)
{
    const struct host *host = &sim->hosts[index], *other = &sim->hosts[!index];
    struct role_status status;
    if (host->operator_takeover || host->told_to_run)
        return;
    if (sim->config.takeover != ROLE_TAKEOVER_AUTO)
        check_fail(sim, "host%d takes over by itself; the policy is that an operator does", index);
    if (!host->told_of_death && sim->now_ns < host->heard_ns + sim->config.detect_ns)
        check_fail(sim, "host%d takes over %llu us after a sign of life", index,
                   (unsigned long long)((sim->now_ns - host->heard_ns) / 1000));
    /* A primary that has noticed must have stopped, where that is the policy. One that started only after the
     * checkpoint was made cannot know that there is one, and one that slept has no notion of the time. */
    if (other->frozen_until_ns + sim->config.detect_ns > sim->now_ns)
        return;
    if (sim->config.loss != ROLE_LOSS_STALL || other->role != ENGINE_PRIMARY || sim->forced ||
        other->born_ns > host->restorer.committed_ns || other->guest.state != GUEST_ALIVE)
        return;
    host_get_status(sim, !index, &status);
    if (!status.session && !other->guest.held && !lineage_of(sim, !index)->is_open)
        check_fail(sim, "host%d takes over while host%d, which knows that its standby is gone, runs on",
                   index, !index);
}

void check_takeover(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    struct restorer *restorer = &host->restorer;
    struct snapshot *snapshot = check_snapshot(sim, restorer->history, restorer->epoch);
    if (!restorer->committed || restorer->broken || !restorer->applied || !snapshot || !snapshot->verified) {
        check_fail(sim, "host%d resumes epoch %llu: committed %d, broken %d, applied %d", index,
                   (unsigned long long)restorer->epoch, restorer->committed, restorer->broken,
                   restorer->applied);
        return;
    }
    if (restorer->counter != snapshot->counter ||
        memcmp(host->guest.pages, snapshot->pages, sizeof snapshot->pages) != 0) {
        check_fail(sim, "host%d resumes epoch %llu with pages of another moment", index,
                   (unsigned long long)restorer->epoch);
        return;
    }
    struct lineage *from = &sim->lineages[snapshot->lineage % LINEAGES_MAX];
    const struct guest *left = &sim->hosts[!index].guest;
    if (host->told_to_run && left->state == GUEST_ALIVE && left->lineage == snapshot->lineage &&
        !left->held && !sim->forced)
        check_fail(sim, "host%d runs the guest that it was handed, and host%d still runs it", index, !index);
    for (int i = 0; i < HOSTS; i++)
        if (from->is_open && sim->hosts[i].guest.state == GUEST_ALIVE &&
            sim->hosts[i].guest.lineage == snapshot->lineage) {
            guest_advance(sim, i);
            from->alone = sim->hosts[i].guest.counter;
        }
    if (from->released > snapshot->counter)
        check_fail(sim, "host%d resumes from %llu; output up to %llu was released by acknowledgements", index,
                   (unsigned long long)snapshot->counter, (unsigned long long)from->released);
    if (from->alone > snapshot->counter && !from->left && !host->operator_takeover && !sim->forced)
        check_fail(sim, "host%d resumes from %llu; output up to %llu was released by going alone", index,
                   (unsigned long long)snapshot->counter, (unsigned long long)from->alone);
    bool asked = host->operator_takeover || host->told_to_run;
    if (sim->only_standby_froze && !asked)
        check_fail(sim, "host%d takes over though only its own engine was asleep", index);
    if (sim->orderly && !asked)
        check_fail(sim, "host%d takes over after an orderly end", index);
    from->forked = true;
    from->by_hand = host->operator_takeover && !host->told_to_run;
    from->forked_at = snapshot->counter;
    sim->takeovers++;
    host->guest.state = GUEST_ALIVE;
    host->guest.advanced_at_ns = sim->now_ns;
    host->guest.counter = snapshot->counter;
    host->guest.generation = host->stored_generation;
    host->guest.by_right = host->stored_active;
    host->guest.lineage = sim->lineage_count++;
    sim->lineages[host->guest.lineage % LINEAGES_MAX] = (struct lineage){0};
    sim_trace(sim, "host%d: guest resumed from epoch %llu, counter %llu", index,
              (unsigned long long)restorer->epoch, (unsigned long long)snapshot->counter);
    if (!host->stored_active)
        check_fail(sim, "host%d runs the guest before its right is on disk", index);
}

void check_world(struct sim *sim)
{
    const struct guest *a = &sim->hosts[0].guest, *b = &sim->hosts[1].guest;
    if (a->state == GUEST_ALIVE && b->state == GUEST_ALIVE && a->by_right && b->by_right &&
        a->generation == b->generation && !sim->forced)
        check_fail(sim, "both hosts run the guest by generation %llu", (unsigned long long)a->generation);
}
