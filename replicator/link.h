/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_LINK_H
#define UNDERSTUDY_REPLICATOR_LINK_H

#include "base/mailbox.h"
#include "transport/lane.h"
#include "wire/message.h"

/*
 * Links: a link is one session's set of lanes, named by the number that the role machine knows it by. The
 * primary opens them, the standby assembles them from accepted connections by the HELLO that each begins
 * with.
 *
 * Everything here is called on the daemon's main thread; what happens on lanes' threads arrives as notes in
 * the daemon's mailbox, except the data path, which stays on the lane's thread from the socket to staging.
 */
struct links;

struct links_ops {
    /* main thread */
    void (*control_up)(void *ctx, uint64_t link);                           /* primary */
    void (*hello)(void *ctx, uint64_t link, const struct wire_frame *frame, /* standby: link is new */
                  const struct message_hello *hello);
    void (*called)(void *ctx); /* standby, may be NULL: a proven peer is there that has not said HELLO yet */
    void (*lanes_up)(void *ctx, uint64_t link);
    void (*frame)(void *ctx, uint64_t link, const struct wire_frame *frame);
    void (*down)(void *ctx, uint64_t link, int code, const char *reason); /* once for each link */
    /* lanes' threads */
    int (*produce)(void *ctx, unsigned lane, struct wire_writer *writer); /* primary's data lanes */
    int (*data)(void *ctx, const struct wire_frame *frame);               /* standby's data lanes */
};

int links_new(struct links **ret_links, const struct links_ops *ops, void *ctx, struct mailbox *notes,
              struct tls_context *tls, enum wire_side side, uint64_t detect_ns);
/* Disconnects everything; afterwards no lane's thread exists, and the other calls find nothing to do. */
void links_close(struct links *links);
/* After links_close(), and when no other thread can call links_kick() any more. Takes NULL. */
void links_free(struct links *links);

/* Primary: the data lanes of links that are opened from now on keep to this, which outlives them all. */
void links_set_pacer(struct links *links, struct pacer *pacer);

/* Primary: open the control lane of the next link, which is not wanted yet; links_connect() takes it if it is
 * still good. Nothing is told of it before. */
void links_call(struct links *links, const char *address, uint32_t timeout_ms);
/* Primary: open the control lane of a new link. `hello` is sent first on it when links_send_hello() says so,
 * and on every data lane. `claimed`: see struct wire_header. */
int links_connect(struct links *links, uint64_t link, const char *address, uint32_t timeout_ms);
int links_send_hello(struct links *links, uint64_t link, uint64_t generation, uint64_t claimed,
                     const struct message_hello *hello);
int links_open_lanes(struct links *links, uint64_t link);

/* Standby: a connection came in. Takes ownership of fd. */
void links_accept(struct links *links, int fd);

/* Standby: only the lanes of this link may deliver pages. 0: none. */
void links_set_current(struct links *links, uint64_t link);

/* Queue a control frame. Unknown links are ignored (they went down meanwhile). */
int links_send(struct links *links, uint64_t link, enum wire_type type, uint64_t generation, uint64_t epoch,
               const void *payload, size_t length);

/* The data lanes have something to produce. Any thread. */
void links_kick(struct links *links);

/* Send what is queued, close, forget; at once when the peer has been silent for `detect_ns`, so that a
 * takeover does not wait for farewells to a dead host. down() does not follow. */
void links_disconnect(struct links *links, uint64_t link);

/* Close connections that never said HELLO; tell of links whose end was waited for. Call when links_due(). */
void links_sweep(struct links *links, uint64_t now_ns);
uint64_t links_due(const struct links *links);

struct links_stats {
    uint64_t wire_bytes; /* sent and received, all links so far */
    uint64_t connections;
    bool ktls;
    const char *aes, *aes_reason; /* as tls_context_aes() */
    char congestion_control[16];  /* of what is sent; empty before the first link was up */
    char tls[64];                 /* "TLSv1.3 TLS_AES_128_GCM_SHA256"; empty before the first link was up */
    uint64_t last_frame_ns;       /* latest sign of life of the peer on any lane */
};
void links_get_stats(struct links *links, struct links_stats *ret_stats);

#endif
