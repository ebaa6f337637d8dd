/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTQUEUE_H
#define UNDERSTUDY_VMM_KVM_VIRTQUEUE_H

#include "vmm/kvm/guest_memory.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/uio.h>

/*
 * The device's side of a split virtqueue (Virtual I/O Device 1.2, section 2.7), against a guest that lies.
 *
 * All three areas lie in guest RAM and may change while they are read. Every value is read once and the copy
 * is checked; what a chain says is copied into a virtqueue_chain, whose pieces lie in RAM whatever the guest
 * does afterwards. A queue that breaks the rules gives -EPROTO with words, and its device stops until the
 * driver resets it.
 *
 * One owner; for devices of this VMM io's lock.
 */

#define VIRTQUEUE_SIZE_MAX   256
#define VIRTQUEUE_PIECES_MAX 256 /* of a chain, indirect or not */

struct virtqueue {
    struct guest_memory *memory;
    uint16_t size_max; /* what the device can do */

    /* Set by the driver. */
    uint16_t size;
    uint64_t descriptors, available, used;
    bool event_idx, indirect; /* negotiated */

    bool ready;
    uint16_t next_available; /* the next entry of the available ring that is taken */
    uint16_t next_used;
    uint16_t signalled;   /* next_used when the driver was last signalled or looked at ... */
    bool signalled_known; /* ... which is known only after the first time */
};

/* A request of the driver's: first the pieces that the device reads, then those that it writes. */
struct virtqueue_chain {
    uint16_t head;
    unsigned out_count, in_count;
    uint32_t out_bytes, in_bytes;
    struct iovec pieces[VIRTQUEUE_PIECES_MAX];
    uint64_t gpas[VIRTQUEUE_PIECES_MAX];
};

/* The driver says that size and addresses are there: -EPROTO unless they can be a queue in RAM. */
int virtqueue_start(struct virtqueue *queue);
/* As before the driver knew it. */
void virtqueue_reset(struct virtqueue *queue);

/* The request that begins at descriptor `head`, whatever the rings say. -EPROTO. */
int virtqueue_walk(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *ret_chain);
/* 1: ret_chain is the next request, which stays the next until virtqueue_advance(); 0: there is none. */
int virtqueue_peek(struct virtqueue *queue, struct virtqueue_chain *ret_chain);
/* The request of the last peek is taken. It must come back by virtqueue_push(), in whatever order. */
void virtqueue_advance(struct virtqueue *queue);
/* The request is done; `written` bytes were written to the front of its pieces. */
void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written);
/* Ask to be notified of the next request. True: there are some already, look again. */
bool virtqueue_rearm(struct virtqueue *queue);
/* Whether the driver wants to hear of what was pushed since the last time; asking counts as telling. */
bool virtqueue_wants_signal(struct virtqueue *queue);

/* Copy from what the device reads, beginning at `offset`. Returns how much there was. */
size_t virtqueue_chain_read(const struct virtqueue_chain *chain, size_t offset, void *to, size_t bytes);
/* Copy to what the device writes, with marks. Returns how much room there was. */
size_t virtqueue_chain_write(struct virtqueue *queue, const struct virtqueue_chain *chain, size_t offset,
                             const void *from, size_t bytes);
/* The part [offset, offset + bytes) of what the device writes, as pieces. Returns their number. */
unsigned virtqueue_chain_slice(const struct virtqueue_chain *chain, size_t offset, size_t bytes,
                               struct iovec ret_pieces[VIRTQUEUE_PIECES_MAX]);
/* [offset, offset + bytes) of what the device writes were written by way of a slice. */
void virtqueue_chain_mark(struct virtqueue *queue, const struct virtqueue_chain *chain, size_t offset,
                          size_t bytes);

#endif
