/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_HUB_H
#define UNDERSTUDY_REPLICATOR_HUB_H

#include "base/mailbox.h"
#include "replicator/arbiter.h"
#include "replicator/config.h"
#include "replicator/control.h"
#include "replicator/link.h"
#include "replicator/loop.h"
#include "replicator/store.h"
#include "replicator/worker.h"

/*
 * What both daemons have in common: the main loop, the notes' mailbox, the guest's thread, a second thread
 * for the arbiter, the links, the control socket, signals, and systemd's notifications. The daemon that
 * embeds a hub as its first member performs the actions of its role machine with it.
 */
struct hub {
    struct config *config;
    struct loop *loop;
    struct mailbox *notes;
    struct worker *worker, *side_worker;
    struct tls_context *tls;
    struct links *links;
    struct control *control;
    struct arbiter *arbiter; /* used by the side worker only */
    int signal_fd;
    char store_path[256], control_path[108], pid_path[256];
    uint64_t started_ns, progress_ns, sweep_ns;
    bool terminal; /* standard error is one: show a progress line */
    bool ending;
    int exit_code;
};

struct hub_ops {
    const struct links_ops *links;
    control_request *request;
    void (*guest_event)(void *daemon, enum vmm_event event); /* guest's thread */
    void (*step)(void *daemon, struct role_event *event);    /* main thread; fills in the time */
    uint64_t (*deadline)(void *daemon);
    /* One line for the terminal and for systemd's status. */
    void (*progress)(void *daemon, char *ret_line, size_t room);
    enum wire_side side;
};

/* `hub->config` is set; everything else is opened. On failure call hub_close. */
int hub_open(struct hub *hub, const struct hub_ops *ops);
void hub_close(struct hub *hub);
/* Until hub->ending. Returns 0 or a negative errno. */
int hub_run(struct hub *hub, const struct hub_ops *ops);

/* Perform the actions that both roles share. False if the action is not one of them. */
bool hub_perform(struct hub *hub, const struct hub_ops *ops, const struct role_action *action);

/* Run a copy of this event through ops->step on the main thread later (never from within a step). */
void hub_event_later(struct hub *hub, const struct hub_ops *ops, const struct role_event *event);

/* A job of `bytes` (struct job first) for the guest's thread. Aborts when out of memory: the caller could not
 * go on. */
void *job_new(size_t bytes, void (*run)(struct job *, void *), void (*deliver)(struct note *, void *));

#endif
