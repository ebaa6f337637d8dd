/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/control.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#define CLIENTS_MAX 16
#define STREAMS_MAX 8 /* the other places are for requests */

struct client {
    uint64_t id; /* 0: free */
    int fd;
    size_t used;
    char line[4096];

    control_source *source; /* NULL: no stream */
    void *source_ctx;
    uint64_t cursor;
    bool follow;
    char *out; /* the line that is being sent; NULL: none */
    size_t out_length, out_sent;
};

struct control {
    struct loop *loop;
    int fd;
    char path[sizeof((struct sockaddr_un *)0)->sun_path];
    control_request *request;
    void *ctx;
    uint64_t next_id;
    struct client clients[CLIENTS_MAX];
};

int control_address(const char *path, struct sockaddr_un *ret_address)
{
    *ret_address = (struct sockaddr_un){.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof ret_address->sun_path)
        return error_set(-ENAMETOOLONG, "control socket '%s': path longer than %zu characters", path,
                         sizeof ret_address->sun_path - 1);
    snprintf(ret_address->sun_path, sizeof ret_address->sun_path, "%s", path);
    return 0;
}

static void drop(struct control *control, struct client *client)
{
    loop_remove(control->loop, client->fd);
    close(client->fd);
    free(client->out);
    client->out = NULL;
    client->source = NULL;
    client->id = 0;
}

static struct client *find(struct control *control, uint64_t id)
{
    for (unsigned i = 0; id && i < CLIENTS_MAX; i++)
        if (control->clients[i].id == id)
            return &control->clients[i];
    return NULL;
}

/* --- streams --- */

/* The next line into ->out. False: there is none. */
static bool next_line(struct client *client)
{
    json_t *object = client->source(client->source_ctx, &client->cursor);
    client->out = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    if (!client->out)
        return false;
    client->out_length = strlen(client->out) + 1;
    client->out[client->out_length - 1] = '\n'; /* in place of the NUL: the bytes are sent by count */
    client->out_sent = 0;
    return true;
}

static void pump(struct control *control, struct client *client)
{
    while (client->out || next_line(client)) {
        ssize_t sent = send(client->fd, client->out + client->out_sent, client->out_length - client->out_sent,
                            MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0 && errno == EAGAIN) {
            loop_change(control->loop, client->fd, EPOLLIN | EPOLLOUT);
            return;
        }
        if (sent < 0) {
            drop(control, client);
            return;
        }
        client->out_sent += (size_t)sent;
        if (client->out_sent == client->out_length) {
            free(client->out);
            client->out = NULL;
        }
    }
    if (client->follow)
        loop_change(control->loop, client->fd, EPOLLIN);
    else
        drop(control, client);
}

void control_stream(struct control *control, uint64_t id, control_source *source, void *ctx, uint64_t cursor,
                    bool follow)
{
    struct client *client = find(control, id);
    unsigned streams = 0;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        streams += control->clients[i].id && control->clients[i].source;
    if (!client)
        return;
    if (streams >= STREAMS_MAX) {
        control_refuse(control, id, "%d clients follow the events already", STREAMS_MAX);
        return;
    }
    client->source = source;
    client->source_ctx = ctx;
    client->cursor = cursor;
    client->follow = follow;
    pump(control, client);
}

void control_wake(struct control *control)
{
    for (unsigned i = 0; i < CLIENTS_MAX; i++) {
        struct client *client = &control->clients[i];
        if (client->id && client->source && !client->out)
            pump(control, client);
    }
}

/* --- requests --- */

static void on_line(struct control *control, struct client *client, const char *line)
{
    json_error_t problem;
    uint64_t id = client->id;
    json_t *request = json_loads(line, JSON_REJECT_DUPLICATES, &problem);
    const char *command = json_string_value(json_object_get(request, "command"));
    if (command)
        control->request(control->ctx, id, command, request);
    else
        control_refuse(control, id, "control request: %s", request ? "no \"command\"" : problem.text);
    json_decref(request);
}

