/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/relay_internal.h"

#include <assert.h>
#include <errno.h>
#include <linux/if_packet.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * Theory of operation. Order is everything here, and io_uring gives none between requests that wait. So none
 * waits but polls: a poll says that there may be something to do, then a batch of reads or writes that do not
 * wait goes down in one system call and is complete when that returns. Reads complete in the order in which
 * they were submitted. Writes are linked: after the first that finds no room the others are cancelled, and
 * all of them are tried again, in order, when there is room.
 *
 * Taps of kernels that cannot tell io_uring not to wait for them (6.1 is one) are read and written by
 * ordinary system calls, with the same results.
 *
 * Each descriptor has one poll for input that stays (multishot: it tells of changes, so what is ready is read
 * until nothing is left) and, while it is full, one for output.
 */

enum request {
    REQUEST_BATCH,
    REQUEST_WAKE,
    REQUEST_INSIDE,
    REQUEST_OUTSIDE,
    REQUEST_INSIDE_ROOM,
    REQUEST_OUTSIDE_ROOM
};

static uint64_t tag_of(enum request request, unsigned index)
{
    return (uint64_t)request << 32 | index;
}

static struct io_uring_sqe *next_sqe(struct relay_io *io)
{
    struct io_uring_sqe *sqe = io_uring_get_sqe(&io->ring);
    if (!sqe) { /* larger than the ring: what is in it goes down first */
        io_uring_submit(&io->ring);
        sqe = io_uring_get_sqe(&io->ring);
    }
    assert(sqe);
    return sqe;
}

static void arm_input(struct relay_io *io, enum request request, unsigned index, int fd)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_poll_multishot(sqe, fd, POLLIN);
    io_uring_sqe_set_data64(sqe, tag_of(request, index));
}

static void arm_room(struct relay_io *io, enum request request, unsigned index, int fd)
{
    struct io_uring_sqe *sqe = next_sqe(io);
    io_uring_prep_poll_add(sqe, fd, POLLOUT);
    io_uring_sqe_set_data64(sqe, tag_of(request, index));
}

int relay_io_init(struct relay_io *io, int wake_fd, struct relay_port *ports, unsigned port_count,
                  struct hold *hold)
{
    *io = (struct relay_io){.wake_fd = wake_fd, .ports = ports, .port_count = port_count, .hold = hold};
    int rc = io_uring_queue_init(256, &io->ring, 0);
    if (rc)
        return error_errno(rc, "relay: io_uring");
    io->ring_made = true;
    arm_input(io, REQUEST_WAKE, 0, wake_fd);
    for (unsigned i = 0; i < port_count; i++) {
        arm_input(io, REQUEST_INSIDE, i, ports[i].inside);
        arm_input(io, REQUEST_OUTSIDE, i, ports[i].outside);
        ports[i].inside_ready = ports[i].outside_ready = true;
    }
    return 0;
}

void relay_io_free(struct relay_io *io)
{
    if (io->ring_made)
        io_uring_queue_exit(&io->ring);
    io->ring_made = false;
}

static void handle(struct relay_io *io, const struct io_uring_cqe *cqe, int *results)
{
    uint64_t tag = io_uring_cqe_get_data64(cqe);
    unsigned index = (unsigned)tag;
    bool more = cqe->flags & IORING_CQE_F_MORE;
    struct relay_port *port = index < io->port_count ? &io->ports[index] : NULL;
    switch ((enum request)(tag >> 32)) {
    case REQUEST_BATCH:
        results[index] = cqe->res;
        io->in_flight--;
        break;
    case REQUEST_WAKE:
        io->woken = true;
        if (!more)
            arm_input(io, REQUEST_WAKE, 0, io->wake_fd);
        break;
    case REQUEST_INSIDE:
        port->inside_ready = true;
        if (!more)
            arm_input(io, REQUEST_INSIDE, index, port->inside);
        break;
    case REQUEST_OUTSIDE:
        port->outside_ready = true;
        if (!more)
            arm_input(io, REQUEST_OUTSIDE, index, port->outside);
        break;
    case REQUEST_INSIDE_ROOM:
        port->inside_blocked = false;
        break;
    case REQUEST_OUTSIDE_ROOM:
        port->outside_blocked = false;
        break;
    }
}

static void reap(struct relay_io *io, int *results)
{
    struct io_uring_cqe *cqe;
    while (!io_uring_peek_cqe(&io->ring, &cqe)) {
        handle(io, cqe, results);
        io_uring_cqe_seen(&io->ring, cqe);
    }
}

/* What came while a batch ran is known already, and no completion will tell of it again. */
static bool has_work(const struct relay_io *io)
{
    for (unsigned i = 0; i < io->port_count; i++) {
        const struct relay_port *port = &io->ports[i];
        bool waits = port->outside_ready || port->to_guest.next < port->to_guest.count;
        if (port->inside_ready || (waits && !port->inside_blocked))
            return true;
    }
    const struct held_frame *frame = hold_ready(io->hold);
    return io->woken || (frame && !io->ports[frame->port].outside_blocked);
}

