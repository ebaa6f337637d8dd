/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/clock.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <openssl/err.h>
#include <poll.h>
#include <string.h>

/*
 * Theory of operation
 *
 * One thread owns the socket, the TLS session and the ring, and goes round:
 *
 *     pump (receive, decrypt, frame(); produce(), encrypt, queue)
 *       └► submit what was prepared, and wait if there is nothing else to do  (one system call)
 *            └► take the completions, look at the deadline  ──► again
 *
 *     CONNECTING ─► HANDSHAKING ─► CONFIRMING ─► OPEN ─► FLUSHING ─► DRAINING ─► ENDED
 *      client                       client        up()    lane_stop   │            down()
 *          └────────────┴───────────────┴──────────┴─── failure ──────┴──────────────┘
 *
 * The socket is a blocking one: io_uring gives up on a non-blocking socket instead of waiting. Nothing here
 * blocks on it all the same: the ring does all receiving and sending, but for the handshake's own few
 * kilobytes, which OpenSSL writes to the socket so that it can switch the kernel's TLS on; they fit into the
 * empty socket buffer, and SO_SNDTIMEO bounds it if ever they do not.
 *
 * Waking: whoever has news sets `kicked` or `stopping` and then looks at `asleep`; the lane sets `asleep` and
 * then looks at them. Both in sequentially consistent order, so one of the two sees the other, and only a
 * lane that sleeps costs a write to the eventfd.
 *
 * DRAINING: closing a socket with unread data sends a reset, which can overtake and destroy what we sent last
 * (an alert, a REFUSE frame). So the lane says that it is done (shutdown), and reads for a moment until the
 * peer has closed too. The same wait after a failed send lets the peer's last words be read.
 */

#define LINGER_MS         200
#define SOCKET_SEND_BYTES (1 << 20)
#define SHORT_PATH_US     2000
#define PACING            "bbr" /* bbr, bbr2, bbr3: so they begin */
#define NO_PACING         "cubic"
#define COMPLETIONS       64

static uint64_t in_ms(uint64_t ms)
{
    return clock_now_ns() + ms * NS_PER_MS;
}

/* Record why the lane ends; the first reason stays. */
static void fail(struct lane *lane, int code)
{
    if (lane->code == 0) {
        static const char *const doing[] = {
            [LANE_CONNECTING] = "connect to", [LANE_HANDSHAKING] = "TLS handshake with"};
        const char *what = lane->phase <= LANE_HANDSHAKING ? doing[lane->phase] : "lane to";
        lane->code = error_add(code, "%s %s", what, lane->peer);
        snprintf(lane->reason, sizeof lane->reason, "%s", error_text());
    }
}

static void enter(struct lane *lane, enum lane_phase phase, uint64_t deadline_ns)
{
    lane->phase = phase;
    lane->deadline_ns = deadline_ns;
}

static void drain(struct lane *lane)
{
    shutdown(lane->fd, SHUT_WR);
    enter(lane, LANE_DRAINING, lane->phase == LANE_FLUSHING ? lane->deadline_ns : in_ms(LINGER_MS));
}

/* ------------------------------------------------------------------ opening */

/*
 * BBR paces what it sends by a timer of its own, which on a short path between two fast hosts costs a fifth
 * of all processor time. There the lanes do without (it must be so from the start: a connection that was
 * paced once is paced for ever); a long path gets what this host is set to. Only who connects sends much.
 */
static void choose_congestion_control(struct lane *lane)
{
    socklen_t length = sizeof lane->congestion_control - 1;
    if (getsockopt(lane->fd, IPPROTO_TCP, TCP_CONGESTION, lane->congestion_control, &length) < 0 ||
        strncmp(lane->congestion_control, PACING, strlen(PACING)) != 0 ||
        setsockopt(lane->fd, IPPROTO_TCP, TCP_CONGESTION, NO_PACING, strlen(NO_PACING)) < 0)
        lane->congestion_control[0] = 0; /* none, or none that may be had: it stays as it is */
}

