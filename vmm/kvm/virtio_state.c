/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "vmm/kvm/virtio_internal.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* The record of a virtio device: what it offers, its registers, its queues, and what lasts. */

static void save_queue(const struct virtqueue *queue, struct record_writer *to)
{
    record_put_u8(to, queue->ready);
    record_put_u16(to, queue->size);
    record_put_u64(to, queue->descriptors);
    record_put_u64(to, queue->available);
    record_put_u64(to, queue->used);
    record_put_u16(to, queue->next_available);
    record_put_u16(to, queue->next_used);
    record_put_u16(to, queue->signalled);
    record_put_u8(to, queue->signalled_known);
}

void virtio_save(struct device *device, struct record_writer *to)
{
    struct virtio *virtio = (struct virtio *)device;
    io_lock(virtio->io);
    assert(virtio->quiet && virtio->touching == 0);
    record_put_u64(to, virtio->features);
    record_put_u32(to, virtio->config_bytes);
    record_put(to, virtio->config, virtio->config_bytes);
    record_put_u64(to, virtio->accepted);
    record_put_u32(to, virtio->features_select);
    record_put_u32(to, virtio->accepted_select);
    record_put_u32(to, virtio->queue_select);
    record_put_u32(to, virtio->status);
    record_put_u32(to, virtio_interrupt_status(virtio));
    record_put_u32(to, virtio->kind->queue_count);
    for (unsigned i = 0; i < virtio->kind->queue_count; i++)
        save_queue(&virtio->queues[i], to);
    if (virtio->kind->lasting.save)
        virtio->kind->lasting.save(virtio, to);
    io_unlock(virtio->io);
}

static int load_queue(const struct virtio *virtio, struct virtqueue *queue, unsigned number,
                      struct record *from)
{
    uint8_t ready = record_take_u8(from);
    queue->size = record_take_u16(from);
    queue->descriptors = record_take_u64(from);
    queue->available = record_take_u64(from);
    queue->used = record_take_u64(from);
    queue->next_available = record_take_u16(from);
    queue->next_used = record_take_u16(from);
    queue->signalled = record_take_u16(from);
    uint8_t known = record_take_u8(from);
    if (ready > 1 || known > 1)
        return error_set(-EBADMSG, "queue %u: a flag of %u", number, ready > 1 ? ready : known);
    queue->signalled_known = known;
    queue->event_idx = virtio->accepted & VIRTIO_F_EVENT_IDX;
    queue->indirect = virtio->accepted & VIRTIO_F_INDIRECT;
    if (ready && !(virtio->status & FEATURES_OK))
        return error_set(-EBADMSG, "queue %u is ready before the features are agreed", number);
    if (ready && virtqueue_start(queue))
        return error_add(-EBADMSG, "queue %u", number);
    uint16_t taken = (uint16_t)(queue->next_available - queue->next_used);
    if (taken && (!ready || !virtio->kind->lasting.load))
        return error_set(-EBADMSG, "queue %u has %u requests under way", number, taken);
    return 0;
}

static int check_registers(const struct virtio *virtio, uint32_t interrupts)
{
    if (virtio->status & ~(STATUS_OF_DRIVER | NEEDS_RESET))
        return error_set(-EBADMSG, "a status of 0x%x", virtio->status);
    if (interrupts & ~(uint32_t)(INTERRUPT_USED | INTERRUPT_CONFIG))
        return error_set(-EBADMSG, "an interrupt status of 0x%x", interrupts);
    if ((virtio->status & DRIVER_OK) && !(virtio->status & FEATURES_OK))
        return error_set(-EBADMSG, "the driver runs before the features are agreed");
    if ((virtio->status & FEATURES_OK) && !virtio_features_agree(virtio))
        return error_set(-EBADMSG, "features 0x%" PRIx64 " are agreed, but 0x%" PRIx64 " are offered",
                         virtio->accepted, virtio->features);
    return 0;
}

/* The driver has seen these, so they must be the same here. */
static int load_configuration(const struct virtio *virtio, struct record *from)
{
    uint64_t features = record_take_u64(from);
    if (features != virtio->features)
        return error_set(-EXDEV, "it offers features 0x%" PRIx64 ", here 0x%" PRIx64, features,
                         virtio->features);
    uint32_t config_bytes = record_take_u32(from);
    const void *config = record_take_piece(from, config_bytes);
    if (config_bytes != virtio->config_bytes || !config || memcmp(config, virtio->config, config_bytes) != 0)
        return error_set(-EXDEV, "its configuration (size, address ...) is not the one here");
    return 0;
}

static int load_locked(struct virtio *virtio, struct record *from)
{
    assert(virtio->quiet && virtio->under_way == 0);
    virtio_forget(virtio);
    int rc = load_configuration(virtio, from);
    if (rc)
        return rc;
    virtio->accepted = record_take_u64(from);
    virtio->features_select = record_take_u32(from);
    virtio->accepted_select = record_take_u32(from);
    virtio->queue_select = record_take_u32(from);
    virtio->status = record_take_u32(from);
    uint32_t interrupts = record_take_u32(from);
    uint32_t queue_count = record_take_u32(from);
    if (queue_count != virtio->kind->queue_count)
        return error_set(-EBADMSG, "%u queues, it has %u", queue_count, virtio->kind->queue_count);
    rc = check_registers(virtio, interrupts);
    for (unsigned i = 0; !rc && i < queue_count; i++)
        rc = load_queue(virtio, &virtio->queues[i], i, from);
    const struct virtqueue *first = &virtio->queues[0];
    if (!rc && virtio->kind->lasting.load)
        rc = virtio->kind->lasting.load(virtio, from, (uint16_t)(first->next_available - first->next_used));
    if (!rc)
        virtio_interrupt(virtio, interrupts, 0);
    return rc;
}

int virtio_load(struct device *device, struct record *from)
{
    struct virtio *virtio = (struct virtio *)device;
    io_lock(virtio->io);
    int rc = load_locked(virtio, from);
    if (rc) /* nothing of it shall be used, by whomever */
        virtio_forget(virtio);
    io_unlock(virtio->io);
    return rc;
}
