/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_VIRTIO_H
#define UNDERSTUDY_BENCH_GUESTS_VIRTIO_H

#include <stdint.h>

/*
 * What the drivers of virtio devices over MMIO share ("Virtual I/O Device 1.2", 2.7 and 4.2). Rings are the
 * driver's own, since their sizes are:
 *
 *     available ring: what was given to the device     used ring: what it has done with
 *
 * Both indices only grow, so a device that was restored and does something twice, forgets it, or invents it
 * is seen.
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

#define VIRTIO_STATUS_BROKEN 64u /* DEVICE_NEEDS_RESET */

#define VIRTIO_NEXT  1u /* flags of a descriptor: the chain goes on; the device writes there */
#define VIRTIO_WRITE 2u

struct virtio_descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags, next;
};

static inline uint32_t virtio_get(uint64_t device, unsigned offset)
{
    return *(volatile uint32_t *)(uintptr_t)(device + offset);
}

static inline void virtio_set(uint64_t device, unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(device + offset) = value;
}

/* Reset the device at this address and agree on features: all of `needed`, of `wanted` those that it offers.
 * FATAL if it is none of this kind. Returns what was agreed upon. */
uint32_t virtio_negotiate(uint64_t device, uint32_t id, const char *name, uint32_t needed, uint32_t wanted);
/* Set up a queue. FATAL if the device's is shorter. */
void virtio_queue(uint64_t device, uint32_t index, uint32_t size, const void *descriptors,
                  const void *available, const void *used);
/* It may work, and interrupts at pin `irq` of the IO APIC with this vector (cpus.h). */
void virtio_go(uint64_t device, unsigned irq, unsigned vector);

#endif
