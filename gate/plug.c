/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate_internal.h"
#include "gate/hold.h"
#include "gate/plug_net.h"

#include <errno.h>
#include <inttypes.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * Theory of operation. What comes from the guest's tap is sent by a filter at the tap's ingress through an
 * ifb whose queueing discipline is sch_plug, made for Remus, and comes back from there into the tap's
 * ingress:
 *
 *     guest ──► tap, ingress ──mirred──► ifb: sch_plug ──► tap, past the filter ──► bridge
 *
 * No frame is seen by this process, so it is the cheapest gate, and the kernel alone goes on holding when the
 * engine dies; it cannot fail open.
 *
 * sch_plug counts two lots of frames: before the latest plug, and since. A second plug put in before the
 * first is released forgets the first count, and a release then lets out too few or, worse, too many. So at
 * most one plug is in at a time: marks that come while one is in are remembered only as "frames since the
 * plug belong to epoch N or later", and a plug for them goes in with the first mark after the release. With
 * epochs that overlap this holds frames an epoch longer than need be; never shorter.
 *
 * The kernel tells nobody that a frame waits, so a thread asks for the qdiscs' figures every POLL_MS while
 * the gate holds. Delays of single frames are not known: delay_us stays empty.
 */

#define POLL_MS     2
#define DRAIN_TRIES 40
#define DRAIN_NS    50000

struct plug {
    struct gate gate;
    int wake_fd;
    pthread_t thread;

    pthread_mutex_t lock; /* over all below, and the netlink socket of `net` */
    struct plug_net *net;
    bool stopping, holding, shut, broken;
    bool plugged; /* a plug is in, and ends `plugged_epoch` */
    uint64_t plugged_epoch, latest_epoch;
    uint64_t frames_at_mark; /* that had come when the latest mark was made */
    bool waiting_told, full_told;
    uint64_t bytes_peak;
    struct plug_figures lost; /* of qdiscs that are gone */
};

static struct plug *plug_of(struct gate *gate)
{
    return (struct plug *)gate;
}

static int broken(void)
{
    return error_set(-EIO, "plug: the gate failed before");
}

static int plug_look(struct plug *plug, struct plug_figures *ret_figures)
{
    int rc = plug_net_figures(plug->net, ret_figures);
    if (!rc && ret_figures->held_bytes > plug->bytes_peak)
        plug->bytes_peak = ret_figures->held_bytes;
    return rc;
}

static unsigned take_events(struct plug *plug, const struct plug_figures *figures)
{
    unsigned events = 0;
    if (!plug->waiting_told && figures->frames_in > plug->frames_at_mark) {
        plug->waiting_told = true;
        events |= HOLD_WAITING;
    }
    if (!plug->full_told && figures->held_bytes >= plug->gate.config.held_bytes_max / 2) {
        plug->full_told = true;
        events |= HOLD_FULL;
    }
    return events;
}

static void *thread_main(void *argument)
{
    struct plug *plug = argument;
    for (;;) {
        pthread_mutex_lock(&plug->lock);
        bool watch = plug->holding && !plug->broken, stop = plug->stopping;
        struct plug_figures figures;
        int rc = watch ? plug_look(plug, &figures) : 0;
        unsigned events = watch && !rc ? take_events(plug, &figures) : 0;
        if (rc)
            plug->broken = true;
        pthread_mutex_unlock(&plug->lock);
        if (rc)
            gate_fail(&plug->gate);
        if (stop)
            return NULL;
        gate_tell(&plug->gate, events);
        struct pollfd waiting = {.fd = plug->wake_fd, .events = POLLIN};
        eventfd_t ignored;
        if (poll(&waiting, 1, watch && !rc ? POLL_MS : -1) > 0)
            eventfd_read(plug->wake_fd, &ignored);
    }
}

/*
 * From passing to holding: a plug that ends no epoch. What passed has to have left the queue before, for
 * nothing counts it, and each later release would let out as many frames too few. The guest is paused, so
 * this is soon.
 */
static int begin_to_hold(struct plug *plug, struct plug_figures *ret_figures)
{
    int rc = plug_look(plug, ret_figures);
    for (unsigned tries = 0; !rc && ret_figures->held_frames && tries < DRAIN_TRIES; tries++) {
        clock_nanosleep(CLOCK_MONOTONIC, 0, &(struct timespec){.tv_nsec = DRAIN_NS}, NULL);
        rc = plug_look(plug, ret_figures);
    }
    rc = rc ? rc : plug_net_buffer(plug->net);
    return rc ? rc : plug_net_release_one(plug->net);
}

