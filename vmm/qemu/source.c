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

#define OPEN_MS        3000
#define OPEN_DOMAIN_MS 30000 /* libvirt lets one command wait for another on the domain */
#define COMMAND_MS     10000
#define STOP_MS        10000 /* "stop" waits for the disks */
#define GONE_MS        1000
#define EVENTS_MAX     16

struct source {
    struct qemu_guest guest;
    struct qmp *qmp;
    int process; /* pidfd of QEMU */
    struct qemu_blocks blocks;
    struct vmm_block shown[VMM_BLOCKS_MAX];
    char *text;
    struct tracker *tracker;
    struct state_saver *saver;
    struct guard *guard;
    struct qemu_disks disks;
    struct mirror *mirror;

    enum { CALM, STOPPING, HELD, RESUMING } phase;
    bool our_stop; /* valid in HELD: "cont" is ours to say */
    bool io_error; /* a disk error stopped the guest during our own "stop" */
    bool panicked; /* the guest said so, and may still run */
    bool intruded; /* somebody else let the guest run while we held it */
    bool quiet;    /* between quiet_begin() and quiet_end(): it was running before */

    bool stopped;  /* somebody else stopped the guest, or our own stop is to outlive us */
    bool kept;     /* the latter: hold() or halt() */
    int64_t leave; /* the fdset that says so; -1: none */

    int epoll, wake; /* `wake` is readable while events wait here */
    enum vmm_event events[EVENTS_MAX];
    size_t event_count;
    bool over; /* ENDED, FAILED or LOST was said */
};

static struct source *of(struct vmm *vmm)
{
    return (struct source *)vmm;
}

/* STOPPED and RESUMED that nobody fetches do not pile up: the latest matters. */
static void push_event(struct source *source, enum vmm_event event)
{
    if (source->over)
        return;
    source->over = event == VMM_EVENT_ENDED || event == VMM_EVENT_FAILED || event == VMM_EVENT_LOST;
    if (source->event_count == EVENTS_MAX)
        source->event_count--;
    source->events[source->event_count++] = event;
    eventfd_write(source->wake, 1);
}

static void on_stop(struct source *source)
{
    if (source->phase == STOPPING && !source->io_error)
        source->our_stop = true;
    else {
        source->stopped = true;
        push_event(source, VMM_EVENT_STOPPED);
    }
}

static void on_resume(struct source *source)
{
    if (source->phase == RESUMING)
        return;
    source->stopped = false;
    if (source->phase == CALM)
        push_event(source, VMM_EVENT_RESUMED);
    else
        source->intruded = true;
}

static void on_event(void *ctx, const char *event, const json_t *data)
{
    struct source *source = ctx;
    if (source->mirror)
        mirror_event(source->mirror, event, data);
    if (strcmp(event, "STOP") == 0)
        on_stop(source);
    else if (strcmp(event, "RESUME") == 0)
        on_resume(source);
    else if (strcmp(event, "BLOCK_IO_ERROR") == 0) {
        const char *action = json_string_value(json_object_get(data, "action"));
        source->io_error = action && strcmp(action, "stop") == 0;
    } else if (strcmp(event, "GUEST_PANICKED") == 0) {
        source->panicked = true;
        eventfd_write(source->wake, 1);
    } else if (strcmp(event, "SHUTDOWN") == 0) {
        const char *reason = json_string_value(json_object_get(data, "reason"));
        bool crash = reason && (strcmp(reason, "guest-panic") == 0 || strcmp(reason, "host-error") == 0);
        push_event(source, crash ? VMM_EVENT_FAILED : VMM_EVENT_ENDED);
    }
}

/* The monitor hung up. With QEMU, as a rule, which a standby may know; but whoever carries libvirt's monitor
 * to us can die alone, and then nobody may think that the guest does not run. */
static void lost(struct source *source)
{
    struct pollfd pollfd = {.fd = source->process, .events = POLLIN};
    int r;
    epoll_ctl(source->epoll, EPOLL_CTL_DEL, qmp_fd(source->qmp), NULL);
    while ((r = poll(&pollfd, 1, GONE_MS)) < 0 && errno == EINTR)
        ;
    push_event(source, r > 0 ? VMM_EVENT_FAILED : VMM_EVENT_LOST);
}

/* The memory of a process that ends goes before its sockets: read what QEMU may have said of a shutdown,
 * until it hangs up. */
static void last_words(struct source *source)
{
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", error_text());
    uint64_t deadline_ns = clock_now_ns() + GONE_MS * NS_PER_MS;
    int r = 0;
    while (!source->over && r == 0 && clock_now_ns() < deadline_ns) {
        struct pollfd pollfd = {.fd = qmp_fd(source->qmp), .events = POLLIN};
        poll(&pollfd, 1, GONE_MS);
        r = qmp_drain(source->qmp);
    }
    if (r == -ECONNRESET)
        lost(source);
    error_set(-ESRCH, "%s", text);
}

/* Passes `code` through, noticing that QEMU or its monitor is gone. */
static int checked(struct source *source, int code)
{
    if (code == -ECONNRESET)
        lost(source);
    else if (code == -ESRCH)
        last_words(source);
    return code;
}

/* Keep what a later engine would find in step with source->stopped. */
static int tell_later_engines(struct source *source)
{
    int r = 0;
    if (source->stopped && source->leave < 0) {
        int null cleanup_close = open("/dev/null", O_RDONLY | O_CLOEXEC);
        if (null < 0)
            return error_errno(-errno, "/dev/null");
        r = fdset_add(source->qmp, null, FDSET_LEAVE, &source->leave);
    } else if (!source->stopped && source->leave >= 0) {
        r = fdset_remove(source->qmp, source->leave);
        source->leave = -1;
    }
    return checked(source, r);
}

