/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"

/*
 * Theory of operation
 *
 * A guest that writes faster than its pages are carried never comes to a downtime that fits. It is slowed by
 * being stopped for a share of every 100 ms, by the same stop and the same guard as a capture's:
 *
 *     │◄── share ──►│             │◄── share ──►│
 *     stopped        runs          stopped        runs          lanes carry all the time
 *
 * That costs a stop and a start each time, where a quota of a cgroup would cost nothing. But it leaves
 * nothing behind, however this process ends: the guard lets the guest run, and if that was killed too, the
 * next engine finds the guest stopped by an engine and lets it run. A quota would stay on QEMU's threads
 * until somebody notices, and changes a cgroup that is libvirt's or systemd's. QEMU itself offers no throttle
 * outside its own migration.
 *
 * The guest's thread does it between its other jobs, so nothing else is done with the guest meanwhile; a job
 * that comes waits for the rest of the slice, or no longer than 10 ms when the slowing has ended.
 */

struct slow_job {
    struct job job;
    uint64_t stop_ns;
    int code;
    char text[ERROR_TEXT_MAX];
};

static bool ended(void *daemon)
{
    return !atomic_load(&((struct protect *)daemon)->migrate.slow);
}

static void run_slow(struct job *base, void *daemon)
{
    struct slow_job *job = (struct slow_job *)base;
    struct protect *protect = daemon;
    /* Stopped already, for good or until it is decided. */
    if (protect->held || ended(protect))
        return;
    job->code = checkpoint_slow_guest(protect->checkpoint, job->stop_ns, ended);
    if (job->code < 0)
        snprintf(job->text, sizeof job->text, "%s", error_text());
}

static void deliver_slowed(struct note *note, void *daemon)
{
    struct slow_job *job = (struct slow_job *)note;
    struct protect *protect = daemon;
    struct protect_migrate *migrate = &protect->migrate;
    if (job->code < 0)
        log_warning("migration: %s", job->text);
    migrate->slowing = false;
    migrate->slow_at_ns = clock_now_ns() + migrate_running_ns(migrate->share);
}

uint64_t protect_slow_deadline(const struct protect *protect)
{
    const struct protect_migrate *migrate = &protect->migrate;
    return migrate->share && !migrate->slowing ? migrate->slow_at_ns : UINT64_MAX;
}

static void set_share(struct protect *protect, unsigned share)
{
    struct protect_migrate *migrate = &protect->migrate;
    if (share == migrate->share)
        return;
    migrate->share = share;
    migrate->share_most = share > migrate->share_most ? share : migrate->share_most;
    migrate->grow_at_ns = clock_now_ns() + MIGRATE_SHARE_EVERY_NS;
    atomic_store(&migrate->slow, share != 0);
    if (share)
        log_notice("migration: the guest is stopped for %u %% of the time", share);
    else
        log_notice("migration: the guest runs at full speed again");
}

void protect_slow_tick(struct protect *protect, uint64_t now_ns)
{
    struct protect_migrate *migrate = &protect->migrate;
    if (now_ns < protect_slow_deadline(protect))
        return;
    if (now_ns >= migrate->grow_at_ns)
        set_share(protect, migrate_share_next(migrate->share));
    struct slow_job *job = job_new(sizeof *job, run_slow, deliver_slowed);
    job->stop_ns = migrate_stopped_ns(migrate->share);
    migrate->slowing = true;
    worker_submit(protect->hub.worker, &job->job);
}

static bool under_way(const struct role_status *status)
{
    return status->migration == MIGRATION_COPYING || status->migration == MIGRATION_SWITCHING;
}

void protect_slow_stepped(struct protect *protect, const struct role_status *before,
                          const struct role_status *after)
{
    if (after->throttle && !protect->migrate.share)
        set_share(protect, migrate_share_next(0));
    else if (!after->throttle)
        set_share(protect, 0);
    if (under_way(before) && !under_way(after))
        pacer_set(&protect->pacer, protect->hub.config->bandwidth);
}
