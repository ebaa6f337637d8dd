/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A QEMU that waits to be filled, and then goes on with the guest.
 *
 * The way in for the device state is laid at the start, not at the takeover: QEMU gets one end of a socket
 * pair ("getfd") and is told to take its incoming migration from there. It waits for the first byte in its
 * main loop, and still answers the monitor. So a takeover sends the state and waits for one event:
 *
 *      launch                                   load()                     run()
 *   ── getfd, migrate-incoming ──► inmigrate ── stop, state, its end ──► paused ── cont ──► running
 *                                               event MIGRATION completed
 *
 * It also means that a waiting QEMU does not outlive its engine: when our end of the pair goes, the stream
 * ends without a machine in it, and QEMU exits. Between load() and run() it would stay, paused; the next
 * engine finds it in the pid file.
 *
 * The pid file says "running" before "cont" is sent. The other order would let the next engine end a guest
 * that runs, if this one died between the two. For the same reason a "cont" that QEMU refuses (another host
 * holds the lock of a disk) leaves QEMU as it is, paused: by then it may hold the only copy of the guest, and
 * an administrator can still let it run.
 */
#include "vmm/qemu/qemu.h"

#include "vmm/qemu/blocks.h"
#include "vmm/qemu/describe.h"
#include "vmm/qemu/disks.h"
#include "vmm/qemu/guest.h"
#include "vmm/qemu/libvirt.h"
#include "vmm/process.h"
#include "vmm/qemu/read.h"
#include "vmm/qemu/write.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define READY_MS      10000
#define START_MS      60000 /* for libvirt, which may have to look at QEMU's abilities first */
#define COMMAND_MS    10000
#define LOAD_MS       10000
#define RETRY_MS      5
#define QUIT_MS       500 /* a QEMU that waits has nothing to lose */
#define LAST_WORDS_MS 1000
#define STREAM_NAME   "understudy-incoming"
#define STREAM_BUFFER (1 << 20) /* a device state is some 100 KB: sent without waiting for QEMU to read */
#define EVENTS_MAX    16

struct target {
    struct qemu_guest guest;
    struct process process;
    struct qmp *qmp;
    struct qemu_blocks blocks;
    struct qemu_disks disks;
    struct disk_access *access;
    struct vmm_block shown[VMM_BLOCKS_MAX];
    struct filler *filler;
    char *text, *pid_path;
    bool recorded; /* the pid file is about this process */
    int stream;    /* our end of the incoming migration; -1 once it is used */

    enum { WAITING, LOADING, LOADED, RUNNING, HALTED } phase;
    bool migrated, refused; /* what the MIGRATION events said */
    bool own_command;       /* STOP and RESUME are the effect of a command of ours */

    int epoll, wake; /* `wake` is readable while events wait here */
    enum vmm_event events[EVENTS_MAX];
    size_t event_count;
    bool over; /* ENDED or FAILED was said */
};

static struct target *of(struct vmm *vmm)
{
    return (struct target *)vmm;
}

/* --- events --- */

/* STOPPED and RESUMED that nobody fetches do not pile up: the latest matters. */
static void push_event(struct target *target, enum vmm_event event)
{
    if (target->over)
        return;
    target->over = event == VMM_EVENT_ENDED || event == VMM_EVENT_FAILED;
    if (target->event_count == EVENTS_MAX)
        target->event_count--;
    target->events[target->event_count++] = event;
    eventfd_write(target->wake, 1);
}

static void on_migration(struct target *target, const char *status)
{
    if (!status)
        return;
    target->migrated |= strcmp(status, "completed") == 0;
    target->refused |= strcmp(status, "failed") == 0;
}

