/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/server_internal.h"

#include "base/clock.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/vmm.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/*
 * Theory of operation
 *
 * One thread, one epoll. A visitor becomes the engine by HELLO; there is one at a time. What the engine does
 * to the guest is undone when its connection ends, but for HOLD:
 *
 *      WAITING ─LOAD─► LOADED ─RUN─► RUNNING ◄─RESUME, SIGCONT── HELD
 *                                     │   ▲                       ▲
 *                                   PAUSE └─RESUME, hung up─┐    HOLD
 *                                     └───────────────────► PAUSED
 *
 * Nothing here waits for an engine: answers and events that its socket does not take end the connection.
 */

/* --- the guest's end --- */

static void on_ended(void *ctx, enum machine_end why, const char *text)
{
    struct server *server = ctx;
    snprintf(server->end_text, sizeof server->end_text, "%s", text);
    __atomic_store_n(&server->end, why, __ATOMIC_RELEASE);
    eventfd_write(server->wake, 1);
}

bool server_is_over(const struct server *server)
{
    return __atomic_load_n(&server->end, __ATOMIC_ACQUIRE) != MACHINE_GOES_ON;
}

/* --- the guest's new beginning --- */

static void on_restart(void *ctx)
{
    eventfd_write(((struct server *)ctx)->wake, 1);
}

/* Afterwards it stands still before the kernel's first instruction, or is over. */
void server_reboot(struct server *server)
{
    log_notice("the guest resets itself and boots again");
    int r = machine_restart(server->machine);
    if (r == 0)
        r = server->boot(server->boot_ctx);
    if (r < 0)
        machine_end(server->machine, MACHINE_CRASHED, "the guest cannot boot again: %s", error_text());
}

/* A guest that is paused or held was restarted when it was stopped. */
static void on_wake(struct server *server)
{
    eventfd_t count;
    eventfd_read(server->wake, &count);
    if (server_is_over(server) || server->phase != CONTROL_RUNNING || !machine_wants_restart(server->machine))
        return;
    if (machine_pause(server->machine) < 0) {
        machine_end(server->machine, MACHINE_CRASHED, "the guest cannot boot again: %s", error_text());
        return;
    }
    server_reboot(server);
    machine_resume(server->machine);
}

/* --- who is connected --- */

void server_count_stood(struct server *server)
{
    uint64_t stood_ns = machine_stood_ns(server->machine);
    if (server->released && stood_ns)
        histogram_add(&server->stood, stood_ns);
    server->released = false;
}

/* What no engine sees, since its own pause ends when it has said RELEASE. */
static void tell_stood(struct server *server)
{
    const struct histogram *stood = &server->stood;
    if (stood->count)
        log_notice("the guest stood still %llu times, p50 %.3f p99 %.3f longest %.3f ms",
                   (unsigned long long)stood->count, (double)histogram_percentile(stood, 50) / NS_PER_MS,
                   (double)histogram_percentile(stood, 99) / NS_PER_MS, (double)stood->max / NS_PER_MS);
    histogram_reset(&server->stood);
}

static void dismiss(struct server *server, struct visitor *visitor)
{
    gatekeeper_left(&server->gate, visitor->fd);
    close(take_fd(&visitor->fd)); /* leaves the epoll by itself */
    if (server->engine != visitor)
        return;
    server->engine = NULL;
    images_tell_nobody(server->images);
    server_count_stood(server);
    tell_stood(server);
    machine_untrack(server->machine);
    if (server->phase == CONTROL_PAUSED) {
        log_warning("the engine hung up while it held the guest; it runs on");
        machine_resume(server->machine);
        server->phase = CONTROL_RUNNING;
    }
}

static void tell_engine(struct server *server, enum vmm_event event)
{
    struct control_message message = {.op = CONTROL_EVENT, .phase = server->phase, .value = event};
    if (server->engine && control_send(server->engine->fd, &message, NULL, 0, MSG_DONTWAIT) < 0)
        dismiss(server, server->engine);
}