static void source_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    struct source *source = of(vmm);
    *ret_description = (struct vmm_description){.blocks = source->shown,
                                                .block_count = source->blocks.count,
                                                .text = source->text,
                                                .disks = source->disks.shown,
                                                .disk_count = source->disks.count};
}

static int source_halt(struct vmm *vmm);

static int source_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    struct source *source = of(vmm);
    return read_ranges(source->guest.pid, &source->blocks, source->shown, ranges, count, to);
}

static int source_event_fd(struct vmm *vmm)
{
    return of(vmm)->epoll;
}

/* What becomes of a guest that panicked is up to QEMU's options: it may run on, and boot again. Somebody who
 * is told of its failure resumes it elsewhere, so it is to stand still for good first. */
static void end_panicked(struct source *source)
{
    source->panicked = false;
    int r = source_halt(&source->guest.vmm);
    if (!source->over)
        push_event(source, r == 0 ? VMM_EVENT_FAILED : VMM_EVENT_LOST);
}

static enum vmm_event source_event(struct vmm *vmm)
{
    struct source *source = of(vmm);
    if (!source->over && checked(source, qmp_drain(source->qmp)) == 0 && source->phase == CALM) {
        tell_later_engines(source);
        if (source->panicked)
            end_panicked(source);
    }
    if (source->event_count == 0) {
        eventfd_t count;
        eventfd_read(source->wake, &count);
        return VMM_EVENT_NONE;
    }
    enum vmm_event event = source->events[0];
    source->event_count--;
    memmove(source->events, source->events + 1, source->event_count * sizeof source->events[0]);
    return event;
}

static int source_track(struct vmm *vmm)
{
    return track_protect(of(vmm)->tracker);
}

static int source_scan(struct vmm *vmm, bool clear, struct vmm_ranges *to)
{
    struct source *source = of(vmm);
    assert(!clear || source->phase == HELD);
    return checked(source, track_scan(source->tracker, clear, to));
}

static int let_run(struct source *source)
{
    source->phase = RESUMING;
    int r = checked(source, qmp_call(source->qmp, COMMAND_MS, NULL, "cont", NULL));
    source->phase = CALM;
    return r;
}

/* `guarded`: should we die before it is undone, the guest is to run again. */
static int stop(struct source *source, bool guarded)
{
    assert(source->phase == CALM);
    /* What somebody else did until now is theirs, also if it has not been read yet. */
    int r = checked(source, qmp_drain(source->qmp));
    if (r < 0)
        return r;
    source->our_stop = source->io_error = source->intruded = false;
    source->phase = STOPPING;
    if (guarded && !source->stopped)
        guard_arm(source->guard);
    r = checked(source, qmp_call(source->qmp, STOP_MS, NULL, "stop", NULL));
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
    int r = checked(source, qmp_drain(source->qmp));
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
    return stop(of(vmm), true);
}

static int intruded(const struct source *source)
{
    if (!source->intruded)
        return 0;
    return error_set(-ECANCELED, "somebody else let the guest run while it was held for a checkpoint");
}

static int source_save_begin(struct vmm *vmm)
{
    struct source *source = of(vmm);
    assert(source->phase == HELD);
    int r = checked(source, state_begin(source->saver));
    if (r == 0 && source->our_stop)
        qmp_prime(source->qmp, "cont", NULL);
    return r;
}

static int source_save_end(struct vmm *vmm, const void **ret_state, size_t *ret_bytes)
{
    struct source *source = of(vmm);
    assert(source->phase == HELD);
    const void *state;
    size_t bytes;
    int r = checked(source, state_end(source->saver, COMMAND_MS, &state, &bytes));
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
    struct source *source = of(vmm);
    assert(source->phase == HELD);
    if (state_pending(source->saver)) { /* a capture that was given up half-way */
        const void *state;
        size_t bytes;
        checked(source, state_end(source->saver, COMMAND_MS, &state, &bytes));
    }
    int r = end_stop(source);
    if (r == 0 && source->kept) {
        source->kept = source->stopped = false;
        r = tell_later_engines(source);
    }
    if (r == 0)
        qmp_prime(source->qmp, "stop", NULL);
    return r < 0 ? r : intruded(source);
}

/* Neither our death nor close() lets the guest run again; resume() does. */
static int source_hold(struct vmm *vmm)
{
    struct source *source = of(vmm);
    int r = source->phase == HELD ? 0 : stop(source, false);
    if (r < 0)
        return r;
    guard_disarm(source->guard);
    if (source->our_stop)
        source->kept = source->stopped = true;
    /* It is held; that a later engine may not be told matters only should we die, with QEMU's monitor broken.
     */
    tell_later_engines(source);
    return 0;
}

/* Held, and not even resume() lets it run. */
static int source_halt(struct vmm *vmm)
{
    struct source *source = of(vmm);
    int r = source_hold(vmm);
    source->our_stop = source->our_stop && r < 0;
    return r;
}

static int source_disks_open(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct source *source = of(vmm);
    return checked(source, mirror_open(source->mirror, sink));
}

static void source_disks_close(struct vmm *vmm)
{
    struct source *source = of(vmm);
    mirror_close(source->mirror, source->over);
}

static int source_disk_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    return mirror_read(of(vmm)->mirror, disk, offset, bytes, to);
}

static void source_close(struct vmm *vmm)
{
    if (!vmm)
        return;
    struct source *source = of(vmm);
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
    qmp_on_event(source->qmp, on_event, source);
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
    return tell_later_engines(source);
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
