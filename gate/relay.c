/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate_internal.h"
#include "gate/hold.h"
#include "gate/relay_internal.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * Theory of operation. The engine itself carries each frame between QEMU and a tap of its own on the host's
 * bridge, so nothing is asked of the kernel but taps, and every kind of frame is held. When the engine dies
 * the guest's wire is cut: the gate fails closed and cannot fail open.
 *
 *     QEMU ──dgram socket, or its tap and a packet socket──► hold ──► tap in the bridge
 *          ◄────────────────────────────────────────────────────────
 *
 * A thread owns all of it (relay_io.c). Callers leave orders under `lock`, wake it, and wait where the
 * contract wants it: a mark that has begun is taken when the thread has read what the guest sent before its
 * pause.
 *
 * QEMU's own tap is in no bridge, but the host would still answer on it (ARP, broadcasts): a rule at its
 * ingress hides what comes from it from the host; the packet socket sees frames before that rule. It stays
 * when the engine dies.
 */

struct relay {
    struct gate gate;
    struct relay_port ports[GATE_PORTS_MAX];
    struct relay_io io;
    int wake_fd;
    pthread_t thread;

    /* The thread's own. */
    struct hold hold;

    /* Orders and their answers. */
    pthread_mutex_t lock;
    pthread_cond_t done;
    bool stop, mark, release, pass, shut, stats;
    uint64_t mark_epoch, release_epoch;
    bool broken;
    int rc; /* of the latest mark, pass or shut */
    char text[ERROR_TEXT_MAX];
    struct gate_stats answer;
};

static struct relay *relay_of(struct gate *gate)
{
    return (struct relay *)gate;
}

/* The thread */

static void answer(struct relay *relay, bool *order, int rc)
{
    *order = false;
    relay->rc = rc;
    if (rc)
        snprintf(relay->text, sizeof relay->text, "%s", error_text());
}

static void fill_stats(struct relay *relay)
{
    struct gate_stats *stats = &relay->answer;
    gate_hold_stats(&relay->hold, stats);
    for (unsigned i = 0; i < relay->gate.config.port_count; i++) {
        struct relay_port *port = &relay->ports[i];
        struct tpacket_stats packets;
        socklen_t size = sizeof packets;
        if (port->vnet && !getsockopt(port->inside, SOL_PACKET, PACKET_STATISTICS, &packets, &size))
            port->dropped += packets.tp_drops; /* since it was last asked */
        stats->frames_in += port->frames_in;
        stats->dropped += port->dropped;
    }
}

static int carry_out_mark(struct relay *relay, bool broken)
{
    if (broken)
        return error_set(-EIO, "relay: the gate failed before");
    int rc = relay_io_take_all(&relay->io);
    return rc ? rc : hold_mark(&relay->hold, relay->mark_epoch);
}

/* Under the lock, but for nothing that waits. Returns a failure of I/O, which ends the gate's work. */
static int carry_out(struct relay *relay)
{
    int io_rc = 0;
    if (relay->release) { /* older than a mark that waits beside it */
        hold_release(&relay->hold, relay->release_epoch);
        relay->release = false;
    }
    if (relay->mark) {
        int rc = carry_out_mark(relay, relay->broken);
        if (rc && rc != -EINVAL && rc != -ESHUTDOWN)
            io_rc = rc;
        answer(relay, &relay->mark, rc);
    }
    if (relay->pass) {
        int rc = relay->broken      ? error_set(-EIO, "relay: the gate failed before")
                 : relay->hold.shut ? error_set(-ESHUTDOWN, "relay: pass: the gate is shut")
                                    : 0;
        if (!rc)
            hold_pass(&relay->hold);
        answer(relay, &relay->pass, rc);
    }
    if (relay->shut) {
        hold_shut(&relay->hold);
        relay_io_drop_all(&relay->io);
        answer(relay, &relay->shut, 0);
    }
    if (relay->stats) {
        fill_stats(relay);
        relay->stats = false;
    }
    pthread_cond_broadcast(&relay->done);
    return relay->broken ? 0 : io_rc;
}

/* A failed gate still answers. */
static int wait_for_orders(struct relay *relay, bool broken)
{
    if (!broken)
        return relay_io_wait(&relay->io);
    eventfd_t ignored;
    struct timespec second = {.tv_sec = 1};
    struct pollfd waiting = {.fd = relay->wake_fd, .events = POLLIN};
    if (ppoll(&waiting, 1, &second, NULL) > 0)
        eventfd_read(relay->wake_fd, &ignored);
    return 0;
}

static void *thread_main(void *argument)
{
    struct relay *relay = argument;
    for (bool broken = false;;) {
        pthread_mutex_lock(&relay->lock);
        int rc = carry_out(relay);
        bool stop = relay->stop;
        pthread_mutex_unlock(&relay->lock);
        if (!broken && !rc && !stop)
            rc = relay_io_move(&relay->io);
        if (!broken && !rc)
            gate_tell(&relay->gate, hold_take_events(&relay->hold));
        if (stop)
            return NULL;
        if (!rc)
            rc = wait_for_orders(relay, broken);
        if (rc && !broken) {
            broken = true;
            pthread_mutex_lock(&relay->lock);
            relay->broken = true;
            pthread_mutex_unlock(&relay->lock);
            gate_fail(&relay->gate);
        }
    }
}

