/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_VIRTIO_KIT_H
#define UNDERSTUDY_TESTS_VIRTIO_KIT_H

#include "base/clock.h"
#include "base/scope.h"
#include "tests/unit/unit.h"
#include "vmm/kvm/device.h"
#include "vmm/kvm/virtio_devices.h"

#include <stdlib.h>
#include <sys/mman.h>

/*
 * A machine of memory and devices, and the driver's side of virtio over MMIO, written for tests. The I/O
 * thread is the test itself (io_turn()) unless it says kit_start().
 *
 *     RAM: queues' rings at KIT_RINGS, 64 KiB each, the used ring across two pages; buffers from KIT_BUFFERS
 * on
 */

#define KIT_RAM_BYTES (4u << 20)
#define KIT_MMIO      0xd0000000u
#define KIT_RINGS     0x10000u
#define KIT_BUFFERS   0x100000u

struct kit {
    uint8_t *ram;
    struct guest_memory memory;
    struct io *io;
    struct output *output; /* NULL if no device has output */
    struct bus bus;
    bool line; /* atomic: the interrupt line */
    bool threaded;
};

static inline void kit_set_line(void *ctx, unsigned gsi, bool level)
{
    assert_int_equal(gsi, 5);
    __atomic_store_n(&((struct kit *)ctx)->line, level, __ATOMIC_RELEASE);
}

