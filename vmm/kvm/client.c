/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/client.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define BLOCK_NAME "ram"
#define SEALS      (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL)
#define MEMORY_MAX (1ull << 46)
#define STATE_MAX  (64u << 20) /* as much as docs/architecture.md says of a driver's state */
#define TEXT_MAX   (64u << 10)

int client_open(struct client *client, const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    struct ucred peer;
    socklen_t length = sizeof peer;
    *client = CLIENT_NONE;
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s", path) >= (int)sizeof address.sun_path)
        return error_set(-ENAMETOOLONG, "vmm %s: longer than a UNIX socket's path can be", path);
    int fd cleanup_close = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return error_errno(-errno, "vmm %s", path);
    client->fd = take_fd(&fd);
    client->pid = peer.pid;
    client->process = pidfd_open(peer.pid, 0);
    return client->process < 0 ? error_errno(-errno, "vmm %s: process %d", path, peer.pid) : 0;
}

void client_close(struct client *client)
{
    if (client->memory)
        munmap(client->memory, client->memory_bytes);
    if (client->shared)
        munmap(client->shared, client->shared_bytes);
    if (client->memory_fd >= 0)
        close(client->memory_fd);
    if (client->fd >= 0)
        close(client->fd);
    if (client->process >= 0)
        close(client->process);
    free(client->text);
    *client = CLIENT_NONE;
}

/* Events that nobody fetches do not pile up: the latest matters. */
static void push_event(struct client *client, enum vmm_event event)
{
    if (client->over)
        return;
    client->over = event == VMM_EVENT_ENDED || event == VMM_EVENT_FAILED || event == VMM_EVENT_LOST;
    if (client->event_count == CLIENT_EVENTS_MAX)
        client->event_count--;
    client->events[client->event_count++] = event;
}

/* The VMM hung up, or speaks nonsense: we can do nothing with it any more. But its guest may run. */
static void lost(struct client *client)
{
    struct pollfd pollfd = {.fd = client->process, .events = POLLIN};
    int r;
    while ((r = poll(&pollfd, 1, CLIENT_GONE_MS)) < 0 && errno == EINTR)
        ;
    push_event(client, r > 0 ? VMM_EVENT_FAILED : VMM_EVENT_LOST);
}

/* 1: an answer; 0: an event was kept. */
static int receive(struct client *client, struct control_message *ret_message, int *ret_fds,
                   unsigned *ret_count)
{
    int r =
        control_receive(client->fd, false, ret_message, ret_fds, CONTROL_FDS_MAX, ret_count, MSG_DONTWAIT);
    if (r == 0 && ret_message->op != CONTROL_EVENT)
        return 1;
    while (r == 0 && *ret_count)
        close(ret_fds[--*ret_count]);
    if (r == 0)
        push_event(client, (enum vmm_event)ret_message->value);
    else if (r != -EAGAIN)
        lost(client);
    return r;
}

enum vmm_event client_event(struct client *client)
{
    struct control_message message;
    int fds[CONTROL_FDS_MAX], r = 0;
    unsigned count = 0;
    while (r >= 0 && !client->over && (r = receive(client, &message, fds, &count)) > 0)
        while (count) /* the answer to a call that was not waited for any longer */
            close(fds[--count]);
    if (client->event_count == 0)
        return VMM_EVENT_NONE;
    enum vmm_event event = client->events[0];
    client->event_count--;
    memmove(client->events, client->events + 1, client->event_count * sizeof client->events[0]);
    return event;
}

static int await(struct client *client, uint32_t sequence, struct control_message *ret_answer, int *ret_fds,
                 unsigned *ret_count)
{
    uint64_t deadline = clock_now_ns() + CLIENT_CALL_MS * NS_PER_MS;
    for (;;) {
        int r = receive(client, ret_answer, ret_fds, ret_count);
        if (r < 0 && r != -EAGAIN)
            return r;
        if (r > 0 && ret_answer->sequence == sequence)
            return 0;
        while (r > 0 && *ret_count)
            close(ret_fds[--*ret_count]);
        uint64_t now = clock_now_ns();
        if (r != -EAGAIN)
            continue;
        if (now >= deadline)
            return error_set(-ETIMEDOUT, "VMM %d does not answer in %d ms", client->pid, CLIENT_CALL_MS);
        struct pollfd readable = {.fd = client->fd, .events = POLLIN};
        poll(&readable, 1, (int)((deadline - now) / NS_PER_MS) + 1);
    }
}

/* `give`: a descriptor that goes along, or -1. */
static int call(struct client *client, enum control_op op, uint64_t argument, int give,
                struct control_message *ret_answer, int ret_fds[CONTROL_FDS_MAX], unsigned *ret_count)
{
    struct control_message request = {.op = op, .sequence = ++client->sequence, .value = argument};
    if (client->over)
        return error_set(-ECONNRESET, "VMM %d is gone", client->pid);
    int r = control_send(client->fd, &request, &give, give >= 0, MSG_DONTWAIT);
    if (r == 0)
        r = await(client, request.sequence, ret_answer, ret_fds, ret_count);
    if (r < 0)
        return error_add(r, "VMM %d", client->pid);
    client->phase = (enum control_phase)ret_answer->phase;
    if (ret_answer->code == 0)
        return 0;
    return error_set(ret_answer->code, "VMM %d: %s", client->pid, ret_answer->text);
}