static void tell_gate(struct server *server)
{
    int r = gatekeeper_tell(&server->gate, server->phase);
    for (unsigned i = 0; r < 0 && i < VISITORS_MAX; i++) {
        if (server->visitors[i].fd == server->gate.fd) {
            dismiss(server, &server->visitors[i]);
            return;
        }
    }
}

/* Only who could do as much without us: root, and who runs us. */
static bool trusted(int fd)
{
    struct ucred peer;
    socklen_t length = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &length) == 0 &&
           (peer.uid == 0 || peer.uid == geteuid());
}

static void welcome(struct server *server)
{
    int fd cleanup_close = accept4(server->listener, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (fd < 0 || !trusted(fd))
        return;
    for (unsigned i = 0; i < VISITORS_MAX; i++) {
        struct visitor *visitor = &server->visitors[i];
        struct epoll_event readable = {.events = EPOLLIN, .data.ptr = visitor};
        if (visitor->fd < 0 && epoll_ctl(server->epoll, EPOLL_CTL_ADD, fd, &readable) == 0) {
            visitor->fd = take_fd(&fd);
            return;
        }
    }
}

static void serve(struct server *server, struct visitor *visitor)
{
    struct control_message request;
    unsigned count;
    int came, r;
    while ((r = control_receive(visitor->fd, true, &request, &came, 1, &count, MSG_DONTWAIT)) == 0) {
        if (server_handle(server, visitor, &request, count ? came : -1) < 0) {
            dismiss(server, visitor);
            return;
        }
    }
    if (r != -EAGAIN)
        dismiss(server, visitor);
}

/* --- signals --- */

static void on_signal(struct server *server)
{
    struct signalfd_siginfo info;
    if (read(server->signals, &info, sizeof info) != sizeof info)
        return;
    if (info.ssi_signo == SIGUSR1) {
        if (gatekeeper_let_out(&server->gate) < 0)
            log_warning("SIGUSR1: %s", error_text());
        else
            log_notice("output is not held any more, by SIGUSR1");
    } else if (info.ssi_signo != SIGCONT) {
        machine_end(server->machine, MACHINE_ENDED, "told to end by signal %u", info.ssi_signo);
    } else if (server->phase == CONTROL_HELD) {
        log_notice("a guest that was held for good is let run by SIGCONT");
        server_resume(server);
        tell_engine(server, VMM_EVENT_RESUMED);
    }
}

/* --- making it --- */

static int listen_at(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (snprintf(address.sun_path, sizeof address.sun_path, "%s", path) >= (int)sizeof address.sun_path)
        return error_set(-ENAMETOOLONG, "control %s: longer than a UNIX socket's path can be", path);
    int fd cleanup_close = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "control %s", path);
    int probe cleanup_close = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (probe < 0)
        return error_errno(-errno, "control %s", path);
    if (connect(probe, (struct sockaddr *)&address, sizeof address) == 0 || errno == EAGAIN)
        return error_set(-EADDRINUSE, "control %s: a VMM serves this socket already", path);
    if (errno == ECONNREFUSED) /* left behind */
        unlink(path);
    mode_t before = umask(0177);
    int r = bind(fd, (struct sockaddr *)&address, sizeof address);
    int cause = errno;
    umask(before);
    if (r < 0 || listen(fd, VISITORS_MAX) < 0)
        return error_errno(r < 0 ? -cause : -errno, "control %s", path);
    return take_fd(&fd);
}

static int open_signals(void)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGCONT);
    sigaddset(&set, SIGUSR1);
    sigprocmask(SIG_BLOCK, &set, NULL);
    int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    return fd < 0 ? error_errno(-errno, "signals") : fd;
}

static int watch(struct server *server, int *fd)
{
    struct epoll_event readable = {.events = EPOLLIN, .data.ptr = fd};
    return epoll_ctl(server->epoll, EPOLL_CTL_ADD, *fd, &readable) < 0 ? error_errno(-errno, "epoll") : 0;
}

