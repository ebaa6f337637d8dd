/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Theory of operation
 *
 *     guest's write ──► QEMU's block layer ──► image                     1
 *                            │ blockdev-mirror, write-blocking
 *                            └──► NBD client ──► our thread ──► sink     2   then the write completes
 *
 * QEMU's mirror job in copy-mode write-blocking carries out each write of the guest on the image and then on
 * its target, and completes it for the guest only then. Its target is an NBD connection to a thread of ours,
 * over a socket pair that we made ("getfd", server of type fd), which needs no path and no right. sync=none:
 * the job itself copies nothing; what the disk held before is read through QEMU's NBD server (disk_access.c).
 * QEMU 7.2 mirrors synchronously from the moment at which the command returns, so everything that changes
 * later is told.
 *
 * "stop" completes all requests in flight, so behind it every write that the guest saw complete has been
 * told, and none is under way: the line between two epochs is exact.
 *
 * auto-finalize=false: an administrator who completes the job would otherwise move the guest onto our socket.
 * So it only becomes pending, and we cancel it.
 *
 * A mirror may end only while no write of the guest is under way. QEMU 7.2 frees the job's bitmap of requests
 * in flight (block/mirror.c, mirror_run: immediate_exit) before it waits for them, and each then clears its
 * bits in memory that is somebody else's: QEMU crashes in malloc() some time later, or loses the next mirror
 * without a word. A forced cancel under load does that, and so does on-target-error=report. Therefore
 *  - we cancel while the guest stands still (struct mirror_quiet), some milliseconds;
 *  - on-target-error=stop: when our end of the pair goes, the job pauses. The guest's writes do not fail and
 * do not wait, the target's part of each fails at once. So neither our death nor a bug in here breaks the
 *    guest's disk. What is left behind, the job and a node without a connection, mirror_clean() removes.
 * Until then each write costs QEMU an event (BLOCK_JOB_ERROR).
 */
#include "vmm/qemu/mirror.h"

#include "vmm/qemu/nbd_server.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define COMMAND_MS 10000
#define ENDED_MS   1000 /* for a job that was cancelled, while the guest stands still */
#define POLL_NS    (2 * NS_PER_MS)

#define JOB_PREFIX  "understudy-mirror-"
#define NODE_PREFIX "understudy-target-"

struct lane {
    struct mirror *mirror;
    uint32_t disk;
    bool started; /* the thread has to be joined, the job and the node removed */
    int fd, theirs;
    pthread_t thread;
    atomic_bool ended; /* the thread is through */
    atomic_bool ours;  /* and it was our wish */
};

struct mirror {
    struct qmp *qmp;
    struct mirror_quiet quiet;
    struct qemu_disks disks;
    struct vmm_disk_sink sink;
    struct disk_access *access;
    struct lane lanes[VMM_DISKS_MAX];
};

static void name_of(char *to, size_t room, const char *prefix, uint32_t disk)
{
    snprintf(to, room, "%s%u", prefix, disk);
}

int mirror_new(struct mirror **ret_mirror, struct qmp *qmp, const struct qemu_disks *disks,
               const struct mirror_quiet *quiet)
{
    struct mirror *mirror = calloc(1, sizeof *mirror);
    if (!mirror)
        return error_set(-ENOMEM, "disks: no memory");
    mirror->qmp = qmp;
    mirror->quiet = *quiet;
    mirror->disks = *disks;
    for (uint32_t i = 0; i < disks->count; i++)
        mirror->lanes[i] = (struct lane){.mirror = mirror, .disk = i, .fd = -1, .theirs = -1};
    *ret_mirror = mirror;
    return 0;
}

/* --- the thread of one disk --- */

static void on_change(void *ctx, enum vmm_disk_op op, uint64_t offset, uint64_t bytes, const void *data)
{
    struct lane *lane = ctx;
    const struct vmm_disk_sink *sink = &lane->mirror->sink;
    sink->change(sink->ctx, lane->disk, op, offset, bytes, data);
}

