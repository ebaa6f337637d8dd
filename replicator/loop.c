/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/loop.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <sys/epoll.h>

#define SLOTS 64

struct slot {
    int fd; /* -1: free */
    loop_ready *ready;
    void *ctx;
};

struct loop {
    int epoll_fd;
    struct slot slots[SLOTS];
};

int loop_new(struct loop **ret_loop)
{
    struct loop *loop = calloc(1, sizeof *loop);
    if (!loop)
        return error_set(-ENOMEM, "main loop: out of memory");
    loop->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    if (loop->epoll_fd < 0) {
        int code = -errno;
        free(loop);
        return error_errno(code, "main loop: epoll_create1");
    }
    for (unsigned i = 0; i < SLOTS; i++)
        loop->slots[i].fd = -1;
    *ret_loop = loop;
    return 0;
}

void loop_free(struct loop *loop)
{
    if (!loop)
        return;
    close(loop->epoll_fd);
    free(loop);
}

static int slot_of(const struct loop *loop, int fd)
{
    for (int i = 0; i < SLOTS; i++)
        if (loop->slots[i].fd == fd)
            return i;
    return -1;
}

int loop_add(struct loop *loop, int fd, uint32_t events, loop_ready *ready, void *ctx)
{
    int slot = slot_of(loop, -1);
    if (slot < 0)
        return error_set(-EMFILE, "main loop: more than %d descriptors", SLOTS);
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)slot};
    if (epoll_ctl(loop->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0)
        return error_errno(-errno, "main loop: watch descriptor %d", fd);
    loop->slots[slot] = (struct slot){fd, ready, ctx};
    return 0;
}

int loop_change(struct loop *loop, int fd, uint32_t events)
{
    int slot = slot_of(loop, fd);
    struct epoll_event event = {.events = events, .data.u32 = (uint32_t)slot};
    if (slot < 0 || epoll_ctl(loop->epoll_fd, EPOLL_CTL_MOD, fd, &event) < 0)
        return error_errno(slot < 0 ? -ENOENT : -errno, "main loop: change descriptor %d", fd);
    return 0;
}

void loop_remove(struct loop *loop, int fd)
{
    int slot = slot_of(loop, fd);
    if (slot < 0)
        return;
    epoll_ctl(loop->epoll_fd, EPOLL_CTL_DEL, fd, NULL);
    loop->slots[slot].fd = -1;
}

int loop_once(struct loop *loop, uint64_t deadline_ns)
{
    struct epoll_event events[16];
    struct timespec wait, *limit = NULL;
    if (deadline_ns != UINT64_MAX) {
        uint64_t now = clock_now_ns(), left = deadline_ns > now ? deadline_ns - now : 0;
        wait = (struct timespec){(time_t)(left / NS_PER_S), (long)(left % NS_PER_S)};
        limit = &wait;
    }
    int count = epoll_pwait2(loop->epoll_fd, events, (int)array_length(events), limit, NULL);
    if (count < 0)
        return errno == EINTR ? 0 : error_errno(-errno, "main loop: epoll_pwait2");
    for (int i = 0; i < count; i++) {
        /* An earlier handler of this batch may have removed the descriptor. */
        struct slot slot = loop->slots[events[i].data.u32];
        if (slot.fd >= 0)
            slot.ready(slot.ctx, slot.fd, events[i].events);
    }
    return 0;
}