int relay_io_wait(struct relay_io *io)
{
    int rc = io_uring_submit_and_wait(&io->ring, has_work(io) ? 0 : 1);
    if (rc < 0 && rc != -EINTR)
        return error_errno(rc, "relay: io_uring");
    reap(io, NULL);
    if (io->woken) {
        eventfd_t ignored;
        eventfd_read(io->wake_fd, &ignored);
        io->woken = false;
    }
    return 0;
}

/* The batch that was prepared, to its end. None of it waits. */
static int run_batch(struct relay_io *io, unsigned count, int *results)
{
    io->in_flight = count;
    while (io->in_flight) {
        int rc = io_uring_submit_and_wait(&io->ring, 1);
        if (rc < 0 && rc != -EINTR)
            return error_errno(rc, "relay: io_uring");
        reap(io, results);
    }
    return 0;
}

static char *frame_at(struct relay_batch *batch, unsigned i)
{
    return batch->memory + (size_t)i * RELAY_FRAME_MAX;
}

static void adapt(struct relay_batch *batch, unsigned got)
{
    if (got == batch->size && batch->size < RELAY_BATCH)
        batch->size *= 2;
    else if (got < batch->size / 2)
        batch->size /= 2;
}

/* From the guest */

/* The kernel takes an outer VLAN tag out of the frame and tells it beside; back in, behind the addresses. */
static size_t restore_tag(const struct msghdr *message, char *frame, size_t length)
{
    for (struct cmsghdr *item = CMSG_FIRSTHDR(message); item;
         item = CMSG_NXTHDR((struct msghdr *)message, item)) {
        if (item->cmsg_level != SOL_PACKET || item->cmsg_type != PACKET_AUXDATA)
            continue;
        struct tpacket_auxdata aux;
        memcpy(&aux, CMSG_DATA(item), sizeof aux);
        if (!(aux.tp_status & TP_STATUS_VLAN_VALID))
            return length;
        uint16_t type = aux.tp_status & TP_STATUS_VLAN_TPID_VALID ? aux.tp_vlan_tpid : ETH_P_8021Q;
        uint16_t tag[2] = {htobe16(type), htobe16(aux.tp_vlan_tci)};
        char *place = frame + RELAY_VNET_BYTES + 2 * ETH_ALEN;
        memmove(place + RELAY_TAG_BYTES, place, length - RELAY_VNET_BYTES - 2 * ETH_ALEN);
        memcpy(place, tag, sizeof tag);
        struct virtio_net_hdr header;
        memcpy(&header, frame, sizeof header);
        if (header.flags & VIRTIO_NET_HDR_F_NEEDS_CSUM)
            header.csum_start = (uint16_t)(header.csum_start + RELAY_TAG_BYTES);
        if (header.gso_type != VIRTIO_NET_HDR_GSO_NONE)
            header.hdr_len = (uint16_t)(header.hdr_len + RELAY_TAG_BYTES);
        memcpy(frame, &header, sizeof header);
        return length + RELAY_TAG_BYTES;
    }
    return length;
}

static void prepare_receive(struct relay_batch *batch, unsigned i, bool vnet)
{
    batch->pieces[i] = (struct iovec){frame_at(batch, i), RELAY_FRAME_MAX - RELAY_TAG_BYTES};
    batch->messages[i] = (struct msghdr){.msg_iov = &batch->pieces[i], .msg_iovlen = 1};
    if (vnet) {
        batch->messages[i].msg_control = batch->control[i];
        batch->messages[i].msg_controllen = sizeof batch->control[i];
        batch->messages[i].msg_name = &batch->from[i];
        batch->messages[i].msg_namelen = sizeof batch->from[i];
    }
}

/* One frame of the guest into the hold, or dropped over the bound. */
static void take_frame(struct relay_io *io, unsigned index, unsigned i, size_t length, uint64_t now_ns)
{
    struct relay_port *port = &io->ports[index];
    struct relay_batch *batch = &port->from_guest;
    char *data = frame_at(batch, i);
    size_t header = port->vnet ? RELAY_VNET_BYTES : 0;
    const struct sockaddr_ll *from = (const struct sockaddr_ll *)&batch->from[i];
    if (port->vnet && from->sll_pkttype == PACKET_OUTGOING)
        return;
    if (length < header + ETH_HLEN || batch->messages[i].msg_flags & MSG_TRUNC) {
        port->dropped++;
        return;
    }
    if (port->vnet)
        length = restore_tag(&batch->messages[i], data, length);
    struct held_frame frame = {
        .arrived_ns = now_ns, .bytes = (uint32_t)(length - header), .port = (uint16_t)index};
    char *copy = malloc(length + sizeof(uint32_t));
    if (!copy) {
        port->dropped++;
        return;
    }
    memcpy(copy, data, length);
    frame.data = copy;
    if (hold_push(io->hold, &frame))
        free(copy); /* counted there */
}