static void *serve(void *argument)
{
    struct lane *lane = argument;
    const struct vmm_disk_sink *sink = &lane->mirror->sink;
    struct nbd_server server = {.fd = lane->fd,
                                .bytes = lane->mirror->disks.shown[lane->disk].bytes,
                                .change = on_change,
                                .ctx = lane};
    char name[16];
    snprintf(name, sizeof name, "us-disk%u", lane->disk);
    pthread_setname_np(pthread_self(), name);
    int r = nbd_serve(&server);
    /* Nobody waits for an answer that will not come. */
    shutdown(lane->fd, SHUT_RDWR);
    /* First this: who hears of the loss may be opening the mirrors anew before we return. */
    atomic_store(&lane->ended, true);
    if (!atomic_load(&lane->ours))
        sink->lost(sink->ctx, lane->disk, r < 0 ? error_text() : "QEMU's mirror ended");
    return NULL;
}

/* --- jobs --- */

static bool job_there(struct qmp *qmp, const char *job)
{
    json_t *jobs = NULL;
    bool found = false;
    if (qmp_call(qmp, COMMAND_MS, &jobs, "query-block-jobs", NULL) < 0)
        return false;
    size_t i;
    json_t *entry;
    json_array_foreach (jobs, i, entry) {
        const char *id = json_string_value(json_object_get(entry, "device"));
        found |= id && strcmp(id, job) == 0;
    }
    json_decref(jobs);
    return found;
}

static int cancel_job(struct qmp *qmp, const char *job)
{
    int r = qmp_call(qmp, COMMAND_MS, NULL, "block-job-cancel", "{s:s, s:b}", "device", job, "force", 1);
    uint64_t deadline = clock_now_ns() + ENDED_MS * NS_PER_MS;
    while (r == 0 && job_there(qmp, job)) {
        if (clock_now_ns() > deadline)
            return error_set(-ETIMEDOUT, "QEMU's job %s does not end", job);
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
    return r;
}

/* Out of the path of the guest's writes. The image is whole with or without it. */
static int remove_job(struct qmp *qmp, const struct mirror_quiet *quiet, const char *job)
{
    if (!job_there(qmp, job))
        return 0;
    int r = quiet->begin(quiet->ctx);
    if (r < 0)
        return error_add(r, "end of QEMU's job %s", job);
    r = cancel_job(qmp, job);
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", error_text());
    int ended = quiet->end(quiet->ctx);
    return r < 0 ? error_set(r, "%s", text) : ended;
}

int mirror_clean(struct qmp *qmp, const struct mirror_quiet *quiet)
{
    json_t *nodes = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &nodes, "query-named-block-nodes", "{s:b}", "flat", 1);
    size_t i;
    json_t *node;
    json_array_foreach (nodes, i, node) {
        const char *name = json_string_value(json_object_get(node, "node-name"));
        if (r < 0 || !name || strncmp(name, NODE_PREFIX, sizeof NODE_PREFIX - 1) != 0)
            continue;
        char job[64];
        snprintf(job, sizeof job, "%s%.16s", JOB_PREFIX, name + sizeof NODE_PREFIX - 1);
        r = remove_job(qmp, quiet, job);
        if (r == 0)
            r = qmp_call(qmp, COMMAND_MS, NULL, "blockdev-del", "{s:s}", "node-name", name);
        if (r < 0)
            error_add(r, "what an earlier engine left on a disk");
    }
    json_decref(nodes);
    return r < 0 ? r : disk_access_clean(qmp);
}

static void stop_lane(struct lane *lane, bool gone)
{
    if (!lane->started)
        return;
    struct qmp *qmp = lane->mirror->qmp;
    char job[64], node[64];
    name_of(job, sizeof job, JOB_PREFIX, lane->disk);
    name_of(node, sizeof node, NODE_PREFIX, lane->disk);
    atomic_store(&lane->ours, true);
    if (!gone)
        remove_job(qmp, &lane->mirror->quiet, job);
    shutdown(lane->fd, SHUT_RDWR); /* a job that could not be cancelled pauses */
    pthread_join(lane->thread, NULL);
    close(take_fd(&lane->fd));
    if (!gone)
        qmp_call(qmp, COMMAND_MS, NULL, "blockdev-del", "{s:s}", "node-name", node);
    lane->started = false;
}

static int make_thread(struct lane *lane)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_errno(-errno, "socket pair");
    lane->fd = pair[0];
    lane->theirs = pair[1];
    atomic_store(&lane->ended, false);
    atomic_store(&lane->ours, false);
    int r = -pthread_create(&lane->thread, NULL, serve, lane);
    if (r < 0) {
        close(take_fd(&lane->fd));
        close(take_fd(&lane->theirs));
        return error_errno(r, "thread");
    }
    lane->started = true;
    return 0;
}

