/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/clock.h"

#include <errno.h>
#include <linux/tcp.h>
#include <netinet/in.h>
#include <openssl/err.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 *   produce() ──► plaintext buffer ──SSL_write──► BIO ──► send buffer ──► queue ──► one send in the ring
 *                 sealed ▲   ▲ used               (records)  filling       oldest first
 *
 * While the kernel has one send buffer, the next is filled: encryption overlaps the wire. Only one send is in
 * the ring at a time, since io_uring may reorder two that have to wait for the socket. A buffer that is not
 * full is queued as soon as nothing else is in flight, so a lone small frame leaves at once, and frames that
 * come while the socket is busy travel together.
 *
 * Room is reckoned before SSL_write is called, so it never stops half way and has never to be repeated with
 * the same arguments. SEND_RESERVE is for what OpenSSL writes by itself.
 *
 * With kTLS the plaintext buffers take the place of the send buffers, and the kernel makes the records.
 *
 * Zero-copy: the kernel reads the buffer until the peer has acknowledged it, and says so in a second
 * completion. On loopback, and on devices without checksum offload, it copies after all, later and dearer;
 * that completion says this too, and then the lane goes back to ordinary sends.
 */

#define ZEROCOPY_MIN_BYTES (32u << 10) /* below, pinning costs more than copying */
#define KEY_BYTES          (64ull << 30)
#define KEY_BYTES_KTLS     (320ull << 30)
#define KTLS_BUFFERS       2u

/* linux/io_uring.h of Linux 6.2; older headers, as Debian 12's liburing carries, lack them. */
#ifndef IORING_SEND_ZC_REPORT_USAGE
#define IORING_SEND_ZC_REPORT_USAGE  (1U << 3)
#define IORING_NOTIF_USAGE_ZC_COPIED (1U << 31)
#endif

static uint8_t *map_buffers(size_t bytes)
{
    void *memory =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    return memory == MAP_FAILED ? NULL : memory;
}

static size_t whole_pages(size_t bytes)
{
    return (bytes + 4095) & ~(size_t)4095;
}

static void register_buffers(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    struct iovec vectors[SEND_BUFFERS];
    for (unsigned i = 0; i < send->buffer_count; i++)
        vectors[i] = (struct iovec){send->buffers[i].bytes, send->buffer_bytes};
    /* Fails where RLIMIT_MEMLOCK is small: then zero-copy pins the pages of each send anew. */
    send->registered = io_uring_register_buffers(&lane->ring, vectors, send->buffer_count) == 0;
}

int lane_send_open(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    size_t plain_bytes = whole_pages(lane->config.buffer_bytes);
    send->buffer_count = send->ktls ? KTLS_BUFFERS : SEND_BUFFERS;
    send->buffer_bytes = send->ktls ? plain_bytes : whole_pages(SEND_BUFFER_BYTES);
    send->memory_bytes = send->buffer_count * send->buffer_bytes;
    send->memory = map_buffers(send->memory_bytes);
    if (!send->memory)
        return error_errno(-errno, "send buffers");
    for (unsigned i = 0; i < send->buffer_count; i++)
        send->buffers[i].bytes = send->memory + i * send->buffer_bytes;
    if (!send->ktls) {
        send->plain_memory_bytes = plain_bytes;
        send->plain_memory = map_buffers(plain_bytes);
        if (!send->plain_memory)
            return error_errno(-errno, "plaintext buffer");
        send->writer.buffer = send->plain_memory;
    }
    send->writer.room = lane->config.buffer_bytes;
    send->writer.session = lane->config.session;

    if (!lane->config.rekey_bytes)
        lane->config.rekey_bytes = KEY_BYTES;
    /* In kTLS the kernel copies into its own records in any case. */
    send->zerocopy = !send->ktls && lane->config.zerocopy != LANE_ZEROCOPY_OFF;
    send->report_usage = send->zerocopy && lane->config.zerocopy == LANE_ZEROCOPY_AUTO;
    if (send->zerocopy)
        register_buffers(lane);
    atomic_store(&lane->zerocopy_used, send->zerocopy);
    return 0;
}

void lane_send_close(struct lane *lane)
{
    if (lane->send.memory)
        munmap(lane->send.memory, lane->send.memory_bytes);
    if (lane->send.plain_memory)
        munmap(lane->send.plain_memory, lane->send.plain_memory_bytes);
}

/* The lowest free one: with ordinary sends the same two are used over and over and stay in the cache. */
static bool take_buffer(struct lane_send *send)
{
    for (unsigned i = 0; i < send->buffer_count && !send->filling; i++) {
        struct lane_send_buffer *buffer = &send->buffers[i];
        if (buffer->queued || buffer->notifications)
            continue;
        buffer->used = buffer->sent = 0;
        send->filling = buffer;
        if (send->ktls) {
            send->writer.buffer = buffer->bytes;
            send->writer.used = 0;
        }
    }
    return send->filling;
}

size_t lane_send_append(struct lane *lane, const uint8_t *bytes, size_t length)
{
    struct lane_send *send = &lane->send;
    if (!take_buffer(send))
        return 0;
    struct lane_send_buffer *buffer = send->filling;
    if (length > send->buffer_bytes - buffer->used)
        return 0;
    memcpy(buffer->bytes + buffer->used, bytes, length);
    buffer->used += length;
    return length;
}

