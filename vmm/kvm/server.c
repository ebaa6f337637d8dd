/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/server.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/histogram.h"
#include "base/log.h"
#include "base/scope.h"
#include "vmm/kvm/control.h"
#include "vmm/kvm/gatekeeper.h"
#include "vmm/vmm.h"

#include <assert.h>
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

#define VISITORS_MAX 8

struct visitor {
    int fd; /* -1: free */
};

struct server {
    struct machine *machine;
    void (*announce)(void *ctx);
    void *announce_ctx;
    struct images *images;
    int (*boot)(void *ctx);
    void *boot_ctx;
    int listener, signals, wake, epoll;
    struct visitor visitors[VISITORS_MAX];
    struct visitor *engine;
    struct gatekeeper gate;
    enum control_phase phase;
    bool released;          /* the engine's last pause is over, and not counted yet */
    struct histogram stood; /* how long the guest stood still for its engine, ns */

    int shared_fd;
    uint8_t *shared;
    size_t shared_bytes, state_room;

    enum machine_end end; /* set before `wake` is written */
    char end_text[ERROR_TEXT_MAX];
    bool retired;
};

/* --- the guest's end --- */

static void on_ended(void *ctx, enum machine_end why, const char *text)
{
    struct server *server = ctx;
    snprintf(server->end_text, sizeof server->end_text, "%s", text);
    __atomic_store_n(&server->end, why, __ATOMIC_RELEASE);
    eventfd_write(server->wake, 1);
}

static bool is_over(const struct server *server)
{
    return __atomic_load_n(&server->end, __ATOMIC_ACQUIRE) != MACHINE_GOES_ON;
}

/* --- the guest's new beginning --- */

static void on_restart(void *ctx)
{
    eventfd_write(((struct server *)ctx)->wake, 1);
}

/* Of a machine that stands still; afterwards it does so before the kernel's first instruction, or is over. */
static void reboot(struct server *server)
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
    if (is_over(server) || server->phase != CONTROL_RUNNING || !machine_wants_restart(server->machine))
        return;
    if (machine_pause(server->machine) < 0) {
        machine_end(server->machine, MACHINE_CRASHED, "the guest cannot boot again: %s", error_text());
        return;
    }
    reboot(server);
    machine_resume(server->machine);
}

/* --- who is connected --- */

/* The last pause, as soon as its end is known: before the next, or before its engine leaves. */
static void count_stood(struct server *server)
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
    count_stood(server);
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

/* --- requests --- */

/* What comes and goes with one request besides its numbers. */
struct call {
    int came; /* a descriptor of the engine's, ours to close; -1: none */
    int give[CONTROL_FDS_MAX];
    unsigned give_count;
};
static_assert(IMAGES_MAX <= CONTROL_FDS_MAX, "all disks go with one answer");

static uint8_t *state_area(const struct server *server)
{
    return server->shared + control_state_offset(machine_memory_bytes(server->machine));
}

static struct gate_stats *figures(const struct server *server)
{
    uint64_t memory_bytes = machine_memory_bytes(server->machine);
    return (struct gate_stats *)(server->shared + control_figures_offset(memory_bytes, server->state_room));
}

static int do_hello(struct server *server, struct visitor *visitor, const struct control_message *request,
                    struct control_message *answer, struct call *call)
{
    char *text cleanup_free = NULL;
    if (server->engine)
        return error_set(-EBUSY, "another engine has this guest");
    if (request->value != CONTROL_VERSION)
        return error_set(-EPROTO, "the engine speaks version %llu of the control protocol, this VMM %u",
                         (unsigned long long)request->value, CONTROL_VERSION);
    int r = machine_describe(server->machine, &text);
    if (r < 0)
        return r;
    answer->value = strlen(text);
    if (answer->value > server->state_room)
        return error_set(-ENOBUFS, "the description has %llu bytes", (unsigned long long)answer->value);
    memcpy(state_area(server), text, answer->value);
    answer->memory_bytes = machine_memory_bytes(server->machine);
    answer->state_room = server->state_room;
    call->give[call->give_count++] = machine_memory_fd(server->machine);
    call->give[call->give_count++] = server->shared_fd;
    server->engine = visitor;
    return 0;
}

/* What was written since the last time, and the state; of a machine that stands still. */
static int capture(struct server *server, struct control_message *answer)
{
    size_t bytes = 0;
    int r = 0;
    if (machine_tracked(server->machine))
        r = machine_dirty(server->machine, true, (uint64_t *)server->shared);
    else
        memset(server->shared, 0, control_dirty_bytes(machine_memory_bytes(server->machine)));
    if (r == 0)
        r = machine_save(server->machine, state_area(server), server->state_room, &bytes);
    answer->value = bytes;
    return r;
}

static int stop(struct server *server)
{
    count_stood(server);
    int r = machine_pause(server->machine);
    if (r == 0 && machine_wants_restart(server->machine))
        reboot(server);
    if (r == 0 && is_over(server))
        r = error_set(-ESRCH, "the guest is over: %s", server->end_text);
    return r;
}

static int do_pause(struct server *server, struct control_message *answer)
{
    int r = server->phase == CONTROL_RUNNING ? stop(server) : 0;
    if (r == 0)
        r = capture(server, answer);
    if (r == 0)
        answer->line = gatekeeper_draw(&server->gate);
    if (r == 0 && server->phase == CONTROL_RUNNING)
        server->phase = CONTROL_PAUSED;
    if (r < 0 && server->phase == CONTROL_RUNNING && !is_over(server)) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        machine_resume(server->machine);
        error_set(r, "%s", text);
    }
    return r;
}

