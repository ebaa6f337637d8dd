/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * Guests, and the thread that owns one. A guest is a counter and some pages; every write makes the counter
 * grow and puts it into one page, so that a page of another moment, or of another run, is seen at once. It is
 * advanced lazily: nothing looks at it between two events.
 */

#define WRITE_NS (MS / 2)

void guest_advance(struct sim *sim, int index)
{
    struct guest *guest = &sim->hosts[index].guest;
    if (guest->state != GUEST_ALIVE || guest->held || guest->paused) {
        guest->advanced_at_ns = sim->now_ns;
        return;
    }
    for (; guest->advanced_at_ns + WRITE_NS <= sim->now_ns; guest->advanced_at_ns += WRITE_NS) {
        guest->counter++;
        /* Most writes go to few pages, as they do. */
        unsigned page = (unsigned)(guest->counter * 0x9e3779b97f4a7c15u >> 60);
        page = page < 10 ? page & 1 : page & 7;
        guest->pages[page] = (uint64_t)guest->lineage << 40 | guest->counter;
        guest->marks |= 1u << page;
    }
}

void guest_stop(struct sim *sim, int index, bool stop)
{
    guest_advance(sim, index);
    sim->hosts[index].guest.held = stop;
}

/* the guest's thread: one job after the other */

static void job_start(struct sim *sim, int index);

void job_add(struct sim *sim, int index, const struct job *job)
{
    struct host *host = &sim->hosts[index];
    if (host->job_count == JOBS_MAX) {
        check_fail(sim, "host%d: %d jobs wait for the guest", index, JOBS_MAX);
        return;
    }
    host->jobs[(host->job_head + host->job_count++) % JOBS_MAX] = *job;
    job_kick(sim, index);
}

void job_cancel(struct sim *sim, int index, uint64_t session)
{
    struct host *host = &sim->hosts[index];
    for (unsigned i = 0; i < host->job_count; i++) {
        struct job *job = &host->jobs[(host->job_head + i) % JOBS_MAX];
        if (job->session == session)
            job->cancelled = true;
    }
    if (host->role == ENGINE_STANDBY && session == host->restore_session) {
        host->restorer.have_data = host->restorer.have_expect = host->restorer.verified = false;
        host->restorer.staged_mask = 0;
    }
    job_kick(sim, index);
}

void job_kick(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    if (!host->job_running && host->job_count)
        job_start(sim, index);
}

static void round_start(struct sim *sim, int index, struct job *job)
{
    struct host *host = &sim->hosts[index];
    struct guest *guest = &host->guest;
    guest_advance(sim, index);
    job->code = sim->flaky && sim_chance(sim, 4) ? (sim_chance(sim, 50) ? -ETIME : -EIO) : 0;
    job->mask = host->tracker.pending | guest->marks;
    job->captured = job->capture || __builtin_popcount(job->mask) <= 3 || sim_chance(sim, 70);
    job->final = job->final || (job->downtime_ns && sim_chance(sim, 50));
    job->captured |= job->final;
    guest->marks = 0;
    host->tracker.pending = 0;
    host->tracker.inflight |= job->mask;
    /* From the capture on output waits for its epoch, also before the first epoch of a session is
     * acknowledged: what the guest says after it was captured is in no checkpoint. */
    if (job->captured)
        check_closed(sim, index);
    guest->paused = job->captured;
}

