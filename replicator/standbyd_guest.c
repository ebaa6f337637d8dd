/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standbyd.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct standby_job {
    struct job job;
    struct role_event event;
    bool fresh;
    struct peer_guest *described; /* this job's copy */
    int pid;
    uint64_t probe;
    bool probe_known;
    struct restore_timing timing;
    uint64_t running_ns;
    char text[ERROR_TEXT_MAX];
};

static void remember(struct standby_job *job, int code)
{
    job->event.code = code;
    if (code < 0) {
        snprintf(job->text, sizeof job->text, "%s", error_text());
        job->event.text = job->text;
    }
}

static struct standby_job *standby_job(enum role_event_type type, const struct role_action *action,
                                       void (*run)(struct job *, void *),
                                       void (*deliver)(struct note *, void *))
{
    struct standby_job *job = job_new(sizeof *job, run, deliver);
    job->event.type = type;
    if (action) {
        job->event.session = action->session;
        job->event.epoch = action->epoch;
    }
    return job;
}

/* --- restore's callback: on whichever thread completes a round --- */

static void on_round_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                              const char *text)
{
    struct standbyd *standbyd = ctx;
    struct role_event event = {.type = EVENT_ROUND_COMPLETE,
                               .session = __atomic_load_n(&standbyd->session, __ATOMIC_RELAXED),
                               .epoch = epoch,
                               .round = round,
                               .captured = commit,
                               .code = code,
                               .text = text};
    hub_event_later(&standbyd->hub, &standbyd_ops, &event);
}

/* --- prepare: a fit, waiting guest --- */

static void discard(struct standbyd *standbyd)
{
    worker_watch(standbyd->hub.worker, NULL);
    restore_free(standbyd->restore);
    standbyd->restore = NULL;
    vmm_close(standbyd->guest);
    standbyd->guest = NULL;
    standbyd->guest_failed = false;
}

static int launch(struct standbyd *standbyd)
{
    const struct config *config = standbyd->hub.config;
    struct qemu_launch wanted = {.argv = config->self.argv,
                                 .qmp_path = config->self.qmp,
                                 .pid_path = standbyd->hub.pid_path,
                                 .log_path = config->self.log};
    struct restore_config restore = {
        .staging_bytes = config->standby_staging_bytes, .round_complete = on_round_complete, .ctx = standbyd};
    if (!config->self.argv)
        return error_set(-EINVAL, "[host %s]: no 'command' is configured, so no standby can be started here",
                         config->self.name);
    int r = fault_point(FAULT_PREPARE);
    if (r == 0)
        r = qemu_launch(&standbyd->guest, &wanted);
    if (r == 0)
        r = restore_new(&standbyd->restore, standbyd->guest, &restore);
    if (r == 0)
        worker_watch(standbyd->hub.worker, standbyd->guest);
    else
        discard(standbyd);
    return r;
}

static void run_prepare(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    struct vmm_description ours, theirs = {.blocks = job->described->blocks,
                                           .block_count = job->described->block_count,
                                           .text = job->described->text};
    uint32_t map[VMM_BLOCKS_MAX];
    if (job->fresh || standbyd->guest_failed)
        discard(standbyd);
    job->event.refusal = WIRE_REFUSE_GUEST;
    int r = standbyd->guest ? 0 : launch(standbyd);
    if (r == 0) {
        standbyd->guest->ops->describe(standbyd->guest, &ours);
        job->pid = qemu_pid(standbyd->guest);
        r = vmm_description_match(&theirs, &ours, map);
        if (r < 0)
            job->event.refusal = WIRE_REFUSE_MISMATCH;
    }
    if (r == 0)
        r = restore_session(standbyd->restore, map, theirs.block_count);
    remember(job, r);
}

static void free_description(struct peer_guest *described)
{
    if (described)
        free(described->text);
    free(described);
}

static struct peer_guest *copy_description(const struct peer_guest *described)
{
    struct peer_guest *copy = malloc(sizeof *copy);
    if (!copy)
        return NULL;
    *copy = *described;
    copy->text = strdup(described->text);
    if (copy->text)
        return copy;
    free(copy);
    return NULL;
}

static void deliver_prepared(struct note *note, void *daemon)
{
    struct standby_job *job = (struct standby_job *)note;
    struct standbyd *standbyd = daemon;
    free_description(job->described);
    standbyd->preparing = false;
    standbyd->guest_pid = job->pid;
    if (job->event.code == 0 && !standbyd->prepare_wanted) {
        standbyd->restore_ours = true;
        if (job->event.session == standbyd->session)
            links_set_current(standbyd->hub.links, job->event.session);
    }
    standbyd_step(standbyd, &job->event);
    standbyd_prepare(standbyd); /* a newer session may have asked meanwhile */
}

void standbyd_prepare(struct standbyd *standbyd)
{
    if (!standbyd->prepare_wanted || standbyd->preparing ||
        standbyd->described.link != standbyd->prepare.session)
        return;
    struct standby_job *job = standby_job(EVENT_PREPARED, &standbyd->prepare, run_prepare, deliver_prepared);
    job->fresh = standbyd->prepare.fresh;
    job->described = copy_description(&standbyd->described);
    if (!job->described)
        abort();
    standbyd->prepare_wanted = false;
    standbyd->preparing = true;
    standbyd->restore_ours = false;
    worker_submit(standbyd->hub.worker, &job->job);
}

