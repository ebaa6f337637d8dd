/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/qmp_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>

#define CHILD_MS 10000

/* A connection's beginning and end; qmp.c has what lies between. */

static int connect_to(struct qmp *qmp, const char *path, uint32_t timeout_ms)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path)
        return error_set(-ENAMETOOLONG, "qmp %s: a socket path has at most %zu bytes", path,
                         sizeof address.sun_path - 1);
    strcpy(address.sun_path, path);
    qmp->fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (qmp->fd < 0)
        return error_errno(-errno, "qmp %s: socket", path);
    /* Bounds connect() too: a monitor that serves somebody else lets its backlog of one fill up. */
    struct timeval timeout = {.tv_sec = timeout_ms / 1000, .tv_usec = timeout_ms % 1000 * 1000};
    if (setsockopt(qmp->fd, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof timeout) < 0)
        return error_errno(-errno, "qmp %s: SO_SNDTIMEO", path);
    if (connect(qmp->fd, (struct sockaddr *)&address, sizeof address) < 0) {
        if (errno == EAGAIN)
            return error_set(-EBUSY, "qmp %s: another client holds the monitor", path);
        return error_errno(-errno, "qmp %s: connect", path);
    }
    struct ucred peer;
    socklen_t length = sizeof peer;
    if (getsockopt(qmp->fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) < 0)
        return error_errno(-errno, "qmp %s: SO_PEERCRED", path);
    qmp->pid = peer.pid;
    return 0;
}

static int greet(struct qmp *qmp, uint64_t deadline_ns)
{
    json_t *greeting = NULL;
    int r;
    do { /* past an answer to the client before us; see qmp_wait() */
        json_decref(greeting);
        greeting = NULL;
        r = qmp_next_reply(qmp, deadline_ns, &greeting);
    } while (r > 0 && (json_object_get(greeting, "id") || json_object_get(greeting, "error")));
    if (r < 0)
        return r;
    if (r == 0)
        return error_set(-EBUSY, "qmp %s: another client holds the monitor (no greeting came)", qmp->path);
    json_int_t major, minor, micro, pid = qmp->pid, code;
    const char *package = "", *text;
    if (json_unpack(greeting, "{s:{s:I, s:s}}", "failure", "errno", &code, "text", &text) == 0)
        r = error_set(code > 0 && code < 4096 ? -(int)code : -EPROTO, "%s", text);
    else if (json_unpack(greeting, "{s:{s:{s:{s:I, s:I, s:I}, s?s}}, s?I}", "QMP", "version", "qemu", "major",
                         &major, "minor", &minor, "micro", &micro, "package", &package, "pid", &pid) < 0)
        r = error_set(-EPROTO, "qmp %s: the greeting is not QMP's", qmp->path);
    else {
        snprintf(qmp->version, sizeof qmp->version, "%lld.%lld.%lld", major, minor, micro);
        snprintf(qmp->package, sizeof qmp->package, "%s", package);
        qmp->pid = (pid_t)pid;
        r = 0;
    }
    json_decref(greeting);
    return r;
}

static int negotiate(struct qmp *qmp, uint32_t timeout_ms)
{
    int r = greet(qmp, clock_now_ns() + timeout_ms * NS_PER_MS);
    if (r == 0)
        r = qmp_call(qmp, timeout_ms, NULL, "qmp_capabilities", NULL);
    qmp->negotiated = true;
    return r;
}

static struct qmp *make(const char *path)
{
    struct qmp *qmp = calloc(1, sizeof *qmp);
    if (!qmp)
        return NULL;
    qmp->fd = -1;
    qmp->path = strdup(path);
    if (qmp->path)
        return qmp;
    free(qmp);
    return NULL;
}

int qmp_open(struct qmp **ret_qmp, const char *path, uint32_t timeout_ms)
{
    uint64_t began = clock_now_ns();
    struct qmp *qmp = make(path);
    if (!qmp)
        return error_set(-ENOMEM, "qmp %s: no memory", path);
    int r = connect_to(qmp, path, timeout_ms);
    uint64_t spent_ms = (clock_now_ns() - began) / NS_PER_MS;
    if (r == 0)
        r = negotiate(qmp, spent_ms < timeout_ms ? timeout_ms - (uint32_t)spent_ms : 0);
    if (r < 0) {
        qmp_close(qmp);
        return r;
    }
    *ret_qmp = qmp;
    return 0;
}

int qmp_open_stream(struct qmp **ret_qmp, int fd, pid_t child, const char *name, uint32_t timeout_ms)
{
    struct qmp *qmp = make(name);
    if (!qmp) {
        close(fd);
        return error_set(-ENOMEM, "%s: no memory", name);
    }
    qmp->fd = fd;
    qmp->child = child;
    int r = negotiate(qmp, timeout_ms);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        qmp_close(qmp);
        return error_set(r, "%s", text);
    }
    *ret_qmp = qmp;
    return 0;
}

/* It may still have a domain to end or a mark to take away. */
static void await_child(pid_t child)
{
    int pidfd cleanup_close = pidfd_open(child, 0);
    struct pollfd ended = {.fd = pidfd, .events = POLLIN};
    if (pidfd < 0 || poll(&ended, 1, CHILD_MS) <= 0)
        kill(child, SIGKILL); /* not reaped yet, so the number is still its own */
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
}

void qmp_close(struct qmp *qmp)
{
    if (!qmp)
        return;
    if (qmp->fd >= 0)
        close(qmp->fd);
    if (qmp->child > 0)
        await_child(qmp->child);
    free(qmp->primed);
    free(qmp->buffer);
    free(qmp->path);
    free(qmp);
}

int qmp_fd(const struct qmp *qmp)
{
    return qmp->fd;
}

pid_t qmp_pid(const struct qmp *qmp)
{
    return qmp->pid;
}

const char *qmp_version(const struct qmp *qmp)
{
    return qmp->version;
}

const char *qmp_package(const struct qmp *qmp)
{
    return qmp->package;
}

void qmp_on_event(struct qmp *qmp, qmp_event_fn *fn, void *ctx)
{
    qmp->event_fn = fn;
    qmp->event_ctx = ctx;
}