static void job_start(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    struct job *job = &host->jobs[host->job_head];
    uint64_t takes_ns = 0;
    switch (job->type) {
    case JOB_BEGIN:
        takes_ns = sim_between(sim, 0, 2 * MS);
        break;
    case JOB_ROUND:
        takes_ns = sim_between(sim, MS / 5, 3 * MS);
        round_start(sim, index, job);
        job->pause_ns = job->captured ? takes_ns : 0;
        break;
    case JOB_PREPARE:
        if (!job->cancelled && !net_described(sim, index, job->session))
            return; /* kicked when DESCRIBE comes or the session goes */
        takes_ns = host->guest.state != GUEST_WAITING || job->fresh ? sim_between(sim, 5 * MS, 60 * MS) : 0;
        break;
    case JOB_APPLY:
        takes_ns = sim_chance(sim, 3) ? sim_between(sim, 0, 100 * MS) : sim_between(sim, 0, 3 * MS);
        break;
    case JOB_LOAD:
    case JOB_TAKEOVER:
        takes_ns = sim_between(sim, 0, 10 * MS);
        break;
    case JOB_ABANDON:
    case JOB_COMMITTED:
        break;
    }
    host->job_running = true;
    sim_push(sim, SIM_JOB, takes_ns, index);
}

static struct parcel *reply(struct sim *sim, int index, const struct job *job, enum role_event_type type,
                            uint64_t delay_ns)
{
    struct parcel *parcel = host_post(sim, index, delay_ns, type);
    parcel->event.session = job->session;
    parcel->event.epoch = job->epoch;
    parcel->event.round = job->round;
    parcel->event.code = job->code;
    return parcel;
}

static void round_end(struct sim *sim, int index, struct job *job)
{
    struct host *host = &sim->hosts[index];
    struct guest *guest = &host->guest;
    if (guest->state != GUEST_ALIVE && guest->state != GUEST_YIELDED)
        job->code = -ESRCH;
    if (job->code < 0) {
        guest->paused = false;
        host->tracker.pending |= job->mask;
        host->tracker.inflight &= ~job->mask;
        if (job->code != -ETIME) { /* some of it is out */
            struct packet half = {.epoch = job->epoch, .round = job->round, .mask = job->mask & 0x55};
            net_send_data(sim, index, job->session, &half);
        }
        reply(sim, index, job, EVENT_ROUND, 0);
        return;
    }
    struct packet data = {.epoch = job->epoch, .round = job->round, .mask = job->mask};
    guest->paused = job->final;
    if (job->captured && guest->state == GUEST_ALIVE && sim_chance(sim, 30))
        host_post(sim, index, sim_between(sim, 0, 20 * MS), EVENT_OUTPUT)->event.urgent = sim_chance(sim, 20);
    if (job->captured) {
        guest->advanced_at_ns = sim->now_ns;
        struct snapshot *snapshot = &sim->snapshots[sim->snapshot_count++ % SNAPSHOTS_MAX];
        *snapshot =
            (struct snapshot){.epoch = job->epoch, .counter = guest->counter, .lineage = guest->lineage};
        memcpy(snapshot->history, host->tracker.history, sizeof snapshot->history);
        memcpy(snapshot->pages, guest->pages, sizeof snapshot->pages);
    } else {
        guest_advance(sim, index); /* read while it runs: later writes are marked again */
    }
    memcpy(data.pages, guest->pages, sizeof data.pages);
    data.counter = guest->counter;
    data.lineage = guest->lineage;
    net_send_data(sim, index, job->session, &data);

    uint64_t delay_ns = sim_between(sim, 0, MS);
    struct parcel *parcel = reply(sim, index, job, EVENT_ROUND_SENT, sim_chance(sim, 50) ? delay_ns : 0);
    parcel->event.totals = (struct message_totals){.frames = 1, .pages = 1, .bytes = 1, .sum = 1};
    parcel = reply(sim, index, job, EVENT_ROUND, sim_chance(sim, 50) ? delay_ns : 0);
    parcel->event.captured = job->captured;
    parcel->event.final = job->final;
    parcel->event.pause_ns = job->pause_ns;
    if (job->final && sim_chance(sim, 50)) /* most of the downtime is wanted for what follows */
        parcel->event.after_ns = sim_between(sim, 0, job->downtime_ns + job->downtime_ns / 8);
    parcel->event.state_bytes = job->captured;
}

