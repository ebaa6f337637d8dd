/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_LINK_INTERNAL_H
#define UNDERSTUDY_REPLICATOR_LINK_INTERNAL_H

#include "base/error.h"
#include "replicator/link.h"
#include "replicator/outbox.h"
#include "replicator/worker.h"

#include <stdatomic.h>

/* What link.c (main thread; has the theory of operation) and link_lane.c (lanes' threads) share. */

#define CONNECTIONS_MAX (2 * (WIRE_LANES_MAX + 1))
#define FRAMES_MAX      256

struct connection {
    uint64_t id;
    struct links *links;
    struct lane *lane;
    unsigned index; /* 0 control; set by HELLO on the standby */
    bool ended;     /* its DOWN was delivered */
    bool greeted;   /* lane's thread: HELLO was sent or received */
    uint64_t accepted_ns;
    struct link *_Atomic link;
};

struct link {
    uint64_t number; /* 0: called, see links_call() */
    uint64_t session, generation, called_ns;
    bool up; /* while called: the control lane is */
    struct message_hello hello;
    char address[128];
    uint32_t timeout_ms;
    unsigned lanes, lanes_up;
    bool down_told;
    uint64_t down_at_ns; /* a data lane ended: when to tell, unless the control lane says more; 0: none did */
    int down_code;
    char down_text[ERROR_TEXT_MAX];
    atomic_uint_fast64_t heard_ns; /* latest frame on any of its lanes */
    struct outbox outbox;
    struct connection *lane[WIRE_LANES_MAX + 1];
};

struct links {
    const struct links_ops *ops;
    void *ctx;
    struct mailbox *notes;
    struct tls_context *tls;
    enum wire_side side;
    struct pacer *pacer; /* of the primary's data lanes; NULL: none */
    uint64_t detect_ns;
    uint64_t next_id, next_number; /* numbers of the standby's links */
    uint64_t swept_ns;
    pthread_mutex_t mutex;
    struct connection *connections[CONNECTIONS_MAX];
    struct link *table[4]; /* current, candidates, one that is about to go */
    atomic_uint_fast64_t current;
    atomic_uint frames_waiting;
    atomic_uint_fast64_t last_frame_ns; /* of any link */
    struct links_stats past;            /* of closed connections */
};

struct link_note {
    struct note note;
    struct links *links;
    uint64_t connection;
    enum { LINK_NOTE_UP, LINK_NOTE_JOINED, LINK_NOTE_FRAME, LINK_NOTE_DOWN } kind;
    int code;
    struct wire_frame frame;
    char text[ERROR_TEXT_MAX];
    uint8_t payload[];
};

/* link.c: a note reaches the main thread. */
void link_deliver(struct note *note, void *daemon);

/* link_lane.c: a note of the connection, or NULL. */
struct link_note *link_note_new(const struct connection *connection, int kind, size_t payload);

/* link_lane.c: the callbacks of every lane; their ctx is a struct connection. */
extern const struct lane_ops link_lane_ops;

#endif
