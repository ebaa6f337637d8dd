/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_RELAY_INTERNAL_H
#define UNDERSTUDY_GATE_RELAY_INTERNAL_H

#include "gate/hold.h"

#include <linux/if_ether.h>
#include <linux/virtio_net.h>
#include <liburing.h>
#include <stdbool.h>
#include <sys/socket.h>
#include <sys/uio.h>

struct gate_port;

#define RELAY_VNET_BYTES sizeof(struct virtio_net_hdr)
#define RELAY_TAG_BYTES  4
/* QEMU's NET_BUFSIZE, 4 KiB + 64 KiB, is the largest frame of any device of its; and a header before it. */
#define RELAY_FRAME_MAX (69632 + RELAY_VNET_BYTES + RELAY_TAG_BYTES)
#define RELAY_BATCH     32

/* Room for a batch of frames in one direction. A VLAN tag that the kernel took out goes back in, hence `tag`.
 */
struct relay_batch {
    char *memory; /* RELAY_BATCH times RELAY_FRAME_MAX, touched as far as it is used */
    struct iovec pieces[RELAY_BATCH];
    struct msghdr messages[RELAY_BATCH];
    _Alignas(struct cmsghdr) char control[RELAY_BATCH][64];
    struct sockaddr_storage from[RELAY_BATCH];
    int results[RELAY_BATCH];
    unsigned size;        /* of the next read: it grows while reads fill it */
    unsigned count, next; /* to the guest: frames that were read, and how many of them were written */
};

/*
 * One interface. `inside` is QEMU's end: our socket of a -netdev dgram, or a packet socket on QEMU's tap,
 * which talks with a virtio_net_hdr before each frame (`vnet`). `outside` is our own tap.
 */
struct relay_port {
    char tap[16], guest_tap[16], guest_socket[108], own_socket[108];
    int inside, inside_out, outside; /* inside_out: where frames to the guest go; dgram: a connected socket */
    bool vnet;
    bool outside_nowait;                  /* io_uring can be told not to wait for it */
    bool own_bound;                       /* own_socket is ours to unlink */
    int guest_index;                      /* of guest_tap */
    bool inside_ready, outside_ready;     /* there may be something to read */
    bool inside_blocked, outside_blocked; /* a write waits for room */
    struct relay_batch from_guest, to_guest;
    uint64_t frames_in, dropped;
};

int relay_port_open(struct relay_port *port, const struct gate_port *config);
/* `keep`: what makes the gate fail closed stays. */
void relay_port_close(struct relay_port *port, bool keep);
/* QEMU's socket is known by its name: another QEMU, another socket. 0 or a failure that a try may mend. */
int relay_port_connect(struct relay_port *port);
/* Whether the socket on QEMU's tap still stands on it. */
bool relay_port_alive(const struct relay_port *port);

/* The moving of frames: a ring, and what waits in it. Owned by the relay's thread. */
struct relay_io {
    struct io_uring ring;
    bool ring_made;
    int wake_fd;
    bool woken;
    struct relay_port *ports;
    unsigned port_count;
    struct hold *hold;
    unsigned in_flight;
};

int relay_io_init(struct relay_io *io, int wake_fd, struct relay_port *ports, unsigned port_count,
                  struct hold *hold);
void relay_io_free(struct relay_io *io);
/* Waits until something may be moved, or somebody woke it; not at all while there is something to move. */
int relay_io_wait(struct relay_io *io);
/* Moves a batch each way. */
int relay_io_move(struct relay_io *io);
/* Takes in what the guests have sent up to now. */
int relay_io_take_all(struct relay_io *io);
/* Frees what is held. */
void relay_io_drop_all(struct relay_io *io);

#endif
