/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_LANE_INTERNAL_H
#define UNDERSTUDY_TRANSPORT_LANE_INTERNAL_H

#include "base/error.h"
#include "transport/lane.h"
#include "transport/tls_internal.h"

#include <liburing.h>
#include <pthread.h>
#include <stdatomic.h>

/*
 * What the lane's files share; lane_loop.c has the theory of operation. Everything here belongs to the lane's
 * thread, but for the fields marked otherwise.
 */

/* A power of two, for io_uring's provided-buffer ring; more would only fall out of the cache. */
#define RECEIVE_BUFFERS      8
#define RECEIVE_BUFFER_BYTES (64u << 10)
#define RECEIVE_GROUP        0

#define TLS_RECORD_BYTES  16384u          /* plaintext in a full record */
#define TLS_RECORD_EXTRA  (5u + 1u + 16u) /* header, inner type, AES-GCM tag (RFC 8446, 5.2) */
#define SEND_RECORDS      16u             /* full records in a send buffer */
#define SEND_RESERVE      1024u           /* room for what OpenSSL adds itself: key update, alert */
#define SEND_BUFFER_BYTES (SEND_RECORDS * (TLS_RECORD_BYTES + TLS_RECORD_EXTRA) + SEND_RESERVE)
#define SEND_BUFFERS      4u

/* Plaintext that produce() leaves is encrypted once this much is there: enough to make a send worth its
 * system call, little enough to be still in the cache. */
#define PRODUCE_BATCH_BYTES (256u << 10)

enum lane_phase {
    LANE_CONNECTING,  /* the connect is in the ring (client only) */
    LANE_HANDSHAKING, /* TLS */
    LANE_CONFIRMING,  /* client: handshake done here; waiting for the server to say that it accepted us */
    LANE_OPEN,        /* up() was called */
    LANE_FLUSHING,    /* lane_stop(): what was produced is going out, then close_notify */
    LANE_DRAINING,    /* nothing more is sent; waiting a moment for the peer's end */
    LANE_ENDED,
};

enum lane_operation {
    OPERATION_WAKE = 1,
    OPERATION_CONNECT,
    OPERATION_RECEIVE,
    OPERATION_SEND,
    OPERATION_CANCEL
};

struct lane_receive {
    struct io_uring_buf_ring *ring;
    uint8_t *buffers; /* RECEIVE_BUFFERS of RECEIVE_BUFFER_BYTES */
    bool armed;       /* the multishot receive is in the ring */
    bool eof;
    int error; /* negative errno of the socket; acted upon when all that came before it is used up */
    struct {
        uint16_t id;
        uint32_t length;
    } waiting[RECEIVE_BUFFERS]; /* filled and not used up, oldest at `first` */
    unsigned first, count;
    uint32_t offset; /* used of the oldest */

    uint8_t *
        plain; /* mapped twice in a row, so that no frame is ever split: bytes [tail, head) mod plain_bytes */
    size_t plain_bytes;
    uint64_t head, tail;
    struct wire_reader reader;
};

struct lane_send_buffer {
    uint8_t *bytes;
    size_t used, sent;
    unsigned notifications; /* zero-copy sends whose memory the kernel still reads */
    bool queued;
};

struct lane_send {
    uint8_t *memory; /* all send buffers (with kTLS: plaintext buffers) in one mapping */
    size_t memory_bytes, buffer_bytes;
    unsigned buffer_count;
    struct lane_send_buffer buffers[SEND_BUFFERS];
    uint8_t queue[SEND_BUFFERS]; /* in sending order, oldest at `first` */
    unsigned first, count;
    struct lane_send_buffer *filling;  /* not yet queued; NULL: none */
    bool in_flight;                    /* a send of the queue's oldest is in the ring */
    int error;                         /* negative errno: the socket takes no more */
    uint64_t progress_ns, acked_bytes; /* when the peer's TCP was last seen to take something */

    uint8_t *plain_memory;
    size_t plain_memory_bytes;
    struct wire_writer writer; /* over the plaintext buffer */
    size_t sealed;             /* of writer.used, already in a send buffer */
    bool dry;                  /* produce() had nothing; ask again after a kick */
    uint64_t paced_until_ns;   /* the pacer allows nothing before; 0: it was not asked, or does */

