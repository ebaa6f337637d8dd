/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_SESSION_H
#define UNDERSTUDY_BENCH_SESSION_H

#include "bench/worker.h"
#include "transport/lane.h"
#include "wire/message.h"

#include <pthread.h>

/*
 * The lanes of one measurement: a control lane and `lanes` data lanes, and what the worker's thread waits
 * for. The protocol is the real one, cut down to what an undisturbed session needs: HELLO, data, ROUND,
 * COMMIT, ROUND_DONE, ACK.
 */
struct session;

struct session_lane {
    struct session *session;
    struct lane *lane;
    unsigned index; /* standby: by order of arrival, until HELLO says */
    bool greeted;   /* HELLO was sent or has come */
};

struct session {
    struct worker *worker;
    struct session_lane lanes[BENCH_LANES_MAX + 1];
    unsigned lane_count;
    /* What a data lane sends (primary) or has received (standby). */
    int (*produce)(void *ctx, unsigned lane, struct wire_writer *writer);
    int (*frame)(void *ctx, const struct wire_frame *frame);
    void *ctx;

    pthread_mutex_t lock; /* of what follows */
    pthread_cond_t changed;
    struct lane *control; /* NULL until it has greeted */
    unsigned up;
    int failure;
    char text[256];
    struct {
        bool waiting;
        enum wire_type type;
        uint64_t epoch;
        uint8_t payload[64];
        size_t length;
    } outgoing; /* one frame for the control lane */
};

/* Connect or accept all lanes and wait until they are up. On failure session_close() is still due. */
int session_open(struct session *session, struct worker *worker);
void session_close(struct session *session);

/* Put a frame on the control lane; the former one must have left (it has, when it was answered). */
void session_send(struct session *session, enum wire_type type, uint64_t epoch, const void *payload,
                  size_t length);

/* Wait until *flag (guarded by the lock) is set, and reset it. Fails when a lane does, or after two minutes.
 */
int session_wait(struct session *session, bool *flag, const char *what);
void session_signal(struct session *session, bool *flag);

/* Bytes that this side wrote to its sockets. */
uint64_t session_bytes_sent(const struct session *session);

#endif