static int prepare_socket(struct lane *lane)
{
    int one = 1;
    unsigned stall_ms = lane->config.stall_ms;
    struct timeval patience = {LINGER_MS / 1000, LINGER_MS % 1000 * 1000};
    int flags = fcntl(lane->fd, F_GETFL);
    if (flags < 0 || fcntl(lane->fd, F_SETFL, flags & ~O_NONBLOCK) < 0 ||
        setsockopt(lane->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one) < 0 ||
        setsockopt(lane->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience) < 0 ||
        (stall_ms && setsockopt(lane->fd, IPPROTO_TCP, TCP_USER_TIMEOUT, &stall_ms, sizeof stall_ms) < 0))
        return error_errno(-errno, "prepare the socket");
    return 0;
}

static void arm_wake(struct lane *lane)
{
    struct io_uring_sqe *entry = lane_ring_entry(&lane->ring);
    /* Edge-triggered: each write to the eventfd is one completion, and its count need never be read. */
    io_uring_prep_poll_multishot(entry, lane->wake_fd, POLLIN);
    io_uring_sqe_set_data64(entry, lane_user_data(OPERATION_WAKE, 0));
    lane->wake_armed = true;
}

static int begin_handshake(struct lane *lane)
{
    enter(lane, LANE_HANDSHAKING, lane->deadline_ns);
    lane->ssl = tls_session_new(lane->config.tls, lane->server, !lane->config.no_ktls);
    BIO *reading = lane_bio_new(lane);
    BIO *writing = BIO_new_socket(lane->fd, BIO_NOCLOSE);
    if (!lane->ssl || !reading || !writing) {
        BIO_free(reading);
        BIO_free(writing);
        return tls_library_failure("TLS session");
    }
    SSL_set_bio(lane->ssl, reading, writing);
    return 0;
}

/*
 * On a short path a send buffer of a few batches keeps what waits there in the processor's caches, for 4 %
 * less work a byte than the kernel's own choice of several megabytes. A long path needs those, and the
 * congestion control that this host is set to.
 */
static void fit_path(struct lane *lane)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    int bytes = SOCKET_SEND_BYTES;
    uint32_t short_us = lane->config.short_us ? lane->config.short_us : SHORT_PATH_US;
    bool is_short =
        getsockopt(lane->fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 && info.tcpi_rtt < short_us;
    if (is_short)
        setsockopt(lane->fd, SOL_SOCKET, SO_SNDBUF, &bytes, sizeof bytes);
    else if (lane->congestion_control[0])
        setsockopt(lane->fd, IPPROTO_TCP, TCP_CONGESTION, lane->congestion_control,
                   (socklen_t)strlen(lane->congestion_control));
}

static void note_established(struct lane *lane)
{
    snprintf(lane->fixed.cipher, sizeof lane->fixed.cipher, "%s", SSL_get_cipher_name(lane->ssl));
    snprintf(lane->fixed.version, sizeof lane->fixed.version, "%s", SSL_get_version(lane->ssl));
    lane->fixed.ktls_send = lane->send.ktls;
    socklen_t length = sizeof lane->fixed.congestion_control - 1;
    getsockopt(lane->fd, IPPROTO_TCP, TCP_CONGESTION, lane->fixed.congestion_control, &length);
    atomic_store(&lane->established, true);
}

static void report_up(struct lane *lane)
{
    enter(lane, LANE_OPEN, UINT64_MAX);
    note_established(lane);
    lane->config.ops->up(lane->config.ctx, lane);
}

