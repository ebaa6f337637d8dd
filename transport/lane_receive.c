/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/scope.h"

#include <errno.h>
#include <openssl/err.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 *   socket ──multishot receive──► provided buffers ──BIO──► OpenSSL ──► plain (mapped twice) ──► frame()
 *            kernel picks a buffer    8 x 64 KiB             decrypts |..tail####head....|..tail####head....|
 *
 * One submission keeps receiving for the life of the lane; each completion names the buffer that the kernel
 * filled. A buffer goes back to the kernel when OpenSSL has taken its last byte. When all are full the
 * receive ends with ENOBUFS and is armed again after one came back: from there TCP's window holds the peer
 * up. So a frame() that blocks bounds memory to these buffers, `plain`, and the socket's own.
 *
 * `plain` is one piece of memory mapped twice in a row: a frame that wraps around its end is still
 * contiguous, and nothing is ever moved to the front.
 */

#define PLAIN_BYTES (1u << 20)
static_assert(PLAIN_BYTES >= sizeof(struct wire_header) + WIRE_PAYLOAD_MAX + TLS_RECORD_BYTES,
              "a record must always fit behind the largest unfinished frame");
static_assert((PLAIN_BYTES & (PLAIN_BYTES - 1)) == 0, "positions wrap by mask");

static int map_plain(struct lane_receive *receive)
{
    cleanup_close int fd = memfd_create("understudy-lane", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, PLAIN_BYTES) < 0)
        return error_errno(-errno, "receive buffer");
    uint8_t *both = mmap(NULL, 2 * (size_t)PLAIN_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (both == MAP_FAILED)
        return error_errno(-errno, "receive buffer");
    for (unsigned half = 0; half < 2; half++)
        if (mmap(both + (size_t)half * PLAIN_BYTES, PLAIN_BYTES, PROT_READ | PROT_WRITE,
                 MAP_SHARED | MAP_FIXED | MAP_POPULATE, fd, 0) == MAP_FAILED) {
            int r = -errno;
            munmap(both, 2 * (size_t)PLAIN_BYTES);
            return error_errno(r, "receive buffer");
        }
    receive->plain = both;
    receive->plain_bytes = PLAIN_BYTES;
    return 0;
}

static void give_back(struct lane_receive *receive, uint16_t id)
{
    io_uring_buf_ring_add(receive->ring, receive->buffers + (size_t)id * RECEIVE_BUFFER_BYTES,
                          RECEIVE_BUFFER_BYTES, id, io_uring_buf_ring_mask(RECEIVE_BUFFERS), 0);
    io_uring_buf_ring_advance(receive->ring, 1);
}

