/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/hub.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/fence.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#define PROGRESS_EVERY (500 * NS_PER_MS) /* and proof of life: a small part of the units' WatchdogSec */

void *job_new(size_t bytes, void (*run)(struct job *, void *), void (*deliver)(struct note *, void *))
{
    struct job *job = calloc(1, bytes);
    if (!job)
        abort();
    job->run = run;
    job->note.deliver = deliver;
    return job;
}

/* --- signals: an orderly end --- */

static void on_signal(void *ctx, int fd, uint32_t events)
{
    struct hub *hub = ctx;
    struct signalfd_siginfo info;
    (void)events;
    if (read(fd, &info, sizeof info) != sizeof info)
        return;
    log_notice("%s: ending in order", info.ssi_signo == SIGINT ? "interrupted" : "terminated");
    struct role_event event = {.type = EVENT_STOP};
    hub->ops->step(hub, &event);
}

static int open_signals(struct hub *hub)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGINT);
    sigaddset(&set, SIGTERM);
    signal(SIGPIPE, SIG_IGN);
    pthread_sigmask(SIG_BLOCK, &set, NULL); /* before any thread starts: they inherit it */
    hub->signal_fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    if (hub->signal_fd < 0)
        return error_errno(-errno, "signalfd");
    return loop_add(hub->loop, hub->signal_fd, EPOLLIN, on_signal, hub);
}

static void on_notes(void *ctx, int fd, uint32_t events)
{
    struct hub *hub = ctx;
    (void)fd;
    (void)events;
    for (struct note *note; (note = mailbox_take(hub->notes));) {
        note->deliver(note, hub);
        free(note);
    }
}

/* --- opening and closing --- */

static int make_directory(const char *path, mode_t mode)
{
    char partial[256];
    if (snprintf(partial, sizeof partial, "%s", path) >= (int)sizeof partial)
        return error_set(-ENAMETOOLONG, "directory '%s': path too long", path);
    for (char *slash = partial + 1; (slash = strchr(slash, '/')); slash++) {
        *slash = 0;
        if (mkdir(partial, 0755) < 0 && errno != EEXIST)
            return error_errno(-errno, "make directory '%s'", partial);
        *slash = '/';
    }
    if (mkdir(partial, mode) < 0 && errno != EEXIST)
        return error_errno(-errno, "make directory '%s'", partial);
    return 0;
}

static void no_guest_events(void *daemon, enum vmm_event event)
{
    (void)daemon;
    (void)event;
}

static void on_request(void *ctx, uint64_t client, const char *command, json_t *request)
{
    struct hub *hub = ctx;
    hub->ops->request(hub, client, command, request);
}

int hub_open(struct hub *hub)
{
    const struct config_host *self = &hub->config->self;
    hub->signal_fd = -1;
    hub->started_ns = clock_now_ns();
    hub->terminal = isatty(STDERR_FILENO);
    struct tls_files files = {self->ca, self->certificate, self->key, hub->config->peer.tls_name,
                              hub->config->aes};
    int r;
    if ((r = make_directory(self->run_dir, 0755)) < 0 || (r = make_directory(self->state_dir, 0755)) < 0 ||
        (r = config_file(hub->config, self->run_dir, "sock", hub->control_path, sizeof hub->control_path)) <
            0 ||
        (r = config_file(hub->config, self->run_dir, "pid", hub->pid_path, sizeof hub->pid_path)) < 0 ||
        (r = config_file(hub->config, self->state_dir, "state", hub->store_path, sizeof hub->store_path)) <
            0 ||
        (r = loop_new(&hub->loop)) < 0 || (r = open_signals(hub)) < 0 ||
        (r = mailbox_new(&hub->notes, 4096)) < 0 ||
        (r = loop_add(hub->loop, mailbox_fd(hub->notes), EPOLLIN, on_notes, hub)) < 0 ||
        (r = control_new(&hub->control, hub->loop, hub->control_path, on_request, hub)) < 0 ||
        (r = events_open(&hub->events, hub->config, hub->control)) < 0 ||
        (r = tls_context_new(&hub->tls, &files)) < 0 ||
        (r = arbiter_open(&hub->arbiter, hub->config->arbiter, &hub->config->etcd, hub->config->uuid,
                          self->name)) < 0)
        return r;
    return 0;
}

