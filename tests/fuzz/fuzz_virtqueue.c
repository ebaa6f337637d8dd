/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/scope.h"
#include "vmm/kvm/virtio_devices.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

/*
 * A malicious guest: it writes what it likes to its RAM and to the registers of a device, which goes on
 * elsewhere now and then by way of a state that may have been spoilt. Properties, whatever happens:
 *
 * - the devices write nothing outside RAM (AddressSanitizer), and what they write in it is marked;
 * - who is told of a disk's changes has the disk, byte by byte;
 * - nothing gets out while output is held;
 * - a state that loads, saves as the same.
 *
 * Input: the device; then operations, see play().
 */
#define RAM_BYTES  (64u << 10)
#define PAGES      (RAM_BYTES / GUEST_MEMORY_PAGE)
#define RAM_AT     0x4000u /* so that there is something below */
#define MMIO       0xd0000000u
#define DISK_BYTES (64u << 10)
#define RINGS      RAM_AT
#define STATE_MAX  4096

enum kind { RNG, BLOCK, NET, CONSOLE, KINDS };

struct world {
    enum kind kind;
    uint8_t *ram, *as_guest_wrote;
    int inside, outside, disk;
    uint8_t *told; /* the disk of who is told */
    bool told_lost;

    struct guest_memory memory;
    struct io *io;
    struct output *output;
    struct bus bus;
    uint64_t marks;
    bool line;
};
static_assert(PAGES <= 64, "one word of marks");

static void on_line(void *ctx, unsigned gsi, bool level)
{
    struct world *world = ctx;
    fuzz_require(gsi == 7 && world->line != level);
    world->line = level;
}

static void on_event(void *ctx)
{
    (void)ctx;
}

static void on_change(void *ctx, uint32_t disk, enum vmm_disk_op op, uint64_t offset, uint64_t bytes,
                      const void *data)
{
    struct world *world = ctx;
    fuzz_require(disk == 2 && bytes > 0 && bytes % 512 == 0 && offset % 512 == 0);
    fuzz_require(offset <= DISK_BYTES && bytes <= DISK_BYTES - offset);
    fuzz_require((op == VMM_DISK_WRITE) == (data != NULL));
    if (data)
        memcpy(world->told + offset, data, bytes);
    else
        memset(world->told + offset, 0, bytes);
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    (void)disk;
    (void)why;
    ((struct world *)ctx)->told_lost = true;
}

/* The devices, on the RAM and the descriptors that are there. */
static void make(struct world *world)
{
    static const struct output_events events = {on_event, on_event, NULL};
    static const uint8_t mac[6] = {2};
    memset(&world->memory, 0, sizeof world->memory);
    memset(&world->bus, 0, sizeof world->bus);
    world->line = false;
    fuzz_require(guest_memory_add(&world->memory, RAM_AT, RAM_BYTES, world->ram) == 0);
    fuzz_require(io_new(&world->io) == 0);
    fuzz_require(output_new(&world->output, world->io, OUTPUT_BYTES_MAX, &events) == 0);
    struct virtio_place place = {&world->memory, world->io, MMIO, {on_line, world, 7}, 0};
    struct device *device = NULL;
    int rc = world->kind == RNG     ? virtio_rng_new(&device, &place)
             : world->kind == BLOCK ? virtio_block_new(&device, &place, dup(world->disk), false, "disk")
             : world->kind == NET
                 ? virtio_net_new(&device, &place, dup(world->inside), mac, world->output)
                 : virtio_console_new(&device, &place, world->inside, world->inside, world->output);
    fuzz_require(rc == 0 && bus_add(&world->bus, device) == 0);
    const struct vmm_disk_sink sink = {on_change, on_lost, world};
    if (world->kind == BLOCK)
        virtio_block_tell(device, &sink, 2);
    fuzz_require(output_mark(world->output, 1) == 0);
}

static void unmake(struct world *world)
{
    fuzz_require(bus_quiesce(&world->bus) == 0);
    guest_memory_take_dirty(&world->memory, 0, &world->marks);
    io_stop(world->io);
    bus_free(&world->bus);
    output_free(world->output);
    io_free(world->io);
    guest_memory_free(&world->memory);
}

