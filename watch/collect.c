/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/collect.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/control.h"
#include "replicator/scope_json.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

#define ANSWER_MAX 65536 /* bytes */

struct request {
    char path[FIND_PATH_MAX];
    int fd; /* -1: this place is free */
    bool late;
    uint64_t until_ns;
    size_t used;
    char *answer; /* ANSWER_MAX */
};

struct collect {
    int epoll;
    unsigned limit_ms;
    collect_told *told;
    void *ctx;
    struct request requests[FIND_MAX];
};

int collect_new(struct collect **ret_collect, unsigned limit_ms, collect_told *told, void *ctx)
{
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    if (epoll < 0)
        return error_errno(-errno, "asking daemons: epoll");
    struct collect *collect = calloc(1, sizeof *collect);
    if (!collect) {
        close(epoll);
        return error_set(-ENOMEM, "asking daemons: out of memory");
    }
    collect->epoll = epoll;
    collect->limit_ms = limit_ms;
    collect->told = told;
    collect->ctx = ctx;
    for (unsigned i = 0; i < FIND_MAX; i++)
        collect->requests[i].fd = -1;
    *ret_collect = collect;
    return 0;
}

static void end(struct request *request)
{
    if (request->fd >= 0)
        close(request->fd); /* and out of the epoll set */
    request->fd = -1;
    free(request->answer);
    request->answer = NULL;
}

void collect_free(struct collect *collect)
{
    if (!collect)
        return;
    for (unsigned i = 0; i < FIND_MAX; i++)
        end(&collect->requests[i]);
    close(collect->epoll);
    free(collect);
}

static void tell_failure(struct collect *collect, const char *path, enum collect_outcome outcome,
                         const char *why)
{
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", why);
    control_printable(text);
    collect->told(collect->ctx, &(struct collect_answer){.path = path, .outcome = outcome, .why = text});
}

/* One line, without its end. */
static void tell_answer(struct collect *collect, const char *path, const char *line, size_t length)
{
    json_error_t problem;
    json_t *status cleanup_json = json_loadb(line, length, JSON_REJECT_DUPLICATES, &problem);
    const char *refusal = json_string_value(json_object_get(status, "error"));
    struct sample sample;
    char why[ERROR_TEXT_MAX];
    if (!status || refusal) {
        snprintf(why, sizeof why, "%s: %.300s", status ? "refused" : "answered nonsense",
                 status ? refusal : problem.text);
        tell_failure(collect, path, COLLECT_BROKEN, why);
    } else if (sample_parse(status, &sample) < 0) {
        tell_failure(collect, path, COLLECT_BROKEN, error_text());
    } else {
        collect->told(collect->ctx,
                      &(struct collect_answer){
                          .path = path, .outcome = COLLECT_ANSWERED, .sample = &sample, .status = status});
    }
}

static int connect_to(const char *path)
{
    static const char request[] = "{\"command\":\"status\"}\n";
    struct sockaddr_un address;
    int r = control_address(path, &address);
    if (r < 0)
        return r;
    cleanup_close int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "socket");
    /* A stream socket of this family is connected at once, or not: EAGAIN is a full backlog. */
    if (connect(fd, (struct sockaddr *)&address, sizeof address) < 0)
        return error_errno(-errno, "connect");
    if (send(fd, request, sizeof request - 1, MSG_NOSIGNAL) != (ssize_t)sizeof request - 1)
        return error_errno(errno == EPIPE ? -ECONNREFUSED : -EIO, "send");
    return take_fd(&fd);
}

void collect_ask(struct collect *collect, const char *path, uint64_t now_ns)
{
    struct request *request = NULL;
    for (unsigned i = 0; i < FIND_MAX; i++) {
        if (collect->requests[i].fd >= 0 && !strcmp(collect->requests[i].path, path))
            return;
        if (collect->requests[i].fd < 0 && !request)
            request = &collect->requests[i];
    }
    if (!request) {
        tell_failure(collect, path, COLLECT_SILENT, "too many daemons are silent already");
        return;
    }
    int fd = connect_to(path);
    if (fd < 0) {
        bool absent = fd == -ENOENT || fd == -ECONNREFUSED;
        tell_failure(collect, path,
                     absent          ? COLLECT_ABSENT
                     : fd == -EAGAIN ? COLLECT_SILENT
                                     : COLLECT_BROKEN,
                     absent          ? "no daemon answers there"
                     : fd == -EAGAIN ? "hears nobody: too many wait for it already"
                                     : error_text());
        return;
    }
    request->fd = fd;
    request->used = 0;
    request->late = false;
    request->until_ns = now_ns + collect->limit_ms * NS_PER_MS;
    snprintf(request->path, sizeof request->path, "%s", path);
    request->answer = malloc(ANSWER_MAX);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = request};
    if (!request->answer || epoll_ctl(collect->epoll, EPOLL_CTL_ADD, fd, &event) < 0) {
        end(request);
        tell_failure(collect, path, COLLECT_BROKEN, "out of memory to ask it");
    }
}

int collect_fd(const struct collect *collect)
{
    return collect->epoll;
}

uint64_t collect_deadline_ns(const struct collect *collect)
{
    uint64_t next = UINT64_MAX;
    for (unsigned i = 0; i < FIND_MAX; i++) {
        const struct request *request = &collect->requests[i];
        if (request->fd >= 0 && !request->late && request->until_ns < next)
            next = request->until_ns;
    }
    return next;
}

static void on_readable(struct collect *collect, struct request *request)
{
    char path[FIND_PATH_MAX];
    ssize_t got = recv(request->fd, request->answer + request->used, ANSWER_MAX - request->used, 0);
    if (got < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    memcpy(path, request->path, sizeof path);
    if (got <= 0) {
        end(request);
        tell_failure(collect, path, COLLECT_BROKEN, "ended before it answered");
        return;
    }
    const char *newline = memchr(request->answer + request->used, '\n', (size_t)got);
    request->used += (size_t)got;
    if (newline) {
        /* The place is free before anybody is told, and may be taken anew then. */
        cleanup_free char *answer = take_ptr(request->answer);
        end(request);
        tell_answer(collect, path, answer, (size_t)(newline - answer));
    } else if (request->used == ANSWER_MAX) {
        end(request);
        tell_failure(collect, path, COLLECT_BROKEN, "answered with more than 65536 bytes");
    }
}

void collect_step(struct collect *collect, uint64_t now_ns)
{
    struct epoll_event events[64];
    int count = epoll_wait(collect->epoll, events, array_length(events), 0);
    for (int i = 0; i < count; i++) {
        struct request *request = events[i].data.ptr;
        if (request->fd >= 0)
            on_readable(collect, request);
    }
    for (unsigned i = 0; i < FIND_MAX; i++) {
        struct request *request = &collect->requests[i];
        char why[64];
        if (request->fd < 0 || request->late || now_ns < request->until_ns)
            continue;
        request->late = true;
        snprintf(why, sizeof why, "gave no answer within %u ms", collect->limit_ms);
        tell_failure(collect, request->path, COLLECT_SILENT, why);
    }
}

void collect_all(struct collect *collect, const struct find_list *list)
{
    for (unsigned i = 0; i < list->count; i++)
        collect_ask(collect, list->paths[i], clock_now_ns());
    for (uint64_t until; (until = collect_deadline_ns(collect)) != UINT64_MAX;) {
        uint64_t now = clock_now_ns();
        struct pollfd readable = {.fd = collect->epoll, .events = POLLIN};
        poll(&readable, 1, now >= until ? 0 : (int)((until - now) / NS_PER_MS) + 1);
        collect_step(collect, clock_now_ns());
    }
}