/* RAM of another kit may be copied in: a standby's. */
static inline struct kit *kit_new(const struct kit *like)
{
    struct kit *kit = calloc(1, sizeof *kit);
    kit->ram = mmap(NULL, KIT_RAM_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_ptr_not_equal(kit->ram, MAP_FAILED);
    if (like)
        memcpy(kit->ram, like->ram, KIT_RAM_BYTES);
    assert_int_equal(guest_memory_add(&kit->memory, 0, KIT_RAM_BYTES, kit->ram), 0);
    assert_int_equal(io_new(&kit->io), 0);
    return kit;
}

static inline void kit_free(struct kit *kit)
{
    io_stop(kit->io);
    bus_free(&kit->bus);
    output_free(kit->output);
    io_free(kit->io);
    guest_memory_free(&kit->memory);
    munmap(kit->ram, KIT_RAM_BYTES);
    free(kit);
}

static inline struct virtio_place kit_place(struct kit *kit)
{
    return (struct virtio_place){
        .memory = &kit->memory, .io = kit->io, .base = KIT_MMIO, .interrupt = {kit_set_line, kit, 5}};
}

static inline void kit_start(struct kit *kit)
{
    assert_int_equal(io_start(kit->io), 0);
    kit->threaded = true;
}

/* Let the devices do what is due. */
static inline void kit_turn(struct kit *kit)
{
    for (int i = 0; i < 4 && !kit->threaded; i++)
        assert_int_equal(io_turn(kit->io, i ? 0 : 5), 0);
}

static inline uint32_t kit_read(struct kit *kit, uint32_t reg)
{
    uint32_t value;
    assert_true(bus_read(&kit->bus, DEVICE_MMIO, KIT_MMIO + reg, 4, &value));
    return value;
}

static inline void kit_write(struct kit *kit, uint32_t reg, uint32_t value)
{
    assert_true(bus_write(&kit->bus, DEVICE_MMIO, KIT_MMIO + reg, 4, &value));
}

enum {
    REG_FEATURES = 0x10,
    REG_FEATURES_SELECT = 0x14,
    REG_ACCEPTED = 0x20,
    REG_ACCEPTED_SELECT = 0x24,
    REG_QUEUE_SELECT = 0x30,
    REG_QUEUE_SIZE_MAX = 0x34,
    REG_QUEUE_SIZE = 0x38,
    REG_QUEUE_READY = 0x44,
    REG_NOTIFY = 0x50,
    REG_INTERRUPT_STATUS = 0x60,
    REG_INTERRUPT_ACK = 0x64,
    REG_STATUS = 0x70,
    REG_DESCRIPTORS = 0x80,
    REG_AVAILABLE = 0x90,
    REG_USED = 0xa0,
    REG_CONFIG = 0x100,
    STATUS_NEEDS_RESET = 64,
};

static inline uint64_t kit_features(struct kit *kit)
{
    kit_write(kit, REG_FEATURES_SELECT, 1);
    uint64_t features = (uint64_t)kit_read(kit, REG_FEATURES) << 32;
    kit_write(kit, REG_FEATURES_SELECT, 0);
    return features | kit_read(kit, REG_FEATURES);
}

/* Reset, agree on features (all that are offered and in `wanted`, and VERSION_1). */
static inline void kit_negotiate(struct kit *kit, uint64_t wanted)
{
    kit_write(kit, REG_STATUS, 0);
    assert_int_equal(kit_read(kit, REG_STATUS), 0);
    kit_write(kit, REG_STATUS, 1);
    kit_write(kit, REG_STATUS, 3);
    uint64_t features = kit_features(kit) & (wanted | VIRTIO_F_VERSION_1);
    kit_write(kit, REG_ACCEPTED_SELECT, 0);
    kit_write(kit, REG_ACCEPTED, (uint32_t)features);
    kit_write(kit, REG_ACCEPTED_SELECT, 1);
    kit_write(kit, REG_ACCEPTED, (uint32_t)(features >> 32));
    kit_write(kit, REG_STATUS, 11);
    assert_int_equal(kit_read(kit, REG_STATUS), 11);
}

/* --- a queue as its driver sees it; its state is the guest's, so it moves with a copy of RAM --- */

struct kit_descriptor {
    uint64_t address;
    uint32_t bytes;
    uint16_t flags, next;
};

struct kit_queue {
    struct kit *kit;
    unsigned number;
    uint16_t size;
    uint32_t descriptors, available, used; /* guest addresses */
    uint16_t next_descriptor, pushed, seen;
};

static inline void *kit_at(struct kit *kit, uint64_t gpa)
{
    return kit->ram + gpa;
}

static inline uint16_t *kit_u16(struct kit_queue *queue, uint32_t gpa)
{
    return kit_at(queue->kit, gpa);
}

static inline struct kit_queue kit_queue(struct kit *kit, unsigned number, uint16_t size)
{
    uint32_t at = KIT_RINGS + 0x10000 * number;
    struct kit_queue queue = {kit, number, size, at, at + 0x2000, at + 0x3ffc, 0, 0, 0};
    memset(kit_at(kit, at), 0, 0x10000);
    kit_write(kit, REG_QUEUE_SELECT, number);
    assert_true(kit_read(kit, REG_QUEUE_SIZE_MAX) >= size);
    kit_write(kit, REG_QUEUE_SIZE, size);
    kit_write(kit, REG_DESCRIPTORS, queue.descriptors);
    kit_write(kit, REG_DESCRIPTORS + 4, 0);
    kit_write(kit, REG_AVAILABLE, queue.available);
    kit_write(kit, REG_AVAILABLE + 4, 0);
    kit_write(kit, REG_USED, queue.used);
    kit_write(kit, REG_USED + 4, 0);
    kit_write(kit, REG_QUEUE_READY, 1);
    return queue;
}

struct kit_piece {
    uint64_t gpa;
    uint32_t bytes;
    bool in; /* for the device to write */
};

/* Puts a request together, in the next descriptors, and returns its head. */
static inline uint16_t kit_chain(struct kit_queue *queue, const struct kit_piece *pieces, unsigned count)
{
    struct kit_descriptor *table = kit_at(queue->kit, queue->descriptors);
    uint16_t head = queue->next_descriptor;
    for (unsigned i = 0; i < count; i++) {
        uint16_t at = queue->next_descriptor;
        queue->next_descriptor = (uint16_t)((at + 1) % queue->size);
        table[at] = (struct kit_descriptor){pieces[i].gpa, pieces[i].bytes,
                                            (uint16_t)((i + 1 < count) | (pieces[i].in ? 2 : 0)),
                                            queue->next_descriptor};
    }
    return head;
}

static inline void kit_publish(struct kit_queue *queue, uint16_t head)
{
    *kit_u16(queue, queue->available + 4 + 2 * (queue->pushed % queue->size)) = head;
    __atomic_store_n(kit_u16(queue, queue->available + 2), ++queue->pushed, __ATOMIC_RELEASE);
}

static inline void kit_notify(struct kit_queue *queue)
{
    kit_write(queue->kit, REG_NOTIFY, queue->number);
}

static inline uint16_t kit_send(struct kit_queue *queue, const struct kit_piece *pieces, unsigned count)
{
    uint16_t head = kit_chain(queue, pieces, count);
    kit_publish(queue, head);
    kit_notify(queue);
    return head;
}

static inline unsigned kit_done(struct kit_queue *queue)
{
    return (uint16_t)(__atomic_load_n(kit_u16(queue, queue->used + 2), __ATOMIC_ACQUIRE) - queue->seen);
}

/* The next request that is done: its head, and how much was written. Fails after 10 seconds. */
static inline uint16_t kit_wait(struct kit_queue *queue, uint32_t *ret_written)
{
    uint64_t end = clock_now_ns() + 10 * NS_PER_S;
    while (!kit_done(queue)) {
        if (clock_now_ns() > end)
            fail_msg("queue %u: nothing done of %u, after %u; status 0x%x (%s)", queue->number, queue->pushed,
                     queue->seen, kit_read(queue->kit, REG_STATUS),
                     ((const struct virtio *)queue->kit->bus.devices[0])->trouble);
        if (queue->kit->threaded)
            usleep(50);
        else
            kit_turn(queue->kit);
    }
    uint32_t element[2];
    memcpy(element, kit_at(queue->kit, queue->used + 4 + 8 * (queue->seen++ % queue->size)), 8);
    if (ret_written)
        *ret_written = element[1];
    return (uint16_t)element[0];
}

/* --- checkpoints --- */

struct kit_state {
    uint8_t bytes[4096];
    size_t length;
};

/* Quiet afterwards. */
static inline void kit_save(struct kit *kit, struct kit_state *ret_state)
{
    assert_int_equal(bus_quiesce(&kit->bus), 0);
    struct record_writer writer;
    record_writer_init(&writer, ret_state->bytes, sizeof ret_state->bytes);
    bus_save(&kit->bus, &writer);
    assert_int_equal(record_writer_end(&writer, &ret_state->length), 0);
}

static inline int kit_load(struct kit *kit, const struct kit_state *state)
{
    struct record_reader reader;
    struct record record;
    record_reader_init(&reader, state->bytes, state->length);
    bus_load_begin(&kit->bus);
    int rc;
    while ((rc = record_next(&reader, &record)) > 0)
        if ((rc = bus_load(&kit->bus, &record)))
            return rc;
    return rc ? rc : bus_load_end(&kit->bus);
}

/* The marks of all pages that the VMM wrote since the last time; KIT_RAM_BYTES / 4096 bits. */
static inline void kit_take_marks(struct kit *kit, uint64_t ret_marks[KIT_RAM_BYTES / 4096 / 64])
{
    memset(ret_marks, 0, KIT_RAM_BYTES / 4096 / 8);
    guest_memory_take_dirty(&kit->memory, 0, ret_marks);
}

static inline bool kit_marked(const uint64_t *marks, uint64_t gpa)
{
    return marks[gpa / 4096 / 64] >> (gpa / 4096 % 64) & 1;
}

#endif
