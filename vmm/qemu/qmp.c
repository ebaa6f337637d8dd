/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/qmp_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

/* The longest line that QEMU may send. The greatest real ones (query-qmp-schema) are about 250 KB. */
#define LINE_MAX_BYTES (8u << 20)
#define READ_BYTES     (16u << 10)

/* Milliseconds left until `deadline_ns`, rounded up so that poll() does not spin through the last one. */
static int left_ms(uint64_t deadline_ns)
{
    uint64_t now = clock_now_ns();
    if (now >= deadline_ns)
        return 0;
    uint64_t left = (deadline_ns - now + NS_PER_MS - 1) / NS_PER_MS;
    return left > 1000000 ? 1000000 : (int)left;
}

static int buffer_grow(struct qmp *qmp)
{
    if (qmp->room - qmp->used >= READ_BYTES)
        return 0;
    if (qmp->room >= LINE_MAX_BYTES) {
        qmp->broken = true;
        return error_set(-EMSGSIZE, "qmp %s: a line of more than %u bytes", qmp->path, LINE_MAX_BYTES);
    }
    size_t room = qmp->room ? qmp->room * 2 : 4 * READ_BYTES;
    char *buffer = realloc(qmp->buffer, room);
    if (!buffer)
        return error_set(-ENOMEM, "qmp %s: no memory for a line of %zu bytes", qmp->path, room);
    qmp->buffer = buffer;
    qmp->room = room;
    return 0;
}

/* Receive once. Returns 1 when bytes came, 0 at the deadline. deadline_ns 0: do not wait. */
static int receive(struct qmp *qmp, uint64_t deadline_ns)
{
    int r = buffer_grow(qmp);
    if (r < 0)
        return r;
    for (;;) {
        ssize_t got = recv(qmp->fd, qmp->buffer + qmp->used, qmp->room - qmp->used, MSG_DONTWAIT);
        if (got > 0) {
            qmp->used += (size_t)got;
            return 1;
        }
        if (got == 0 || errno == ECONNRESET || errno == EPIPE) {
            qmp->broken = true;
            return error_set(-ECONNRESET, "qmp %s: QEMU closed the connection", qmp->path);
        }
        if (errno == EINTR)
            continue;
        if (errno != EAGAIN)
            return error_errno(-errno, "qmp %s: recv", qmp->path);
        int wait = deadline_ns ? left_ms(deadline_ns) : 0;
        if (wait == 0)
            return 0;
        struct pollfd pollfd = {.fd = qmp->fd, .events = POLLIN};
        if (poll(&pollfd, 1, wait) < 0 && errno != EINTR)
            return error_errno(-errno, "qmp %s: poll", qmp->path);
    }
}

/* Take one whole line out of the buffer. Returns 1 and an object, or 0 when no whole line is there. */
static int next_object(struct qmp *qmp, json_t **ret_object)
{
    for (;;) {
        char *newline = memchr(qmp->buffer + qmp->searched, '\n', qmp->used - qmp->searched);
        if (!newline) {
            qmp->searched = qmp->used;
            return 0;
        }
        size_t length = (size_t)(newline - qmp->buffer);
        json_error_t error;
        json_t *object = NULL;
        bool blank = length == 0 || (length == 1 && qmp->buffer[0] == '\r');
        if (!blank)
            object = json_loadb(qmp->buffer, length, 0, &error);
        memmove(qmp->buffer, newline + 1, qmp->used - length - 1);
        qmp->used -= length + 1;
        qmp->searched = 0;
        if (blank)
            continue;
        if (!json_is_object(object)) {
            json_decref(object);
            qmp->broken = true;
            return error_set(-EPROTO, "qmp %s: what came is not a JSON object%s%s", qmp->path,
                             object ? "" : ": ", object ? "" : error.text);
        }
        *ret_object = object;
        return 1;
    }
}

int qmp_next_reply(struct qmp *qmp, uint64_t deadline_ns, json_t **ret_object)
{
    for (;;) {
        json_t *object = NULL;
        int r = qmp->used > 0 ? next_object(qmp, &object) : 0;
        if (r < 0)
            return r;
        if (r > 0) {
            const char *event = json_string_value(json_object_get(object, "event"));
            if (!event) {
                *ret_object = object;
                return 1;
            }
            if (qmp->event_fn)
                qmp->event_fn(qmp->event_ctx, event, json_object_get(object, "data"));
            json_decref(object);
            continue;
        }
        r = receive(qmp, deadline_ns);
        if (r <= 0)
            return r;
    }
}