static void on_event(void *ctx, const char *event, const json_t *data)
{
    struct target *target = ctx;
    if (strcmp(event, "MIGRATION") == 0)
        on_migration(target, json_string_value(json_object_get(data, "status")));
    else if (strcmp(event, "STOP") == 0 && target->phase == RUNNING && !target->own_command)
        push_event(target, VMM_EVENT_STOPPED);
    else if (strcmp(event, "RESUME") == 0 && target->phase >= RUNNING && !target->own_command)
        push_event(target, VMM_EVENT_RESUMED);
    else if (strcmp(event, "GUEST_PANICKED") == 0)
        push_event(target, VMM_EVENT_FAILED);
    else if (strcmp(event, "SHUTDOWN") == 0) {
        const char *reason = json_string_value(json_object_get(data, "reason"));
        bool crash = reason && (strcmp(reason, "guest-panic") == 0 || strcmp(reason, "host-error") == 0);
        /* A guest that never ran cannot have ended: somebody took the standby's QEMU away. */
        push_event(target, crash || target->phase < RUNNING ? VMM_EVENT_FAILED : VMM_EVENT_ENDED);
    }
}

/* Passes `code` through, noticing that the monitor is gone. */
static int checked(struct target *target, int code)
{
    if (code != -ECONNRESET)
        return code;
    epoll_ctl(target->epoll, EPOLL_CTL_DEL, qmp_fd(target->qmp), NULL);
    push_event(target, VMM_EVENT_FAILED);
    return code;
}

static int target_event_fd(struct vmm *vmm)
{
    return of(vmm)->epoll;
}

static enum vmm_event target_event(struct vmm *vmm)
{
    struct target *target = of(vmm);
    if (!target->over)
        checked(target, qmp_drain(target->qmp));
    if (target->event_count == 0) {
        eventfd_t count;
        eventfd_read(target->wake, &count); /* not readable is fine, too */
        return VMM_EVENT_NONE;
    }
    enum vmm_event event = target->events[0];
    target->event_count--;
    memmove(target->events, target->events + 1, target->event_count * sizeof target->events[0]);
    return event;
}

/* --- memory --- */

static void target_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    struct target *target = of(vmm);
    *ret_description = (struct vmm_description){.blocks = target->shown,
                                                .block_count = target->blocks.count,
                                                .text = target->text,
                                                .disks = target->disks.shown,
                                                .disk_count = target->disks.count};
}

static int target_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    struct target *target = of(vmm);
    return read_ranges(target->guest.pid, &target->blocks, target->shown, ranges, count, to);
}

static int target_write(struct vmm *vmm, const struct vmm_range *ranges, size_t count, const void *from)
{
    return filler_write(of(vmm)->filler, ranges, count, from);
}

static int target_zero(struct vmm *vmm, const struct vmm_range *range)
{
    return filler_zero(of(vmm)->filler, range);
}

/* --- disks --- */

static int target_disk_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    return disk_access_read(of(vmm)->access, disk, offset, bytes, to);
}

static int target_disk_write(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, const void *from)
{
    return disk_access_write(of(vmm)->access, disk, offset, bytes, from);
}

static int target_disk_zero(struct vmm *vmm, uint32_t disk, enum vmm_disk_op op, uint64_t offset,
                            uint64_t bytes)
{
    return disk_access_zero(of(vmm)->access, disk, op, offset, bytes);
}

static int target_disk_flush(struct vmm *vmm)
{
    return disk_access_flush(of(vmm)->access);
}

/* The guest's own devices are to have the images to themselves. */
static int let_go_of_disks(struct target *target)
{
    int r = disk_access_flush(target->access);
    disk_access_close(target->access, target->qmp);
    target->access = NULL;
    return r;
}

/* --- takeover --- */

static int send_state(struct target *target, const uint8_t *state, size_t bytes)
{
    while (bytes > 0) {
        ssize_t put = send(target->stream, state, bytes, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0) /* EAGAIN: SO_SNDTIMEO */
            return error_errno(errno == EAGAIN ? -ETIMEDOUT : -errno, "device state to QEMU %d",
                               target->guest.pid);
        state += put;
        bytes -= (size_t)put;
    }
    return 0;
}