int lane_receive_open(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    int r = map_plain(receive);
    if (r < 0)
        return r;
    void *memory = mmap(NULL, RECEIVE_BUFFERS * (size_t)RECEIVE_BUFFER_BYTES, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (memory == MAP_FAILED)
        return error_errno(-errno, "receive buffers");
    receive->buffers = memory;
    void *ring = mmap(NULL, RECEIVE_BUFFERS * sizeof(struct io_uring_buf), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (ring == MAP_FAILED)
        return error_errno(-errno, "receive buffer ring");
    receive->ring = ring;
    struct io_uring_buf_reg registration = {
        .ring_addr = (uintptr_t)ring, .ring_entries = RECEIVE_BUFFERS, .bgid = RECEIVE_GROUP};
    if ((r = io_uring_register_buf_ring(&lane->ring, &registration, 0)) < 0)
        return error_errno(r, "register the receive buffers");
    io_uring_buf_ring_init(receive->ring);
    for (uint16_t id = 0; id < RECEIVE_BUFFERS; id++)
        give_back(receive, id);
    receive->reader = (struct wire_reader){
        .from = lane->config.side == WIRE_SIDE_PRIMARY ? WIRE_SIDE_STANDBY : WIRE_SIDE_PRIMARY,
        .control = lane->config.control,
        .session_known = lane->config.session_known,
        .session = lane->config.session,
    };
    return 0;
}

void lane_receive_close(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    if (receive->ring)
        munmap(receive->ring, RECEIVE_BUFFERS * sizeof(struct io_uring_buf));
    if (receive->buffers)
        munmap(receive->buffers, RECEIVE_BUFFERS * (size_t)RECEIVE_BUFFER_BYTES);
    if (receive->plain)
        munmap(receive->plain, 2 * receive->plain_bytes);
}

void lane_receive_arm(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    if (receive->armed || receive->eof || receive->error || receive->count == RECEIVE_BUFFERS)
        return;
    struct io_uring_sqe *entry = lane_ring_entry(&lane->ring);
    io_uring_prep_recv_multishot(entry, lane->fd, NULL, 0, 0);
    entry->flags |= IOSQE_BUFFER_SELECT;
    entry->buf_group = RECEIVE_GROUP;
    io_uring_sqe_set_data64(entry, lane_user_data(OPERATION_RECEIVE, 0));
    receive->armed = true;
}

void lane_receive_complete(struct lane *lane, const struct io_uring_cqe *cqe)
{
    struct lane_receive *receive = &lane->receive;
    if (!(cqe->flags & IORING_CQE_F_MORE))
        receive->armed = false;
    if (cqe->flags & IORING_CQE_F_BUFFER) {
        uint16_t id = (uint16_t)(cqe->flags >> IORING_CQE_BUFFER_SHIFT);
        if (cqe->res > 0) {
            unsigned slot = (receive->first + receive->count++) % RECEIVE_BUFFERS;
            receive->waiting[slot].id = id;
            receive->waiting[slot].length = (uint32_t)cqe->res;
            lane_count(&lane->bytes_received, (uint64_t)cqe->res);
            return;
        }
        give_back(receive, id);
    }
    if (cqe->res == 0)
        receive->eof = true;
    else if (cqe->res < 0 && cqe->res != -ENOBUFS && cqe->res != -EINTR)
        receive->error = cqe->res;
}

static void drop_oldest(struct lane_receive *receive)
{
    give_back(receive, receive->waiting[receive->first].id);
    receive->first = (receive->first + 1) % RECEIVE_BUFFERS;
    receive->count--;
    receive->offset = 0;
}

size_t lane_receive_take(struct lane *lane, uint8_t *to, size_t room)
{
    struct lane_receive *receive = &lane->receive;
    size_t taken = 0;
    while (taken < room && receive->count) {
        const uint8_t *bytes =
            receive->buffers + (size_t)receive->waiting[receive->first].id * RECEIVE_BUFFER_BYTES;
        size_t left = receive->waiting[receive->first].length - receive->offset;
        size_t part = left < room - taken ? left : room - taken;
        memcpy(to + taken, bytes + receive->offset, part);
        taken += part;
        receive->offset += (uint32_t)part;
        if (part == left)
            drop_oldest(receive);
    }
    return taken;
}

void lane_receive_discard(struct lane *lane)
{
    while (lane->receive.count)
        drop_oldest(&lane->receive);
}

int lane_receive_failure(struct lane *lane, int ssl_error)
{
    struct lane_receive *receive = &lane->receive;
    /* What the peer said inside TLS, an alert above all, tells more than the end of the connection behind it.
     */
    if (ssl_error != SSL_ERROR_SYSCALL || receive->count || !receive->error)
        return tls_failure(lane->ssl, ssl_error);
    ERR_clear_error();
    if (receive->error == -ETIMEDOUT)
        return error_set(-ETIMEDOUT, "the peer's host does not answer any more");
    return error_errno(receive->error, "receive");
}

static int hand_on(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    while (receive->tail != receive->head && !atomic_load_explicit(&lane->stopping, memory_order_relaxed)) {
        struct wire_frame frame;
        long size = wire_reader_next(&receive->reader, receive->plain + (receive->tail & (PLAIN_BYTES - 1)),
                                     (size_t)(receive->head - receive->tail), &frame);
        if (size == 0)
            return 0;
        if (size < 0)
            return (int)size;
        lane_count(&lane->frames_received, 1);
        int r = lane->config.ops->frame(lane->config.ctx, lane, &frame);
        if (r < 0)
            return r;
        receive->tail += (uint64_t)size;
    }
    /* Begin at the front again, so that small traffic stays within a few cache lines. */
    if (receive->tail == receive->head)
        receive->head = receive->tail = 0;
    return 0;
}

static int take_confirmation(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    uint8_t byte = receive->plain[receive->tail & (PLAIN_BYTES - 1)];
    if (byte != LANE_CONFIRMATION)
        return error_set(-EPROTO, "the server's confirmation is 0x%02x, expected 0x%02x", byte,
                         LANE_CONFIRMATION);
    receive->tail++;
    lane->phase = LANE_OPEN;
    return 0;
}

int lane_receive_pump(struct lane *lane)
{
    struct lane_receive *receive = &lane->receive;
    int r = 0;
    /* What came in one record with the confirmation. */
    if (lane->phase == LANE_OPEN && receive->head != receive->tail && (r = hand_on(lane)) < 0)
        return r;
    for (;;) {
        if (atomic_load_explicit(&lane->stopping, memory_order_relaxed))
            return 0;
        size_t got;
        ERR_clear_error();
        r = SSL_read_ex(lane->ssl, receive->plain + (receive->head & (PLAIN_BYTES - 1)),
                        PLAIN_BYTES - (size_t)(receive->head - receive->tail), &got);
        if (r != 1) {
            int ssl_error = SSL_get_error(lane->ssl, r);
            if (ssl_error == SSL_ERROR_WANT_READ || ssl_error == SSL_ERROR_WANT_WRITE)
                return 0;
            r = lane_receive_failure(lane, ssl_error);
            uint64_t rest = receive->head - receive->tail;
            return rest ? error_set(r, "%s, %llu bytes into a frame", error_text(), (unsigned long long)rest)
                        : r;
        }
        receive->head += got;
        if (lane->phase == LANE_CONFIRMING) {
            if ((r = take_confirmation(lane)) < 0)
                return r;
            return 1; /* up() comes before the first frame */
        }
        if ((r = hand_on(lane)) < 0)
            return r;
    }
}