    bool ktls;
    bool registered; /* the kernel took the buffers as fixed buffers */
    bool zerocopy, usage_known, report_usage;
    uint64_t key_bytes; /* sent under the present key */
};

struct lane {
    struct lane_config config;
    pthread_t thread;
    bool server;
    struct sockaddr_storage address; /* to connect to */
    socklen_t address_length;
    char peer[80];               /* in words */
    char congestion_control[16]; /* TCP_CA_NAME_MAX; what this host is set to; empty: it stays */

    /* any thread */
    atomic_bool asleep, kicked, stopping, aborting;
    int wake_fd;

    int fd;
    struct io_uring ring;
    bool ring_ready, wake_armed, connecting;
    SSL *ssl;
    enum lane_phase phase;
    uint64_t deadline_ns; /* of the present phase; UINT64_MAX: none */
    struct lane_receive receive;
    struct lane_send send;

    int code; /* why the lane ended */
    char reason[ERROR_TEXT_MAX];

    /* read by any thread; `established` releases the plain fields below it */
    _Atomic uint64_t bytes_sent, bytes_received, frames_sent, frames_received, busy_ns, blocked_ns;
    atomic_bool established, zerocopy_used;
    struct lane_stats fixed;
    uint64_t busy_since_ns;
};

/* Only the owner writes the counters, so a plain add will do; readers need it not to tear. */
static inline void lane_count(_Atomic uint64_t *counter, uint64_t more)
{
    atomic_store_explicit(counter, atomic_load_explicit(counter, memory_order_relaxed) + more,
                          memory_order_relaxed);
}

static inline uint64_t lane_user_data(enum lane_operation operation, unsigned index)
{
    return (uint64_t)index << 8 | operation;
}

/* lane_loop.c: the life of the lane, on its thread, from the first system call to the last. */
void lane_run(struct lane *lane);

/* ring.c: the ring with the best flags this kernel takes. -ENOSYS with words when it is too old. */
int lane_ring_open(struct io_uring *ring);
/* A free submission entry; submits what waits if there is none. */
struct io_uring_sqe *lane_ring_entry(struct io_uring *ring);

/* address.c */
void lane_address_text(const struct sockaddr *address, char *text, size_t room);

/* lane_bio.c: the record layer's view of the lane's buffers. */
BIO *lane_bio_new(struct lane *lane);

/* lane_receive.c */
int lane_receive_open(struct lane *lane);
void lane_receive_close(struct lane *lane);
/* Have the multishot receive in the ring, if anything more can come. */
void lane_receive_arm(struct lane *lane);
void lane_receive_complete(struct lane *lane, const struct io_uring_cqe *cqe);
/* Up to `room` bytes of ciphertext; 0 when none wait. */
size_t lane_receive_take(struct lane *lane, uint8_t *to, size_t room);
/* Throw away all that has arrived. */
void lane_receive_discard(struct lane *lane);
/* Decrypt what has arrived and hand it on. Negative errno ends the lane. */
int lane_receive_pump(struct lane *lane);
/* Why SSL_read or the handshake failed, in words. */
int lane_receive_failure(struct lane *lane, int ssl_error);

/* lane_send.c */
int lane_send_open(struct lane *lane);
void lane_send_close(struct lane *lane);
void lane_send_complete(struct lane *lane, const struct io_uring_cqe *cqe);
/* Ciphertext from OpenSSL; 0 when it must wait for a free buffer. */
size_t lane_send_append(struct lane *lane, const uint8_t *bytes, size_t length);
void lane_send_confirmation(struct lane *lane);
/* Produce, encrypt and submit, at most about one buffer. 1: more can be done at once, 0: nothing to do before
 * a completion or a kick. */
int lane_send_pump(struct lane *lane, bool produce);
/* A kick would lead to a call of produce() now. */
bool lane_send_wants_kick(struct lane *lane);
/* Everything handed in was taken by the kernel. */
bool lane_send_idle(const struct lane *lane);
/* Negative errno when the peer has taken nothing for config.stall_ms. */
int lane_send_check_stall(struct lane *lane, uint64_t now_ns);

#endif