static int start_lane(struct lane *lane)
{
    struct mirror *mirror = lane->mirror;
    struct qmp *qmp = mirror->qmp;
    char job[64], node[64];
    name_of(job, sizeof job, JOB_PREFIX, lane->disk);
    name_of(node, sizeof node, NODE_PREFIX, lane->disk);
    int r = make_thread(lane);
    if (r == 0)
        r = qmp_call_fd(qmp, COMMAND_MS, NULL, lane->theirs, "getfd", "{s:s}", "fdname", node);
    if (lane->theirs >= 0)
        close(take_fd(&lane->theirs));
    if (r == 0)
        r = qmp_call(qmp, COMMAND_MS, NULL, "blockdev-add", "{s:s, s:s, s:{s:s, s:s}, s:s, s:s}", "driver",
                     "nbd", "node-name", node, "server", "type", "fd", "str", node, "export", "understudy",
                     "discard", "unmap");
    if (r == 0)
        r = qmp_call(qmp, COMMAND_MS, NULL, "blockdev-mirror", "{s:s, s:s, s:s, s:s, s:s, s:s, s:s, s:b}",
                     "job-id", job, "device", mirror->disks.nodes[lane->disk], "target", node, "sync", "none",
                     "copy-mode", "write-blocking", "on-target-error", "stop", "on-source-error", "report",
                     "auto-finalize", 0);
    if (r == 0)
        return 0;
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", error_text());
    stop_lane(lane, r == -ECONNRESET);
    return error_set(r, "disk %s: %s", mirror->disks.shown[lane->disk].name, text);
}

int mirror_open(struct mirror *mirror, const struct vmm_disk_sink *sink)
{
    int r = 0;
    bool any = false;
    for (size_t i = 0; i < mirror->disks.count; i++)
        any |= mirror->lanes[i].started;
    if (!any)
        mirror->sink = *sink;
    for (size_t i = 0; i < mirror->disks.count && r == 0; i++) {
        struct lane *lane = &mirror->lanes[i];
        if (lane->started && !atomic_load(&lane->ended))
            continue;
        stop_lane(lane, false);
        r = start_lane(lane);
    }
    if (r == 0 && mirror->access && disk_access_dead(mirror->access)) {
        disk_access_close(mirror->access, mirror->qmp);
        mirror->access = NULL;
    }
    if (r == 0 && !mirror->access)
        r = disk_access_open(&mirror->access, mirror->qmp, &mirror->disks, false);
    return r;
}

void mirror_close(struct mirror *mirror, bool gone)
{
    for (size_t i = 0; i < mirror->disks.count; i++)
        stop_lane(&mirror->lanes[i], gone);
    disk_access_close(mirror->access, gone ? NULL : mirror->qmp);
    mirror->access = NULL;
}

void mirror_free(struct mirror *mirror)
{
    free(mirror);
}

int mirror_read(struct mirror *mirror, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    if (!mirror->access) /* between a server that was lost and the next */
        return error_set(-ENOTCONN, "disk %s: no connection to QEMU's NBD server",
                         mirror->disks.shown[disk].name);
    return disk_access_read(mirror->access, disk, offset, bytes, to);
}

void mirror_event(struct mirror *mirror, const char *event, const json_t *data)
{
    const char *id = json_string_value(json_object_get(data, "device"));
    if (!id)
        id = json_string_value(json_object_get(data, "id")); /* of BLOCK_JOB_PENDING */
    if (strncmp(event, "BLOCK_JOB_", 10) != 0 || !id ||
        (strcmp(event, "BLOCK_JOB_COMPLETED") != 0 && strcmp(event, "BLOCK_JOB_PENDING") != 0 &&
         strcmp(event, "BLOCK_JOB_CANCELLED") != 0 && strcmp(event, "BLOCK_JOB_ERROR") != 0))
        return;
    for (size_t i = 0; i < mirror->disks.count; i++) {
        char job[64];
        name_of(job, sizeof job, JOB_PREFIX, (uint32_t)i);
        /* The thread tells, when the connection ends; the node would keep it open. */
        if (mirror->lanes[i].started && strcmp(id, job) == 0)
            shutdown(mirror->lanes[i].fd, SHUT_RDWR);
    }
}