static int wait_loaded(struct target *target)
{
    uint64_t deadline = clock_now_ns() + LOAD_MS * NS_PER_MS;
    for (;;) {
        int r = checked(target, qmp_drain(target->qmp));
        if (r == -ECONNRESET || target->refused)
            return error_set(-EIO, "QEMU %d did not accept the device state", target->guest.pid);
        if (r < 0)
            return r;
        if (target->migrated)
            return 0;
        uint64_t now = clock_now_ns();
        if (now >= deadline)
            return error_set(-ETIMEDOUT, "QEMU %d did not load the device state in %d ms", target->guest.pid,
                             LOAD_MS);
        struct pollfd pollfd = {.fd = qmp_fd(target->qmp), .events = POLLIN};
        if (poll(&pollfd, 1, (int)((deadline - now) / NS_PER_MS) + 1) < 0 && errno != EINTR)
            return error_errno(-errno, "wait for QEMU %d", target->guest.pid);
    }
}

static int target_load(struct vmm *vmm, const void *state, size_t bytes)
{
    struct target *target = of(vmm);
    assert(target->phase == WAITING);
    target->phase = LOADING;
    int r = target->access ? let_go_of_disks(target) : 0;
    /* Somebody may have said "cont" to the waiting guest. QEMU keeps that until the state is loaded, and then
     * lets the guest run on its own; "stop" takes it back. */
    if (r == 0)
        r = checked(target, qmp_call(target->qmp, COMMAND_MS, NULL, "stop", NULL));
    if (r < 0)
        return r;
    r = send_state(target, state, bytes);
    /* QEMU looks for more behind the state, so it must see the end. */
    close(take_fd(&target->stream));
    if (r == 0)
        r = wait_loaded(target);
    if (r < 0) {
        process_wait(&target->process, LAST_WORDS_MS);
        return process_explain(&target->process, r);
    }
    target->phase = LOADED;
    return 0;
}

static int target_run(struct vmm *vmm)
{
    struct target *target = of(vmm);
    assert(target->phase == LOADED);
    int r = process_record(&target->process, target->pid_path, true);
    if (r < 0)
        return r;
    target->phase = RUNNING;
    target->own_command = true;
    r = checked(target, qmp_call(target->qmp, COMMAND_MS, NULL, "cont", NULL));
    target->own_command = false;
    return r;
}

/* The first announcement at once, then some more, since the first may fall to a switch that is still
 * learning: 5 within a second, as QEMU does it after a migration of its own. */
static int target_announce(struct vmm *vmm)
{
    struct target *target = of(vmm);
    return checked(target, qmp_call(target->qmp, COMMAND_MS, NULL, "announce-self", "{s:i, s:i, s:i, s:i}",
                                    "initial", 50, "max", 550, "rounds", 5, "step", 100));
}

static int target_halt(struct vmm *vmm)
{
    struct target *target = of(vmm);
    if (target->phase < RUNNING)
        return 0;
    target->own_command = true;
    int r = checked(target, qmp_call(target->qmp, COMMAND_MS, NULL, "stop", NULL));
    target->own_command = false;
    if (r == 0)
        target->phase = HALTED;
    return r;
}

static void target_close(struct vmm *vmm)
{
    if (!vmm)
        return;
    struct target *target = of(vmm);
    process_leave(&target->process, target->phase < RUNNING ? QUIT_MS : -1,
                  target->recorded ? target->pid_path : NULL);
    disk_access_close(target->access, NULL);
    filler_close(target->filler);
    qmp_close(target->qmp);
    free(target->text);
    free(target->pid_path);
    if (target->stream >= 0)
        close(target->stream);
    if (target->epoll >= 0)
        close(target->epoll);
    if (target->wake >= 0)
        close(target->wake);
    free(target);
}