static int send_bytes(struct qmp *qmp, const char *bytes, size_t length, int fd)
{
    while (length > 0) {
        union {
            char bytes[CMSG_SPACE(sizeof(int))];
            struct cmsghdr align;
        } control;
        memset(&control, 0, sizeof control);
        struct iovec vector = {.iov_base = (char *)bytes, .iov_len = length};
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
        if (fd >= 0) {
            message.msg_control = control.bytes;
            message.msg_controllen = sizeof control.bytes;
            struct cmsghdr *header = CMSG_FIRSTHDR(&message);
            header->cmsg_level = SOL_SOCKET;
            header->cmsg_type = SCM_RIGHTS;
            header->cmsg_len = CMSG_LEN(sizeof fd);
            memcpy(CMSG_DATA(header), &fd, sizeof fd);
        }
        ssize_t put = sendmsg(qmp->fd, &message, MSG_NOSIGNAL);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0) {
            qmp->broken = true;
            if (errno == EPIPE || errno == ECONNRESET)
                return error_set(-ECONNRESET, "qmp %s: QEMU closed the connection", qmp->path);
            /* SO_SNDTIMEO */
            return error_errno(errno == EAGAIN ? -ETIMEDOUT : -errno, "qmp %s: send", qmp->path);
        }
        bytes += put;
        length -= (size_t)put;
        fd = -1;
    }
    return 0;
}

/* All of a command but its id, which stands last: "{...". `ret_body` is the caller's to free. */
static int pack(const struct qmp *qmp, char **ret_body, const char *command, const char *format,
                va_list arguments)
{
    json_t *object = json_pack("{s:s}", "execute", command);
    if (object && format) {
        json_error_t error;
        json_t *packed = json_vpack_ex(&error, 0, format, arguments);
        if (!packed || json_object_set_new(object, "arguments", packed) < 0) {
            json_decref(object);
            return error_set(-EINVAL, "qmp %s: %s: arguments: %s", qmp->path, command, error.text);
        }
    }
    char *body = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!body)
        return error_set(-ENOMEM, "qmp %s: %s: no memory", qmp->path, command);
    body[strlen(body) - 1] = '\0'; /* its "}" */
    *ret_body = body;
    return 0;
}

/* `end`: what completes it, "}\n"; "" leaves it open. */
static int send_body(struct qmp *qmp, int fd, const char *body, const char *end)
{
    char *text cleanup_free = NULL;
    int length = asprintf(&text, "%s,\"id\":%llu%s", body, (unsigned long long)qmp->sent + 1, end);
    if (length < 0)
        return error_set(-ENOMEM, "qmp %s: no memory", qmp->path);
    int r = send_bytes(qmp, text, (size_t)length, fd);
    if (r == 0)
        qmp->sent++;
    return r;
}

/* The primed command is one no more. */
static int finish(struct qmp *qmp, const char *end)
{
    free(qmp->primed);
    qmp->primed = NULL;
    return send_bytes(qmp, end, strlen(end), -1);
}

static int send_packed(struct qmp *qmp, uint64_t *ret_id, int fd, const char *command, const char *format,
                       va_list arguments)
{
    if (qmp->broken)
        return error_set(-ECONNRESET, "qmp %s: %s: the connection is lost", qmp->path, command);
    char *body cleanup_free = NULL;
    int r = pack(qmp, &body, command, format, arguments);
    if (r == 0 && qmp->primed && fd < 0 && strcmp(body, qmp->primed) == 0) {
        r = finish(qmp, "}\n");
    } else if (r == 0) {
        if (qmp->primed) /* a member that no command knows: QEMU refuses it, whichever command it is */
            r = finish(qmp, ",\"\":0}\n");
        if (r == 0)
            r = send_body(qmp, fd, body, "}\n");
    }
    if (r < 0)
        return error_add(r, "%s", command);
    *ret_id = qmp->sent;
    return 0;
}

void qmp_prime(struct qmp *qmp, const char *command, const char *format, ...)
{
    if (qmp->broken || qmp->primed)
        return;
    char *body cleanup_free = NULL;
    va_list arguments;
    va_start(arguments, format);
    int r = pack(qmp, &body, command, format, arguments);
    va_end(arguments);
    if (r == 0)
        r = send_body(qmp, -1, body, "");
    if (r == 0)
        qmp->primed = take_ptr(body);
}