static int load(struct world *world, const uint8_t *state, size_t bytes)
{
    struct record_reader reader;
    struct record record;
    record_reader_init(&reader, state, bytes);
    bus_load_begin(&world->bus);
    int rc;
    while ((rc = record_next(&reader, &record)) > 0)
        if ((rc = bus_load(&world->bus, &record)))
            return rc;
    return rc ? rc : bus_load_end(&world->bus);
}

static size_t save(struct world *world, uint8_t state[STATE_MAX])
{
    size_t bytes = 0;
    struct record_writer writer;
    record_writer_init(&writer, state, STATE_MAX);
    bus_save(&world->bus, &writer);
    fuzz_require(record_writer_end(&writer, &bytes) == 0);
    return bytes;
}

/* The guest goes on at another device. A byte of the state may be another one. */
static void move(struct world *world, size_t at, uint8_t spoil)
{
    uint8_t state[STATE_MAX], again[STATE_MAX];
    fuzz_require(bus_quiesce(&world->bus) == 0);
    size_t bytes = save(world, state);
    unmake(world);
    /* The other host's disk is what was told; or, if it was lost, it is copied anew. */
    if (world->kind == BLOCK && world->told_lost)
        fuzz_require(pread(world->disk, world->told, DISK_BYTES, 0) == DISK_BYTES);
    else if (world->kind == BLOCK)
        fuzz_require(pwrite(world->disk, world->told, DISK_BYTES, 0) == DISK_BYTES);
    world->told_lost = false;
    make(world);
    state[at % bytes] ^= spoil;
    int rc = load(world, state, bytes);
    fuzz_require(rc == 0 || rc == -EBADMSG || rc == -EXDEV);
    fuzz_require(rc == 0 || spoil);
    if (rc) {
        unmake(world);
        make(world);
    } else {
        fuzz_require(save(world, again) == bytes && memcmp(state, again, bytes) == 0);
    }
    bus_resume(&world->bus);
}

static void put_ram(struct world *world, uint32_t at, const void *from, size_t bytes)
{
    at %= RAM_BYTES;
    if (bytes > RAM_BYTES - at)
        bytes = RAM_BYTES - at;
    memcpy(world->ram + at, from, bytes);
    memcpy(world->as_guest_wrote + at, from, bytes);
}

static void put_register(struct world *world, uint32_t offset, unsigned bytes, uint64_t value)
{
    bus_write(&world->bus, DEVICE_MMIO, MMIO + offset, bytes, &value);
}

/* As a good driver does it: both queues, at RINGS and 8 KiB behind. */
static void set_up(struct world *world, uint32_t features, uint16_t size)
{
    static const uint32_t begin[][2] = {{0x70, 0}, {0x70, 3}, {0x24, 1}, {0x20, 1}, {0x24, 0}};
    for (size_t i = 0; i < array_length(begin); i++)
        put_register(world, begin[i][0], 4, begin[i][1]);
    put_register(world, 0x20, 4, features);
    put_register(world, 0x70, 4, 11);
    for (uint32_t queue = 0; queue < 2; queue++) {
        uint32_t at = RINGS + 0x2000 * queue;
        const uint32_t writes[][2] = {{0x30, queue},      {0x38, size},       {0x80, at},
                                      {0x90, at + 0x800}, {0xa0, at + 0xffc}, {0x44, 1}};
        for (size_t i = 0; i < array_length(writes); i++)
            put_register(world, writes[i][0], 4, writes[i][1]);
    }
    put_register(world, 0x70, 4, 15);
}

/* Time passes. */
static void turn(struct world *world)
{
    for (int i = 0; i < 3; i++)
        fuzz_require(io_turn(world->io, 0) == 0);
}

enum op { WRITE_RAM, WRITE_REGISTER, READ_REGISTER, SET_UP, DESCRIPTOR, PUBLISH, TURN, MOVE, SEND, OPS };

