/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_VIRTIO_H
#define UNDERSTUDY_BENCH_GUESTS_VIRTIO_H

#include <stdbool.h>
#include <stdint.h>

/*
 * What the drivers of virtio devices over MMIO share ("Virtual I/O Device 1.2", 2.7 and 4.2): the agreement
 * on features, and a split queue.
 *
 *     available ring: what was given to the device     used ring: what it has done with
 *
 * Both indices only grow, so a device that was restored and does something twice, forgets it, or invents it
 * is seen. Interrupts are counted and nothing else: that there are none although something was done means
 * that the way of an interrupt was not restored.
 */

enum virtio_register {
    VIRTIO_MAGIC = 0x000,
    VIRTIO_VERSION = 0x004,
    VIRTIO_DEVICE_ID = 0x008,
    VIRTIO_FEATURES = 0x010,
    VIRTIO_FEATURES_SELECT = 0x014,
    VIRTIO_DRIVER_FEATURES = 0x020,
    VIRTIO_DRIVER_SELECT = 0x024,
    VIRTIO_QUEUE_SELECT = 0x030,
    VIRTIO_QUEUE_SIZE_MAX = 0x034,
    VIRTIO_QUEUE_SIZE = 0x038,
    VIRTIO_QUEUE_READY = 0x044,
    VIRTIO_QUEUE_NOTIFY = 0x050,
    VIRTIO_STATUS = 0x070,
    VIRTIO_DESCRIPTORS = 0x080,
    VIRTIO_AVAILABLE = 0x090,
    VIRTIO_USED = 0x0a0,
    VIRTIO_CONFIG = 0x100,
};

#define VIRTIO_NEXT  1u /* flags of a descriptor: the chain goes on; the device writes there */
#define VIRTIO_WRITE 2u

struct virtio_descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags, next;
};

/* As long as all drivers here have under way. */
#define VIRTIO_QUEUE 32u

/* Zero-initialise but for the name; aligned to a page, so that a ring lies in one. */
struct virtio_queue {
    struct virtio_descriptor descriptors[VIRTIO_QUEUE];
    struct {
        uint16_t flags, index, ring[VIRTIO_QUEUE], event;
    } available;
    struct {
        uint16_t flags, index;
        struct {
            uint32_t id, bytes;
        } ring[VIRTIO_QUEUE];
        uint16_t event;
    } used __attribute__((aligned(4)));

    const char *name; /* "network", in what is said of it */
    uint64_t device;
    uint32_t index;
    uint64_t given, done;
    uint64_t interrupts, deaf; /* as far as was seen; done since */
    bool busy[VIRTIO_QUEUE];   /* chains that the device has, by their first descriptor */
} __attribute__((aligned(4096)));

static inline uint32_t virtio_get(uint64_t device, unsigned offset)
{
    return *(volatile uint32_t *)(uintptr_t)(device + offset);
}

/* Reset the device at this address and agree on features: all of `needed`, of `wanted` those that it offers.
 * FATAL if it is none of this kind. Returns what was agreed upon. */
uint32_t virtio_negotiate(uint64_t device, uint32_t id, const char *name, uint32_t needed, uint32_t wanted);
/* Set up its queue `index` and let it work; it interrupts at pin `irq` of the IO APIC with this vector
 * (cpus.h). FATAL if its queue is shorter than ours. */
void virtio_start(struct virtio_queue *queue, uint64_t device, uint32_t index, unsigned irq, unsigned vector);

/* Give the device the chain that begins at descriptor `head`; it looks at virtio_notify(). */
void virtio_give(struct virtio_queue *queue, uint16_t head);
void virtio_notify(const struct virtio_queue *queue);
/* The next chain that it has done with; false: there is none. CORRUPT if it was not given that. */
bool virtio_take(struct virtio_queue *queue, uint16_t *ret_head);
/* CORRUPT if the device wants a reset, or has not interrupted for long; `interrupts`: how often it has. */
void virtio_check(struct virtio_queue *queue, uint64_t interrupts);

#endif
