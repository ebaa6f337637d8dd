/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A running QEMU as a source of checkpoints.
 *
 * Whose stop is it? QEMU knows one run state for everybody who stops it: us, an administrator, a full disk.
 * We let the guest go on only if it was we who stopped it. QEMU emits STOP exactly when the guest goes from
 * running to stopped, and on our connection the event stands before the answer to the command that caused it:
 *
 *     ->  stop                          ->  stop
 *     <-  event STOP                    <-  return           nobody was running: not our stop, and no "cont"
 *     <-  return       our stop
 *
 * All but the last byte of "stop" is sent while the guest runs, and of "cont" while QEMU saves: QEMU needs
 * longer to read a command than to obey (qmp.h).
 *
 * A STOP or RESUME outside of our own commands is somebody else's. A RESUME of somebody else's while we hold
 * the guest spoils the capture, since marks were taken of a running guest; save_end() and resume() say so.
 *
 * And an engine that is killed while it holds the guest? The guard (guard.h) lets the guest run at once.
 * Should the guard have been killed with it: QEMU keeps our fdsets while the guest is stopped (fdset.h), so
 * the next attachment finds the guest stopped with an engine's fdset in it, and lets it run. While the stop
 * is somebody else's, or is to outlive us, the guard is not armed, and a second fdset tells the next engine
 * to leave the guest alone.
 */
#include "vmm/qemu/qemu.h"

#include "vmm/qemu/blocks.h"
#include "vmm/qemu/describe.h"
#include "vmm/qemu/fdset.h"
#include "vmm/qemu/guard.h"
#include "vmm/qemu/guest.h"
#include "vmm/qemu/libvirt.h"
#include "vmm/qemu/mirror.h"
#include "vmm/qemu/preflight.h"
#include "vmm/qemu/read.h"
#include "vmm/qemu/source_internal.h"
#include "vmm/qemu/state.h"
#include "vmm/qemu/track.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/pidfd.h>

#define OPEN_MS           3000
#define OPEN_DOMAIN_MS    30000 /* libvirt lets one command wait for another on the domain */
#define COMMAND_MS        10000
#define STOP_MS           10000 /* "stop" waits for the disks */
#define SOURCE_EVENTS_MAX 16

static void source_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    struct source *source = source_of(vmm);
    *ret_description = (struct vmm_description){.blocks = source->shown,
                                                .block_count = source->blocks.count,
                                                .text = source->text,
                                                .disks = source->disks.shown,
                                                .disk_count = source->disks.count};
}

static int source_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    struct source *source = source_of(vmm);
    return read_ranges(source->guest.pid, &source->blocks, source->shown, ranges, count, to);
}

static int source_event_fd(struct vmm *vmm)
{
    return source_of(vmm)->epoll;
}

static int source_track(struct vmm *vmm)
{
    return track_protect(source_of(vmm)->tracker);
}

static int source_scan(struct vmm *vmm, bool clear, struct vmm_ranges *to)
{
    struct source *source = source_of(vmm);
    assert(!clear || source->phase == HELD);
    return source_checked(source, track_scan(source->tracker, clear, to));
}

static int let_run(struct source *source)
{
    source->phase = RESUMING;
    int r = source_checked(source, qmp_call(source->qmp, COMMAND_MS, NULL, "cont", NULL));
    source->phase = CALM;
    return r;
}

/* `guarded`: should we die before it is undone, the guest is to run again. */
static int stop(struct source *source, bool guarded)
{
    assert(source->phase == CALM);
    /* What somebody else did until now is theirs, also if it has not been read yet. */
    int r = source_checked(source, qmp_drain(source->qmp));
    if (r < 0)
        return r;
    source->our_stop = source->io_error = source->intruded = false;
    source->phase = STOPPING;
    if (guarded && !source->stopped)
        guard_arm(source->guard);
    r = source_checked(source, qmp_call(source->qmp, STOP_MS, NULL, "stop", NULL));
    if (r < 0 || !source->our_stop)
        guard_disarm(source->guard);
    if (r == 0) {
        source->phase = HELD;
        return 0;
    }
    source->phase = CALM;
    if (r == -ETIMEDOUT) {
        /* It stops when its disks are done; QEMU obeys in order, so this undoes it. */
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        let_run(source);
        return error_set(r, "%s", text);
    }
    return r;
}

/* For the mirrors of its disks; nothing but a short stop. */
static int quiet_begin(void *ctx)
{
    struct source *source = ctx;
    source->quiet = source->phase == CALM;
    return source->quiet ? stop(source, true) : 0;
}

