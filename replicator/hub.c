/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/hub.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"

#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>

#define ARBITER_TIMEOUT_MS 2000
#define PROGRESS_EVERY     (500 * NS_PER_MS)
#define SWEEP_EVERY        NS_PER_S

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

struct hub_and_ops {
    struct hub *hub;
    const struct hub_ops *ops;
};

static struct hub_and_ops handlers; /* one daemon a process */

static void on_signal(void *ctx, int fd, uint32_t events)
{
    struct signalfd_siginfo info;
    (void)ctx;
    (void)events;
    if (read(fd, &info, sizeof info) != sizeof info)
        return;
    log_notice("%s: ending in order", info.ssi_signo == SIGINT ? "interrupted" : "terminated");
    struct role_event event = {.type = EVENT_STOP};
    handlers.ops->step(handlers.hub, &event);
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
    return loop_add(hub->loop, hub->signal_fd, EPOLLIN, on_signal, NULL);
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

int hub_open(struct hub *hub, const struct hub_ops *ops)
{
    const struct config_host *self = &hub->config->self;
    hub->signal_fd = -1;
    hub->started_ns = clock_now_ns();
    hub->terminal = isatty(STDERR_FILENO);
    handlers = (struct hub_and_ops){hub, ops};
    struct tls_files files = {self->ca, self->certificate, self->key, hub->config->peer.tls_name};
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
        (r = control_new(&hub->control, hub->loop, hub->control_path, ops->request, hub)) < 0 ||
        (r = tls_context_new(&hub->tls, &files)) < 0 ||
        (r = arbiter_open(&hub->arbiter, hub->config->arbiter, hub->config->uuid, self->name)) < 0 ||
        (r = links_new(&hub->links, ops->links, hub, hub->notes, hub->tls, ops->side,
                       hub->config->role.detect_ns)) < 0 ||
        (r = worker_new(&hub->worker, hub->notes, hub, ops->guest_event)) < 0 ||
        (r = worker_new(&hub->side_worker, hub->notes, hub, no_guest_events)) < 0)
        return r;
    return 0;
}

void hub_close(struct hub *hub)
{
    links_close(hub->links);
    worker_free(hub->worker);
    worker_free(hub->side_worker);
    links_free(hub->links); /* a round on the guest's thread may have kicked until here */
    arbiter_close(hub->arbiter);
    tls_context_free(hub->tls);
    control_free(hub->control);
    mailbox_free(hub->notes);
    if (hub->signal_fd >= 0)
        close(hub->signal_fd);
    loop_free(hub->loop);
}

static void show_progress(struct hub *hub, const struct hub_ops *ops, uint64_t now)
{
    char line[200];
    ops->progress(hub, line, sizeof line);
    sd_notifyf(0, "STATUS=%s", line);
    if (hub->terminal)
        fprintf(stderr, "\r\033[K%s", line);
    hub->progress_ns = now + PROGRESS_EVERY;
}

int hub_run(struct hub *hub, const struct hub_ops *ops)
{
    sd_notifyf(0, "READY=1\nMAINPID=%d", (int)getpid());
    while (!hub->ending) {
        uint64_t deadline = ops->deadline(hub);
        if (hub->progress_ns < deadline)
            deadline = hub->progress_ns;
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
        if (now >= hub->sweep_ns) {
            links_sweep(hub->links, now);
            hub->sweep_ns = now + SWEEP_EVERY;
        }
    }
    if (hub->terminal)
        fprintf(stderr, "\r\033[K");
    sd_notify(0, "STOPPING=1");
    return 0;
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
    uint64_t from, to, generation;
    int result;
};

static void run_arbitration(struct job *job, void *daemon)
{
    struct arbitration *arbitration = (struct arbitration *)job;
    struct hub *hub = daemon;
    arbitration->result = arbiter_swap(hub->arbiter, arbitration->from, arbitration->to, ARBITER_TIMEOUT_MS,
                                       &arbitration->generation);
    if (arbitration->result < 0)
        log_warning("arbiter: %s", error_text());
}

static void deliver_arbitration(struct note *note, void *daemon)
{
    struct arbitration *arbitration = (struct arbitration *)note;
    struct role_event event = {.type = EVENT_ARBITER, .generation = arbitration->generation};
    event.arbiter = arbitration->result < 0                     ? ARBITER_UNREACHABLE
                    : arbitration->result == ARBITER_RESULT_WON ? ARBITER_WON
                                                                : ARBITER_LOST;
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
        worker_submit(hub->side_worker, &arbitration->job);
        return true;
    }
    case ACTION_STORE: {
        struct store_state state = {.generation = action->to, .active = action->active};
        /* Going on without the record could later run a guest by an old right: end instead; the guest stays
         * as it is. */
        if (store_write(hub->store_path, hub->config->uuid, &state) < 0) {
            log_error("%s", error_text());
            hub->ending = true;
            hub->exit_code = 1;
        }
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
    default:
        return false;
    }
}
