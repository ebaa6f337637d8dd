/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/virtio_devices.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>

/*
 * The console device (Virtual I/O Device 1.2, section 5.3), one port, on a pair of descriptors.
 *
 * Output is held as frames are, but none is lost over the bound: the guest's requests stay in the queue until
 * a release makes room, and the guest waits. Input is read straight into the guest's buffers; what has not
 * been read yet waits in the descriptor, so it belongs to nobody's checkpoint.
 */

enum { RECEIVE, SEND };

struct console {
    struct virtio virtio;
    int in_fd;
    struct output_port *port;
    struct io_request poll;
    bool polling, ended;
};

static int send_one(struct virtio *virtio)
{
    struct console *console = (struct console *)virtio;
    struct virtqueue_chain chain;
    if (!virtio_peek(virtio, SEND, &chain))
        return 0;
    if (chain.in_bytes || chain.out_bytes == 0 || chain.out_bytes > OUTPUT_BYTES_MAX) {
        error_set(-EPROTO, "request %u: %u bytes to read, %u to write: no output", chain.head,
                  chain.out_bytes, chain.in_bytes);
        virtio_break(virtio);
        return 0;
    }
    if (!output_has_room(console->port, chain.out_bytes))
        return -EAGAIN; /* on_room() follows */
    void *data = malloc(chain.out_bytes);
    if (data) { /* else it is lost: there is no memory even to wait in order */
        virtqueue_chain_read(&chain, 0, data, chain.out_bytes);
        output_push(console->port, data, chain.out_bytes);
    }
    virtqueue_advance(&virtio->queues[SEND]);
    virtqueue_push(&virtio->queues[SEND], chain.head, 0);
    return 1;
}

static void on_room(void *ctx)
{
    io_ask(&((struct console *)ctx)->virtio.work);
}

static void on_input(struct io_request *request, int result)
{
    struct console *console = (struct console *)((char *)request - offsetof(struct console, poll));
    console->polling = false;
    console->ended |= result < 0 || (result & POLLNVAL);
    io_ask(&console->virtio.work);
}

static int receive_one(struct virtio *virtio)
{
    struct console *console = (struct console *)virtio;
    struct virtqueue *queue = &virtio->queues[RECEIVE];
    struct virtqueue_chain chain;
    if (console->ended)
        return -EAGAIN;
    if (!virtio_peek(virtio, RECEIVE, &chain))
        return 0;
    if (chain.out_bytes || chain.in_bytes == 0) {
        error_set(-EPROTO, "request %u: %u bytes to read, %u to write: no place for input", chain.head,
                  chain.out_bytes, chain.in_bytes);
        virtio_break(virtio);
        return 0;
    }
    struct iovec pieces[VIRTQUEUE_PIECES_MAX];
    unsigned count = virtqueue_chain_slice(&chain, 0, chain.in_bytes, pieces);
    ssize_t got = readv(console->in_fd, pieces, (int)count);
    if (got < 0 && errno == EINTR)
        return 1;
    if (got < 0 && errno == EAGAIN) {
        if (!console->polling) {
            console->polling = true;
            io_poll(virtio->io, &console->poll, console->in_fd, POLLIN);
        }
        return -EAGAIN;
    }
    if (got <= 0) { /* the other side has closed it; output goes on */
        console->ended = true;
        return -EAGAIN;
    }
    virtqueue_chain_mark(queue, &chain, 0, (size_t)got);
    virtqueue_advance(queue);
    virtqueue_push(queue, chain.head, (uint32_t)got);
    return 1;
}

static void work(struct virtio *virtio)
{
    if (virtio_work_queue(virtio, SEND, send_one))
        virtio_signal(virtio, SEND);
    if (virtio_work_queue(virtio, RECEIVE, receive_one))
        virtio_signal(virtio, RECEIVE);
}

static const struct virtio_kind kind = {
    .name = "virtio-console",
    .device_id = 3,
    .record_type = RECORD_VIRTIO_CONSOLE,
    .queue_count = 2,
    .queue_size = 64,
    .work = work,
};

int virtio_console_new(struct device **ret_device, const struct virtio_place *place, int in_fd, int out_fd,
                       struct output *output)
{
    int flags = in_fd >= 0 ? fcntl(in_fd, F_GETFL) : 0;
    if (flags < 0 || (in_fd >= 0 && fcntl(in_fd, F_SETFL, flags | O_NONBLOCK)))
        return error_errno(-errno, "virtio-console: make descriptor %d non-blocking", in_fd);
    struct console *console = calloc(1, sizeof *console);
    if (!console)
        return error_set(-ENOMEM, "virtio-console: no memory");
    int rc = output_add(output, OUTPUT_STREAM, out_fd, on_room, console, &console->port);
    if (rc) {
        free(console);
        return error_add(rc, "virtio-console");
    }
    console->in_fd = in_fd;
    console->ended = in_fd < 0;
    console->poll.done = on_input;
    virtio_init(&console->virtio, &kind, place, 0, NULL, 0);
    *ret_device = &console->virtio.device;
    return 0;
}
