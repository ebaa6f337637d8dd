/* SPDX-License-Identifier: Apache-2.0 */
#include "virtio.h"

#include "cpus.h"
#include "guest.h"

#define MAGIC           0x74726976u /* "virt" */
#define STATUS_DRIVER   3u          /* ACKNOWLEDGE, DRIVER */
#define STATUS_FEATURES 11u         /* and FEATURES_OK */
#define STATUS_OK       15u         /* and DRIVER_OK */
#define STATUS_BROKEN   64u         /* DEVICE_NEEDS_RESET */
#define DEAF_MAX        64u         /* done without a single interrupt */
#define FEATURE_MODERN  1u          /* VERSION_1, bit 32 */

static void set(uint64_t device, unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(device + offset) = value;
}

uint32_t virtio_negotiate(uint64_t device, uint32_t id, const char *name, uint32_t needed, uint32_t wanted)
{
    if (virtio_get(device, VIRTIO_MAGIC) != MAGIC || virtio_get(device, VIRTIO_VERSION) != 2 ||
        virtio_get(device, VIRTIO_DEVICE_ID) != id)
        fatal("there is no virtio %s of version 2 at 0x%lx: magic 0x%lx version %lu device %lu", name, device,
              (uint64_t)virtio_get(device, VIRTIO_MAGIC), (uint64_t)virtio_get(device, VIRTIO_VERSION),
              (uint64_t)virtio_get(device, VIRTIO_DEVICE_ID));
    set(device, VIRTIO_STATUS, 0);
    set(device, VIRTIO_STATUS, STATUS_DRIVER);
    set(device, VIRTIO_FEATURES_SELECT, 0);
    uint32_t features = virtio_get(device, VIRTIO_FEATURES) & (needed | wanted);
    set(device, VIRTIO_FEATURES_SELECT, 1);
    if ((features & needed) != needed || !(virtio_get(device, VIRTIO_FEATURES) & FEATURE_MODERN))
        fatal("the %s at 0x%lx lacks what is needed: it offers 0x%lx, or is no modern one", name, device,
              (uint64_t)features);
    set(device, VIRTIO_DRIVER_SELECT, 0);
    set(device, VIRTIO_DRIVER_FEATURES, features);
    set(device, VIRTIO_DRIVER_SELECT, 1);
    set(device, VIRTIO_DRIVER_FEATURES, FEATURE_MODERN);
    set(device, VIRTIO_STATUS, STATUS_FEATURES);
    if (virtio_get(device, VIRTIO_STATUS) != STATUS_FEATURES)
        fatal("the %s at 0x%lx does not accept its own features", name, device);
    return features;
}

static void set_address(uint64_t device, unsigned offset, const void *at)
{
    set(device, offset, (uint32_t)(uintptr_t)at);
    set(device, offset + 4, (uint32_t)((uint64_t)(uintptr_t)at >> 32));
}

void virtio_start(struct virtio_queue *queue, uint64_t device, uint32_t index, unsigned irq, unsigned vector)
{
    queue->device = device;
    queue->index = index;
    set(device, VIRTIO_QUEUE_SELECT, index);
    uint32_t most = virtio_get(device, VIRTIO_QUEUE_SIZE_MAX);
    if (most < VIRTIO_QUEUE)
        fatal("the device at 0x%lx has a queue of %lu", device, (uint64_t)most);
    set(device, VIRTIO_QUEUE_SIZE, VIRTIO_QUEUE);
    set_address(device, VIRTIO_DESCRIPTORS, queue->descriptors);
    set_address(device, VIRTIO_AVAILABLE, &queue->available);
    set_address(device, VIRTIO_USED, &queue->used);
    set(device, VIRTIO_QUEUE_READY, 1);
    cpus_route(irq, vector);
    set(device, VIRTIO_STATUS, STATUS_OK);
}

void virtio_give(struct virtio_queue *queue, uint16_t head)
{
    queue->busy[head] = true;
    queue->available.ring[queue->given % VIRTIO_QUEUE] = head;
    queue->given++;
    __atomic_store_n(&queue->available.index, (uint16_t)queue->given, __ATOMIC_SEQ_CST);
}

void virtio_notify(const struct virtio_queue *queue)
{
    set(queue->device, VIRTIO_QUEUE_NOTIFY, queue->index);
}

bool virtio_take(struct virtio_queue *queue, uint16_t *ret_head)
{
    uint16_t index = __atomic_load_n(&queue->used.index, __ATOMIC_ACQUIRE);
    if ((uint16_t)(index - (uint16_t)queue->done) > queue->given - queue->done)
        corrupt("%s: %lu requests given, %lu done, and the device's index is %lu", queue->name, queue->given,
                queue->done, (uint64_t)index);
    if ((uint16_t)queue->done == index)
        return false;
    uint32_t id = queue->used.ring[queue->done % VIRTIO_QUEUE].id;
    if (id >= VIRTIO_QUEUE || !queue->busy[id])
        corrupt("%s: the device has done request %lu, which it was not given", queue->name, (uint64_t)id);
    queue->busy[id] = false;
    queue->done++;
    queue->deaf++;
    *ret_head = (uint16_t)id;
    return true;
}

void virtio_check(struct virtio_queue *queue, uint64_t interrupts)
{
    if (interrupts != queue->interrupts)
        queue->deaf = 0;
    queue->interrupts = interrupts;
    if (queue->deaf >= DEAF_MAX)
        corrupt("%s: %lu requests done without an interrupt", queue->name, queue->deaf);
    if (virtio_get(queue->device, VIRTIO_STATUS) & STATUS_BROKEN)
        corrupt("%s: the device wants a reset", queue->name);
}
