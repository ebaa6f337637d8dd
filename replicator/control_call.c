/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/control.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>

/* The commands' half of the control socket. */

#define LINE_MAX_BYTES 65536

/* `timeout_ms` 0: none. A daemon that hangs leaves its clients in the socket's backlog, and connect() would
 * wait for ever when that is full. */
static int send_request(const char *path, json_t *request, unsigned timeout_ms, int *ret_fd)
{
    struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    struct sockaddr_un address;
    cleanup_free char *text = json_dumps(request, JSON_COMPACT);
    json_decref(request);
    if (!text)
        return error_set(-ENOMEM, "control request: out of memory");
    int r = control_address(path, &address);
    if (r < 0)
        return r;
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0)
        return error_errno(-errno, "control socket: socket");
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) < 0)
        return error_errno(-errno, "control socket: SO_SNDTIMEO");
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return errno == EAGAIN
                   ? error_set(-ETIMEDOUT, "the daemon at '%s' heard nobody within %u ms", path, timeout_ms)
                   : error_errno(-errno, "no daemon answers at '%s'", path);
    size_t length = strlen(text);
    text[length] = '\n'; /* in place of the NUL: the bytes are sent by count */
    if (send(fd, text, length + 1, MSG_NOSIGNAL) != (ssize_t)length + 1)
        return error_errno(-errno, "control socket '%s': send", path);
    *ret_fd = take_fd(&fd);
    return 0;
}

/* More bytes of the answer, or 0 at its end. `deadline_ns` UINT64_MAX: wait for ever. */
static ssize_t receive(int fd, const char *path, char *to, size_t room, uint64_t deadline_ns,
                       unsigned timeout_ms)
{
    for (;;) {
        uint64_t now = clock_now_ns();
        int wait_ms = deadline_ns == UINT64_MAX ? -1
                      : now >= deadline_ns      ? 0
                                                : (int)((deadline_ns - now) / NS_PER_MS) + 1;
        struct pollfd readable = {.fd = fd, .events = POLLIN};
        int ready = poll(&readable, 1, wait_ms);
        if (ready == 0)
            return error_set(-ETIMEDOUT, "the daemon at '%s' gave no answer within %u ms", path, timeout_ms);
        if (ready < 0 && errno == EINTR)
            continue; /* recv() would wait without a bound */
        ssize_t got = recv(fd, to, room, 0);
        if (got < 0 && errno == EINTR)
            continue;
        return got < 0 ? error_errno(-errno, "control socket '%s'", path) : got;
    }
}

struct first {
    json_t *object;
};

static int take_first(void *ctx, json_t *object)
{
    ((struct first *)ctx)->object = json_incref(object);
    return 1;
}

/* The whole lines of `text`; what is left over moves to its beginning. */
static int hand_over(char *text, size_t *used, const char *path, int (*line)(void *ctx, json_t *object),
                     void *ctx)
{
    int r = 0;
    for (char *end; r == 0 && (end = memchr(text, '\n', *used));) {
        json_error_t problem;
        size_t length = (size_t)(end + 1 - text);
        json_t *object = json_loadb(text, length, 0, &problem);
        if (!object)
            return error_set(-EBADMSG, "the daemon at '%s' answered nonsense: %s", path, problem.text);
        r = line(ctx, object);
        json_decref(object);
        *used -= length;
        memmove(text, end + 1, *used);
    }
    return r;
}

int control_follow(const char *path, json_t *request, unsigned timeout_ms,
                   int (*line)(void *ctx, json_t *object), void *ctx)
{
    cleanup_free char *answer = malloc(LINE_MAX_BYTES);
    cleanup_close int fd = -1;
    size_t used = 0;
    int r = send_request(path, request, timeout_ms, &fd);
    if (r == 0 && !answer)
        r = error_set(-ENOMEM, "control request: out of memory");
    uint64_t deadline = timeout_ms ? clock_now_ns() + timeout_ms * NS_PER_MS : UINT64_MAX;
    while (r == 0) {
        if (used == LINE_MAX_BYTES)
            return error_set(-EMSGSIZE, "the daemon at '%s' answered with more than %d bytes", path,
                             LINE_MAX_BYTES);
        ssize_t got = receive(fd, path, answer + used, LINE_MAX_BYTES - used, deadline, timeout_ms);
        if (got <= 0)
            return (int)got;
        used += (size_t)got;
        r = hand_over(answer, &used, path, line, ctx);
        if (timeout_ms)
            deadline = clock_now_ns() + timeout_ms * NS_PER_MS;
    }
    return r;
}

int control_call(const char *path, json_t *request, unsigned timeout_ms, json_t **ret_reply)
{
    struct first first = {NULL};
    int r = control_follow(path, request, timeout_ms, take_first, &first);
    if (r == 0)
        return error_set(-ECONNRESET, "the daemon at '%s' ended before it answered", path);
    if (r < 0)
        return r;
    *ret_reply = first.object;
    return 0;
}
