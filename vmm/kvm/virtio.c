/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/virtio_internal.h"
#include "base/clock.h"
#include "base/error.h"

#include <assert.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum {
    MAGIC = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    VENDOR_ID = 0x00c,
    FEATURES = 0x010,
    FEATURES_SELECT = 0x014,
    ACCEPTED = 0x020,
    ACCEPTED_SELECT = 0x024,
    QUEUE_SELECT = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    INTERRUPT_STATUS = 0x060,
    INTERRUPT_ACK = 0x064,
    STATUS = 0x070,
    QUEUE_DESCRIPTORS = 0x080,
    QUEUE_AVAILABLE = 0x090,
    QUEUE_USED = 0x0a0,
    SHARED_MEMORY_LENGTH = 0x0b0, /* 64 bits, then its base: all ones, there is none */
    SHARED_MEMORY_END = 0x0c0,
    GENERATION = 0x0fc,
    CONFIG = 0x100,
};

#define MAGIC_VALUE 0x74726976u /* "virt" */
#define VENDOR      0x53444e55u /* "UNDS" */
/* A disk that does not answer for so long makes a pause, or the driver's reset, fail. */
#define DRAIN_NS (10 * NS_PER_S)

bool virtio_runs(const struct virtio *virtio)
{
    return !virtio->quiet && !virtio->stopping && (virtio->status & DRIVER_OK) &&
           !(virtio->status & NEEDS_RESET);
}

/* The line is up while a bit is set. Both under one lock, else the line could end up behind the bits. */
void virtio_interrupt(struct virtio *virtio, uint32_t set, uint32_t clear)
{
    pthread_mutex_lock(&virtio->interrupt_lock);
    uint32_t before = virtio->interrupt_status;
    virtio->interrupt_status = (before | set) & ~clear;
    if (!before != !virtio->interrupt_status)
        virtio->interrupt.set(virtio->interrupt.ctx, virtio->interrupt.gsi, virtio->interrupt_status != 0);
    pthread_mutex_unlock(&virtio->interrupt_lock);
}

uint32_t virtio_interrupt_status(struct virtio *virtio)
{
    pthread_mutex_lock(&virtio->interrupt_lock);
    uint32_t status = virtio->interrupt_status;
    pthread_mutex_unlock(&virtio->interrupt_lock);
    return status;
}

void virtio_signal(struct virtio *virtio, unsigned queue)
{
    if (virtqueue_wants_signal(&virtio->queues[queue]))
        virtio_interrupt(virtio, INTERRUPT_USED, 0);
}

void virtio_break(struct virtio *virtio)
{
    if (virtio->status & NEEDS_RESET)
        return;
    virtio->status |= NEEDS_RESET;
    snprintf(virtio->trouble, sizeof virtio->trouble, "%s", error_text());
    if (virtio->status & DRIVER_OK)
        virtio_interrupt(virtio, INTERRUPT_CONFIG, 0);
}

int virtio_peek(struct virtio *virtio, unsigned queue, struct virtqueue_chain *ret_chain)
{
    if (!virtio_queue_runs(virtio, queue))
        return 0;
    int rc = virtqueue_peek(&virtio->queues[queue], ret_chain);
    if (rc < 0)
        virtio_break(virtio);
    return rc > 0;
}

bool virtio_work_queue(struct virtio *virtio, unsigned number, int (*one)(struct virtio *))
{
    struct virtqueue *queue = &virtio->queues[number];
    uint16_t before = queue->next_used;
    int rc = 1;
    for (unsigned left = queue->size_max; left && rc > 0; left--)
        rc = one(virtio);
    if (virtio_queue_runs(virtio, number)) {
        bool more = virtqueue_rearm(queue);
        if (rc > 0 || (rc == 0 && more))
            io_ask(&virtio->work);
    }
    return queue->next_used != before;
}

static void run(struct io_work *work)
{
    struct virtio *virtio = (struct virtio *)((char *)work - offsetof(struct virtio, work));
    if (virtio->kind->lasting.settle && (!virtio->quiet || virtio->stopping))
        virtio->kind->lasting.settle(virtio);
    if (virtio_runs(virtio))
        virtio->kind->work(virtio);
}

static void reset_queue(struct virtio *virtio, unsigned queue)
{
    virtqueue_reset(&virtio->queues[queue]);
    if (virtio->kind->lasting.forget)
        virtio->kind->lasting.forget(virtio);
}

void virtio_forget(struct virtio *virtio)
{
    assert(virtio->under_way == 0);
    for (unsigned i = 0; i < virtio->kind->queue_count; i++)
        reset_queue(virtio, i);
    virtio->status = 0;
    virtio->accepted = 0;
    virtio->features_select = virtio->accepted_select = virtio->queue_select = 0;
    virtio->trouble[0] = 0;
    virtio_interrupt(virtio, 0, UINT32_MAX);
}