/* Undoes stop(). A RESUME that is on its way already is not the one that our "cont" will cause. */
static int end_stop(struct source *source)
{
    int r = source_checked(source, qmp_drain(source->qmp));
    if (r == 0 && source->our_stop)
        r = let_run(source);
    guard_disarm(source->guard);
    source->phase = CALM;
    return r;
}

static int quiet_end(void *ctx)
{
    struct source *source = ctx;
    return source->quiet ? end_stop(source) : 0;
}

static int source_pause(struct vmm *vmm)
{
    return stop(source_of(vmm), true);
}

static int intruded(const struct source *source)
{
    if (!source->intruded)
        return 0;
    return error_set(-ECANCELED, "somebody else let the guest run while it was held for a checkpoint");
}

static int source_save_begin(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    assert(source->phase == HELD);
    int r = source_checked(source, state_begin(source->saver));
    if (r == 0 && source->our_stop)
        qmp_prime(source->qmp, "cont", NULL);
    return r;
}

static int source_save_end(struct vmm *vmm, const void **ret_state, size_t *ret_bytes)
{
    struct source *source = source_of(vmm);
    assert(source->phase == HELD);
    const void *state;
    size_t bytes;
    int r = source_checked(source, state_end(source->saver, COMMAND_MS, &state, &bytes));
    if (r == 0)
        r = intruded(source);
    if (r < 0)
        return r;
    *ret_state = state;
    *ret_bytes = bytes;
    return 0;
}

static int source_resume(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    assert(source->phase == HELD);
    if (state_pending(source->saver)) { /* a capture that was given up half-way */
        const void *state;
        size_t bytes;
        source_checked(source, state_end(source->saver, COMMAND_MS, &state, &bytes));
    }
    int r = end_stop(source);
    if (r == 0 && source->kept) {
        source->kept = source->stopped = false;
        r = source_tell_later_engines(source);
    }
    if (r == 0)
        qmp_prime(source->qmp, "stop", NULL);
    return r < 0 ? r : intruded(source);
}

/* Neither our death nor close() lets the guest run again; resume() does. */
static int source_hold(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    int r = source->phase == HELD ? 0 : stop(source, false);
    if (r < 0)
        return r;
    guard_disarm(source->guard);
    if (source->our_stop)
        source->kept = source->stopped = true;
    /* It is held; that a later engine may not be told matters only should we die, with QEMU's monitor broken.
     */
    source_tell_later_engines(source);
    return 0;
}

int source_halt(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    int r = source_hold(vmm);
    source->our_stop = source->our_stop && r < 0;
    return r;
}

static int source_disks_open(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct source *source = source_of(vmm);
    return source_checked(source, mirror_open(source->mirror, sink));
}

static void source_disks_close(struct vmm *vmm)
{
    struct source *source = source_of(vmm);
    mirror_close(source->mirror, source->over);
}

static int source_disk_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    return mirror_read(source_of(vmm)->mirror, disk, offset, bytes, to);
}

static void source_close(struct vmm *vmm)
{
    if (!vmm)
        return;
    struct source *source = source_of(vmm);
    if (source->phase == HELD && !source->kept)
        source_resume(vmm);
    if (source->mirror)
        mirror_close(source->mirror, source->over);
    mirror_free(source->mirror);
    guard_close(source->guard);
    track_close(source->tracker);
    for (size_t i = 0; i < source->blocks.count; i++)
        if (source->shown[i].map)
            munmap(source->shown[i].map, source->shown[i].bytes);
    state_close(source->saver);
    qmp_close(source->qmp);
    free(source->text);
    if (source->epoll >= 0)
        close(source->epoll);
    if (source->wake >= 0)
        close(source->wake);
    if (source->process >= 0)
        close(source->process);
    free(source);
}

static const struct vmm_ops source_ops = {
    .driver = "qemu",
    .describe = source_describe,
    .read = source_read,
    .event_fd = source_event_fd,
    .event = source_event,
    .halt = source_halt,
    .hold = source_hold,
    .close = source_close,
    .track = source_track,
    .pause = source_pause,
    .scan = source_scan,
    .save_begin = source_save_begin,
    .save_end = source_save_end,
    .resume = source_resume,
    .disks_open = source_disks_open,
    .disks_close = source_disks_close,
    .disk_read = source_disk_read,
};

static int show_blocks(struct source *source)
{
    for (size_t i = 0; i < source->blocks.count; i++) {
        const struct qemu_block *block = &source->blocks.items[i];
        struct vmm_block *shown = &source->shown[i];
        memcpy(shown->name, block->name, sizeof shown->name);
        shown->bytes = block->bytes;
        if (!block->shared)
            continue;
        int r = blocks_map(source->guest.pid, block, false, &shown->map);
        if (r < 0)
            return r;
    }
    return 0;
}