static int plug_mark_begin(struct gate *gate, uint64_t epoch)
{
    struct plug *plug = plug_of(gate);
    scope_lock(&plug->lock);
    if (plug->broken)
        return broken();
    if (plug->shut)
        return error_set(-ESHUTDOWN, "plug: mark of epoch %" PRIu64 ": the gate is shut", epoch);
    if (plug->holding && epoch < plug->latest_epoch)
        return error_set(-EINVAL, "plug: mark of epoch %" PRIu64 " after epoch %" PRIu64, epoch,
                         plug->latest_epoch);
    struct plug_figures figures;
    int rc = plug->holding ? plug_look(plug, &figures) : begin_to_hold(plug, &figures);
    if (!rc && plug->holding && !plug->plugged && figures.held_frames) {
        rc = plug_net_buffer(plug->net);
        plug->plugged = !rc;
        plug->plugged_epoch = epoch;
    }
    if (rc) {
        plug->broken = true;
        return rc;
    }
    plug->holding = true;
    plug->latest_epoch = epoch;
    plug->frames_at_mark = figures.frames_in;
    plug->waiting_told = false;
    eventfd_write(plug->wake_fd, 1);
    return 0;
}

static int plug_mark_end(struct gate *gate)
{
    (void)gate; /* the guest's write to its tap puts the frame into the qdisc, so the line is drawn */
    return 0;
}

static int plug_release(struct gate *gate, uint64_t epoch)
{
    struct plug *plug = plug_of(gate);
    scope_lock(&plug->lock);
    if (plug->broken)
        return broken();
    plug->full_told = false;
    if (!plug->plugged || epoch < plug->plugged_epoch)
        return 0;
    int rc = plug_net_release_one(plug->net);
    plug->plugged = false;
    plug->broken = rc != 0;
    return rc;
}

static int plug_pass(struct gate *gate)
{
    struct plug *plug = plug_of(gate);
    scope_lock(&plug->lock);
    if (plug->broken)
        return broken();
    if (plug->shut)
        return error_set(-ESHUTDOWN, "plug: pass: the gate is shut");
    int rc = plug_net_release_all(plug->net);
    plug->broken = rc != 0;
    plug->holding = plug->plugged = plug->full_told = false;
    return rc;
}

static int plug_shut(struct gate *gate)
{
    struct plug *plug = plug_of(gate);
    scope_lock(&plug->lock);
    if (plug->shut)
        return 0;
    plug_look(plug, &plug->lost);
    plug->lost.dropped += plug->lost.held_frames;
    plug->lost.held_frames = plug->lost.held_bytes = 0;
    plug->shut = true;
    plug->holding = plug->plugged = false;
    return plug_net_cut(plug->net);
}

static void plug_stats(struct gate *gate, struct gate_stats *ret_stats)
{
    struct plug *plug = plug_of(gate);
    scope_lock(&plug->lock);
    struct plug_figures figures = plug->lost;
    if (!plug->shut && plug_look(plug, &figures))
        figures = (struct plug_figures){0};
    memset(ret_stats, 0, sizeof *ret_stats);
    histogram_reset(&ret_stats->delay_us);
    ret_stats->holding = plug->holding;
    ret_stats->held_frames = figures.held_frames;
    ret_stats->held_bytes = figures.held_bytes;
    ret_stats->held_bytes_peak = plug->bytes_peak;
    ret_stats->frames_out = figures.frames_out;
    ret_stats->bytes_out = figures.bytes_out;
    ret_stats->dropped = figures.dropped;
}

static void plug_free(struct plug *plug)
{
    plug_net_free(plug->net);
    if (plug->wake_fd >= 0)
        close(plug->wake_fd);
    pthread_mutex_destroy(&plug->lock);
    free(plug);
}

static void plug_close(struct gate *gate)
{
    struct plug *plug = plug_of(gate);
    pthread_mutex_lock(&plug->lock);
    plug->stopping = true;
    pthread_mutex_unlock(&plug->lock);
    eventfd_write(plug->wake_fd, 1);
    pthread_join(plug->thread, NULL);
    if (!plug->holding && !plug->shut)
        plug_net_remove(plug->net);
    plug_free(plug);
}

static const struct gate_ops plug_ops = {
    .mark_begin = plug_mark_begin,
    .mark_end = plug_mark_end,
    .release = plug_release,
    .pass = plug_pass,
    .shut = plug_shut,
    .get_stats = plug_stats,
    .close = plug_close,
};

static int start(struct plug *plug)
{
    plug->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (plug->wake_fd < 0)
        return error_errno(-errno, "plug: eventfd");
    int rc = plug_net_open(&plug->net, &plug->gate.config);
    if (rc)
        return rc;
    rc = -pthread_create(&plug->thread, NULL, thread_main, plug);
    if (rc) {
        plug_net_remove(plug->net);
        return error_errno(rc, "plug: thread");
    }
    return 0;
}

int plug_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events)
{
    if (config->failure == GATE_FAIL_OPEN)
        return error_set(-EOPNOTSUPP, "plug: it cannot fail open: the kernel holds on without the engine");
    struct plug *plug = calloc(1, sizeof *plug);
    if (!plug)
        return error_set(-ENOMEM, "plug: no memory");
    plug->gate = (struct gate){.ops = &plug_ops, .kind = GATE_PLUG, .config = *config};
    if (events)
        plug->gate.events = *events;
    plug->wake_fd = -1;
    pthread_mutex_init(&plug->lock, NULL);
    int rc = start(plug);
    if (rc) {
        plug_free(plug);
        return rc;
    }
    *ret_gate = &plug->gate;
    return 0;
}