/* Take nothing more, and wait for all that is under way. The lock is given up meanwhile. */
static int drain(struct virtio *virtio)
{
    virtio->stopping = true;
    io_ask(&virtio->work); /* to settle */
    int rc = io_wait_zero(virtio->io, &virtio->under_way, DRAIN_NS);
    virtio->stopping = false;
    if (rc)
        virtio_break(virtio);
    io_ask(&virtio->work); /* for what came meanwhile */
    return rc;
}

bool virtio_features_agree(const struct virtio *virtio)
{
    return !(virtio->accepted & ~virtio->features) && (virtio->accepted & VIRTIO_F_VERSION_1);
}

static void write_status(struct virtio *virtio, uint32_t value)
{
    if (value == 0) { /* a driver that is told NEEDS_RESET after this knows that it did not work */
        if (drain(virtio) == 0)
            virtio_forget(virtio);
        return;
    }
    /* Bits are never taken back but by a reset. */
    uint32_t fresh = value & STATUS_OF_DRIVER & ~virtio->status;
    if ((fresh & FEATURES_OK) && !virtio_features_agree(virtio))
        fresh &= ~(uint32_t)FEATURES_OK; /* so the driver learns that we cannot */
    if (!((virtio->status | fresh) & FEATURES_OK))
        fresh &= ~(uint32_t)DRIVER_OK;
    virtio->status |= fresh;
    if (fresh & DRIVER_OK)
        io_ask(&virtio->work);
}

static void write_ready(struct virtio *virtio, struct virtqueue *queue, uint32_t value)
{
    if (value == 0 && queue->ready) {
        if (drain(virtio) == 0)
            reset_queue(virtio, virtio->queue_select);
    } else if (value == 1 && !queue->ready && (virtio->status & FEATURES_OK)) {
        queue->event_idx = virtio->accepted & VIRTIO_F_EVENT_IDX;
        queue->indirect = virtio->accepted & VIRTIO_F_INDIRECT;
        if (virtqueue_start(queue))
            virtio_break(virtio);
    }
}

static void set_half(uint64_t *value, bool high, uint32_t half)
{
    *value = high ? (*value & UINT32_MAX) | (uint64_t)half << 32 : (*value & ~(uint64_t)UINT32_MAX) | half;
}

static void write_queue(struct virtio *virtio, uint64_t offset, uint32_t value)
{
    if (virtio->queue_select >= virtio->kind->queue_count)
        return;
    struct virtqueue *queue = &virtio->queues[virtio->queue_select];
    if (offset == QUEUE_READY) {
        write_ready(virtio, queue, value);
        return;
    }
    if (queue->ready) /* its areas stay where they were checked */
        return;
    if (offset == QUEUE_SIZE)
        queue->size = value <= UINT16_MAX ? (uint16_t)value : 0;
    else if (offset == QUEUE_DESCRIPTORS || offset == QUEUE_DESCRIPTORS + 4)
        set_half(&queue->descriptors, offset & 4, value);
    else if (offset == QUEUE_AVAILABLE || offset == QUEUE_AVAILABLE + 4)
        set_half(&queue->available, offset & 4, value);
    else if (offset == QUEUE_USED || offset == QUEUE_USED + 4)
        set_half(&queue->used, offset & 4, value);
}

static void write_register(struct virtio *virtio, uint64_t offset, uint32_t value)
{
    switch (offset) {
    case FEATURES_SELECT:
        virtio->features_select = value;
        break;
    case ACCEPTED_SELECT:
        virtio->accepted_select = value;
        break;
    case ACCEPTED:
        if (virtio->accepted_select < 2 && !(virtio->status & FEATURES_OK))
            set_half(&virtio->accepted, virtio->accepted_select, value);
        break;
    case QUEUE_SELECT:
        virtio->queue_select = value;
        break;
    case STATUS:
        write_status(virtio, value);
        break;
    default:
        write_queue(virtio, offset, value);
    }
}

static void mmio_write(struct device *device, uint64_t offset, unsigned bytes, uint64_t value)
{
    struct virtio *virtio = (struct virtio *)device;
    if (bytes != 4 || offset % 4 || offset >= CONFIG) /* no configuration field can be written */
        return;
    if (offset == QUEUE_NOTIFY) { /* the two without the lock, as they are on everybody's way */
        io_ask(&virtio->work);
    } else if (offset == INTERRUPT_ACK) {
        virtio_interrupt(virtio, 0, (uint32_t)value);
    } else {
        io_lock(virtio->io);
        if (!virtio->stopping) /* another virtual CPU waits for a reset: what would be set now, it forgets */
            write_register(virtio, offset, (uint32_t)value);
        io_unlock(virtio->io);
    }
}

