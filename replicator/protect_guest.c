/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/guest_driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define HOLD_ATTEMPTS 3 /* each waits for the guest's disks as long as the driver allows */

#define REPAIR_EVERY NS_PER_S

/* The primary's calls on its guest: each a job on the guest's thread, most with an answer for the role
 * machine. */

struct guest_job {
    struct job job;
    struct role_event event; /* the reply */
    bool full, compare_disks, compare_memory, capture, final;
    uint64_t generation, downtime_ns, captured_ns;
    struct migrate_costs costs;
    uint64_t dirty_bytes;
    struct checkpoint_verify *verify;
    struct checkpoint_capture captured;
    char text[ERROR_TEXT_MAX];
};

static void remember(struct guest_job *job, int code)
{
    job->event.code = code;
    if (code < 0) {
        snprintf(job->text, sizeof job->text, "%s", error_text());
        job->event.text = job->text;
    }
}

static void run_begin(struct job *base, void *daemon)
{
    struct guest_job *job = (struct guest_job *)base;
    struct protect *protect = daemon;
    int r = 0;
    if (!protect->begun)
        r = checkpoint_begin(protect->checkpoint);
    else if (job->full)
        checkpoint_all_pending(protect->checkpoint);
    if (r == 0 && job->full && job->compare_disks)
        checkpoint_compare_disks(protect->checkpoint);
    if (r == 0 && job->full && job->compare_memory)
        checkpoint_compare_memory(protect->checkpoint);
    if (r == 0)
        protect->begun = true;
    remember(job, r);
}

static void repair_disks(struct protect *protect)
{
    protect->repair_at_ns = 0;
    if (checkpoint_repair_disks(protect->checkpoint) == 0) {
        log_notice("disks: changes are told again; what was lost is copied anew");
        return;
    }
    log_error("disks: %s; it is tried again", error_text());
    protect->repair_at_ns = clock_now_ns() + REPAIR_EVERY;
}

static void run_repair_disks(struct job *base, void *daemon)
{
    (void)base;
    repair_disks(daemon);
}

/* Is the time right for the final capture? Asks for a live round where that would bring it nearer. */
static bool judge_switchover(struct protect *protect, struct guest_job *job,
                             struct checkpoint_estimate *estimate)
{
    job->costs.pause_ns = estimate->pause_ns;
    job->costs.fixed_pause_ns = estimate->fixed_pause_ns;
    job->costs.send_ns = estimate->send_ns;
    job->dirty_bytes = estimate->dirty_pages * VMM_PAGE_BYTES + estimate->disk_bytes;
    /* What was measured may have been before the bound was set. */
    uint64_t paced_ns = pacer_cost_ns(&protect->pacer, job->dirty_bytes);
    if (job->costs.send_ns < paced_ns)
        job->costs.send_ns = paced_ns;
    if (!job->downtime_ns)
        return false;
    enum migrate_step step =
        migrate_next(&job->costs, job->downtime_ns, job->final, estimate->behind, !job->capture);
    estimate->wants_round |= step == MIGRATE_ROUND;
    return step == MIGRATE_NOW;
}

static void captured_event(struct guest_job *job)
{
    job->event.captured = true;
    job->event.pause_ns = job->captured.pause_ns;
    job->event.pages = job->captured.dirty_pages;
    job->event.state_bytes = job->captured.state_bytes;
    job->event.state_sum = job->captured.state_sum;
}

static void capture_final(struct protect *protect, struct guest_job *job)
{
    /* Somebody whose time is up wants it however long it takes. */
    uint64_t limit_ns = job->final ? 0 : protect->hub.config->pause_limit_ns;
    if (limit_ns && limit_ns < job->downtime_ns)
        limit_ns = job->downtime_ns;
    int r = checkpoint_capture_final(protect->checkpoint, job->generation, job->event.epoch, job->event.round,
                                     limit_ns, &job->captured);
    if (r == 0 && (r = fault_point(FAULT_SWITCH_CAPTURED)) < 0) {
        remember(job, r);
        if (protect->guest->ops->resume(protect->guest) < 0)
            log_error("let the guest run again: %s", error_text());
        return;
    }
    job->captured_ns = clock_now_ns();
    if (r == 0) {
        protect->held = true;
        protect->kept = false;
        job->event.final = true;
        job->event.after_ns = migrate_after_ns(&job->costs);
        captured_event(job);
    }
    remember(job, r);
}

