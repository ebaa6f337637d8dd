/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_CONTROL_H
#define UNDERSTUDY_REPLICATOR_CONTROL_H

#include "replicator/loop.h"

#include <jansson.h>
#include <stdbool.h>

/*
 * The control socket: a UNIX stream socket (mode 0600) on which the commands talk to the daemon, one JSON
 * object a line each way. Requests of one client are answered in order; an answer may come later (takeover,
 * verify).
 */
struct control;

/* `request` gets the parsed object (borrowed) and a client number to answer to. */
typedef void control_request(void *ctx, uint64_t client, const char *command, json_t *request);

/* -EADDRINUSE when a daemon answers there already; a stale socket file is replaced. */
int control_new(struct control **ret_control, struct loop *loop, const char *path, control_request *request,
                void *ctx);
void control_free(struct control *control);

/* Takes over the reference to `reply`. A client that is gone is ignored. */
void control_reply(struct control *control, uint64_t client, json_t *reply);

/*
 * Streams: a client that is answered with one object a line, as many as there are and as fast as it reads.
 * The source is asked for the object at or behind `*cursor`, which it moves on; NULL: none yet. Nothing is
 * queued but the line that is being sent, so a client that does not read costs nothing. When the source has
 * none, the connection ends, or with `follow` stays until control_wake() says that there is more.
 */
typedef json_t *control_source(void *ctx, uint64_t *cursor);
void control_stream(struct control *control, uint64_t client, control_source *source, void *ctx,
                    uint64_t cursor, bool follow);
void control_wake(struct control *control);

/* JSON takes UTF-8 only, and these texts may quote anything: replace what is not printable ASCII by '?'. */
void control_printable(char *text);

/* {"error": text} */
void control_refuse(struct control *control, uint64_t client, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* -ENAMETOOLONG. */
struct sockaddr_un;
int control_address(const char *path, struct sockaddr_un *ret_address);

/* The commands' half: send `request` (reference taken over), wait for the answer at most `timeout_ms`.
 * -ENOENT or -ECONNREFUSED: no daemon there. */
int control_call(const char *path, json_t *request, unsigned timeout_ms, json_t **ret_reply);

/* Send `request` (reference taken over) and hand each line of the answer to `line`, borrowed, until the
 * daemon ends the connection (0) or `line` returns other than 0, which is returned. Between lines at most
 * `timeout_ms` (0: for ever) may pass. Errors as control_call. */
int control_follow(const char *path, json_t *request, unsigned timeout_ms,
                   int (*line)(void *ctx, json_t *object), void *ctx);

#endif
