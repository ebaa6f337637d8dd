/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/control.h"

#include "gate/gate.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define PAGE       4096u
#define BITS_BYTES 8u

int control_parse(const void *packet, size_t bytes, bool asks, struct control_message *ret_message)
{
    struct control_message message = {0};
    if (bytes < CONTROL_HEAD || bytes > sizeof message)
        return error_set(-EBADMSG, "control: a packet of %zu bytes", bytes);
    memcpy(&message, packet, bytes);
    bool event = message.op == CONTROL_EVENT || message.op == CONTROL_GATE_EVENT;
    if (message.op < CONTROL_LOOK || message.op >= CONTROL_OPS || (asks && event))
        return error_set(-EBADMSG, "control: operation %u is not known", message.op);
    if (bytes > CONTROL_HEAD && (asks || ((const char *)packet)[bytes - 1] != '\0'))
        return error_set(-EBADMSG, "control: operation %u with a text that is none", message.op);
    if (event != (message.sequence == 0))
        return error_set(-EBADMSG, "control: operation %u has the number %u", message.op, message.sequence);
    if (!asks && (message.code > 0 || message.phase >= CONTROL_PHASES))
        return error_set(-EBADMSG, "control: operation %u answered with %d in phase %u", message.op,
                         message.code, message.phase);
    *ret_message = message;
    return 0;
}

size_t control_bytes(const struct control_message *message)
{
    size_t length = strnlen(message->text, sizeof message->text - 1);
    return length ? CONTROL_HEAD + length + 1 : CONTROL_HEAD;
}

uint64_t control_dirty_bytes(uint64_t memory_bytes)
{
    return memory_bytes / PAGE / BITS_BYTES;
}

uint64_t control_state_offset(uint64_t memory_bytes)
{
    return (control_dirty_bytes(memory_bytes) + PAGE - 1) / PAGE * PAGE;
}

uint64_t control_figures_offset(uint64_t memory_bytes, uint64_t state_room)
{
    return (control_state_offset(memory_bytes) + state_room + PAGE - 1) / PAGE * PAGE;
}

uint64_t control_shared_bytes(uint64_t memory_bytes, uint64_t state_room)
{
    return control_figures_offset(memory_bytes, state_room) + sizeof(struct gate_stats);
}

int control_send(int fd, const struct control_message *message, const int *fds, unsigned count, int flags)
{
    struct iovec part = {.iov_base = (void *)(uintptr_t)message, .iov_len = control_bytes(message)};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
    } control = {0};
    struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
    if (count) {
        head.msg_control = &control;
        head.msg_controllen = CMSG_SPACE(count * sizeof(int));
        control.head = (struct cmsghdr){
            .cmsg_len = CMSG_LEN(count * sizeof(int)), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
        memcpy(CMSG_DATA(&control.head), fds, count * sizeof(int));
    }
    ssize_t put;
    while ((put = sendmsg(fd, &head, flags | MSG_NOSIGNAL)) < 0 && errno == EINTR)
        ;
    return put < 0 ? error_errno(-errno, "control") : 0;
}

static unsigned take_fds(struct msghdr *head, int *ret_fds, unsigned room)
{
    unsigned count = 0;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(head); part; part = CMSG_NXTHDR(head, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS)
            continue;
        unsigned here = (unsigned)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        for (unsigned i = 0; i < here; i++) {
            int fd;
            memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
            if (count < room)
                ret_fds[count++] = fd;
            else
                close(fd);
        }
    }
    return count;
}

int control_receive(int fd, bool asks, struct control_message *ret_message, int *ret_fds, unsigned room,
                    unsigned *ret_count, int flags)
{
    struct control_message packet;
    struct iovec part = {.iov_base = &packet, .iov_len = sizeof packet};
    union {
        struct cmsghdr head;
        char bytes[CMSG_SPACE(CONTROL_FDS_MAX * sizeof(int))];
    } control;
    struct msghdr head = {
        .msg_iov = &part, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;
    while ((got = recvmsg(fd, &head, flags | MSG_CMSG_CLOEXEC)) < 0 && errno == EINTR)
        ;
    if (got < 0)
        return error_errno(-errno, "control");
    unsigned count = take_fds(&head, ret_fds, room);
    int r = got == 0 ? error_set(-ECONNRESET, "control: the other side hung up") : 0;
    if (r == 0 && (head.msg_flags & (MSG_TRUNC | MSG_CTRUNC)))
        r = error_set(-EBADMSG, "control: a packet that is too long");
    if (r == 0)
        r = control_parse(&packet, (size_t)got, asks, ret_message);
    if (r < 0) {
        while (count)
            close(ret_fds[--count]);
        return r;
    }
    if (ret_count)
        *ret_count = count;
    return 0;
}