/* Reads one batch of what a guest has sent. Returns whether it should be read again, or a failure. */
static int take_batch(struct relay_io *io, unsigned index)
{
    struct relay_port *port = &io->ports[index];
    struct relay_batch *batch = &port->from_guest;
    unsigned size = batch->size, got = 0;
    port->inside_ready = false; /* first: a poll may tell of more while the batch runs */
    for (unsigned i = 0; i < size; i++) {
        struct io_uring_sqe *sqe = next_sqe(io);
        prepare_receive(batch, i, port->vnet);
        io_uring_prep_recvmsg(sqe, port->inside, &batch->messages[i], MSG_DONTWAIT);
        io_uring_sqe_set_data64(sqe, tag_of(REQUEST_BATCH, i));
    }
    int rc = run_batch(io, size, batch->results);
    if (rc)
        return rc;
    uint64_t now_ns = clock_now_ns();
    bool empty = false;
    for (unsigned i = 0; i < size; i++) {
        int result = batch->results[i];
        if (result >= 0) {
            take_frame(io, index, i, (size_t)result, now_ns);
            got++;
        } else if (result == -EAGAIN) {
            empty = true;
        } else if (result == -ENETDOWN || result == -ENXIO || result == -ENODEV) {
            if (!relay_port_alive(port))
                return error_set(-ENODEV, "relay: QEMU's tap '%s' went away", port->guest_tap);
            empty = true;
        } else if (result != -EINVAL && result != -EINTR) { /* -EINVAL: a frame that no header describes */
            return error_errno(result, "relay: receive from '%s'",
                               port->vnet ? port->guest_tap : port->own_socket);
        }
    }
    adapt(batch, got);
    port->inside_ready |= !empty;
    return port->inside_ready;
}

/* The next of the frames that may go, if its way is not blocked. */
static const struct held_frame *next_out(const struct relay_io *io, unsigned ahead)
{
    const struct held_frame *frame = ahead < RELAY_BATCH ? hold_ready_at(io->hold, ahead) : NULL;
    return frame && !io->ports[frame->port].outside_blocked ? frame : NULL;
}

/* A batch, in order, up to the first failure. Returns how many results there are. */
static int write_out(struct relay_io *io, int *results)
{
    unsigned count = 0, submitted = 0;
    const struct held_frame *frame = next_out(io, 0);
    while (frame) {
        const struct relay_port *port = &io->ports[frame->port];
        size_t length = frame->bytes + (port->vnet ? RELAY_VNET_BYTES : 0);
        void *data = frame->data;
        frame = next_out(io, ++count);
        if (!port->outside_nowait) { /* so are all, it is the kernel's doing */
            results[count - 1] = write(port->outside, data, length) < 0 ? -errno : 0;
            if (results[count - 1])
                return (int)count;
            continue;
        }
        struct io_uring_sqe *sqe = next_sqe(io);
        io_uring_prep_write(sqe, port->outside, data, (unsigned)length, 0);
        sqe->rw_flags = RWF_NOWAIT;
        io_uring_sqe_set_data64(sqe, tag_of(REQUEST_BATCH, count - 1));
        if (frame)
            sqe->flags |= IOSQE_IO_LINK;
        submitted++;
    }
    int rc = submitted ? run_batch(io, submitted, results) : 0;
    return rc ? rc : (int)count;
}

/* Writes what may go, as far as there is room. */
static int let_out(struct relay_io *io)
{
    int results[RELAY_BATCH];
    int count = write_out(io, results);
    if (count <= 0)
        return count;
    uint64_t now_ns = clock_now_ns();
    for (int i = 0; i < count; i++) {
        struct held_frame first = *hold_ready(io->hold);
        if (results[i] == -ECANCELED || results[i] == -EINTR)
            return 0;
        if (results[i] == -EAGAIN) {
            io->ports[first.port].outside_blocked = true;
            arm_room(io, REQUEST_OUTSIDE_ROOM, first.port, io->ports[first.port].outside);
            return 0;
        }
        if (results[i] == -EBADFD)
            return error_set(-EBADFD, "relay: tap '%s' went away", io->ports[first.port].tap);
        /* Other failures are those of an unplugged wire (the tap is down), or of a frame that is none. */
        if (results[i] < 0)
            hold_drop(io->hold, &first);
        else
            hold_pop(io->hold, now_ns);
        free(first.data);
    }
    return 0;
}

/* To the guest */

