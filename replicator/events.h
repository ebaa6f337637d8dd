/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_EVENTS_H
#define UNDERSTUDY_REPLICATOR_EVENTS_H

#include "replicator/config.h"
#include "replicator/control.h"
#include "replicator/news.h"

/*
 * Tells the world what happened, without ever waiting for it: the latest events stay in a ring, from which
 * each subscriber on the control socket reads at its own pace, and a thread of its own hands them to the
 * journal and to the hooks. Who is too slow misses events, is told how many, and delays nobody. Main thread
 * only.
 */
struct events;

#define EVENTS_KEPT 256

struct events_entry {
    uint64_t sequence; /* from 1, without gaps, in the life of the engine */
    enum news_kind kind;
    uint64_t wall_ns, monotonic_ns; /* CLOCK_REALTIME, CLOCK_MONOTONIC */
    enum role_state state;          /* after it */
    uint64_t generation, epoch, committed_epoch;
    char reason[200]; /* printable ASCII */
};

/* `control` may be NULL: no subscribers. -EPERM, -ENOENT, ... when the configured hooks cannot be used.
 * `config` and `control` outlive the events. */
int events_open(struct events **ret_events, const struct config *config, struct control *control);
/* Hooks of what happened already are run, for some seconds at most. Takes NULL. */
void events_close(struct events *events);

/* What a step of the role machine means; call it when the step's actions were performed. */
void events_observe(struct events *events, const struct news_step *step);
void events_publish(struct events *events, enum news_kind kind, const struct role_status *status,
                    const char *reason);

/* The request {"command": "events", "follow": bool}: the ring's events, one JSON object a line, then the end
 * of the connection or, to follow, whatever comes. */
void events_request(struct events *events, uint64_t client, const json_t *request);

/* The oldest entry that is kept at or behind `*cursor` (a sequence number), moving it on; NULL: none yet.
 * When entries were lost in between, {"event": "dropped", "count": N} comes first. New reference. */
json_t *events_next(void *events, uint64_t *cursor);

/* For status. New reference. */
json_t *events_status(const struct events *events);

#endif