static const struct vmm_ops target_ops = {
    .driver = "qemu",
    .describe = target_describe,
    .read = target_read,
    .event_fd = target_event_fd,
    .event = target_event,
    .halt = target_halt,
    .close = target_close,
    .write = target_write,
    .zero = target_zero,
    .disk_read = target_disk_read,
    .disk_write = target_disk_write,
    .disk_zero = target_disk_zero,
    .disk_flush = target_disk_flush,
    .load = target_load,
    .run = target_run,
    .announce = target_announce,
};

/* --- launch --- */

/* The command may be that of a guest which runs here already (it was taken over, or is the primary): QEMU
 * would silently take the socket's path away from it. */
static int refuse_running(const char *qmp_path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s", qmp_path) >= (int)sizeof address.sun_path)
        return error_set(-ENAMETOOLONG, "qmp %s: longer than a UNIX socket's path can be", qmp_path);
    int fd cleanup_close = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "qmp %s", qmp_path);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0 && errno != EAGAIN)
        return 0;
    return error_set(-EADDRINUSE, "qmp %s: a QEMU serves this socket already; does the machine run here?",
                     qmp_path);
}

static int await_monitor(struct target *target, const char *qmp_path, uint32_t ready_ms)
{
    uint64_t deadline = clock_now_ns() + ready_ms * NS_PER_MS;
    for (;;) {
        if (process_wait(&target->process, 0))
            return error_set(-ECHILD, "QEMU %d ended while it started", target->process.child);
        uint64_t now = clock_now_ns();
        if (now >= deadline)
            return error_set(-ETIMEDOUT, "QEMU %d does not serve %s after %u ms", target->process.child,
                             qmp_path, ready_ms);
        int r = qmp_open(&target->qmp, qmp_path, (uint32_t)((deadline - now) / NS_PER_MS) + 1);
        if (r == 0)
            break;
        if (r != -ENOENT && r != -ECONNREFUSED && r != -ECONNRESET)
            return r;
        process_wait(&target->process, RETRY_MS);
    }
    int r = process_adopt(&target->process, qmp_pid(target->qmp));
    if (r < 0)
        return error_add(r, "qmp %s", qmp_path);
    target->guest.pid = target->process.pid;
    return 0;
}

static int watch(struct target *target)
{
    target->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    target->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (target->wake < 0 || target->epoll < 0)
        return error_errno(-errno, "events of the guest");
    struct epoll_event readable = {.events = EPOLLIN};
    if (epoll_ctl(target->epoll, EPOLL_CTL_ADD, target->wake, &readable) < 0 ||
        epoll_ctl(target->epoll, EPOLL_CTL_ADD, qmp_fd(target->qmp), &readable) < 0)
        return error_errno(-errno, "events of the guest");
    qmp_on_event(target->qmp, on_event, target);
    return 0;
}

static int check_waits(struct target *target)
{
    json_t *status = NULL;
    int r = qmp_call(target->qmp, COMMAND_MS, &status, "query-status", NULL);
    if (r < 0)
        return r;
    const char *word = json_string_value(json_object_get(status, "status"));
    if (!word || strcmp(word, "inmigrate") != 0)
        r = error_set(-EINVAL, "QEMU %d does not wait for a guest, but is \"%s\"", target->guest.pid,
                      word ? word : "");
    json_decref(status);
    return r;
}

