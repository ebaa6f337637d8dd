/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_STATE_H
#define UNDERSTUDY_RESTORE_STATE_H

#include "wire/message.h"

#include <pthread.h>
#include <stdbool.h>

/*
 * The device state, twice: the committed one, which nothing that arrives can touch, and the one that arrives
 * in pieces, in any order, on any lane. One bit a byte says what is there already, so that a missing or
 * repeated piece is seen whatever the pieces' sizes.
 */
struct state_buffer {
    uint8_t *bytes;
    uint64_t room, total; /* total 0: none */
};

struct state {
    pthread_mutex_t lock; /* everything below; leaf */
    struct state_buffer arriving, committed;
    uint64_t *claimed;
    uint64_t claimed_room; /* bytes of memory */
    uint64_t claimed_bytes;
    uint64_t bound;
};

/* `bound`: bytes of the largest state that is accepted. */
void state_init(struct state *state, uint64_t bound);
void state_fini(struct state *state);

/* -EPROTO: total or place contradict other pieces. -EBADMSG: its LZ4 block does not decode to the piece.
 * -ENOSPC: over the bound. -ENOMEM. */
int state_put(struct state *state, const struct message_state *piece);

/* Did anything arrive? */
bool state_any(struct state *state);
/* Is it whole and what the commit says? -EBADMSG. When no state_put() is under way. */
int state_check(struct state *state, uint64_t bytes, uint64_t sum);

void state_turn(struct state *state); /* what arrived is the committed state now */
void state_drop(struct state *state); /* forget what arrived */
void state_drop_committed(struct state *state);

uint64_t state_memory_bytes(struct state *state);

#endif
