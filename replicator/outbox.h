/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_OUTBOX_H
#define UNDERSTUDY_REPLICATOR_OUTBOX_H

#include "wire/frame.h"

#include <pthread.h>

/* Frames that wait for the control lane: the main thread puts, the lane's thread takes. Bounded. */
#define OUTBOX_MAX 128

struct outbox {
    pthread_mutex_t mutex;
    pthread_cond_t emptied;
    unsigned count, head;
    struct outbox_item {
        enum wire_type type;
        uint64_t generation, epoch;
        void *payload;
        size_t length;
    } items[OUTBOX_MAX];
};

void outbox_init(struct outbox *outbox);
void outbox_clear(struct outbox *outbox);

/* Copies the payload. -ENOBUFS when the peer has not taken OUTBOX_MAX frames. */
int outbox_put(struct outbox *outbox, enum wire_type type, uint64_t generation, uint64_t epoch,
               const void *payload, size_t length);

/* Move frames into the writer; 1 if any was moved, else 0. */
int outbox_produce(struct outbox *outbox, struct wire_writer *writer);

/* Wait until everything was produced, at most `limit_ms`. */
void outbox_drain(struct outbox *outbox, unsigned limit_ms);

#endif