static int arm(struct target *target)
{
    int r = qmp_call(target->qmp, COMMAND_MS, NULL, "migrate-set-capabilities", "{s:[{s:s, s:b}]}",
                     "capabilities", "capability", "events", "state", 1);
    int pair[2];
    if (r < 0)
        return r;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_errno(-errno, "incoming migration");
    target->stream = pair[0];
    int theirs cleanup_close = pair[1];
    const struct timeval limit = {.tv_sec = LOAD_MS / 1000};
    const int buffer = STREAM_BUFFER;
    /* A buffer that stays small only means more turns between QEMU and us. */
    setsockopt(target->stream, SOL_SOCKET, SO_SNDBUFFORCE, &buffer, sizeof buffer);
    if (setsockopt(target->stream, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) < 0)
        return error_errno(-errno, "incoming migration");
    r = qmp_call_fd(target->qmp, COMMAND_MS, NULL, theirs, "getfd", "{s:s}", "fdname", STREAM_NAME);
    if (r == 0)
        r = qmp_call(target->qmp, COMMAND_MS, NULL, "migrate-incoming", "{s:s}", "uri", "fd:" STREAM_NAME);
    if (r == 0)
        qmp_prime(target->qmp, "stop", NULL); /* load() says it */
    return r;
}

static int fill_in(struct target *target, const char *const *shared_disks)
{
    int r = blocks_find(target->qmp, target->guest.pid, &target->blocks);
    if (r < 0)
        return r;
    for (size_t i = 0; i < target->blocks.count; i++) {
        memcpy(target->shown[i].name, target->blocks.items[i].name, sizeof target->shown[i].name);
        target->shown[i].bytes = target->blocks.items[i].bytes;
    }
    r = filler_open(&target->filler, target->guest.pid, &target->blocks, target->shown);
    if (r == 0)
        r = disks_find(target->qmp, shared_disks, &target->disks);
    if (r == 0 && target->disks.count)
        r = disk_access_open(&target->access, target->qmp, &target->disks, true);
    return r < 0 ? r : describe_guest(target->qmp, &target->disks, &target->text);
}

static int record(struct target *target)
{
    int r = process_record(&target->process, target->pid_path, false);
    target->recorded = r == 0;
    return r;
}

static int start_command(struct target *target, const struct qemu_launch *launch)
{
    static const char *const extra[] = {"-incoming", "defer", "-S", NULL};
    int r = refuse_running(launch->qmp_path);
    if (r == 0)
        r = process_start(&target->process, launch->argv, extra, launch->log_path);
    if (r == 0)
        r = record(target);
    if (r == 0)
        r = await_monitor(target, launch->qmp_path, launch->ready_ms ? launch->ready_ms : READY_MS);
    return r;
}

static int start_domain(struct target *target, const struct qemu_launch *launch)
{
    int r = libvirt_open(&target->qmp, launch->domain, true, launch->ready_ms ? launch->ready_ms : START_MS);
    if (r == 0)
        r = process_follow(&target->process, qmp_pid(target->qmp));
    if (r == 0)
        target->guest.pid = target->process.pid;
    return r;
}

static int start(struct target *target, const struct qemu_launch *launch)
{
    int r = launch->pid_path ? process_end_recorded(launch->pid_path) : 0;
    if (r == 0)
        r = launch->domain ? start_domain(target, launch) : start_command(target, launch);
    if (r == 0)
        r = record(target);
    if (r == 0)
        r = check_waits(target);
    if (r == 0)
        r = watch(target);
    if (r == 0)
        r = fill_in(target, launch->shared_disks);
    if (r == 0)
        r = arm(target);
    if (r < 0 && target->process.pid > 0 && process_wait(&target->process, 0))
        return process_explain(&target->process, r);
    return r;
}

int qemu_launch(struct vmm **ret_target, const struct qemu_launch *launch)
{
    struct target *target = calloc(1, sizeof *target);
    if (!target)
        return error_set(-ENOMEM, "qemu: no memory");
    target->guest.vmm.ops = &target_ops;
    target->process = PROCESS_NONE;
    target->stream = target->epoll = target->wake = -1;
    int r = 0;
    if (launch->pid_path && !(target->pid_path = strdup(launch->pid_path)))
        r = error_set(-ENOMEM, "qemu: no memory");
    if (r == 0)
        r = start(target, launch);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        target_close(&target->guest.vmm);
        return error_set(r, "%s", text);
    }
    *ret_target = &target->guest.vmm;
    return 0;
}
