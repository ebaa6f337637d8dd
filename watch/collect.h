/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_COLLECT_H
#define UNDERSTUDY_WATCH_COLLECT_H

#include "watch/find.h"
#include "watch/sample.h"

/*
 * Asks many daemons at the same time how they are, and waits for none of them: the owner sleeps on
 * collect_fd(), at most until collect_deadline_ns(), and calls collect_step(). One request to a daemon at a
 * time. A daemon that has not answered in time is told as silent, once; its connection stays, so that a
 * daemon that hangs meets one client and not a new one every second, and a late answer is still an answer.
 * One owner thread.
 */
struct collect;

enum collect_outcome {
    COLLECT_ANSWERED,
    COLLECT_ABSENT, /* nobody listens there */
    COLLECT_SILENT, /* no answer yet, within the limit */
    COLLECT_BROKEN, /* nonsense, a refusal, or the end of the connection */
};

struct collect_answer {
    const char *path;
    enum collect_outcome outcome;
    const struct sample *sample; /* COLLECT_ANSWERED, as `status` */
    json_t *status;              /* borrowed */
    const char *why;             /* else; printable ASCII */
};

typedef void collect_told(void *ctx, const struct collect_answer *answer);

int collect_new(struct collect **ret_collect, unsigned limit_ms, collect_told *told, void *ctx);
void collect_free(struct collect *collect);

/* Ask the daemon at `path`, unless it is being asked. May tell at once. */
void collect_ask(struct collect *collect, const char *path, uint64_t now_ns);

/* Readable when there is something for collect_step(). Borrowed. */
int collect_fd(const struct collect *collect);
/* When the next daemon is late; UINT64_MAX: none can be. */
uint64_t collect_deadline_ns(const struct collect *collect);
void collect_step(struct collect *collect, uint64_t now_ns);

/* Ask all of `list` and wait until each has been told of: at most the limit. */
void collect_all(struct collect *collect, const struct find_list *list);

#endif