static void queue_filled(struct lane_send *send)
{
    struct lane_send_buffer *buffer = send->filling;
    buffer->queued = true;
    send->queue[(send->first + send->count++) % SEND_BUFFERS] = (uint8_t)(buffer - send->buffers);
    send->filling = NULL;
}

static uint64_t bytes_acked(int fd)
{
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    return getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) == 0 ? info.tcpi_bytes_acked : 0;
}

/* Put the oldest queued buffer (what is left of it) into the ring. */
static void start_send(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    if (lane->phase == LANE_ENDED) {
        send->in_flight = false;
        return;
    }
    unsigned index = send->queue[send->first];
    struct lane_send_buffer *buffer = &send->buffers[index];
    const uint8_t *from = buffer->bytes + buffer->sent;
    size_t length = buffer->used - buffer->sent;
    struct io_uring_sqe *entry = lane_ring_entry(&lane->ring);
    if (!send->zerocopy || length < ZEROCOPY_MIN_BYTES) {
        io_uring_prep_send(entry, lane->fd, from, length, MSG_NOSIGNAL);
    } else {
        unsigned flags = send->report_usage ? IORING_SEND_ZC_REPORT_USAGE : 0;
        if (send->registered)
            io_uring_prep_send_zc_fixed(entry, lane->fd, from, length, MSG_NOSIGNAL, flags, index);
        else
            io_uring_prep_send_zc(entry, lane->fd, from, length, MSG_NOSIGNAL, flags);
    }
    io_uring_sqe_set_data64(entry, lane_user_data(OPERATION_SEND, index));
    if (!send->in_flight && lane->config.stall_ms)
        send->progress_ns = clock_now_ns();
    send->in_flight = true;
}

static void zerocopy_off(struct lane *lane)
{
    lane->send.zerocopy = false;
    atomic_store(&lane->zerocopy_used, false);
}

void lane_send_complete(struct lane *lane, const struct io_uring_cqe *cqe)
{
    struct lane_send *send = &lane->send;
    struct lane_send_buffer *buffer = &send->buffers[io_uring_cqe_get_data64(cqe) >> 8];
    if (cqe->flags & IORING_CQE_F_NOTIF) {
        buffer->notifications--;
        if (send->report_usage && ((unsigned)cqe->res & IORING_NOTIF_USAGE_ZC_COPIED))
            zerocopy_off(lane);
        return;
    }
    if (cqe->flags & IORING_CQE_F_MORE)
        buffer->notifications++;
    if (cqe->res == -EINVAL && send->report_usage && send->zerocopy) {
        /* Linux 6.0 and 6.1 cannot tell whether they copied: send it again the ordinary way. */
        zerocopy_off(lane);
        send->report_usage = false;
        start_send(lane);
        return;
    }
    if ((cqe->res == -ENOMEM || cqe->res == -ENOBUFS) && send->zerocopy) {
        zerocopy_off(lane); /* the limit on pinned memory (RLIMIT_MEMLOCK, net.core.optmem_max) */
        start_send(lane);
        return;
    }
    if (cqe->res < 0 && cqe->res != -EINTR) {
        send->in_flight = false;
        send->error = cqe->res;
        return;
    }
    if (cqe->res > 0) {
        buffer->sent += (size_t)cqe->res;
        lane_count(&lane->bytes_sent, (uint64_t)cqe->res);
        send->in_flight = false; /* progress: start_send begins a new stall period */
    }
    if (buffer->sent == buffer->used) {
        buffer->queued = false;
        send->first = (send->first + 1) % SEND_BUFFERS;
        send->count--;
        send->in_flight = false;
        if (!send->count)
            return;
    }
    start_send(lane);
}

/*
 * RFC 8446, 5.5 wants a fresh key after 2^24.5 full records (388 GB) at the latest. OpenSSL 3.0 does not
 * count; with kTLS it cannot change the key at all, so that lane ends there, and the next session has fresh
 * ones.
 */
static int renew_key(struct lane *lane, size_t more)
{
    struct lane_send *send = &lane->send;
    send->key_bytes += more;
    uint64_t limit = send->ktls ? KEY_BYTES_KTLS : lane->config.rekey_bytes;
    if (send->key_bytes <= limit)
        return 0;
    if (send->ktls)
        return error_set(-EKEYEXPIRED,
                         "%llu bytes were sent under one key, which the kernel's TLS cannot change",
                         (unsigned long long)send->key_bytes);
    send->key_bytes = 0;
    if (!SSL_key_update(lane->ssl, SSL_KEY_UPDATE_NOT_REQUESTED))
        return tls_library_failure("change the sending key");
    return 0;
}

