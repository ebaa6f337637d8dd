/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/virtio_devices.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <poll.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>

/*
 * The network device (Virtual I/O Device 1.2, section 5.1) on a tap.
 *
 * It offers no offloads, because a held frame is one that the other side could take as it is: whole, with its
 * checksum. What the guest sends goes to the output port, which holds it; what is sent to the guest is read
 * straight into its buffers. A tap that has nothing to read is waited for by io_uring; its reads never wait.
 */

enum { RECEIVE, SEND };

#define F_MAC VIRTIO_F(5)
#define HEADER_BYTES                                                                                         \
    12 /* struct virtio_net_hdr of a modern device: without offloads all zeros but the last */
#define BUFFERS_AT    10 /* le16 in it: how many buffers a frame lies in, always 1 */
#define ADDRESS_BYTES 6
#define FRAME_MIN     60

struct net {
    struct virtio virtio;
    int fd;
    uint8_t mac[ADDRESS_BYTES];
    struct output_port *port;
    struct io_request poll;
    bool polling, gone;
};

static int send_one(struct virtio *virtio)
{
    struct net *net = (struct net *)virtio;
    struct virtqueue_chain chain;
    if (!virtio_peek(virtio, SEND, &chain))
        return 0;
    if (chain.in_bytes || chain.out_bytes <= HEADER_BYTES ||
        chain.out_bytes - HEADER_BYTES > OUTPUT_BYTES_MAX) {
        error_set(-EPROTO, "request %u: %u bytes to read, %u to write: no frame", chain.head, chain.out_bytes,
                  chain.in_bytes);
        virtio_break(virtio);
        return 0;
    }
    uint32_t bytes = chain.out_bytes - HEADER_BYTES;
    void *frame = malloc(bytes); /* none: the frame is lost, as frames may be */
    if (frame) {
        virtqueue_chain_read(&chain, HEADER_BYTES, frame, bytes);
        output_push(net->port, frame, bytes);
    }
    virtqueue_advance(&virtio->queues[SEND]);
    virtqueue_push(&virtio->queues[SEND], chain.head, 0);
    return 1;
}

static void wait_for_frames(struct net *net)
{
    if (net->polling || net->gone)
        return;
    net->polling = true;
    io_poll(net->virtio.io, &net->poll, net->fd, POLLIN);
}

static void on_frames(struct io_request *request, int result)
{
    struct net *net = (struct net *)((char *)request - offsetof(struct net, poll));
    net->polling = false;
    /* A tap that was deleted says so for ever. */
    net->gone = result < 0 || (result & (POLLERR | POLLNVAL));
    io_ask(&net->virtio.work);
}

static int receive_one(struct virtio *virtio)
{
    struct net *net = (struct net *)virtio;
    struct virtqueue *queue = &virtio->queues[RECEIVE];
    struct virtqueue_chain chain;
    if (net->gone)
        return -EAGAIN;
    if (!virtio_peek(virtio, RECEIVE, &chain))
        return 0;
    if (chain.out_bytes || chain.in_bytes <= HEADER_BYTES) {
        error_set(-EPROTO, "request %u: %u bytes to read, %u to write: no place for a frame", chain.head,
                  chain.out_bytes, chain.in_bytes);
        virtio_break(virtio);
        return 0;
    }
    /* One piece more, so that a frame that does not fit shows. */
    struct iovec pieces[VIRTQUEUE_PIECES_MAX + 1];
    uint32_t room = chain.in_bytes - HEADER_BYTES;
    unsigned count = virtqueue_chain_slice(&chain, HEADER_BYTES, room, pieces);
    char more;
    pieces[count++] = (struct iovec){&more, 1};
    ssize_t got = readv(net->fd, pieces, (int)count);
    if (got < 0 && errno == EINTR)
        return 1;
    if (got <= 0) { /* nothing there, or the tap is down */
        wait_for_frames(net);
        return -EAGAIN;
    }
    virtqueue_chain_mark(queue, &chain, HEADER_BYTES, (size_t)got);
    if ((size_t)got > room) /* it is lost; the guest said that it takes none of this length */
        return 1;
    uint8_t header[HEADER_BYTES] = {[BUFFERS_AT] = 1};
    virtqueue_chain_write(queue, &chain, 0, header, sizeof header);
    virtqueue_advance(queue);
    virtqueue_push(queue, chain.head, (uint32_t)(HEADER_BYTES + got));
    return 1;
}

static void work(struct virtio *virtio)
{
    if (virtio_work_queue(virtio, SEND, send_one))
        virtio_signal(virtio, SEND);
    if (virtio_work_queue(virtio, RECEIVE, receive_one))
        virtio_signal(virtio, RECEIVE);
}

static void free_net(struct virtio *virtio)
{
    struct net *net = (struct net *)virtio;
    if (net->fd >= 0)
        close(net->fd);
}

static const struct virtio_kind kind = {
    .name = "virtio-net",
    .device_id = 1,
    .record_type = RECORD_VIRTIO_NET,
    .queue_count = 2,
    .queue_size = 256,
    .work = work,
    .free = free_net,
};

int virtio_net_new(struct device **ret_device, const struct virtio_place *place, int fd, const uint8_t mac[6],
                   struct output *output)
{
    struct net *net = calloc(1, sizeof *net);
    if (!net)
        return error_set(-ENOMEM, "virtio-net: no memory");
    int rc = output_add(output, OUTPUT_FRAMES, fd, NULL, NULL, &net->port);
    if (rc) {
        free(net);
        return error_add(rc, "virtio-net");
    }
    net->fd = fd;
    net->poll.done = on_frames;
    memcpy(net->mac, mac, ADDRESS_BYTES);
    virtio_init(&net->virtio, &kind, place, F_MAC, mac, ADDRESS_BYTES);
    *ret_device = &net->virtio.device;
    return 0;
}

void virtio_net_announce(struct device *device)
{
    const struct net *net = (const struct net *)device;
    static const uint8_t type_and_rarp[] = {0x80, 0x35, 0, 1, 0x08,
                                            0,    6,    4, 0, 3}; /* RFC 903: reverse request */
    uint8_t *frame = calloc(1, FRAME_MIN);
    if (!frame)
        return;
    memset(frame, 0xff, ADDRESS_BYTES);
    memcpy(frame + 6, net->mac, ADDRESS_BYTES);
    memcpy(frame + 12, type_and_rarp, sizeof type_and_rarp);
    memcpy(frame + 22, net->mac, ADDRESS_BYTES); /* sender; its address 0.0.0.0 */
    memcpy(frame + 32, net->mac, ADDRESS_BYTES); /* target */
    output_push(net->port, frame, FRAME_MIN);
}

int virtio_net_open_tap(const char *name)
{
    if (strlen(name) >= IFNAMSIZ)
        return error_set(-EINVAL, "tap '%s': the name is longer than %d characters", name, IFNAMSIZ - 1);
    int fd cleanup_close = open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return error_errno(-errno, "tap '%s': open /dev/net/tun", name);
    struct ifreq request = {.ifr_flags = IFF_TAP | IFF_NO_PI};
    memcpy(request.ifr_name, name, strlen(name));
    if (ioctl(fd, TUNSETIFF, &request))
        return error_errno(-errno, "tap '%s': attach", name);
    return take_fd(&fd);
}