static void play(struct world *world, struct fuzz_input *input)
{
    switch ((enum op)(fuzz_take(input, 1) % OPS)) {
    case WRITE_RAM: {
        uint32_t at = (uint32_t)fuzz_take(input, 2);
        size_t bytes = (size_t)fuzz_take(input, 1);
        if (bytes > input->left)
            bytes = input->left;
        put_ram(world, at, input->bytes, bytes);
        input->bytes += bytes;
        input->left -= bytes;
        break;
    }
    case WRITE_REGISTER: {
        uint32_t offset = (uint32_t)fuzz_take(input, 1) * 4;
        put_register(world, offset, 4, fuzz_take(input, 4));
        break;
    }
    case READ_REGISTER: {
        uint8_t value[8];
        uint32_t offset = (uint32_t)fuzz_take(input, 2) % 0x210;
        bus_read(&world->bus, DEVICE_MMIO, MMIO + offset, fuzz_take(input, 1) % 9, value);
        break;
    }
    case SET_UP: {
        uint32_t features = (uint32_t)fuzz_take(input, 4);
        set_up(world, features, (uint16_t)fuzz_take(input, 2));
        break;
    }
    case DESCRIPTOR: { /* queue and number in one byte, then the descriptor */
        uint32_t place = (uint32_t)fuzz_take(input, 1);
        uint8_t bytes[16];
        for (size_t i = 0; i < sizeof bytes; i++)
            bytes[i] = (uint8_t)fuzz_take(input, 1);
        put_ram(world, 0x2000 * (place >> 7) + 16 * (place & 0x7f), bytes, sizeof bytes);
        break;
    }
    case PUBLISH: { /* queue and head; size is what the entry is counted by; then notify */
        uint32_t queue = (uint32_t)fuzz_take(input, 1) & 1;
        uint16_t head = (uint16_t)fuzz_take(input, 1), size = (uint16_t)fuzz_take(input, 1), index;
        uint32_t ring = 0x2000 * queue + 0x800;
        memcpy(&index, world->ram + ring + 2, sizeof index);
        put_ram(world, ring + 4 + 2 * (index % (uint32_t)(size + 1)), &head, sizeof head);
        index++;
        put_ram(world, ring + 2, &index, sizeof index);
        put_register(world, 0x50, 4, queue);
        break;
    }
    case TURN:
        turn(world);
        break;
    case MOVE: {
        size_t at = (size_t)fuzz_take(input, 1);
        move(world, at, (uint8_t)fuzz_take(input, 1));
        break;
    }
    case SEND: {
        uint8_t frame[2000] = {1};
        size_t bytes = 1 + (size_t)fuzz_take(input, 2) % (sizeof frame - 1);
        send(world->outside, frame, bytes, MSG_DONTWAIT);
        break;
    }
    case OPS:
        break;
    }
}