static void run_round(struct job *base, void *daemon)
{
    struct guest_job *job = (struct guest_job *)base;
    struct protect *protect = daemon;
    struct checkpoint_estimate estimate = {0};
    uint64_t session = job->event.session, epoch = job->event.epoch;
    uint32_t round = job->event.round;
    atomic_store(&protect->session, session);
    if (protect->repair_at_ns && clock_now_ns() >= protect->repair_at_ns)
        repair_disks(protect);
    int r = checkpoint_estimate(protect->checkpoint, &estimate);
    /* A session that broke while this job waited must not stop the guest for nothing. */
    if (r == 0 && atomic_load(&protect->live_session) != session)
        r = error_set(-ECANCELED, "the session ended");
    if (r == 0 && judge_switchover(protect, job, &estimate)) {
        capture_final(protect, job);
        return;
    }
    /* However many rounds there were: no capture can be without the disks, or what is still compared. */
    if (r == 0 && (job->capture ? estimate.behind : estimate.wants_round)) {
        r = checkpoint_round(protect->checkpoint, job->generation, epoch, round, &job->event.pages);
    } else if (r == 0) {
        r = checkpoint_capture(protect->checkpoint, job->generation, epoch, round, job->verify,
                               &job->captured);
        captured_event(job);
    }
    remember(job, r);
}

static void run_committed(struct job *base, void *daemon)
{
    (void)base;
    checkpoint_committed(((struct protect *)daemon)->checkpoint);
}

static void run_abandoned(struct job *base, void *daemon)
{
    (void)base;
    checkpoint_abandoned(((struct protect *)daemon)->checkpoint);
}

static void run_hold(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    if (protect->kept)
        return;
    for (unsigned i = 0; i < HOLD_ATTEMPTS && !protect->kept; i++) {
        if (protect->guest->ops->hold(protect->guest) < 0)
            log_error("hold the guest: %s", error_text());
        else
            protect->held = protect->kept = true;
    }
}

static void run_keep(struct job *base, void *daemon)
{
    struct guest_job *job = (struct guest_job *)base;
    struct protect *protect = daemon;
    run_hold(base, daemon);
    remember(job, protect->kept ? 0 : error_set(-EIO, "the guest cannot be kept stopped"));
}

static void run_release(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    if (!protect->held)
        return;
    if (protect->guest->ops->resume(protect->guest) < 0)
        log_error("release the guest: %s", error_text());
    protect->held = protect->kept = false; /* whatever it said: the driver holds it no longer */
}

static void run_halt(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    if (protect->guest->ops->halt(protect->guest) < 0)
        log_error("stop the guest, which runs elsewhere by right: %s", error_text());
}

static void run_pass(struct job *base, void *daemon)
{
    (void)base;
    protect_gate_pass(daemon);
}

static void deliver_reply(struct note *note, void *daemon)
{
    struct guest_job *job = (struct guest_job *)note;
    struct protect *protect = daemon;
    struct role_event *event = &job->event;
    if (event->type == EVENT_ROUND)
        protect_migrate_round(protect, &job->costs, job->dirty_bytes, job->downtime_ns);
    if (event->type == EVENT_ROUND && event->code == 0 && event->final)
        protect_migrate_captured(protect, &job->captured, job->captured_ns);
    if (event->type == EVENT_ROUND && event->code == 0 && event->captured) {
        const struct checkpoint_capture *captured = &job->captured;
        const uint64_t parts[5] = {captured->stop_ns, captured->scan_ns, captured->copy_ns,
                                   captured->state_ns, captured->resume_ns};
        protect->last_pause_us = captured->pause_ns / NS_PER_US;
        protect->last_dirty = captured->dirty_pages;
        protect->probe_captured = captured->probe;
        /* A pause that also fingerprints for `verify` is the operator's wish, not the engine's figure. */
        if (!job->verify && !protect->copying && !event->final) {
            histogram_add(&protect->pause_us, protect->last_pause_us);
            histogram_add(&protect->dirty, protect->last_dirty);
            for (unsigned i = 0; i < array_length(parts); i++)
                histogram_add(&protect->part_us[i], parts[i] / NS_PER_US);
        }
        if (job->verify) {
            protect->verify.slice_taken = true;
            if (captured->pause_ns > protect->verify.pause_max_ns)
                protect->verify.pause_max_ns = captured->pause_ns;
        }
    } else if (event->type == EVENT_ROUND && event->code == 0) {
        protect->copy_rounds += protect->copying;
    }
    protect_step(daemon, event);
}

static struct guest_job *reply_job(enum role_event_type type, const struct role_action *action,
                                   void (*run)(struct job *, void *))
{
    struct guest_job *job = job_new(sizeof *job, run, deliver_reply);
    job->event = (struct role_event){
        .type = type, .session = action->session, .epoch = action->epoch, .round = action->round};
    return job;
}

/* From here the driver's events come; before, there is no machine that could take them. */
static void run_watch(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    worker_watch(protect->hub.worker, protect->guest);
}