static int finish_handshake(struct lane *lane)
{
    /* The policy is set in the context; that it held is worth one look. */
    if (SSL_version(lane->ssl) != TLS1_3_VERSION || SSL_get_verify_result(lane->ssl) != X509_V_OK ||
        !SSL_get0_peer_certificate(lane->ssl))
        return error_set(-EPROTO, "the handshake ended without a proven peer");
    lane->send.ktls = BIO_get_ktls_send(SSL_get_wbio(lane->ssl));
    if (!lane->send.ktls) {
        BIO *writing = lane_bio_new(lane);
        if (!writing)
            return tls_library_failure("TLS session");
        SSL_set0_wbio(lane->ssl, writing);
    }
    fit_path(lane);
    int r = lane_send_open(lane);
    if (r < 0)
        return r;
    if (!lane->server) {
        enter(lane, LANE_CONFIRMING, lane->deadline_ns);
        return 0;
    }
    lane_send_confirmation(lane);
    report_up(lane);
    return 0;
}

static int handshake(struct lane *lane)
{
    ERR_clear_error();
    int r = SSL_do_handshake(lane->ssl);
    if (r == 1)
        return finish_handshake(lane);
    int ssl_error = SSL_get_error(lane->ssl, r);
    if (ssl_error == SSL_ERROR_WANT_READ)
        return 0;
    if (ssl_error == SSL_ERROR_WANT_WRITE)
        return error_set(-ETIMEDOUT, "the peer does not take the handshake");
    return lane_receive_failure(lane, ssl_error);
}

/* ------------------------------------------------------------------ the loop */

/* One step of the present phase. 1: there is more to do at once, 0: wait, negative: the lane fails. */
static int pump(struct lane *lane)
{
    int r, more;
    switch (lane->phase) {
    case LANE_CONNECTING:
    case LANE_ENDED:
        return 0;
    case LANE_HANDSHAKING:
        if ((r = handshake(lane)) < 0)
            return r;
        return lane->phase != LANE_HANDSHAKING;
    case LANE_CONFIRMING:
        if ((r = lane_receive_pump(lane)) < 0)
            return r;
        if (lane->phase == LANE_OPEN)
            report_up(lane);
        return lane->phase == LANE_OPEN;
    case LANE_OPEN:
        if ((r = lane_receive_pump(lane)) < 0)
            return r;
        return lane_send_pump(lane, true);
    case LANE_FLUSHING:
        lane_receive_discard(lane);
        if ((more = lane_send_pump(lane, false)) != 0 || !lane_send_idle(lane))
            return more;
        if (!(SSL_get_shutdown(lane->ssl) & SSL_SENT_SHUTDOWN)) {
            ERR_clear_error();
            SSL_shutdown(lane->ssl);
            return 1;
        }
        drain(lane);
        return 1;
    case LANE_DRAINING:
        lane_receive_discard(lane);
        if (lane->receive.eof || lane->receive.error)
            enter(lane, LANE_ENDED, 0);
        return lane->phase == LANE_ENDED;
    }
    return 0;
}

static void take_completion(struct lane *lane, const struct io_uring_cqe *cqe)
{
    switch ((enum lane_operation)(io_uring_cqe_get_data64(cqe) & 0xff)) {
    case OPERATION_WAKE:
        if (!(cqe->flags & IORING_CQE_F_MORE))
            lane->wake_armed = false;
        break;
    case OPERATION_CONNECT:
        lane->connecting = false;
        if (lane->phase != LANE_CONNECTING)
            break;
        int r = cqe->res < 0 ? error_set(cqe->res, "%s", strerror(-cqe->res)) : begin_handshake(lane);
        if (r < 0) {
            fail(lane, r);
            enter(lane, LANE_ENDED, 0);
        }
        break;
    case OPERATION_RECEIVE:
        lane_receive_complete(lane, cqe);
        break;
    case OPERATION_SEND:
        lane_send_complete(lane, cqe);
        break;
    case OPERATION_CANCEL:
        break;
    }
}

static void reap(struct lane *lane)
{
    struct io_uring_cqe *completions[COMPLETIONS];
    unsigned count;
    while ((count = io_uring_peek_batch_cqe(&lane->ring, completions, COMPLETIONS)) > 0) {
        for (unsigned i = 0; i < count; i++)
            take_completion(lane, completions[i]);
        io_uring_cq_advance(&lane->ring, count);
    }
}

