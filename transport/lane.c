/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/scope.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/eventfd.h>

/* The lane as other threads see it: start, kick, stop, free, statistics. */

#define HANDSHAKE_MS     5000
#define BUFFER_BYTES     (1u << 20)
#define BUFFER_BYTES_MAX (64u << 20)

static void *lane_main(void *argument)
{
    struct lane *lane = argument;
    char name[16];
    snprintf(name, sizeof name, "lane-%u", lane->config.index % 1000);
    pthread_setname_np(pthread_self(), name);
    error_clear();
    lane_run(lane);
    lane->config.ops->down(lane->config.ctx, lane, lane->code, lane->code ? lane->reason : "stopped");
    return NULL;
}

static void release(struct lane *lane)
{
    if (lane->wake_fd >= 0)
        close(lane->wake_fd);
    if (lane->fd >= 0)
        close(lane->fd);
    free(lane);
}

static int start(struct lane **ret_lane, const struct lane_config *config, int fd,
                 const struct sockaddr *address, socklen_t length)
{
    struct lane *lane = aligned_alloc(64, (sizeof *lane + 63) & ~(size_t)63);
    if (!lane) {
        scope_close(&fd);
        return error_set(-ENOMEM, "lane: out of memory");
    }
    memset(lane, 0, sizeof *lane);
    lane->config = *config;
    lane->server = fd >= 0;
    lane->fd = fd;
    lane->wake_fd = -1;
    memcpy(&lane->address, address, length);
    lane->address_length = length;
    lane_address_text((const struct sockaddr *)&lane->address, lane->peer, sizeof lane->peer);
    if (!lane->config.handshake_ms)
        lane->config.handshake_ms = HANDSHAKE_MS;
    if (!lane->config.buffer_bytes)
        lane->config.buffer_bytes = BUFFER_BYTES;

    int r = 0;
    if (lane->config.buffer_bytes < sizeof(struct wire_header) + WIRE_PAYLOAD_MAX ||
        lane->config.buffer_bytes > BUFFER_BYTES_MAX)
        r = error_set(-EINVAL, "lane: a buffer of %u bytes is not within %zu..%u", lane->config.buffer_bytes,
                      sizeof(struct wire_header) + WIRE_PAYLOAD_MAX, BUFFER_BYTES_MAX);
    else if ((lane->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) < 0)
        r = error_errno(-errno, "lane: eventfd");
    if (r == 0) {
        /* Signals are for the threads that asked for them. */
        sigset_t all, before;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before);
        r = -pthread_create(&lane->thread, NULL, lane_main, lane);
        pthread_sigmask(SIG_SETMASK, &before, NULL);
        if (r < 0)
            error_errno(r, "lane: thread");
    }
    if (r < 0) {
        release(lane);
        return r;
    }
    *ret_lane = lane;
    return 0;
}

int lane_connect(struct lane **ret_lane, const struct lane_config *config, const struct sockaddr *address,
                 socklen_t length)
{
    if (length > sizeof(struct sockaddr_storage))
        return error_set(-EINVAL, "lane: an address of %u bytes", length);
    return start(ret_lane, config, -1, address, length);
}

int lane_accept(struct lane **ret_lane, const struct lane_config *config, int fd)
{
    struct sockaddr_storage address = {0};
    socklen_t length = sizeof address;
    if (getpeername(fd, (struct sockaddr *)&address, &length) < 0) {
        int r = error_errno(-errno, "lane: address of the peer");
        close(fd);
        return r;
    }
    return start(ret_lane, config, fd, (struct sockaddr *)&address, length);
}

void lane_set_kind(struct lane *lane, bool control, unsigned index)
{
    char name[16];
    snprintf(name, sizeof name, "lane-%u", index % 1000);
    pthread_setname_np(pthread_self(), name);
    lane->config.control = control;
    lane->config.index = index;
    lane->receive.reader.control = control;
}

static void wake(struct lane *lane)
{
    /* See lane_loop.c: the other half is in turn(). */
    if (atomic_exchange(&lane->asleep, false))
        eventfd_write(lane->wake_fd, 1);
}

void lane_kick(struct lane *lane)
{
    atomic_store(&lane->kicked, true);
    wake(lane);
}

void lane_stop(struct lane *lane)
{
    atomic_store(&lane->stopping, true);
    wake(lane);
}

void lane_abort(struct lane *lane)
{
    atomic_store(&lane->aborting, true);
    lane_stop(lane);
}

void lane_free(struct lane *lane)
{
    if (!lane)
        return;
    lane_stop(lane);
    pthread_join(lane->thread, NULL);
    release(lane);
}

void lane_get_stats(const struct lane *lane, struct lane_stats *ret_stats)
{
    struct lane_stats stats = {0};
    if (atomic_load(&lane->established))
        stats = lane->fixed;
    stats.bytes_sent = atomic_load(&lane->bytes_sent);
    stats.bytes_received = atomic_load(&lane->bytes_received);
    stats.frames_sent = atomic_load(&lane->frames_sent);
    stats.frames_received = atomic_load(&lane->frames_received);
    stats.busy_ns = atomic_load(&lane->busy_ns);
    stats.blocked_ns = atomic_load(&lane->blocked_ns);
    stats.zerocopy = atomic_load(&lane->zerocopy_used);
    *ret_stats = stats;
}