static void check(const struct world *world)
{
    for (unsigned page = 0; page < PAGES; page++)
        if (memcmp(world->ram + page * GUEST_MEMORY_PAGE, world->as_guest_wrote + page * GUEST_MEMORY_PAGE,
                   GUEST_MEMORY_PAGE))
            fuzz_require(world->marks >> page & 1);
    char byte;
    fuzz_require(recv(world->outside, &byte, 1, MSG_DONTWAIT) < 0);
    if (world->kind == BLOCK && !world->told_lost) {
        static uint8_t disk[DISK_BYTES];
        fuzz_require(pread(world->disk, disk, sizeof disk, 0) == DISK_BYTES);
        fuzz_require(memcmp(disk, world->told, DISK_BYTES) == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct world world = {.kind = (enum kind)(fuzz_take(&input, 1) % KINDS)};
    world.ram = aligned_alloc(GUEST_MEMORY_PAGE, RAM_BYTES);
    world.as_guest_wrote = calloc(1, RAM_BYTES);
    world.told = calloc(1, DISK_BYTES);
    fuzz_require(world.ram && world.as_guest_wrote && world.told);
    memset(world.ram, 0, RAM_BYTES);
    world.disk = memfd_create("disk", MFD_CLOEXEC);
    fuzz_require(world.disk >= 0 && ftruncate(world.disk, DISK_BYTES) == 0);
    int pair[2];
    fuzz_require(
        socketpair(AF_UNIX, (world.kind == NET ? SOCK_DGRAM : SOCK_STREAM) | SOCK_CLOEXEC, 0, pair) == 0);
    world.inside = pair[0];
    world.outside = pair[1];
    make(&world);
    bus_resume(&world.bus);
    for (unsigned ops = 0; input.left && ops < 400; ops++)
        play(&world, &input);
    turn(&world);
    while (((const struct virtio *)world.bus.devices[0])->under_way)
        fuzz_require(io_turn(world.io, 10) == 0);
    unmake(&world);
    check(&world);
    close(world.inside);
    close(world.outside);
    close(world.disk);
    free(world.ram);
    free(world.as_guest_wrote);
    free(world.told);
    return 0;
}

/* --- seeds --- */

struct writer {
    uint8_t *at;
};

static void put(struct writer *to, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        *to->at++ = (uint8_t)(value >> (8 * i));
}

static void put_descriptor(struct writer *to, unsigned queue, unsigned number, uint64_t gpa, uint32_t bytes,
                           uint16_t flags)
{
    put(to, 1, DESCRIPTOR);
    put(to, 1, queue << 7 | number);
    put(to, 8, gpa);
    put(to, 4, bytes);
    put(to, 2, flags);
    put(to, 2, number + 1);
}

static void put_publish(struct writer *to, unsigned queue, unsigned head)
{
    put(to, 1, PUBLISH);
    put(to, 1, queue);
    put(to, 1, head);
    put(to, 1, 15);
}

/* A request of a disk in three descriptors from 3 * number on, its header in a page of its own. */
static void put_disk_request(struct writer *to, unsigned number, uint32_t type, uint64_t sector,
                             uint32_t bytes)
{
    uint32_t header = 0x8000 + 0x40 * number;
    put(to, 1, WRITE_RAM);
    put(to, 2, header);
    put(to, 1, 32);
    put(to, 4, type);
    put(to, 4, 0);
    put(to, 8, sector);
    put(to, 8, sector); /* of a range; for others it lies behind */
    put(to, 4, 1);
    put(to, 4, 0);
    unsigned at = 3 * number;
    bool range = type == 11 || type == 13;
    put_descriptor(to, 0, at, RAM_AT + header, 16, 1);
    put_descriptor(to, 0, at + 1, RAM_AT + (range ? header + 16 : 0xa000 + 0x400 * number), bytes,
                   type == 0 || type == 8 ? 3 : 1);
    put_descriptor(to, 0, at + 2, RAM_AT + header + 48, 1, 2);
    put_publish(to, 0, at);
}

static void put_seed(struct writer *to, unsigned index)
{
    enum kind kind = index % KINDS;
    bool moves = index & 4, events = index & 8;
    put(to, 1, kind);
    put(to, 1, SET_UP);
    put(to, 4, (events ? 3u << 28 : 0) | (kind == BLOCK ? 1u << 9 | 1u << 13 | 1u << 14 : 0));
    put(to, 2, 16);
    if (kind == BLOCK) {
        put_disk_request(to, 0, 1, 0, 1024);
        put_disk_request(to, 1, 1, 1, 1024);
        put_disk_request(to, 2, 0, 0, 512);
        put_disk_request(to, 3, events ? 11 : 13, 3, 16);
        put_disk_request(to, 4, moves ? 4 : 8, 0, 20);
    } else {
        for (unsigned i = 0; i < 4; i++) {
            put_descriptor(to, 0, i, RAM_AT + 0x8000 + 0x600 * i, 0x600, 2);
            put_publish(to, 0, i);
            put_descriptor(to, 1, i, RAM_AT + 0xc000 + 0x100 * i, 0x80, 0);
            put_publish(to, 1, i);
        }
        put(to, 1, SEND);
        put(to, 2, 99);
    }
    put(to, 1, TURN);
    if (moves) {
        put(to, 1, MOVE);
        put(to, 2, 0);
        put_publish(to, 0, 0);
        put(to, 1, TURN);
        put(to, 1, MOVE);
        put(to, 1, 48);
        put(to, 1, 1);
    }
    if (events) { /* an indirect table */
        put(to, 1, WRITE_RAM);
        put(to, 2, 0x9000);
        put(to, 1, 16);
        put(to, 8, RAM_AT + 0xf000);
        put(to, 4, 64);
        put(to, 4, kind == RNG ? 2 : 0);
        put_descriptor(to, kind != RNG, 15, RAM_AT + 0x9000, 16, 4);
        put_publish(to, kind != RNG, 15);
    }
    for (uint32_t offset = 0; index == 0 && offset < 0x100; offset += 4) {
        put(to, 1, READ_REGISTER);
        put(to, 2, offset);
        put(to, 1, 4);
    }
    put(to, 1, WRITE_REGISTER);
    put(to, 1, 0x64 / 4);
    put(to, 4, 3);
    put(to, 1, TURN);
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    struct writer writer = {to};
    if (index >= 16)
        return 0;
    put_seed(&writer, index);
    return (size_t)(writer.at - to);
}