static uint32_t read_register(const struct virtio *virtio, uint64_t offset)
{
    const struct virtqueue *queue =
        virtio->queue_select < virtio->kind->queue_count ? &virtio->queues[virtio->queue_select] : NULL;
    switch (offset) {
    case MAGIC:
        return MAGIC_VALUE;
    case VERSION:
        return 2;
    case DEVICE_ID:
        return virtio->kind->device_id;
    case VENDOR_ID:
        return VENDOR;
    case FEATURES:
        return virtio->features_select < 2 ? (uint32_t)(virtio->features >> (32 * virtio->features_select))
                                           : 0;
    case QUEUE_SIZE_MAX:
        return queue ? queue->size_max : 0;
    case QUEUE_READY:
        return queue && queue->ready;
    case STATUS:
        return virtio->status;
    default:
        if (offset >= SHARED_MEMORY_LENGTH && offset < SHARED_MEMORY_END)
            return UINT32_MAX;
        return 0; /* GENERATION too: the configuration never changes */
    }
}

static uint64_t mmio_read(struct device *device, uint64_t offset, unsigned bytes)
{
    struct virtio *virtio = (struct virtio *)device;
    uint64_t value = 0;
    if (offset >= CONFIG) { /* bytes of an unchanging array: no lock */
        for (unsigned i = 0; i < bytes && offset - CONFIG + i < virtio->config_bytes; i++)
            value |= (uint64_t)virtio->config[offset - CONFIG + i] << (8 * i);
        return value;
    }
    if (bytes != 4 || offset % 4)
        return 0;
    if (offset == INTERRUPT_STATUS)
        return virtio_interrupt_status(virtio);
    io_lock(virtio->io);
    value = read_register(virtio, offset);
    io_unlock(virtio->io);
    return value;
}

static int quiesce(struct device *device)
{
    struct virtio *virtio = (struct virtio *)device;
    io_lock(virtio->io);
    virtio->quiet = true;
    int rc = io_wait_zero(virtio->io, &virtio->touching, DRAIN_NS);
    io_unlock(virtio->io);
    return rc;
}

static void resume(struct device *device)
{
    struct virtio *virtio = (struct virtio *)device;
    io_lock(virtio->io);
    virtio->quiet = false;
    io_unlock(virtio->io);
    io_ask(&virtio->work);
}

static void reset(struct device *device)
{
    struct virtio *virtio = (struct virtio *)device;
    io_lock(virtio->io);
    assert(virtio->quiet);
    if (drain(virtio) == 0) /* else it needs a reset still, and says so */
        virtio_forget(virtio);
    io_unlock(virtio->io);
}

static void free_device(struct device *device)
{
    struct virtio *virtio = (struct virtio *)device;
    if (virtio->kind->free)
        virtio->kind->free(virtio);
    pthread_mutex_destroy(&virtio->interrupt_lock);
    free(virtio);
}

/* The names of the kinds are told by their devices' ops; everything else is the same for all. */
static const struct device_ops common = {
    .read = mmio_read,
    .write = mmio_write,
    .quiesce = quiesce,
    .resume = resume,
    .reset = reset,
    .save = virtio_save,
    .load = virtio_load,
    .free = free_device,
};

void virtio_init(struct virtio *virtio, const struct virtio_kind *kind, const struct virtio_place *place,
                 uint64_t features, const void *config, unsigned config_bytes)
{
    assert(kind->queue_count <= VIRTIO_QUEUES_MAX && config_bytes <= VIRTIO_CONFIG_MAX);
    virtio->ops = common;
    virtio->ops.name = kind->name;
    virtio->device = (struct device){
        .ops = &virtio->ops,
        .space = DEVICE_MMIO,
        .base = place->base,
        .bytes = VIRTIO_MMIO_BYTES,
        .type = kind->record_type,
        .version = VIRTIO_STATE_VERSION,
        .instance = place->instance,
    };
    virtio->kind = kind;
    virtio->memory = place->memory;
    virtio->io = place->io;
    virtio->interrupt = place->interrupt;
    pthread_mutex_init(&virtio->interrupt_lock, NULL);
    virtio->features = features | VIRTIO_F_INDIRECT | VIRTIO_F_EVENT_IDX | VIRTIO_F_VERSION_1;
    if (config_bytes)
        memcpy(virtio->config, config, config_bytes);
    virtio->config_bytes = config_bytes;
    for (unsigned i = 0; i < kind->queue_count; i++)
        virtio->queues[i] = (struct virtqueue){.memory = place->memory, .size_max = kind->queue_size};
    virtio->quiet = true;
    virtio->work.run = run;
    io_work_add(virtio->io, &virtio->work);
}
