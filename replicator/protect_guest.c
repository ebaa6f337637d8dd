/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <string.h>

#define HOLD_ATTEMPTS 3 /* each waits for the guest's disks as long as the driver allows */

/* The primary's calls on its guest: each a job on the guest's thread, most with an answer for the role
 * machine. */

struct guest_job {
    struct job job;
    struct role_event event; /* the reply */
    bool full, capture;
    uint64_t generation;
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
    if (r == 0)
        protect->begun = true;
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
    int r = job->capture ? 0 : checkpoint_estimate(protect->checkpoint, &estimate);
    /* A session that broke while this job waited must not stop the guest for nothing. */
    if (r == 0 && atomic_load(&protect->live_session) != session)
        r = error_set(-ECANCELED, "the session ended");
    if (r == 0 && estimate.wants_round) {
        r = checkpoint_round(protect->checkpoint, job->generation, epoch, round, &job->event.pages);
    } else if (r == 0) {
        r = checkpoint_capture(protect->checkpoint, job->generation, epoch, round, job->verify,
                               &job->captured);
        job->event.captured = true;
        job->event.pause_ns = job->captured.pause_ns;
        job->event.pages = job->captured.dirty_pages;
        job->event.state_bytes = job->captured.state_bytes;
        job->event.state_sum = job->captured.state_sum;
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
    if (protect->held)
        return;
    for (unsigned i = 0; i < HOLD_ATTEMPTS && !protect->held; i++) {
        if (protect->guest->ops->hold(protect->guest) < 0)
            log_error("hold the guest: %s", error_text());
        else
            protect->held = true;
    }
}

static void run_release(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    if (!protect->held)
        return;
    if (protect->guest->ops->resume(protect->guest) < 0)
        log_error("release the guest: %s", error_text());
    protect->held = false; /* whatever it said: the driver holds it no longer */
}

static void run_halt(struct job *base, void *daemon)
{
    struct protect *protect = daemon;
    (void)base;
    if (protect->guest->ops->halt(protect->guest) < 0)
        log_error("stop the guest, which runs elsewhere by right: %s", error_text());
}

static void deliver_reply(struct note *note, void *daemon)
{
    struct guest_job *job = (struct guest_job *)note;
    struct protect *protect = daemon;
    struct role_event *event = &job->event;
    if (event->type == EVENT_ROUND && event->code == 0 && event->captured) {
        const struct checkpoint_capture *captured = &job->captured;
        const uint64_t parts[5] = {captured->stop_ns, captured->scan_ns, captured->copy_ns,
                                   captured->state_ns, captured->resume_ns};
        protect->last_pause_us = captured->pause_ns / NS_PER_US;
        protect->last_dirty = captured->dirty_pages;
        protect->probe_captured = captured->probe;
        /* A pause that also fingerprints for `verify` is the operator's wish, not the engine's figure. */
        if (!job->verify && !protect->copying) {
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
    job->full = action->full;
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
    job->verify = protect->copying ? NULL : protect_verify_slice(protect);
    protect->round_waits = false;
    worker_submit(protect->hub.worker, &job->job);
}

void protect_guest_do(struct protect *protect, enum protect_deed deed)
{
    static void (*const runs[])(struct job *, void *) = {
        [PROTECT_COMMITTED] = run_committed, [PROTECT_ABANDONED] = run_abandoned, [PROTECT_HOLD] = run_hold,
        [PROTECT_RELEASE] = run_release,     [PROTECT_HALT] = run_halt,           [PROTECT_WATCH] = run_watch,
        [PROTECT_DETACH] = run_detach,
    };
    worker_submit(protect->hub.worker, job_new(sizeof(struct job), runs[deed], NULL));
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
    job->code = qemu_attach(&protect->guest, protect->hub.config->self.qmp);
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