static int read_outside(struct relay_io *io, unsigned index)
{
    struct relay_port *port = &io->ports[index];
    struct relay_batch *batch = &port->to_guest;
    unsigned size = batch->size;
    port->outside_ready = false; /* first: a poll may tell of more while the batch runs */
    for (unsigned i = 0; i < size; i++) {
        if (!port->outside_nowait) {
            ssize_t length = read(port->outside, frame_at(batch, i), RELAY_FRAME_MAX);
            batch->results[i] = length < 0 ? -errno : (int)length;
            continue;
        }
        struct io_uring_sqe *sqe = next_sqe(io);
        io_uring_prep_read(sqe, port->outside, frame_at(batch, i), RELAY_FRAME_MAX, 0);
        sqe->rw_flags = RWF_NOWAIT;
        io_uring_sqe_set_data64(sqe, tag_of(REQUEST_BATCH, i));
    }
    int rc = port->outside_nowait ? run_batch(io, size, batch->results) : 0;
    if (rc)
        return rc;
    batch->count = batch->next = 0;
    bool empty = false;
    for (unsigned i = 0; i < size; i++) {
        int result = batch->results[i];
        if (result == -EAGAIN || result == -EIO) /* -EIO: it is down */
            empty = true;
        else if (result < 0 && result != -EINTR)
            return error_errno(result, "relay: read from tap '%s'", port->tap);
        if (result <= 0)
            continue;
        /* Reads that got nothing leave gaps, which only move the place, not the order. */
        batch->pieces[batch->count++] = (struct iovec){frame_at(batch, i), (size_t)result};
    }
    adapt(batch, batch->count);
    port->outside_ready |= !empty;
    return 0;
}

/* How a write to the guest ended. Frames that nobody takes are lost, as on a wire without a machine. */
static bool written(struct relay_io *io, unsigned index, int result)
{
    struct relay_port *port = &io->ports[index];
    if (result == -ECANCELED || result == -EINTR)
        return false;
    if (result == -EAGAIN) {
        port->inside_blocked = true;
        arm_room(io, REQUEST_INSIDE_ROOM, index, port->inside_out);
        return false;
    }
    if (result < 0 && !port->vnet &&
        port->inside_out >= 0) { /* this QEMU is gone; perhaps there is another */
        close(port->inside_out);
        port->inside_out = -1;
    }
    port->to_guest.next++;
    if (result >= 0)
        port->frames_in++;
    return true;
}

static int let_in(struct relay_io *io, unsigned index)
{
    struct relay_port *port = &io->ports[index];
    struct relay_batch *batch = &port->to_guest;
    if (port->inside_out < 0 && relay_port_connect(port)) {
        batch->next = batch->count;
        return 0;
    }
    unsigned count = batch->count - batch->next;
    for (unsigned i = 0; i < count; i++) {
        const struct iovec *piece = &batch->pieces[batch->next + i];
        struct io_uring_sqe *sqe = next_sqe(io);
        io_uring_prep_send(sqe, port->inside_out, piece->iov_base, piece->iov_len,
                           MSG_DONTWAIT | MSG_NOSIGNAL);
        io_uring_sqe_set_data64(sqe, tag_of(REQUEST_BATCH, i));
        if (i + 1 < count)
            sqe->flags |= IOSQE_IO_LINK;
    }
    int rc = run_batch(io, count, batch->results);
    for (unsigned i = 0; !rc && i < count; i++)
        if (!written(io, index, batch->results[i]))
            break;
    return rc;
}

static int move_in(struct relay_io *io, unsigned index)
{
    struct relay_port *port = &io->ports[index];
    if (port->inside_blocked)
        return 0;
    if (port->to_guest.next == port->to_guest.count && port->outside_ready) {
        int rc = read_outside(io, index);
        if (rc)
            return rc;
    }
    return port->to_guest.next < port->to_guest.count ? let_in(io, index) : 0;
}

int relay_io_move(struct relay_io *io)
{
    for (unsigned i = 0; i < io->port_count; i++) {
        int rc = io->ports[i].inside_ready ? take_batch(io, i) : 0;
        rc = rc < 0 ? rc : move_in(io, i);
        if (rc < 0)
            return rc;
    }
    return let_out(io);
}

int relay_io_take_all(struct relay_io *io)
{
    for (unsigned i = 0; i < io->port_count; i++) {
        io->ports[i].inside_ready = true; /* a poll's word may still be under way */
        /* What waits in the socket is bounded; who sends faster than this reads just comes late. */
        int rc = 1;
        for (uint64_t n = 0; rc > 0 && n <= io->hold->frames_max; n += io->ports[i].from_guest.size)
            rc = take_batch(io, i);
        if (rc < 0)
            return rc;
    }
    return 0;
}

void relay_io_drop_all(struct relay_io *io)
{
    struct held_frame frame;
    while (hold_drop(io->hold, &frame))
        free(frame.data);
}