static int watch(struct source *source)
{
    source->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    source->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (source->wake < 0 || source->epoll < 0)
        return error_errno(-errno, "events of the guest");
    struct epoll_event readable = {.events = EPOLLIN};
    if (epoll_ctl(source->epoll, EPOLL_CTL_ADD, source->wake, &readable) < 0 ||
        epoll_ctl(source->epoll, EPOLL_CTL_ADD, qmp_fd(source->qmp), &readable) < 0)
        return error_errno(-errno, "events of the guest");
    qmp_on_event(source->qmp, source_on_event, source);
    return 0;
}

static int check(struct source *source, const char *const *shared_disks)
{
    struct preflight findings = {0};
    int r = preflight_run(&findings, source->qmp, source->guest.pid, shared_disks, &source->blocks);
    if (r == 0)
        r = preflight_verdict(&findings);
    free(findings.items);
    return r;
}

/* `ret_held`: the guest stands still because an engine died while it held it. */
static int who_stopped_it(struct source *source, bool *ret_held)
{
    json_t *answer = NULL;
    int r = qmp_call(source->qmp, COMMAND_MS, &answer, "query-status", NULL);
    if (r < 0)
        return r;
    const char *status = json_string_value(json_object_get(answer, "status"));
    bool running = status && strcmp(status, "running") == 0, paused = status && strcmp(status, "paused") == 0;
    json_decref(answer);
    if (running)
        return fdset_remove_all(source->qmp, FDSET_LEAVE);
    bool engine = false, leave = false;
    r = fdset_find(source->qmp, FDSET_STATE, &engine);
    if (r == 0)
        r = fdset_find(source->qmp, FDSET_LEAVE, &leave);
    if (r < 0)
        return r;
    *ret_held = paused && engine && !leave;
    source->stopped = !*ret_held;
    return source_tell_later_engines(source);
}

static int attach(struct source *source, const char *const *shared_disks)
{
    int r;
    source->guest.pid = qmp_pid(source->qmp);
    source->process = pidfd_open(source->guest.pid, 0);
    if (source->process < 0)
        return error_errno(-errno, "pidfd of QEMU %d", source->guest.pid);
    char *machine cleanup_free = NULL;
    bool held = false;
    if ((r = guard_open(&source->guard, qmp_fd(source->qmp))) < 0)
        return r;
    const struct mirror_quiet quiet = {.begin = quiet_begin, .end = quiet_end, .ctx = source};
    if ((r = watch(source)) < 0 || (r = check(source, shared_disks)) < 0 ||
        (r = who_stopped_it(source, &held)) < 0 || (r = mirror_clean(source->qmp, &quiet)) < 0 ||
        (r = disks_find(source->qmp, shared_disks, &source->disks)) < 0 ||
        (r = mirror_new(&source->mirror, source->qmp, &source->disks, &quiet)) < 0 ||
        (r = describe_guest(source->qmp, &source->disks, &source->text)) < 0 ||
        (r = describe_machine(source->qmp, &machine)) < 0 || (r = show_blocks(source)) < 0 ||
        (r = state_open(&source->saver, source->qmp, machine)) < 0)
        return r;
    if ((r = track_open(&source->tracker, source->qmp, source->guest.pid, &source->blocks)) < 0 ||
        (r = fault_point(FAULT_ATTACH)) < 0)
        return r;
    return held ? let_run(source) : 0;
}

/* Of QEMU's monitor at `qmp_path`, or of a domain's. */
static int open_source(struct vmm **ret_source, const char *qmp_path, const struct qemu_domain *domain,
                       const char *const *shared_disks)
{
    struct source *source = calloc(1, sizeof *source);
    if (!source)
        return error_set(-ENOMEM, "qemu: no memory");
    source->guest.vmm.ops = &source_ops;
    source->epoll = source->wake = source->process = -1;
    source->leave = -1;
    int r = domain ? libvirt_open(&source->qmp, domain, false, OPEN_DOMAIN_MS)
                   : qmp_open(&source->qmp, qmp_path, OPEN_MS);
    if (r == 0)
        r = attach(source, shared_disks);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        source_close(&source->guest.vmm);
        return error_set(r, "%s", text);
    }
    *ret_source = &source->guest.vmm;
    return 0;
}

int qemu_attach(struct vmm **ret_source, const char *qmp_path, const char *const *shared_disks)
{
    return open_source(ret_source, qmp_path, NULL, shared_disks);
}

int qemu_attach_domain(struct vmm **ret_source, const struct qemu_domain *domain,
                       const char *const *shared_disks)
{
    return open_source(ret_source, NULL, domain, shared_disks);
}

int qemu_pid(const struct vmm *vmm)
{
    return ((const struct qemu_guest *)vmm)->pid;
}