static int do_resume(struct server *server)
{
    machine_resume(server->machine);
    server->released = server->phase == CONTROL_PAUSED;
    server->phase = CONTROL_RUNNING;
    return 0;
}

static int do_hold(struct server *server)
{
    int r = server->phase == CONTROL_RUNNING ? stop(server) : 0;
    if (r == 0)
        server->phase = CONTROL_HELD;
    return r;
}

/* The engine's memory is not ours: what was checked must be what is loaded. */
static int do_load(struct server *server, uint64_t bytes)
{
    if (bytes > server->state_room)
        return error_set(-EMSGSIZE, "a state of %llu bytes, at most %zu are possible",
                         (unsigned long long)bytes, server->state_room);
    void *state cleanup_free = malloc(bytes + 1);
    if (!state)
        return error_set(-ENOMEM, "state: no memory");
    memcpy(state, state_area(server), bytes);
    int r = machine_load(server->machine, state, bytes);
    if (r == 0)
        server->phase = CONTROL_LOADED;
    return r;
}

static int do_retire(struct server *server, const struct visitor *visitor)
{
    bool engaged = server->engine && server->engine != visitor;
    if (server->phase != CONTROL_HELD || engaged)
        return error_set(-EADDRINUSE, "the guest %s; if it is not meant to run here, end it",
                         engaged ? "has an engine" : "was not stopped for good by an engine");
    server->retired = true;
    return 0;
}

/* In which phases an engine may ask for it. */
static bool permitted(const struct server *server, uint32_t op)
{
    enum control_phase phase = server->phase;
    switch (op) {
    case CONTROL_LOAD:
        return phase == CONTROL_WAITING;
    case CONTROL_RUN:
        return phase == CONTROL_LOADED;
    case CONTROL_DISKS:
        return phase != CONTROL_LOADED;
    case CONTROL_TRACK:
    case CONTROL_TELL:
    case CONTROL_HOLD:
        return phase >= CONTROL_RUNNING;
    case CONTROL_SCAN:
        return phase >= CONTROL_RUNNING && machine_tracked(server->machine);
    case CONTROL_PAUSE:
        return phase == CONTROL_RUNNING || phase == CONTROL_HELD;
    case CONTROL_RESUME:
    case CONTROL_RELEASE:
        return phase == CONTROL_PAUSED || phase == CONTROL_HELD;
    case CONTROL_ANNOUNCE:
        return phase == CONTROL_RUNNING;
    default:
        return false;
    }
}

static int obey(struct server *server, const struct control_message *request, struct control_message *answer,
                struct call *call)
{
    switch (request->op) {
    case CONTROL_TRACK:
        return machine_track(server->machine);
    case CONTROL_SCAN:
        return machine_dirty(server->machine, false, (uint64_t *)server->shared);
    case CONTROL_PAUSE:
        return do_pause(server, answer);
    case CONTROL_RESUME:
    case CONTROL_RELEASE:
    case CONTROL_RUN:
        return do_resume(server);
    case CONTROL_HOLD:
        return do_hold(server);
    case CONTROL_LOAD:
        return do_load(server, request->value);
    case CONTROL_DISKS:
        call->give_count = images_descriptors(server->images, server->phase == CONTROL_WAITING, call->give);
        return 0;
    case CONTROL_TELL:
        return images_tell(server->images, request->value, take_fd(&call->came));
    default:
        assert(request->op == CONTROL_ANNOUNCE); /* permitted() knows no other */
        server->announce(server->announce_ctx);
        return 0;
    }
}

static int perform(struct server *server, struct visitor *visitor, const struct control_message *request,
                   struct control_message *answer, struct call *call)
{
    if (request->op == CONTROL_LOOK)
        return 0;
    if (request->op == CONTROL_HELLO)
        return do_hello(server, visitor, request, answer, call);
    if (request->op == CONTROL_RETIRE)
        return do_retire(server, visitor);
    if (gatekeeper_knows(request->op))
        return gatekeeper_perform(&server->gate, visitor->fd, request, figures(server), answer);
    if (visitor != server->engine)
        return error_set(-EPERM, "operation %u without HELLO", request->op);
    if (!permitted(server, request->op))
        return error_set(-EINVAL, "operation %u in phase %d of the guest", request->op, server->phase);
    return obey(server, request, answer, call);
}

/* -errno: nobody is there any more, or has lost its way. */
static int handle(struct server *server, struct visitor *visitor, const struct control_message *request,
                  int came)
{
    struct control_message answer = {.op = request->op, .sequence = request->sequence};
    struct call call = {.came = came};
    answer.code = perform(server, visitor, request, &answer, &call);
    answer.phase = server->phase;
    if (answer.code < 0)
        snprintf(answer.text, sizeof answer.text, "%s", error_text());
    if (call.came >= 0)
        close(call.came);
    if (request->op == CONTROL_RELEASE && answer.code == 0)
        return 0;
    return control_send(visitor->fd, &answer, call.give, answer.code < 0 ? 0 : call.give_count, MSG_DONTWAIT);
}

static void serve(struct server *server, struct visitor *visitor)
{
    struct control_message request;
    unsigned count;
    int came, r;
    while ((r = control_receive(visitor->fd, true, &request, &came, 1, &count, MSG_DONTWAIT)) == 0) {
        r = handle(server, visitor, &request, count ? came : -1);
        if (r < 0)
            break;
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
        do_resume(server);
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
    while (!is_over(server) && !server->retired) {
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
