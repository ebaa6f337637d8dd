/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_LANE_H
#define UNDERSTUDY_TRANSPORT_LANE_H

#include "transport/pacer.h"
#include "transport/tls.h"
#include "wire/frame.h"

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

/*
 * A lane: one TCP connection with TLS 1.3, one thread that owns it, one io_uring.
 *
 * Sending is by pull: when the lane has a free buffer it calls produce(), which writes whole frames straight
 * into the lane's plaintext buffer; when it returns 0 the lane sleeps until lane_kick(). So a slow peer slows
 * its producer and nothing queues without bound: a lane holds about 3 MiB and buffer_bytes, whatever happens.
 * Receiving is by push: every valid frame is given to frame(); while that call blocks, TCP's own flow control
 * stops the peer.
 *
 * In TLS 1.3 a client learns only after its own handshake whether the server accepts its certificate. So the
 * server's stream begins with one byte, LANE_CONFIRMATION (0x06), before its first frame, and the client is
 * up when it has seen it.
 *
 * All callbacks run on the lane's thread. down() is called exactly once, last, for every lane that was
 * started.
 */
struct lane;

#define LANE_CONFIRMATION 0x06

struct lane_ops {
    /* The handshake is done and the peer's name is proven. */
    void (*up)(void *ctx, struct lane *lane);
    /* Append frames to `writer`; return 1 if anything was written, 0 if there is nothing to send now, or a
     * negative errno (error_text set) to end the lane. */
    int (*produce)(void *ctx, struct lane *lane, struct wire_writer *writer);
    /* One frame, with its sums checked. Negative errno (error_text set) ends the lane. */
    int (*frame)(void *ctx, struct lane *lane, const struct wire_frame *frame);
    /* The lane ended: code 0 for lane_stop(), else a negative errno and the reason in words. */
    void (*down)(void *ctx, struct lane *lane, int code, const char *reason);
};

struct lane_config {
    struct tls_context *tls; /* outlives the lane */
    const struct lane_ops *ops;
    void *ctx;
    enum wire_side side; /* ours */
    bool control;        /* control or data lane: what frames are permitted */
    unsigned index;      /* 0 control, 1.. data; names the thread; carried, not interpreted */
    bool session_known;  /* false on the accepting side: adopt the session of the first frame */
    uint64_t session;
    uint32_t handshake_ms; /* bound on connect + handshake; 0: 5000 */
    uint32_t stall_ms;     /* bound on a send that makes no progress; 0: none */
    uint32_t buffer_bytes; /* plaintext buffer for produce(), at least one whole frame; 0: 1 MiB */
    enum lane_zerocopy { LANE_ZEROCOPY_AUTO, LANE_ZEROCOPY_OFF, LANE_ZEROCOPY_ON } zerocopy;
    bool no_ktls;
    struct pacer *pacer;  /* produce() is called no sooner than this says; shared, outlives the lane; NULL */
    uint64_t rekey_bytes; /* change the sending key after so many; 0: 64 GiB */
    uint32_t short_us;    /* a path with a round trip below this is a short one; 0: 2000 */
};

/* Start connecting to `address`. Returns at once; up() or down() follows. The config is copied. */
int lane_connect(struct lane **ret_lane, const struct lane_config *config, const struct sockaddr *address,
                 socklen_t length);

/* Start the server's half on an accepted socket; takes ownership of `fd` even on failure. */
int lane_accept(struct lane **ret_lane, const struct lane_config *config, int fd);

/* An accepted lane learns from its first frame (HELLO) what it is. Only within frame() of that first frame;
 * until then a lane with `control` false accepts HELLO alone. */
void lane_set_kind(struct lane *lane, bool control, unsigned index);

/* There is something to produce. Any thread, cheap, may be called at any time before lane_free. */
void lane_kick(struct lane *lane);

/* Ask the lane to end: what was produced already is sent if that goes without waiting (at most 200 ms), then
 * close_notify. Any thread; down() follows. */
void lane_stop(struct lane *lane);

/* End the lane at once, without a farewell: the peer is known not to listen. Any thread; down() follows. */
void lane_abort(struct lane *lane);

/* lane_stop if need be, wait for the thread, free. Not from a callback. Takes NULL. */
void lane_free(struct lane *lane);

/* Bind and listen. `address` is "HOST:PORT" or "[V6]:PORT", numeric. Returns the socket (non-blocking). */
int lane_listen(const char *address, int *ret_fd);

/* "HOST:PORT" to an address. */
int lane_resolve(const char *address, struct sockaddr_storage *ret_address, socklen_t *ret_length);

struct lane_stats {
    uint64_t bytes_sent, bytes_received; /* on the socket */
    uint64_t frames_sent, frames_received;
    uint64_t busy_ns;    /* time with something to send or being sent */
    uint64_t blocked_ns; /* of that, waiting for the socket: the peer or the wire is the bottleneck */
    bool ktls_send, ktls_receive, zerocopy;
    char cipher[40];             /* "TLS_AES_128_GCM_SHA256", empty before up() */
    char version[12];            /* "TLSv1.3" */
    char congestion_control[16]; /* TCP's, for what is sent: "cubic" */
};

/* A snapshot; any thread. */
void lane_get_stats(const struct lane *lane, struct lane_stats *ret_stats);

#endif