/* Encrypt from the plaintext buffer into the filling buffer, whole records as far as they fit. */
static int seal(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    while (send->sealed < send->writer.used && take_buffer(send)) {
        size_t room = send->buffer_bytes - send->filling->used;
        size_t records =
            room > SEND_RESERVE ? (room - SEND_RESERVE) / (TLS_RECORD_BYTES + TLS_RECORD_EXTRA) : 0;
        if (records == 0)
            return 0;
        size_t left = send->writer.used - send->sealed;
        size_t part = left < records * TLS_RECORD_BYTES ? left : records * TLS_RECORD_BYTES;
        int r = renew_key(lane, part);
        if (r < 0)
            return r;
        size_t written;
        ERR_clear_error();
        r = SSL_write_ex(lane->ssl, send->writer.buffer + send->sealed, part, &written);
        if (r != 1)
            return error_add(tls_failure(lane->ssl, SSL_get_error(lane->ssl, r)), "encrypt");
        send->sealed += written;
    }
    return 0;
}

/* Is it too early to produce? The lane wakes by itself when it is not any more. */
static bool too_early(struct lane *lane)
{
    if (lane->config.pacer)
        lane->send.paced_until_ns = pacer_begin(lane->config.pacer, clock_now_ns());
    return lane->send.paced_until_ns;
}

/* Let the producer write until it has nothing more or a good batch is there. */
static int produce(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    struct wire_writer *writer = &send->writer;
    uint64_t sequence = writer->sequence;
    int r = 0;
    while (writer->used < PRODUCE_BATCH_BYTES && !too_early(lane)) {
        /* Taken before asking: a kick that comes while produce() looks must lead to another look. */
        if (atomic_exchange(&lane->kicked, false))
            send->dry = false;
        size_t before = writer->used;
        r = lane->config.ops->produce(lane->config.ctx, lane, writer);
        if (lane->config.pacer)
            pacer_end(lane->config.pacer, writer->used - before);
        if (r <= 0) {
            /* A producer that found too little room says 0 as well: ask again with an empty buffer. */
            send->dry = r == 0 && before == 0;
            break;
        }
        assert(writer->used > before);
    }
    lane_count(&lane->frames_sent, writer->sequence - sequence);
    return r < 0 ? r : 0;
}

void lane_send_confirmation(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    bool room = !send->ktls || take_buffer(send);
    assert(room && send->writer.used == 0);
    send->writer.buffer[send->writer.used++] = LANE_CONFIRMATION;
}

bool lane_send_idle(const struct lane *lane)
{
    const struct lane_send *send = &lane->send;
    return send->count == 0 && send->writer.used == send->sealed && (!send->filling || !send->filling->used);
}

bool lane_send_wants_kick(struct lane *lane)
{
    return lane->send.dry && (!lane->send.ktls || take_buffer(&lane->send));
}

/* The session of an accepted lane is known from the peer's first frame on. */
static bool may_produce(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    if (lane->config.session_known)
        return true;
    send->writer.session = lane->receive.reader.session;
    return lane->receive.reader.session_known;
}

/* The plaintext moves into the filling buffer: encrypted, or with kTLS as it is. 1: the buffer is full. */
static int fill(struct lane *lane)
{
    struct lane_send *send = &lane->send;
    struct wire_writer *writer = &send->writer;
    if (send->ktls) {
        int r = renew_key(lane, writer->used - send->filling->used);
        send->filling->used = writer->used;
        return r < 0 ? r : writer->used >= PRODUCE_BATCH_BYTES;
    }
    int r = seal(lane);
    if (r < 0)
        return r;
    if (send->sealed < writer->used)
        return 1;
    writer->used = send->sealed = 0;
    return 0;
}

int lane_send_pump(struct lane *lane, bool producing)
{
    struct lane_send *send = &lane->send;
    struct wire_writer *writer = &send->writer;
    send->paced_until_ns = 0;
    if (send->error || (send->ktls && !take_buffer(send)))
        return 0;
    producing = producing && may_produce(lane);
    int r;
    if (producing && send->sealed == 0 && (!send->dry || atomic_load(&lane->kicked)) &&
        (r = produce(lane)) < 0)
        return r;
    int full = fill(lane);
    if (full < 0)
        return full;
    if (send->filling && send->filling->used && (full || !send->in_flight)) {
        queue_filled(send);
        if (send->ktls)
            writer->used = 0;
        if (!send->in_flight)
            start_send(lane);
    }
    bool more = producing && !send->dry && !send->paced_until_ns;
    if (!send->ktls)
        more = more || writer->used;
    else if (send->filling && send->filling->used)
        more = false; /* whether it was dry or had no room is asked again with the next, empty buffer */
    return more && take_buffer(send);
}

int lane_send_check_stall(struct lane *lane, uint64_t now_ns)
{
    struct lane_send *send = &lane->send;
    if (!send->in_flight || !lane->config.stall_ms)
        return 0;
    uint64_t acked = bytes_acked(lane->fd);
    if (acked != send->acked_bytes) {
        send->acked_bytes = acked;
        send->progress_ns = now_ns;
        return 0;
    }
    uint64_t silent_ms = (now_ns - send->progress_ns) / NS_PER_MS;
    if (now_ns < send->progress_ns || silent_ms < lane->config.stall_ms)
        return 0;
    return error_set(-ETIMEDOUT, "the peer has taken nothing for %llu ms", (unsigned long long)silent_ms);
}