/* Submit; wait for a completion, a kick or the deadline when there is nothing else to do. */
static int turn(struct lane *lane, bool wait)
{
    int r;
    if (wait) {
        atomic_store(&lane->asleep, true);
        bool stop_news = atomic_load(&lane->stopping) && lane->phase < LANE_FLUSHING;
        bool kick_news = atomic_load(&lane->kicked) && lane->phase == LANE_OPEN && lane_send_wants_kick(lane);
        wait = !stop_news && !kick_news;
    }
    if (wait) {
        uint64_t now_ns = clock_now_ns(), until_ns = lane->deadline_ns;
        uint64_t stall_ns = (uint64_t)lane->config.stall_ms * NS_PER_MS;
        if (lane->send.in_flight && stall_ns && now_ns + stall_ns / 4 < until_ns)
            until_ns = now_ns + stall_ns / 4;
        if (lane->send.paced_until_ns && lane->send.paced_until_ns < until_ns)
            until_ns = lane->send.paced_until_ns;
        uint64_t left_ns = until_ns > now_ns ? until_ns - now_ns : 0;
        struct __kernel_timespec timeout = {.tv_sec = (long long)(left_ns / NS_PER_S),
                                            .tv_nsec = (long long)(left_ns % NS_PER_S)};
        struct io_uring_cqe *first;
        r = io_uring_submit_and_wait_timeout(&lane->ring, &first, 1, until_ns == UINT64_MAX ? NULL : &timeout,
                                             NULL);
        if (lane->send.in_flight)
            lane_count(&lane->blocked_ns, clock_now_ns() - now_ns);
    } else {
        r = io_uring_submit_and_get_events(&lane->ring);
    }
    atomic_store(&lane->asleep, false);
    return r >= 0 || r == -ETIME || r == -EINTR || r == -EAGAIN ? 0 : error_errno(r, "io_uring");
}

/* Time with something to send: from the first byte until the kernel has all of it. */
static void count_busy(struct lane *lane)
{
    bool busy = lane->phase >= LANE_OPEN && !lane_send_idle(lane);
    if (!busy && !lane->busy_since_ns)
        return;
    uint64_t now_ns = clock_now_ns();
    if (lane->busy_since_ns)
        lane_count(&lane->busy_ns, now_ns - lane->busy_since_ns);
    lane->busy_since_ns = busy ? now_ns : 0;
}

static void check_time(struct lane *lane)
{
    int r = lane_send_check_stall(lane, clock_now_ns());
    if (r < 0) {
        fail(lane, r);
        enter(lane, LANE_ENDED, 0);
        return;
    }
    if (lane->deadline_ns == UINT64_MAX || clock_now_ns() < lane->deadline_ns)
        return;
    if (lane->phase < LANE_FLUSHING)
        fail(lane, error_set(-ETIMEDOUT, "not done within %u ms", lane->config.handshake_ms));
    enter(lane, LANE_ENDED, 0);
}

/* True when it changed the phase: the new one is to be pumped before anybody waits. */
static bool check_stop(struct lane *lane)
{
    bool aborting = atomic_load(&lane->aborting);
    if (!atomic_load(&lane->stopping) || lane->phase == LANE_ENDED ||
        (lane->phase >= LANE_FLUSHING && !aborting))
        return false;
    /* Before it is open a lane has nothing to flush. */
    enter(lane, lane->phase == LANE_OPEN && !aborting ? LANE_FLUSHING : LANE_ENDED, in_ms(LINGER_MS));
    return true;
}

/* The lane failed while the connection may still be of use: to tell the peer, or to hear what it said. */
static void end_failed(struct lane *lane, int code)
{
    bool handshaking = lane->phase == LANE_HANDSHAKING;
    fail(lane, code);
    if (handshaking)
        drain(lane); /* OpenSSL has sent the alert that tells the peer why */
    else
        enter(lane, LANE_ENDED, 0);
}