/* --- apply --- */

static void read_probe(struct standbyd *standbyd, struct standby_job *job)
{
    const struct config *config = standbyd->hub.config;
    job->probe_known = config->probe_block && restore_probe(standbyd->restore, config->probe_block,
                                                            config->probe_offset, &job->probe) == 0;
}

static void run_apply(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    remember(job, restore_apply(standbyd->restore));
    if (job->event.code == 0)
        read_probe(standbyd, job);
}

static void deliver_applied(struct note *note, void *daemon)
{
    struct standby_job *job = (struct standby_job *)note;
    struct standbyd *standbyd = daemon;
    if (job->probe_known) {
        standbyd->probe = job->probe;
        standbyd->probe_known = true;
    }
    standbyd_step(standbyd, &job->event);
}

void standbyd_apply(struct standbyd *standbyd, const struct role_action *action)
{
    worker_submit(standbyd->hub.worker, &standby_job(EVENT_APPLIED, action, run_apply, deliver_applied)->job);
}

/* --- takeover --- */

static void run_takeover(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    int r = fault_point(FAULT_TAKEOVER_ARBITRATED);
    if (r == 0)
        r = standbyd->restore ? restore_takeover(standbyd->restore, &job->timing)
                              : error_set(-ENODATA, "takeover: there is no committed checkpoint");
    job->running_ns = clock_now_ns() - job->timing.announce_ns;
    remember(job, r);
}

static void deliver_running(struct note *note, void *daemon)
{
    struct standby_job *job = (struct standby_job *)note;
    struct standbyd *standbyd = daemon;
    if (job->event.code == 0) {
        if (job->timing.announce_failed)
            log_warning("the guest runs, but the network was not told where it is now");
        standbyd->running = true;
        standbyd->running_ns = job->running_ns;
        standbyd->timing = job->timing;
    }
    standbyd_step(standbyd, &job->event);
}

void standbyd_takeover(struct standbyd *standbyd)
{
    standbyd->arbitrated_ns = clock_now_ns();
    worker_submit(standbyd->hub.worker,
                  &standby_job(EVENT_RUNNING, NULL, run_takeover, deliver_running)->job);
}

static void run_halt(struct job *base, void *daemon)
{
    struct standbyd *standbyd = daemon;
    (void)base;
    if (standbyd->guest && standbyd->guest->ops->halt(standbyd->guest) < 0)
        log_error("stop the guest, which runs elsewhere by right: %s", error_text());
}

void standbyd_halt(struct standbyd *standbyd)
{
    worker_submit(standbyd->hub.worker, job_new(sizeof(struct job), run_halt, NULL));
}

/* --- verify --- */

struct verify_job {
    struct job job;
    uint64_t link;
    struct wire_frame frame;
    int code;
    uint32_t differing;
    uint64_t pages[WIRE_VERIFIED_MAX];
    uint8_t payload[];
};

static void run_verify(struct job *base, void *daemon)
{
    struct verify_job *job = (struct verify_job *)base;
    struct standbyd *standbyd = daemon;
    struct message_verify verify;
    job->code = message_verify_parse(&job->frame, &verify);
    if (job->code == 0 && !standbyd->restore)
        job->code = error_set(-ENODATA, "VERIFY: there is no checkpoint");
    if (job->code == 0)
        job->code = restore_verify(standbyd->restore, &verify, &job->differing, job->pages);
}

static void deliver_verified(struct note *note, void *daemon)
{
    struct verify_job *job = (struct verify_job *)note;
    struct standbyd *standbyd = daemon;
    struct message_verify verify;
    struct role_status status;
    uint8_t payload[sizeof(struct wire_verified) + WIRE_VERIFIED_MAX * sizeof(le64)];
    standbyd->verifying = false;
    if (job->code < 0 || message_verify_parse(&job->frame, &verify) < 0) {
        struct role_event event = {.type = EVENT_LINK_DOWN,
                                   .session = job->link,
                                   .code = -EPROTO,
                                   .text = "VERIFY could not be answered"};
        standbyd_step(standbyd, &event);
        links_disconnect(standbyd->hub.links, job->link);
        return;
    }
    long length = message_verified_build(&verify, job->differing, job->pages, payload, sizeof payload);
    standby_get_status(standbyd->machine, &status);
    if (length > 0)
        links_send(standbyd->hub.links, job->link, WIRE_VERIFIED, status.generation, job->frame.epoch,
                   payload, (size_t)length);
}

void standbyd_verify(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct verify_job *job = job_new(sizeof *job + frame->length, run_verify, deliver_verified);
    standbyd->verifying = true;
    job->link = link;
    job->frame = *frame;
    memcpy(job->payload, frame->payload, frame->length);
    job->frame.payload = job->payload;
    worker_submit(standbyd->hub.worker, &job->job);
}

static void run_close(struct job *base, void *daemon)
{
    (void)base;
    discard(daemon);
}

void standbyd_close_guest(struct standbyd *standbyd)
{
    worker_submit(standbyd->hub.worker, job_new(sizeof(struct job), run_close, NULL));
}