static void run_detach(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    worker_watch(protect->hub.worker, NULL);
    checkpoint_free(protect->checkpoint);
    vmm_close(protect->guest);
}

void protect_begin(struct protect *protect, const struct role_action *action)
{
    struct guest_job *job = reply_job(EVENT_BEGUN, action, run_begin);
    struct role_status status;
    primary_get_status(protect->machine, &status);
    job->full = action->full;
    job->compare_disks = status.optional & WIRE_FEATURE_DISK_SUMS;
    job->compare_memory = status.optional & WIRE_FEATURE_PAGE_SUMS;
    worker_submit(protect->hub.worker, &job->job);
}

void protect_start_round(struct protect *protect)
{
    struct role_status status;
    /* The standby compares fingerprints with the very checkpoint they were taken at: no newer one till then.
     */
    if (!protect->round_waits || protect_verify_awaited(protect))
        return;
    struct guest_job *job = reply_job(EVENT_ROUND, &protect->round, run_round);
    primary_get_status(protect->machine, &status);
    job->generation = status.generation;
    job->capture = protect->round.capture;
    job->final = protect->round.final;
    job->downtime_ns = protect->round.downtime_ns;
    job->costs.commit_ns = protect->migrate.commit_ns;
    job->costs.takeover_ns = protect->migrate.takeover_ns;
    if (protect->hub.config->role.arbiter)
        job->costs.arbiter_ns = protect->hub.arbiter_ns ? protect->hub.arbiter_ns : MIGRATE_ARBITER_GUESS_NS;
    job->verify = protect->copying || job->downtime_ns ? NULL : protect_verify_slice(protect);
    protect->round_waits = false;
    worker_submit(protect->hub.worker, &job->job);
}

void protect_keep(struct protect *protect, const struct role_action *action)
{
    worker_submit(protect->hub.worker, &reply_job(EVENT_KEPT, action, run_keep)->job);
}

void protect_guest_do(struct protect *protect, enum protect_deed deed)
{
    static void (*const runs[])(struct job *, void *) = {
        [PROTECT_COMMITTED] = run_committed,
        [PROTECT_ABANDONED] = run_abandoned,
        [PROTECT_HOLD] = run_hold,
        [PROTECT_RELEASE] = run_release,
        [PROTECT_HALT] = run_halt,
        [PROTECT_PASS] = run_pass,
        [PROTECT_REPAIR_DISKS] = run_repair_disks,
        [PROTECT_WATCH] = run_watch,
        [PROTECT_DETACH] = run_detach,
    };
    worker_submit(protect->hub.worker, job_new(sizeof(struct job), runs[deed], NULL));
}

struct disk_note {
    struct note note;
    char text[ERROR_TEXT_MAX];
};

static void deliver_disk_lost(struct note *note, void *daemon)
{
    struct protect *protect = daemon;
    log_warning("%s", ((struct disk_note *)note)->text);
    protect->disks_lost++;
    protect_guest_do(protect, PROTECT_REPAIR_DISKS);
}

void protect_disk_lost(void *daemon, uint32_t disk, const char *why)
{
    struct protect *protect = daemon;
    struct disk_note *note = calloc(1, sizeof *note);
    if (!note)
        abort();
    note->note.deliver = deliver_disk_lost;
    snprintf(note->text, sizeof note->text, "disk %s: changes are not told any more: %s",
             protect->description.disks[disk].name, why);
    note_post(protect->hub.notes, note);
}

/* --- attaching --- */

struct attach_job {
    struct job job;
    int code;
    char text[ERROR_TEXT_MAX];
};

static void run_attach(struct job *base, void *daemon)
{
    struct attach_job *job = (struct attach_job *)base;
    struct protect *protect = daemon;
    job->code = guest_attach(&protect->guest, protect->hub.config);
    if (job->code < 0)
        snprintf(job->text, sizeof job->text, "%s", error_text());
}

static void deliver_attach(struct note *note, void *daemon)
{
    struct attach_job *job = (struct attach_job *)note;
    struct protect *protect = daemon;
    protect->attach_code = job->code < 0 ? error_set(job->code, "%s", job->text) : 0;
    protect->attached = true;
}

/* The guest's thread attaches, since ptrace wants all its calls from one thread. */
int protect_attach(struct protect *protect)
{
    struct attach_job *job = job_new(sizeof *job, run_attach, deliver_attach);
    worker_submit(protect->hub.worker, &job->job);
    while (!protect->attached) {
        struct note *note = mailbox_wait(protect->hub.notes);
        note->deliver(note, protect);
        free(note);
    }
    if (protect->attach_code < 0)
        return protect->attach_code;
    protect->guest->ops->describe(protect->guest, &protect->description);
    return 0;
}