static void prepared(struct sim *sim, int index, struct job *job)
{
    struct host *host = &sim->hosts[index];
    struct restorer *restorer = &host->restorer;
    if (job->cancelled) {
        job->code = -ECANCELED;
    } else {
        if (job->fresh && restorer->committed && !restorer->loaded && host->guest.state == GUEST_WAITING)
            check_fail(sim, "host%d: a fresh guest is launched over a committed checkpoint", index);
        /* Its process is gone, and the engine has not heard of that yet. */
        if (restorer->broken && host->guest.state == GUEST_NONE && !job->fresh) {
            job->code = -EIO;
            reply(sim, index, job, EVENT_PREPARED, 0);
            return;
        }
        if (restorer->loaded && !job->fresh)
            check_fail(sim, "host%d: a guest that was loaded is used again", index);
        if (restorer->broken && !job->fresh)
            check_fail(sim, "host%d: a broken guest is used again", index);
        if (job->fresh || host->guest.state == GUEST_NONE || host->guest.state == GUEST_YIELDED) {
            *restorer = (struct restorer){.applied = true};
            host->guest = (struct guest){.state = GUEST_WAITING};
        }
        restorer->staged_mask = 0;
        restorer->have_data = restorer->have_expect = restorer->verified = false;
    }
    reply(sim, index, job, EVENT_PREPARED, 0)->event.text = "cancelled";
}

static void applied(struct sim *sim, int index, struct job *job)
{
    struct host *host = &sim->hosts[index];
    struct restorer *restorer = &host->restorer;
    bool fails = sim->flaky && sim_chance(sim, 3);
    unsigned torn = fails ? PAGES / 2 : PAGES;
    for (unsigned page = 0; page < torn; page++)
        if (restorer->apply_mask & 1u << page)
            host->guest.pages[page] = restorer->apply_pages[page];
    restorer->applied = true;
    if (fails) {
        restorer->broken = true;
        restorer->committed = false;
        job->code = -EIO;
    }
    reply(sim, index, job, EVENT_APPLIED, 0);
}

static void taken_over(struct sim *sim, int index, struct job *job)
{
    if (sim->hosts[index].guest.state != GUEST_WAITING || (sim->flaky && sim_chance(sim, 5))) {
        job->code = -EIO;
        reply(sim, index, job, EVENT_RUNNING, 0);
        return;
    }
    check_takeover(sim, index);
    reply(sim, index, job, EVENT_RUNNING, 0);
}

static void loaded(struct sim *sim, int index, struct job *job)
{
    struct restorer *restorer = &sim->hosts[index].restorer;
    if (sim->hosts[index].guest.state != GUEST_WAITING || (sim->flaky && sim_chance(sim, 5))) {
        job->code = -EIO;
        restorer->broken = true;
        restorer->committed = false;
    } else if (!restorer->committed || !restorer->applied || restorer->loaded) {
        check_fail(sim, "host%d loads an epoch: committed %d, applied %d, loaded %d", index,
                   restorer->committed, restorer->applied, restorer->loaded);
    }
    restorer->loaded = job->code == 0;
    reply(sim, index, job, EVENT_LOAD_DONE, 0);
}

void job_finished(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    struct job job = host->jobs[host->job_head];
    host->job_head = (host->job_head + 1) % JOBS_MAX;
    host->job_count--;
    host->job_running = false;
    switch (job.type) {
    case JOB_BEGIN:
        if (job.full)
            host->tracker.pending = (1u << PAGES) - 1;
        else if (!host->tracker.tracking)
            check_fail(sim, "host%d: only changes are asked for, and none were ever tracked", index);
        host->tracker.tracking = true;
        reply(sim, index, &job, EVENT_BEGUN, 0);
        break;
    case JOB_ROUND:
        round_end(sim, index, &job);
        break;
    case JOB_ABANDON:
        host->tracker.pending |= host->tracker.inflight;
        host->tracker.inflight = 0;
        break;
    case JOB_COMMITTED:
        host->tracker.inflight = 0;
        break;
    case JOB_PREPARE:
        prepared(sim, index, &job);
        break;
    case JOB_APPLY:
        applied(sim, index, &job);
        break;
    case JOB_LOAD:
        loaded(sim, index, &job);
        break;
    case JOB_TAKEOVER:
        taken_over(sim, index, &job);
        break;
    }
    job_kick(sim, index);
}