void hub_close(struct hub *hub)
{
    arbiter_close(hub->arbiter);
    tls_context_free(hub->tls);
    control_free(hub->control);
    events_close(hub->events);
    mailbox_free(hub->notes);
    if (hub->signal_fd >= 0)
        close(hub->signal_fd);
    loop_free(hub->loop);
    json_decref(hub->migration);
}

int hub_role_open(struct hub *hub, const struct hub_ops *ops)
{
    int r;
    hub->ops = ops;
    hub->ending = hub->turn = false;
    hub->failure[0] = 0;
    atomic_store(&hub->closing, false);
    if ((ops->side == WIRE_SIDE_STANDBY && hub->config->peer.fence &&
         (r = fence_check_file(hub->config->peer.fence)) < 0) ||
        (r = links_new(&hub->links, ops->links, hub, hub->notes, hub->tls, ops->side,
                       hub->config->role.detect_ns)) < 0 ||
        (r = worker_new(&hub->worker, hub->notes, hub, ops->guest_event)) < 0 ||
        (r = worker_new(&hub->side_worker, hub->notes, hub, no_guest_events)) < 0)
        return r;
    return 0;
}

void hub_role_close(struct hub *hub)
{
    atomic_store(&hub->closing, true);
    links_close(hub->links);
    links_close(hub->door);
    worker_free(hub->worker);
    worker_free(hub->side_worker);
    links_free(hub->links); /* a round on the guest's thread may have kicked until here */
    links_free(hub->door);
    hub->links = hub->door = NULL;
    hub->worker = hub->side_worker = NULL;
    /* Their authors are gone, and so is who could make sense of them. */
    for (void *note; (note = mailbox_take(hub->notes));)
        free(note);
}

static void on_connection(void *ctx, int fd, uint32_t events)
{
    struct links **links = ctx;
    (void)events;
    int accepted = accept4(fd, NULL, NULL, SOCK_CLOEXEC | SOCK_NONBLOCK);
    if (accepted >= 0)
        links_accept(*links, accepted);
}

int hub_listen(struct hub *hub, struct links **links, int *ret_fd)
{
    int fd, r = lane_listen(hub->config->self.address, &fd);
    if (r < 0)
        return r;
    r = loop_add(hub->loop, fd, EPOLLIN, on_connection, links);
    if (r < 0) {
        close(fd);
        return r;
    }
    *ret_fd = fd;
    return 0;
}

void hub_unlisten(struct hub *hub, int fd)
{
    if (fd < 0)
        return;
    loop_remove(hub->loop, fd);
    close(fd);
}

static void show_progress(struct hub *hub, const struct hub_ops *ops, uint64_t now)
{
    char line[200];
    ops->progress(hub, line, sizeof line);
    sd_notifyf(0, "STATUS=%s\nWATCHDOG=1", line);
    if (hub->terminal)
        fprintf(stderr, "\r\033[K%s", line);
    hub->progress_ns = now + PROGRESS_EVERY;
}

void hub_fail(struct hub *hub, const char *why)
{
    log_error("%s; the engine ends", why);
    snprintf(hub->failure, sizeof hub->failure, "%s", why);
    hub->ending = true;
    hub->exit_code = 1;
}

static void publish(struct hub *hub, const struct hub_ops *ops, enum news_kind kind, const char *reason)
{
    struct role_status status;
    ops->status(hub, &status);
    events_publish(hub->events, kind, &status, reason);
}

static int run(struct hub *hub, const struct hub_ops *ops)
{
    while (!hub->ending) {
        uint64_t deadline = ops->deadline(hub);
        if (hub->progress_ns < deadline)
            deadline = hub->progress_ns;
        struct links *const both[] = {hub->links, hub->door};
        for (size_t i = 0; i < array_length(both); i++)
            if (both[i] && links_due(both[i]) < deadline)
                deadline = links_due(both[i]);
        int r = loop_once(hub->loop, deadline);
        if (r < 0)
            return r;
        uint64_t now = clock_now_ns();
        if (!hub->ending && now >= ops->deadline(hub)) {
            struct role_event tick = {.type = EVENT_TICK};
            ops->step(hub, &tick);
        }
        if (now >= hub->progress_ns)
            show_progress(hub, ops, now);
        for (size_t i = 0; i < array_length(both); i++)
            if (both[i] && now >= links_due(both[i]))
                links_sweep(both[i], now);
    }
    return 0;
}

