/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_HUB_H
#define UNDERSTUDY_REPLICATOR_HUB_H

#include "base/mailbox.h"
#include "replicator/arbiter.h"
#include "replicator/config.h"
#include "replicator/control.h"
#include "replicator/events.h"
#include "replicator/link.h"
#include "replicator/loop.h"
#include "replicator/store.h"
#include "replicator/worker.h"

#include <stdatomic.h>

/*
 * What both daemons have in common: the main loop, the notes' mailbox, the guest's thread, a second thread
 * for the arbiter and the fence, the links, the control socket, signals, and systemd's notifications. The
 * daemon that embeds a hub as its first member performs the actions of its role machine with it.
 *
 * An engine may change its role (engine.c). The upper half of the hub outlives that, so that commands and
 * followers of events stay connected; the lower half belongs to one role.
 */
struct hub_ops;
struct hub {
    struct config *config;
    struct loop *loop;
    struct mailbox *notes;
    struct tls_context *tls;
    struct control *control;
    struct events *events;
    struct arbiter *arbiter; /* used by the side worker only */
    uint64_t arbiter_ns;     /* what its last answer took; 0: none yet */
    int signal_fd;
    bool turned;       /* it was in the other role before, and changed over to this one */
    json_t *migration; /* what became of the latest planned move, told in the role before; NULL: none */
    char store_path[256], control_path[108], pid_path[256];
    uint64_t started_ns, progress_ns;
    bool terminal; /* standard error is one: show a progress line */

    /* of a role */
    const struct hub_ops *ops;
    struct worker *worker, *side_worker;
    struct links *links;
    struct links *door;  /* a primary's; NULL: nobody can call it */
    atomic_bool closing; /* tells the side worker to give a fence up */
    bool ending;
    bool turn; /* and go on in the other role */
    int exit_code;
    char failure[200]; /* why it cannot go on; "": it can */
};

struct hub_ops {
    const struct links_ops *links;
    control_request *request;
    void (*guest_event)(void *daemon, enum vmm_event event); /* guest's thread */
    void (*step)(void *daemon, struct role_event *event);    /* main thread; fills in the time */
    void (*status)(void *daemon, struct role_status *ret_status);
    uint64_t (*deadline)(void *daemon);
    /* One line for the terminal and for systemd's status. */
    void (*progress)(void *daemon, char *ret_line, size_t room);
    enum wire_side side;
};

/* `hub->config` is set; everything else is opened. On failure call hub_close. */
int hub_open(struct hub *hub);
void hub_close(struct hub *hub);
/* What belongs to a role. On failure call hub_role_close, which joins all threads: afterwards nothing of the
 * role's runs or waits. */
int hub_role_open(struct hub *hub, const struct hub_ops *ops);
void hub_role_close(struct hub *hub);
/* Listen at this host's address, and hand what connects to `*links`, which may change. The descriptor is the
 * caller's; close it with hub_unlisten(), which takes -1. */
int hub_listen(struct hub *hub, struct links **links, int *ret_fd);
void hub_unlisten(struct hub *hub, int fd);
/* The role machine is there: from here on the daemon has events to tell. Before its first step. */
void hub_started(struct hub *hub, const struct hub_ops *ops);
/* Until hub->ending. Returns 0 or a negative errno. */
int hub_run(struct hub *hub, const struct hub_ops *ops);

/* The engine cannot go on: says so, and ends; the guest stays as it is. */
void hub_fail(struct hub *hub, const char *why);

/* Perform the actions that both roles share. False if the action is not one of them. */
bool hub_perform(struct hub *hub, const struct hub_ops *ops, const struct role_action *action);

/* Run a copy of this event through ops->step on the main thread later (never from within a step). */
void hub_event_later(struct hub *hub, const struct hub_ops *ops, const struct role_event *event);

/* A job of `bytes` (struct job first) for the guest's thread. Aborts when out of memory: the caller could not
 * go on. */
void *job_new(size_t bytes, void (*run)(struct job *, void *), void (*deliver)(struct note *, void *));

#endif