/* the standby's staging */

static void restorer_match(struct sim *sim, int index)
{
    struct host *host = &sim->hosts[index];
    struct restorer *restorer = &host->restorer;
    if (!restorer->have_data || !restorer->have_expect)
        return;
    bool whole =
        restorer->data_epoch == restorer->expect_epoch && restorer->data_round == restorer->expect_round;
    bool sound = !(sim->flaky && sim_chance(sim, 1)); /* bad memory, say */
    restorer->have_data = restorer->have_expect = false;
    restorer->verified = whole && sound && restorer->expect_commit;
    struct parcel *parcel = host_post(sim, index, sim_between(sim, 0, MS), EVENT_ROUND_COMPLETE);
    struct role_status status;
    host_get_status(sim, index, &status);
    parcel->event.session = status.session;
    parcel->event.epoch = restorer->expect_epoch;
    parcel->event.round = restorer->expect_round;
    parcel->event.captured = restorer->expect_commit;
    parcel->event.code = whole && sound ? 0 : -EBADMSG;
    if (!whole)
        check_fail(sim, "host%d: the data of epoch %llu round %u is not what was announced", index,
                   (unsigned long long)restorer->expect_epoch, restorer->expect_round);
}

void restorer_data(struct sim *sim, int index, const struct packet *data)
{
    struct restorer *restorer = &sim->hosts[index].restorer;
    if (restorer->have_data)
        check_fail(sim, "host%d: epoch %llu round %u is sent twice", index, (unsigned long long)data->epoch,
                   data->round);
    for (unsigned page = 0; page < PAGES; page++)
        if (data->mask & 1u << page)
            restorer->staged[page] = data->pages[page];
    restorer->staged_mask |= data->mask;
    restorer->staged_counter = data->counter;
    restorer->staged_lineage = data->lineage;
    restorer->have_data = true;
    restorer->data_epoch = data->epoch;
    restorer->data_round = data->round;
    restorer_match(sim, index);
}

void restorer_expect(struct sim *sim, int index, const struct role_action *action)
{
    struct restorer *restorer = &sim->hosts[index].restorer;
    restorer->have_expect = true;
    restorer->expect_epoch = action->epoch;
    restorer->expect_round = action->round;
    restorer->expect_commit = action->capture;
    restorer_match(sim, index);
}

void restorer_commit(struct sim *sim, int index, uint64_t epoch)
{
    struct host *host = &sim->hosts[index];
    struct restorer *restorer = &host->restorer;
    if (!restorer->verified || restorer->expect_epoch != epoch)
        check_fail(sim, "host%d: epoch %llu is committed without being verified", index,
                   (unsigned long long)epoch);
    if (restorer->loaded)
        check_fail(sim, "host%d: epoch %llu is committed over a guest that was loaded", index,
                   (unsigned long long)epoch);
    if (!restorer->applied)
        check_fail(sim, "host%d: epoch %llu is committed over one that is not applied", index,
                   (unsigned long long)epoch);
    struct role_status status;
    host_get_status(sim, index, &status);
    restorer->verified = false;
    restorer->committed = true;
    restorer->applied = false;
    restorer->epoch = epoch;
    restorer->committed_ns = sim->now_ns;
    restorer->counter = restorer->staged_counter;
    restorer->lineage = restorer->staged_lineage;
    memcpy(restorer->history, status.history, sizeof restorer->history);
    restorer->apply_mask = restorer->staged_mask;
    memcpy(restorer->apply_pages, restorer->staged, sizeof restorer->apply_pages);
    restorer->staged_mask = 0;
    struct snapshot *snapshot = check_snapshot(sim, restorer->history, epoch);
    if (snapshot)
        snapshot->verified = true;
}