int qmp_send(struct qmp *qmp, uint64_t *ret_id, int fd, const char *command, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int r = send_packed(qmp, ret_id, fd, command, format, arguments);
    va_end(arguments);
    return r;
}

static int take_result(struct qmp *qmp, json_t *reply, json_t **ret_result)
{
    json_t *error = json_object_get(reply, "error");
    json_t *result = json_object_get(reply, "return");
    if (error) {
        const char *class = json_string_value(json_object_get(error, "class"));
        const char *text = json_string_value(json_object_get(error, "desc"));
        int code = class && strcmp(class, "CommandNotFound") == 0 ? -ENOSYS : -EREMOTEIO;
        return error_set(code, "QEMU says: %s", text ? text : "(nothing)");
    }
    if (!result)
        return error_set(-EPROTO, "qmp %s: a reply without result", qmp->path);
    if (ret_result)
        *ret_result = json_incref(result);
    return 0;
}

static const char *reply_words(const json_t *reply)
{
    const char *text = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));
    return text ? text : "(no words)";
}

int qmp_wait(struct qmp *qmp, uint32_t timeout_ms, uint64_t id, json_t **ret_result)
{
    assert(id > qmp->answered && id <= qmp->sent);
    uint64_t deadline = clock_now_ns() + timeout_ms * NS_PER_MS;
    qmp->answered = id; /* given up, if it is not answered below */
    for (;;) {
        json_t *reply = NULL;
        int r = qmp_next_reply(qmp, deadline, &reply);
        if (r == 0)
            return error_set(-ETIMEDOUT, "qmp %s: no answer within %u ms", qmp->path, timeout_ms);
        if (r < 0)
            return r;
        json_t *got = json_object_get(reply, "id");
        uint64_t answered = json_is_integer(got) ? (uint64_t)json_integer_value(got) : UINT64_MAX;
        if (answered == id)
            r = take_result(qmp, reply, ret_result);
        else if (!got && !qmp->negotiated) /* to what the client before us left unfinished */
            r = 1;
        else if (!got) /* QEMU could not even parse what we sent */
            r = error_set(-EPROTO, "qmp %s: a reply without id: %s", qmp->path, reply_words(reply));
        else if (answered > id && qmp->negotiated)
            r = error_set(-EPROTO, "qmp %s: replies out of order", qmp->path);
        else
            r = 1;
        if (r != 1) {
            qmp->broken |= answered != id;
            json_decref(reply);
            return r;
        }
        /* A late answer to a command that was given up. Or, before ours is the first to be answered, to a
         * command of the client before us: QEMU finishes what it has begun when its client goes, and answers
         * whoever is connected then. */
        json_decref(reply);
    }
}

static int call(struct qmp *qmp, uint32_t timeout_ms, json_t **ret_result, int fd, const char *command,
                const char *format, va_list arguments)
{
    uint64_t id;
    int r = send_packed(qmp, &id, fd, command, format, arguments);
    if (r < 0)
        return r;
    r = qmp_wait(qmp, timeout_ms, id, ret_result);
    return r < 0 ? error_add(r, "%s", command) : 0;
}

int qmp_call(struct qmp *qmp, uint32_t timeout_ms, json_t **ret_result, const char *command,
             const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int r = call(qmp, timeout_ms, ret_result, -1, command, format, arguments);
    va_end(arguments);
    return r;
}

int qmp_call_fd(struct qmp *qmp, uint32_t timeout_ms, json_t **ret_result, int fd, const char *command,
                const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    int r = call(qmp, timeout_ms, ret_result, fd, command, format, arguments);
    va_end(arguments);
    return r;
}

int qmp_human(struct qmp *qmp, uint32_t timeout_ms, const char *command_line, char **ret_text)
{
    json_t *result = NULL;
    int r =
        qmp_call(qmp, timeout_ms, &result, "human-monitor-command", "{s:s}", "command-line", command_line);
    if (r < 0)
        return error_add(r, "\"%s\"", command_line);
    const char *value = json_string_value(result);
    char *text = value ? strdup(value) : NULL;
    json_decref(result);
    if (!text)
        return error_set(value ? -ENOMEM : -EPROTO, "qmp %s: \"%s\" gave no text", qmp->path, command_line);
    *ret_text = text;
    return 0;
}

int qmp_drain(struct qmp *qmp)
{
    for (;;) {
        json_t *reply = NULL;
        int r = qmp_next_reply(qmp, 0, &reply);
        if (r <= 0)
            return r;
        json_decref(reply); /* nobody waits: late answer to a command that was given up */
    }
}
