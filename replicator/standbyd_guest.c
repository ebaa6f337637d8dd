/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standbyd.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/guest_driver.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct standby_job {
    struct job job;
    struct role_event event;
    bool fresh, keep_memory;
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

static void clear_network(struct standbyd *standbyd);

static void on_journal_notice(void *ctx, const char *text)
{
    (void)ctx;
    log_notice("%s", text);
}

/* Not before its place is needed: who needs it runs the guest by a newer right. */
static int retire(const struct config *config, bool keep, struct vmm_keep **ret_keep)
{
    struct guest_retired retired = {0};
    int r = guest_retire(config, keep, &retired);
    if (r < 0)
        return error_add(r, "end the guest that was left behind here");
    if (retired.ended)
        log_notice("the guest that was left behind here, stopped, is gone: its place is needed");
    if (retired.why[0])
        log_notice("its memory could not be kept, so all of the guest's will be copied: %s", retired.why);
    *ret_keep = retired.keep;
    return 0;
}

/* What the guest that was here left is worth nothing by itself; the primary finds out what of it is right. */
static bool fill(struct standbyd *standbyd, struct vmm_keep *keep)
{
    uint64_t bytes;
    if (!keep)
        return false;
    int r = vmm_keep_fill(keep, standbyd->guest, &bytes);
    vmm_keep_free(keep);
    if (r < 0)
        log_warning("the memory of the guest that was here is not used: %s", error_text());
    else
        log_notice("%llu MiB of the memory of the guest that was here are kept, to be compared",
                   (unsigned long long)(bytes >> 20));
    return r == 0;
}

static int launch(struct standbyd *standbyd, bool keep_memory)
{
    const struct config *config = standbyd->hub.config;
    struct restore_config restore = {.staging_bytes = config->standby_staging_bytes,
                                     .round_complete = on_round_complete,
                                     .ctx = standbyd,
                                     .journal_path = standbyd->journal_path,
                                     .journal_bytes_max = config->journal_bytes,
                                     .journal_sync = config->journal_sync,
                                     .notice = on_journal_notice};
    memcpy(restore.vm_uuid, config->uuid, sizeof restore.vm_uuid);
    struct vmm_keep *keep = NULL;
    int r = fault_point(FAULT_PREPARE);
    if (r == 0 && standbyd->retires)
        r = retire(config, keep_memory, &keep);
    if (r == 0)
        r = guest_launch(&standbyd->guest, config, standbyd->hub.pid_path);
    if (r == 0)
        restore.filled = fill(standbyd, take_ptr(keep));
    vmm_keep_free(keep);
    if (r == 0)
        r = restore_new(&standbyd->restore, standbyd->guest, &restore);
    if (r < 0) {
        discard(standbyd);
        return r;
    }
    clear_network(standbyd);
    worker_watch(standbyd->hub.worker, standbyd->guest);
    return 0;
}

/* All of the difference, once: the primary comes again every few seconds, and the refusal names one line. */
static void show_difference(struct standbyd *standbyd, const struct vmm_description *theirs,
                            const struct vmm_description *ours)
{
    char *diff cleanup_free = vmm_description_diff(theirs, ours), *save = NULL;
    if (!diff || (standbyd->difference && strcmp(diff, standbyd->difference) == 0))
        return;
    free(standbyd->difference);
    standbyd->difference = strdup(diff);
    log_error("the machines differ (- primary's, + ours):");
    for (char *line = strtok_r(diff, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        log_error("%s", line);
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
    int r = standbyd->guest ? 0 : launch(standbyd, job->keep_memory);
    if (r == 0) {
        standbyd->guest->ops->describe(standbyd->guest, &ours);
        job->pid = guest_pid(standbyd->guest);
        r = vmm_description_match(&theirs, &ours, map);
        if (r < 0) {
            char text[ERROR_TEXT_MAX];
            snprintf(text, sizeof text, "%s", error_text());
            job->event.refusal = WIRE_REFUSE_MISMATCH;
            show_difference(standbyd, &theirs, &ours);
            error_set(r, "%s", text);
        }
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
    struct role_status status;
    standby_get_status(standbyd->machine, &status);
    job->fresh = standbyd->prepare.fresh;
    job->keep_memory = status.optional & WIRE_FEATURE_PAGE_SUMS;
    job->described = copy_description(&standbyd->described);
    if (!job->described)
        abort();
    standbyd->prepare_wanted = false;
    standbyd->preparing = true;
    standbyd->restore_ours = false;
    worker_submit(standbyd->hub.worker, &job->job);
}

static void run_launch(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    if (standbyd->guest || standbyd->retires)
        return;
    remember(job, launch(standbyd, false));
    if (job->event.code == 0)
        job->pid = guest_pid(standbyd->guest);
}

static void deliver_launched(struct note *note, void *daemon)
{
    struct standby_job *job = (struct standby_job *)note;
    struct standbyd *standbyd = daemon;
    standbyd->preparing = false;
    if (job->event.code < 0)
        log_notice("the guest could not be launched ahead: %s", job->text);
    else if (job->pid)
        standbyd->guest_pid = job->pid;
    standbyd_prepare(standbyd);
}

void standbyd_launch(struct standbyd *standbyd)
{
    struct role_status status;
    standby_get_status(standbyd->machine, &status);
    if (status.state != STANDBY_WAITING || standbyd->called || standbyd->preparing || standbyd->sessions)
        return;
    standbyd->called = standbyd->preparing = true;
    worker_submit(standbyd->hub.worker, &standby_job(EVENT_TICK, NULL, run_launch, deliver_launched)->job);
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

/* --- the guest's network, where the engine carries its frames --- */

static void on_gate_failed(void *ctx, const char *text)
{
    (void)ctx;
    log_error("the guest's network: %s", text);
}

/* Before the guest runs, since its first frames announce it. A guest without a network is better than none.
 */
static void connect_network(struct standbyd *standbyd)
{
    const struct config_host *self = &standbyd->hub.config->self;
    struct gate_config wanted = {.kind = GATE_RELAY,
                                 .failure = standbyd->hub.config->gate_failure,
                                 .held_bytes_max = standbyd->hub.config->gate_held_bytes,
                                 .port_count = self->relay_count};
    const struct gate_events events = {.failed = on_gate_failed, .ctx = standbyd};
    if (!self->relay_count || standbyd->gate)
        return;
    memcpy(wanted.ports, self->relays, sizeof wanted.ports);
    if (gate_open(&standbyd->gate, &wanted, &events) < 0)
        log_error("the guest's network: %s", error_text());
}

/* An engine that protected the guest here once may have left a gate behind that lets nothing out. */
static void clear_network(struct standbyd *standbyd)
{
    struct gate_config wanted = {.kind = GATE_AUTO, .held_bytes_max = standbyd->hub.config->gate_held_bytes};
    const struct gate_events events = {.failed = on_gate_failed, .ctx = standbyd};
    struct gate *gate;
    int found = gate_find_taps(guest_pid(standbyd->guest), wanted.ports, GATE_PORTS_MAX);
    if (standbyd->hub.config->gate == GATE_NONE || standbyd->hub.config->self.relay_count || found <= 0)
        return;
    wanted.port_count = (unsigned)found;
    if (gate_open(&gate, &wanted, &events) == 0)
        gate_close(gate);
    else
        log_debug("net gate: %s", error_text());
}

/* --- takeover --- */

static void run_load(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    int r = fault_point(FAULT_SWITCH_LOAD);
    if (r == 0)
        r = standbyd->restore ? restore_load(standbyd->restore, NULL)
                              : error_set(-ENODATA, "load: there is no committed checkpoint");
    remember(job, r);
}

static void deliver_load_done(struct note *note, void *daemon)
{
    standbyd_step(daemon, &((struct standby_job *)note)->event);
}

void standbyd_load(struct standbyd *standbyd)
{
    worker_submit(standbyd->hub.worker,
                  &standby_job(EVENT_LOAD_DONE, NULL, run_load, deliver_load_done)->job);
}

static void run_takeover(struct job *base, void *daemon)
{
    struct standby_job *job = (struct standby_job *)base;
    struct standbyd *standbyd = daemon;
    int r = fault_point(FAULT_TAKEOVER_ARBITRATED);
    connect_network(standbyd);
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
    standbyd->running = false;
    worker_submit(standbyd->hub.worker, job_new(sizeof(struct job), run_halt, NULL));
}

static void run_close(struct job *base, void *daemon)
{
    struct standbyd *standbyd = daemon;
    (void)base;
    discard(standbyd);
    gate_close(standbyd->gate);
    standbyd->gate = NULL;
}

void standbyd_close_guest(struct standbyd *standbyd)
{
    worker_submit(standbyd->hub.worker, job_new(sizeof(struct job), run_close, NULL));
}