int hub_run(struct hub *hub, const struct hub_ops *ops)
{
    sd_notifyf(0, "READY=1\nMAINPID=%d", (int)getpid());
    int r = run(hub, ops);
    if (r < 0 || hub->failure[0])
        publish(hub, ops, NEWS_ENGINE_FAILED, r < 0 ? error_text() : hub->failure);
    if (hub->terminal)
        fprintf(stderr, "\r\033[K");
    if (!hub->turn)
        sd_notify(0, "STOPPING=1");
    return r;
}

void hub_started(struct hub *hub, const struct hub_ops *ops)
{
    publish(hub, ops, NEWS_STARTED, "");
}

/* --- actions that both roles share --- */

struct later {
    struct note note;
    const struct hub_ops *ops;
    struct role_event event;
    char text[ERROR_TEXT_MAX];
};

static void deliver_later(struct note *note, void *daemon)
{
    struct later *later = (struct later *)note;
    later->ops->step(daemon, &later->event);
}

void hub_event_later(struct hub *hub, const struct hub_ops *ops, const struct role_event *event)
{
    struct later *later = calloc(1, sizeof *later);
    if (!later)
        abort();
    later->note.deliver = deliver_later;
    later->ops = ops;
    later->event = *event;
    if (event->text) {
        snprintf(later->text, sizeof later->text, "%s", event->text);
        later->event.text = later->text;
    }
    note_post(hub->notes, later);
}

struct arbitration {
    struct job job;
    const struct hub_ops *ops;
    uint64_t from, to, generation, took_ns;
    bool fence;
    enum role_arbiter result;
    char why[ERROR_TEXT_MAX]; /* "" when there is nothing to say */
};

/* On the side worker's thread, which may wait. */
static void run_arbitration(struct job *job, void *daemon)
{
    struct arbitration *arbitration = (struct arbitration *)job;
    struct hub *hub = daemon;
    const struct config *config = hub->config;
    uint64_t start_ns = clock_now_ns();
    int r = arbiter_swap(hub->arbiter, arbitration->from, arbitration->to, &arbitration->generation);
    arbitration->took_ns = clock_now_ns() - start_ns;
    arbitration->result = r < 0 ? ARBITER_UNREACHABLE : r == ARBITER_RESULT_WON ? ARBITER_WON : ARBITER_LOST;
    if (arbitration->fence && arbitration->result == ARBITER_WON) {
        log_warning("fencing %s by %s", config->peer.name, config->peer.fence[0]);
        r = fence_run(config->peer.fence, (unsigned)(config->fence_timeout_ns / NS_PER_MS), &hub->closing);
        if (r < 0)
            arbitration->result = ARBITER_UNFENCED;
        else
            log_notice("%s is fenced", config->peer.name);
    }
    if (r < 0)
        snprintf(arbitration->why, sizeof arbitration->why, "%s", error_text());
}

static void deliver_arbitration(struct note *note, void *daemon)
{
    struct arbitration *arbitration = (struct arbitration *)note;
    struct role_event event = {.type = EVENT_ARBITER,
                               .generation = arbitration->generation,
                               .arbiter = arbitration->result,
                               .text = arbitration->why[0] ? arbitration->why : NULL};
    if (event.text)
        log_warning("%s", event.text);
    if (event.arbiter != ARBITER_UNREACHABLE)
        ((struct hub *)daemon)->arbiter_ns = arbitration->took_ns;
    arbitration->ops->step(daemon, &event);
}

bool hub_perform(struct hub *hub, const struct hub_ops *ops, const struct role_action *action)
{
    switch (action->type) {
    case ACTION_ARBITRATE: {
        struct arbitration *arbitration = job_new(sizeof *arbitration, run_arbitration, deliver_arbitration);
        arbitration->ops = ops;
        arbitration->from = action->from;
        arbitration->to = action->to;
        arbitration->fence = action->fence;
        worker_submit(hub->side_worker, &arbitration->job);
        return true;
    }
    case ACTION_STORE: {
        struct store_state state = {.generation = action->to, .active = action->active};
        /* Going on without the record could later run a guest by an old right: end instead; the guest stays
         * as it is. */
        if (store_write(hub->store_path, hub->config->uuid, &state) < 0)
            hub_fail(hub, error_text());
        return true;
    }
    case ACTION_REPORT:
        if (hub->terminal)
            fprintf(stderr, "\r\033[K");
        log_line((enum log_level)action->level, "%s", action->text);
        return true;
    case ACTION_EXIT:
        hub->ending = true;
        hub->exit_code = action->code ? 1 : 0;
        return true;
    case ACTION_TURN:
        hub->ending = hub->turn = true;
        return true;
    default:
        return false;
    }
}