int client_release(struct client *client)
{
    struct control_message request = {.op = CONTROL_RELEASE, .sequence = ++client->sequence};
    if (client->over)
        return error_set(-ECONNRESET, "VMM %d is gone", client->pid);
    int r = control_send(client->fd, &request, NULL, 0, MSG_DONTWAIT);
    if (r < 0)
        return error_add(r, "VMM %d", client->pid);
    client->phase = CONTROL_RUNNING;
    return 0;
}

static void close_all(int *fds, unsigned count)
{
    while (count)
        close(fds[--count]);
}

int client_call(struct client *client, enum control_op op, uint64_t argument,
                struct control_message *ret_answer)
{
    struct control_message answer;
    int fds[CONTROL_FDS_MAX];
    unsigned count = 0;
    int r = call(client, op, argument, -1, &answer, fds, &count);
    close_all(fds, count);
    if (r == 0 && ret_answer)
        *ret_answer = answer;
    return r;
}

int client_give(struct client *client, enum control_op op, uint64_t argument, int fd)
{
    struct control_message answer;
    int fds[CONTROL_FDS_MAX];
    unsigned count = 0;
    int r = call(client, op, argument, fd, &answer, fds, &count);
    close_all(fds, count);
    return r;
}

int client_fetch(struct client *client, enum control_op op, unsigned expected, int *ret_fds)
{
    struct control_message answer;
    int fds[CONTROL_FDS_MAX];
    unsigned count = 0;
    int r = call(client, op, 0, -1, &answer, fds, &count);
    if (r == 0 && count != expected)
        r = error_set(-EBADMSG, "VMM %d: %u descriptors, %u are expected", client->pid, count, expected);
    if (r < 0)
        close_all(fds, count);
    else
        memcpy(ret_fds, fds, count * sizeof *fds);
    return r;
}

/* Memory of another process must not shrink under our mapping. */
static int map_sealed(int fd, size_t bytes, bool writable, uint8_t **ret_map)
{
    struct stat status;
    int seals = fcntl(fd, F_GET_SEALS);
    if (fstat(fd, &status) < 0 || seals < 0)
        return error_errno(-errno, "memory of the VMM");
    if ((seals & SEALS) != SEALS || (uint64_t)status.st_size != bytes)
        return error_set(-EBADMSG, "memory of the VMM: %lld bytes, %zu were said, seals 0x%x",
                         (long long)status.st_size, bytes, (unsigned)seals);
    void *map = mmap(NULL, bytes, writable ? PROT_READ | PROT_WRITE : PROT_READ, MAP_SHARED, fd, 0);
    if (map == MAP_FAILED)
        return error_errno(-errno, "memory of the VMM");
    *ret_map = map;
    return 0;
}

static int take_over(struct client *client, const struct control_message *hello, const int *fds,
                     bool writable)
{
    if (hello->memory_bytes == 0 || hello->memory_bytes > MEMORY_MAX ||
        hello->memory_bytes % VMM_PAGE_BYTES || hello->state_room == 0 || hello->state_room > STATE_MAX ||
        hello->value > hello->state_room || hello->value > TEXT_MAX)
        return error_set(-EBADMSG, "VMM %d: memory of %llu bytes, state of %llu, description of %llu",
                         client->pid, (unsigned long long)hello->memory_bytes,
                         (unsigned long long)hello->state_room, (unsigned long long)hello->value);
    client->memory_bytes = hello->memory_bytes;
    client->state_room = hello->state_room;
    client->shared_bytes = control_shared_bytes(hello->memory_bytes, hello->state_room);
    int r = map_sealed(fds[0], client->memory_bytes, writable, &client->memory);
    if (r == 0)
        r = map_sealed(fds[1], client->shared_bytes, true, &client->shared);
    if (r < 0)
        return r;
    client->text = strndup((char *)client->shared + control_state_offset(client->memory_bytes), hello->value);
    return client->text ? 0 : error_set(-ENOMEM, "VMM %d: no memory", client->pid);
}

int client_greet(struct client *client, bool writable)
{
    struct control_message hello;
    int fds[CONTROL_FDS_MAX];
    unsigned count = 0;
    int r = call(client, CONTROL_HELLO, CONTROL_VERSION, -1, &hello, fds, &count);
    if (r == 0 && count != CONTROL_HELLO_FDS)
        r = error_set(-EBADMSG, "VMM %d: %u descriptors, %d are expected", client->pid, count,
                      CONTROL_HELLO_FDS);
    if (r == 0)
        r = take_over(client, &hello, fds, writable);
    if (r == 0) {
        client->memory_fd = fds[0];
        fds[0] = fds[--count];
    }
    close_all(fds, count);
    return r;
}

void client_describe(const struct client *client, struct vmm_block *block, bool mapped,
                     struct vmm_description *ret_description)
{
    *block = (struct vmm_block){
        .name = BLOCK_NAME, .bytes = client->memory_bytes, .map = mapped ? client->memory : NULL};
    *ret_description = (struct vmm_description){.blocks = block, .block_count = 1, .text = client->text};
}
