/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio.h"

#include "cpus.h"
#include "guest.h"

#define MAGIC           0x74726976u /* "virt" */
#define STATUS_DRIVER   3u          /* ACKNOWLEDGE, DRIVER */
#define STATUS_FEATURES 11u         /* and FEATURES_OK */
#define STATUS_OK       15u         /* and DRIVER_OK */
#define FEATURE_MODERN  1u          /* VERSION_1, bit 32 */

uint32_t virtio_negotiate(uint64_t device, uint32_t id, const char *name, uint32_t needed, uint32_t wanted)
{
    if (virtio_get(device, VIRTIO_MAGIC) != MAGIC || virtio_get(device, VIRTIO_VERSION) != 2 ||
        virtio_get(device, VIRTIO_DEVICE_ID) != id)
        fatal("there is no virtio %s of version 2 at 0x%lx: magic 0x%lx version %lu device %lu", name, device,
              (uint64_t)virtio_get(device, VIRTIO_MAGIC), (uint64_t)virtio_get(device, VIRTIO_VERSION),
              (uint64_t)virtio_get(device, VIRTIO_DEVICE_ID));
    virtio_set(device, VIRTIO_STATUS, 0);
    virtio_set(device, VIRTIO_STATUS, STATUS_DRIVER);
    virtio_set(device, VIRTIO_FEATURES_SELECT, 0);
    uint32_t features = virtio_get(device, VIRTIO_FEATURES) & (needed | wanted);
    virtio_set(device, VIRTIO_FEATURES_SELECT, 1);
    if ((features & needed) != needed || !(virtio_get(device, VIRTIO_FEATURES) & FEATURE_MODERN))
        fatal("the %s at 0x%lx lacks what is needed: it offers 0x%lx, or is no modern one", name, device,
              (uint64_t)features);
    virtio_set(device, VIRTIO_DRIVER_SELECT, 0);
    virtio_set(device, VIRTIO_DRIVER_FEATURES, features);
    virtio_set(device, VIRTIO_DRIVER_SELECT, 1);
    virtio_set(device, VIRTIO_DRIVER_FEATURES, FEATURE_MODERN);
    virtio_set(device, VIRTIO_STATUS, STATUS_FEATURES);
    if (virtio_get(device, VIRTIO_STATUS) != STATUS_FEATURES)
        fatal("the %s at 0x%lx does not accept its own features", name, device);
    return features;
}

static void set_address(uint64_t device, unsigned offset, const void *at)
{
    virtio_set(device, offset, (uint32_t)(uintptr_t)at);
    virtio_set(device, offset + 4, (uint32_t)((uint64_t)(uintptr_t)at >> 32));
}

void virtio_queue(uint64_t device, uint32_t index, uint32_t size, const void *descriptors,
                  const void *available, const void *used)
{
    virtio_set(device, VIRTIO_QUEUE_SELECT, index);
    uint32_t most = virtio_get(device, VIRTIO_QUEUE_SIZE_MAX);
    if (most < size)
        fatal("the device at 0x%lx has a queue of %lu", device, (uint64_t)most);
    virtio_set(device, VIRTIO_QUEUE_SIZE, size);
    set_address(device, VIRTIO_DESCRIPTORS, descriptors);
    set_address(device, VIRTIO_AVAILABLE, available);
    set_address(device, VIRTIO_USED, used);
    virtio_set(device, VIRTIO_QUEUE_READY, 1);
}

void virtio_go(uint64_t device, unsigned irq, unsigned vector)
{
    cpus_route(irq, vector);
    virtio_set(device, VIRTIO_STATUS, STATUS_OK);
}
