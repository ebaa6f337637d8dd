/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_H

#include "vmm/kvm/device.h"
#include "vmm/kvm/io.h"
#include "vmm/kvm/virtqueue.h"

/*
 * What all virtio devices have in common: registers (virtio over MMIO, version 2: Virtual I/O Device 1.2,
 * section 4.2), features, queues, interrupts, state record.
 *
 * A device is quiet, or works on its queues on io's thread (struct virtio_kind.work). Whatever of a queue may
 * have been noticed or not, work() looks at all of it, so little has to be remembered when a device becomes
 * quiet, and resume() simply asks for work.
 *
 * Lock: io's guards all of this but the interrupt, which has a lock of its own.
 */

#define VIRTIO_QUEUES_MAX  2
#define VIRTIO_CONFIG_MAX  64
#define VIRTIO_MMIO_BYTES  0x200
#define VIRTIO_F(bit)      (1ull << (bit))
#define VIRTIO_F_INDIRECT  VIRTIO_F(28)
#define VIRTIO_F_EVENT_IDX VIRTIO_F(29)
#define VIRTIO_F_VERSION_1 VIRTIO_F(32)

struct virtio;

struct virtio_kind {
    const char *name; /* "virtio-rng" */
    uint32_t device_id;
    uint32_t record_type;
    unsigned queue_count;
    uint16_t queue_size;
    /* Work on all queues as far as possible. Called with the lock, of a device that virtio_runs(). */
    void (*work)(struct virtio *);
    /* A kind whose requests outlast a pause (`lasting` below) has all of these, others none. */
    struct {
        /* Push what ended while the device was quiet: before work(), and when a reset waits for it. */
        void (*settle)(struct virtio *);
        /* The queue is reset: forget what was to be begun again. */
        void (*forget)(struct virtio *);
        /* What was taken and not pushed, in the order in which it must be begun again. */
        void (*save)(struct virtio *, struct record_writer *);
        /* `count` requests are to be begun again by work(). -EBADMSG. */
        int (*load)(struct virtio *, struct record *, unsigned count);
    } lasting;
    /* Free what the kind has beside; the object itself is freed behind. May be NULL. */
    void (*free)(struct virtio *);
};

/* What a device is made of. */
struct virtio_place {
    struct guest_memory *memory;
    struct io *io;
    uint64_t base; /* of VIRTIO_MMIO_BYTES of addresses */
    struct interrupt interrupt;
    uint32_t instance;
};

struct virtio {
    struct device device;
    struct device_ops ops; /* those of all virtio devices, under this one's name */
    const struct virtio_kind *kind;
    struct guest_memory *memory;
    struct io *io;
    struct io_work work;

    uint64_t features, accepted; /* offered, negotiated */
    uint32_t features_select, accepted_select, queue_select;
    uint32_t status;
    uint8_t config[VIRTIO_CONFIG_MAX];
    unsigned config_bytes;
    struct virtqueue queues[VIRTIO_QUEUES_MAX];

    unsigned under_way; /* requests that the kind has taken and not pushed */
    unsigned touching; /* of these, those that write to RAM and end before the device is quiet; others last */
    bool quiet;
    bool stopping;     /* a reset, or the stop of a queue, waits for what is under way */
    char trouble[160]; /* why it needs a reset */

    pthread_mutex_t interrupt_lock; /* guards the two below; nothing is taken after it */
    struct interrupt interrupt;
    uint32_t interrupt_status;
};

/* Begins quiet. `features` are those of the kind; what the transport does is added. */
void virtio_init(struct virtio *virtio, const struct virtio_kind *kind, const struct virtio_place *place,
                 uint64_t features, const void *config, unsigned config_bytes);

/* Whether the driver has set the device up, and it may work. */
bool virtio_runs(const struct virtio *virtio);
static inline bool virtio_queue_runs(const struct virtio *virtio, unsigned queue)
{
    return virtio_runs(virtio) && virtio->queues[queue].ready;
}
/* The driver broke the rules (error_text() says how): stop, and ask it for a reset. */
void virtio_break(struct virtio *virtio);
/* Work on one queue: call `one` until it returns 0 (the queue is empty, or the device is broken) or -EAGAIN
 * (not now; something else will ask for work), but not more often than the queue is long, so that a guest
 * that never stops leaves room for others. Returns whether something was pushed. */
bool virtio_work_queue(struct virtio *virtio, unsigned queue, int (*one)(struct virtio *));
/* As virtqueue_peek(), but a queue that broke the rules breaks the device and gives 0. */
int virtio_peek(struct virtio *virtio, unsigned queue, struct virtqueue_chain *ret_chain);
/* Tell the driver of what was pushed, if it wants to hear. */
void virtio_signal(struct virtio *virtio, unsigned queue);

#endif