int server_new(struct server **ret_server, const char *control_path, struct machine_config *config)
{
    struct server *server = calloc(1, sizeof *server);
    if (!server)
        return error_set(-ENOMEM, "server: no memory");
    server->listener = server->shared_fd = -1;
    server->gate = GATEKEEPER_NONE;
    for (unsigned i = 0; i < VISITORS_MAX; i++)
        server->visitors[i].fd = -1;
    server->epoll = epoll_create1(EPOLL_CLOEXEC);
    server->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    server->signals = open_signals();
    int r = server->epoll < 0 || server->wake < 0 ? error_errno(-errno, "server") : 0;
    if (r == 0 && server->signals < 0)
        r = server->signals;
    if (r == 0)
        r = gatekeeper_open(&server->gate);
    if (r == 0 && control_path)
        r = server->listener = listen_at(control_path);
    if (r >= 0)
        r = watch(server, &server->wake);
    if (r == 0)
        r = watch(server, &server->gate.wake);
    if (r == 0)
        r = watch(server, &server->signals);
    if (r == 0 && control_path)
        r = watch(server, &server->listener);
    if (r < 0) {
        server_free(server);
        return r;
    }
    config->ended = on_ended;
    config->ctx = server;
    *ret_server = server;
    return 0;
}

void server_reboots(struct server *server, struct machine_config *config, int (*boot)(void *ctx), void *ctx)
{
    server->boot = boot;
    server->boot_ctx = ctx;
    config->restart = on_restart;
}

void server_free(struct server *server)
{
    if (!server)
        return;
    for (unsigned i = 0; i < VISITORS_MAX; i++)
        if (server->visitors[i].fd >= 0)
            close(server->visitors[i].fd);
    const int fds[] = {server->listener, server->signals, server->wake, server->epoll, server->shared_fd};
    for (size_t i = 0; i < array_length(fds); i++)
        if (fds[i] >= 0)
            close(fds[i]);
    gatekeeper_close(&server->gate);
    if (server->shared)
        munmap(server->shared, server->shared_bytes);
    free(server);
}

struct output_events server_output_events(struct server *server)
{
    return gatekeeper_events(&server->gate);
}

int server_attach(struct server *server, struct machine *machine, struct output *output, bool incoming,
                  void (*announce)(void *ctx), void *ctx)
{
    uint64_t memory_bytes = machine_memory_bytes(machine);
    server->machine = machine;
    server->gate.output = output;
    server->announce = announce;
    server->announce_ctx = ctx;
    server->phase = incoming ? CONTROL_WAITING : CONTROL_RUNNING;
    server->state_room = machine_state_bytes_max(machine);
    server->shared_bytes = control_shared_bytes(memory_bytes, server->state_room);
    server->shared_fd = memfd_create("understudy-shared", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (server->shared_fd < 0 || ftruncate(server->shared_fd, (off_t)server->shared_bytes) < 0 ||
        fcntl(server->shared_fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) < 0)
        return error_errno(-errno, "memory shared with the engine");
    void *shared = mmap(NULL, server->shared_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, server->shared_fd, 0);
    if (shared == MAP_FAILED)
        return error_errno(-errno, "memory shared with the engine");
    server->shared = shared;
    return 0;
}

void server_attach_images(struct server *server, struct images *images)
{
    server->images = images;
}

enum machine_end server_run(struct server *server)
{
    if (server->phase == CONTROL_RUNNING)
        machine_resume(server->machine);
    while (!server_is_over(server) && !server->retired) {
        struct epoll_event event;
        if (epoll_wait(server->epoll, &event, 1, -1) <= 0)
            continue;
        if (event.data.ptr == &server->listener)
            welcome(server);
        else if (event.data.ptr == &server->signals)
            on_signal(server);
        else if (event.data.ptr == &server->gate.wake)
            tell_gate(server);
        else if (event.data.ptr == &server->wake)
            on_wake(server);
        else
            serve(server, event.data.ptr);
    }
    if (server->retired)
        return MACHINE_ENDED;
    log_notice("%s", server->end_text);
    tell_engine(server, server->end == MACHINE_ENDED ? VMM_EVENT_ENDED : VMM_EVENT_FAILED);
    return server->end;
}