static void on_client(void *ctx, int fd, uint32_t events)
{
    struct control *control = ctx;
    struct client *client = NULL;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (control->clients[i].id && control->clients[i].fd == fd)
            client = &control->clients[i];
    if (client && client->source && (events & EPOLLOUT))
        pump(control, client);
    if (!client || !client->id || !(events & ~(uint32_t)EPOLLOUT))
        return;
    ssize_t got = read(fd, client->line + client->used, sizeof client->line - 1 - client->used);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    /* A stream takes no more requests: their answers would come between its lines. */
    if (got <= 0 || client->source) {
        drop(control, client);
        return;
    }
    client->used += (size_t)got;
    client->line[client->used] = 0;
    for (char *end; client->id && !client->source && (end = strchr(client->line, '\n'));) {
        *end = 0;
        size_t length = (size_t)(end + 1 - client->line);
        char line[sizeof client->line];
        memcpy(line, client->line, length);
        client->used -= length;
        memmove(client->line, end + 1, client->used + 1);
        on_line(control, client, line);
    }
    if (client->id && client->used == sizeof client->line - 1) {
        control_refuse(control, client->id, "control request: longer than %zu bytes",
                       sizeof client->line - 1);
        if (client->id)
            drop(control, client);
    }
}

static void on_connection(void *ctx, int fd, uint32_t events)
{
    struct control *control = ctx;
    (void)events;
    cleanup_close int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    for (unsigned i = 0; accepted >= 0 && i < CLIENTS_MAX; i++) {
        if (control->clients[i].id)
            continue;
        if (loop_add(control->loop, accepted, EPOLLIN, on_client, control) < 0)
            return;
        control->clients[i].id = ++control->next_id;
        control->clients[i].used = 0;
        control->clients[i].fd = take_fd(&accepted);
        return;
    }
}

int control_new(struct control **ret_control, struct loop *loop, const char *path, control_request *request,
                void *ctx)
{
    struct sockaddr_un address;
    int r = control_address(path, &address);
    if (r < 0)
        return r;
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "control socket: socket");
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return error_set(-EADDRINUSE, "control socket '%s': a daemon for this machine runs already", path);
    unlink(path);
    mode_t mask = umask(0177);
    r = bind(fd, (struct sockaddr *)&address, sizeof address) < 0 ? -errno : 0;
    umask(mask);
    if (r < 0 || listen(fd, 8) < 0)
        return error_errno(r < 0 ? r : -errno, "control socket '%s'", path);
    struct control *control = calloc(1, sizeof *control);
    if (!control)
        return error_set(-ENOMEM, "control socket: out of memory");
    control->loop = loop;
    control->request = request;
    control->ctx = ctx;
    snprintf(control->path, sizeof control->path, "%s", path);
    r = loop_add(loop, fd, EPOLLIN, on_connection, control);
    if (r < 0) {
        free(control);
        return r;
    }
    control->fd = take_fd(&fd);
    *ret_control = control;
    return 0;
}

void control_free(struct control *control)
{
    if (!control)
        return;
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (control->clients[i].id)
            drop(control, &control->clients[i]);
    loop_remove(control->loop, control->fd);
    close(control->fd);
    unlink(control->path);
    free(control);
}

/* The answer is small beside a socket's buffer and the client waits for it; a client that does not read is
 * dropped. */
void control_reply(struct control *control, uint64_t id, json_t *reply)
{
    struct client *client = find(control, id);
    cleanup_free char *text = client ? json_dumps(reply, JSON_COMPACT) : NULL;
    json_decref(reply);
    if (!text)
        return;
    size_t length = strlen(text);
    text[length] = '\n';
    if (send(client->fd, text, length + 1, MSG_NOSIGNAL) != (ssize_t)length + 1)
        drop(control, client);
}

void control_printable(char *text)
{
    for (; *text; text++)
        if (*text < ' ' || *text > '~')
            *text = '?';
}

void control_refuse(struct control *control, uint64_t client, const char *format, ...)
{
    char text[ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    control_printable(text);
    control_reply(control, client, json_pack("{s:s}", "error", text));
}
