/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define READ_BYTES     (16u << 10)
#define LINE_MAX_BYTES (1u << 20) /* the engine's commands are short */

static void take_descriptor(struct bridge *bridge, struct msghdr *message)
{
    for (struct cmsghdr *header = CMSG_FIRSTHDR(message); header; header = CMSG_NXTHDR(message, header)) {
        if (header->cmsg_level != SOL_SOCKET || header->cmsg_type != SCM_RIGHTS)
            continue;
        if (bridge->passed >= 0)
            close(bridge->passed);
        memcpy(&bridge->passed, CMSG_DATA(header), sizeof bridge->passed);
    }
}

static bool make_room(struct bridge *bridge)
{
    if (bridge->room - bridge->used >= READ_BYTES)
        return true;
    size_t room = bridge->room ? 2 * bridge->room : 4 * READ_BYTES;
    char *buffer = room <= LINE_MAX_BYTES ? realloc(bridge->buffer, room) : NULL;
    if (!buffer)
        return false;
    bridge->buffer = buffer;
    bridge->room = room;
    return true;
}

/* Reads only: commands are served outside of libvirt's event loop. */
static void on_readable(int watch, int fd, int events, void *opaque)
{
    struct bridge *bridge = opaque;
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    (void)events;
    if (!make_room(bridge)) {
        bridge->hung_up = true;
        virEventRemoveHandle(watch);
        return;
    }
    struct iovec vector = {.iov_base = bridge->buffer + bridge->used, .iov_len = bridge->room - bridge->used};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got = recvmsg(fd, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (got <= 0) {
        bridge->hung_up = true;
        virEventRemoveHandle(watch);
        return;
    }
    take_descriptor(bridge, &message);
    bridge->used += (size_t)got;
}

int engine_open(struct bridge *bridge)
{
    const int events = VIR_EVENT_HANDLE_READABLE | VIR_EVENT_HANDLE_HANGUP | VIR_EVENT_HANDLE_ERROR;
    if (virEventAddHandle(bridge->engine, events, on_readable, bridge, NULL) < 0)
        return connection_error(-ENOMEM, "watch the engine", bridge);
    return 0;
}

bool engine_has_line(const struct bridge *bridge)
{
    return bridge->used && memchr(bridge->buffer, '\n', bridge->used);
}

char *engine_line(struct bridge *bridge)
{
    char *end = bridge->used ? memchr(bridge->buffer, '\n', bridge->used) : NULL;
    if (!end)
        return NULL;
    size_t length = (size_t)(end - bridge->buffer);
    char *line = malloc(length + 1);
    if (!line)
        abort();
    memcpy(line, bridge->buffer, length);
    line[length] = '\0';
    memmove(bridge->buffer, end + 1, bridge->used - length - 1);
    bridge->used -= length + 1;
    return line;
}

void engine_tell(struct bridge *bridge, json_t *object)
{
    char *text cleanup_free = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!text)
        abort(); /* no memory; the engine sees us go */
    size_t length = strlen(text);
    text[length++] = '\n'; /* in place of the NUL; by length from here */
    for (const char *at = text; length > 0;) {
        ssize_t put = send(bridge->engine, at, length, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0)
            return;
        at += put;
        length -= (size_t)put;
    }
}

void engine_tell_event(struct bridge *bridge, const char *event, json_t *data)
{
    json_t *object = json_pack("{s:s}", "event", event);
    if (object && data)
        json_object_set(object, "data", data);
    engine_tell(bridge, object);
}