static void check_send_error(struct lane *lane)
{
    if (!lane->send.error || lane->phase >= LANE_DRAINING)
        return;
    if (lane->phase == LANE_FLUSHING) {
        drain(lane);
    } else if (lane->deadline_ns == UINT64_MAX) {
        /* The receiving half may hold the peer's last words: its end, or this deadline, ends the lane. */
        lane->deadline_ns = in_ms(LINGER_MS);
    } else if (clock_now_ns() >= lane->deadline_ns) {
        fail(lane, error_errno(lane->send.error, "send"));
        enter(lane, LANE_ENDED, 0);
    }
}

static int open_all(struct lane *lane)
{
    lane->deadline_ns = in_ms(lane->config.handshake_ms);
    int r = lane_ring_open(&lane->ring);
    if (r < 0)
        return r;
    lane->ring_ready = true;
    if ((r = lane_receive_open(lane)) < 0)
        return r;
    if (lane->server) {
        lane->phase = LANE_HANDSHAKING;
        if ((r = prepare_socket(lane)) < 0)
            return r;
        return begin_handshake(lane);
    }
    lane->fd = socket(lane->address.ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (lane->fd < 0)
        return error_errno(-errno, "socket");
    if ((r = prepare_socket(lane)) < 0)
        return r;
    choose_congestion_control(lane);
    struct io_uring_sqe *entry = lane_ring_entry(&lane->ring);
    io_uring_prep_connect(entry, lane->fd, (struct sockaddr *)&lane->address, lane->address_length);
    io_uring_sqe_set_data64(entry, lane_user_data(OPERATION_CONNECT, 0));
    lane->connecting = true;
    return 0;
}

/*
 * The kernel must have let go of the buffers before they are unmapped: cancel what is in the ring and wait
 * for it. Zero-copy notifications are not waited for (a dead peer delays them for minutes): the kernel holds
 * a reference to those pages, and unmapping them here takes nothing from it.
 */
static void close_all(struct lane *lane)
{
    if (lane->fd >= 0)
        shutdown(lane->fd, SHUT_RDWR);
    if (lane->ring_ready) {
        struct io_uring_sqe *entry = lane_ring_entry(&lane->ring);
        io_uring_prep_cancel64(entry, 0, IORING_ASYNC_CANCEL_ANY);
        io_uring_sqe_set_data64(entry, lane_user_data(OPERATION_CANCEL, 0));
        lane->phase = LANE_ENDED;
        uint64_t until_ns = in_ms(LINGER_MS);
        while ((lane->wake_armed || lane->connecting || lane->receive.armed || lane->send.in_flight) &&
               clock_now_ns() < until_ns) {
            struct __kernel_timespec timeout = {.tv_nsec = 10 * (long long)NS_PER_MS};
            struct io_uring_cqe *first;
            io_uring_submit_and_wait_timeout(&lane->ring, &first, 1, &timeout, NULL);
            reap(lane);
        }
        io_uring_queue_exit(&lane->ring);
    }
    SSL_free(lane->ssl);
    lane->ssl = NULL;
    lane_send_close(lane);
    lane_receive_close(lane);
    if (lane->fd >= 0)
        close(take_fd(&lane->fd));
}

void lane_run(struct lane *lane)
{
    int r = open_all(lane);
    if (r < 0) {
        fail(lane, r);
        enter(lane, LANE_ENDED, 0);
    }

    while (lane->phase != LANE_ENDED) {
        int more = pump(lane);
        if (more < 0) {
            end_failed(lane, more);
            continue;
        }
        if (check_stop(lane))
            continue;
        if (lane->phase == LANE_ENDED)
            break;
        if (lane->phase != LANE_CONNECTING)
            lane_receive_arm(lane);
        if (!lane->wake_armed)
            arm_wake(lane);
        if ((r = turn(lane, !more)) < 0) {
            fail(lane, r);
            break;
        }
        reap(lane);
        count_busy(lane);
        check_send_error(lane);
        check_time(lane);
    }
    close_all(lane);
}