/* Callers */

static int order(struct relay *relay, bool *which)
{
    scope_lock(&relay->lock);
    *which = true;
    eventfd_write(relay->wake_fd, 1);
    while (*which)
        pthread_cond_wait(&relay->done, &relay->lock);
    return relay->rc ? error_set(relay->rc, "%s", relay->text) : 0;
}

static int relay_mark_begin(struct gate *gate, uint64_t epoch)
{
    struct relay *relay = relay_of(gate);
    scope_lock(&relay->lock);
    relay->mark = true;
    relay->mark_epoch = epoch;
    eventfd_write(relay->wake_fd, 1);
    return 0;
}

static int relay_mark_end(struct gate *gate)
{
    struct relay *relay = relay_of(gate);
    scope_lock(&relay->lock);
    while (relay->mark)
        pthread_cond_wait(&relay->done, &relay->lock);
    return relay->rc ? error_set(relay->rc, "%s", relay->text) : 0;
}

static int relay_release(struct gate *gate, uint64_t epoch)
{
    struct relay *relay = relay_of(gate);
    scope_lock(&relay->lock);
    if (relay->broken)
        return error_set(-EIO, "relay: the gate failed before");
    if (!relay->release || relay->release_epoch < epoch)
        relay->release_epoch = epoch;
    relay->release = true;
    eventfd_write(relay->wake_fd, 1);
    return 0;
}

static int relay_pass(struct gate *gate)
{
    return order(relay_of(gate), &relay_of(gate)->pass);
}

static int relay_shut(struct gate *gate)
{
    return order(relay_of(gate), &relay_of(gate)->shut);
}

static void relay_stats(struct gate *gate, struct gate_stats *ret_stats)
{
    struct relay *relay = relay_of(gate);
    scope_lock(&relay->lock);
    relay->stats = true;
    eventfd_write(relay->wake_fd, 1);
    while (relay->stats)
        pthread_cond_wait(&relay->done, &relay->lock);
    *ret_stats = relay->answer;
}

static void relay_free(struct relay *relay, bool keep)
{
    relay_io_free(&relay->io);
    relay_io_drop_all(&relay->io);
    for (unsigned i = 0; i < GATE_PORTS_MAX; i++)
        relay_port_close(&relay->ports[i], keep);
    if (relay->wake_fd >= 0)
        close(relay->wake_fd);
    hold_free(&relay->hold);
    pthread_cond_destroy(&relay->done);
    pthread_mutex_destroy(&relay->lock);
    free(relay);
}

static void relay_close(struct gate *gate)
{
    struct relay *relay = relay_of(gate);
    pthread_mutex_lock(&relay->lock);
    relay->stop = true;
    pthread_mutex_unlock(&relay->lock);
    eventfd_write(relay->wake_fd, 1);
    pthread_join(relay->thread, NULL);
    relay_free(relay, !relay->hold.passing);
}

static const struct gate_ops relay_ops = {
    .mark_begin = relay_mark_begin,
    .mark_end = relay_mark_end,
    .release = relay_release,
    .pass = relay_pass,
    .shut = relay_shut,
    .get_stats = relay_stats,
    .close = relay_close,
};

static int start(struct relay *relay)
{
    const struct gate_config *config = &relay->gate.config;
    relay->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (relay->wake_fd < 0)
        return error_errno(-errno, "relay: eventfd");
    for (unsigned i = 0; i < config->port_count; i++) {
        int rc = relay_port_open(&relay->ports[i], &config->ports[i]);
        if (rc)
            return rc;
    }
    int rc = relay_io_init(&relay->io, relay->wake_fd, relay->ports, config->port_count, &relay->hold);
    if (rc)
        return rc;
    rc = -pthread_create(&relay->thread, NULL, thread_main, relay);
    return rc ? error_errno(rc, "relay: thread") : 0;
}

int relay_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events)
{
    if (config->failure == GATE_FAIL_OPEN)
        return error_set(-EOPNOTSUPP, "relay: it cannot fail open: without the engine nobody carries frames");
    struct relay *relay = calloc(1, sizeof *relay);
    if (!relay)
        return error_set(-ENOMEM, "relay: no memory");
    relay->gate = (struct gate){.ops = &relay_ops, .kind = GATE_RELAY, .config = *config};
    if (events)
        relay->gate.events = *events;
    relay->wake_fd = -1;
    for (unsigned i = 0; i < GATE_PORTS_MAX; i++)
        relay->ports[i].inside = relay->ports[i].inside_out = relay->ports[i].outside = -1;
    pthread_mutex_init(&relay->lock, NULL);
    pthread_cond_init(&relay->done, NULL);
    hold_init(&relay->hold, config->held_bytes_max);
    if (config->opens_holding)
        hold_mark(&relay->hold, 0);
    relay->io.hold = &relay->hold;
    int rc = start(relay);
    if (rc) {
        relay_free(relay, false);
        return rc;
    }
    *ret_gate = &relay->gate;
    return 0;
}
