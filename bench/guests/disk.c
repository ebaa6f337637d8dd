/* SPDX-License-Identifier: Apache-2.0 */
#include "disk.h"

#include "cpus.h"
#include "guest.h"
#include "virtio.h"

/*
 * Theory of operation
 *
 * Blocks of 4 KiB are written, zeroed, read and flushed, several requests at a time ("Virtual I/O Device
 * 1.2", 5.2). A block on the disk is a page of workload.h: it names its number and its iteration, and all of
 * it follows from these two. Which iteration a block has is remembered in memory, so a disk that is older or
 * newer than the memory is found by the first read of a block that differs, and named.
 *
 *     memory  | block 0: iteration 7 | block 1: iteration 3, zeroed | ...      set when the device answers
 *     disk    | 7, 0, data, sum      | zeros                        | ...
 *
 * A block has one request at a time, since of two the order is not known. All blocks are written once first;
 * then reads go through the disk in order, and "disk pass N" is said when all blocks were found right once
 * more: the second such line after a takeover speaks of a pass that began after it.
 */

#define CHAIN          3u /* descriptors of a request at most */
#define SLOTS          8u /* requests under way */
#define DISK_DEVICE    2u
#define SECTORS        8u /* of a block */
#define TICKS_MAX      600u
#define UNUSED_STATUS  0xffu
#define FEATURE_FLUSH  (1u << 9)
#define FEATURE_ZEROES (1u << 14)

enum request { READ = 0, WRITE = 1, FLUSH = 4, ZEROES = 13 };

struct slot {
    struct {
        uint32_t type, reserved;
        uint64_t sector;
    } header;
    struct {
        uint64_t sector;
        uint32_t sectors, flags;
    } range;
    uint8_t status;
    uint32_t block, ticks;
};

static struct virtio_queue queue = {.name = "disk"};
static uint64_t pages[SLOTS][WORKLOAD_PAGE_WORDS] __attribute__((aligned(4096)));
static struct slot slots[SLOTS];
_Static_assert(SLOTS *CHAIN <= VIRTIO_QUEUE, "all fit into the queue");

static struct {
    uint32_t iteration; /* 0: never written */
    bool zeroed, busy;
} blocks[OPTIONS_DISK_MAX];

static struct {
    uint64_t reads, writes, zeroes, flushes; /* done */
    uint64_t changes;                        /* given */
    uint64_t read_at, passes, filled;
    uint64_t seed;
    bool can_zero;
} disk;

/* For interrupt_disk, in boot.S. */
uint64_t disk_device, disk_interrupts;

void disk_start(uint64_t address, unsigned irq)
{
    disk_device = address;
    disk.seed = 1;
    disk.can_zero =
        virtio_negotiate(address, DISK_DEVICE, "disk", FEATURE_FLUSH, FEATURE_ZEROES) & FEATURE_ZEROES;
    uint64_t sectors =
        (uint64_t)virtio_get(address, VIRTIO_CONFIG + 4) << 32 | virtio_get(address, VIRTIO_CONFIG);
    if (sectors / SECTORS < guest.options.disk_blocks)
        fatal("the disk at 0x%lx has %lu sectors, disk_blocks=%lu needs more", address, sectors,
              guest.options.disk_blocks);
    virtio_start(&queue, address, 0, irq, CPUS_VECTOR_DISK);
}

static bool is_busy(unsigned number)
{
    return queue.busy[number * CHAIN];
}

/* --- what the device has done --- */

static void check_read(const struct slot *slot, const uint64_t *page)
{
    struct workload_fault fault;
    uint32_t iteration = blocks[slot->block].zeroed ? 0 : blocks[slot->block].iteration;
    if (!workload_check(page, WORKLOAD_PAGE, WORKLOAD_RANDOM, slot->block, iteration, &fault))
        corrupt("disk: block %lu is %s: iteration %lu expected, %lu found, word %lu", (uint64_t)slot->block,
                fault.whole ? "stale" : "torn", fault.wanted, fault.found, (uint64_t)fault.word);
}

static void finish(unsigned number)
{
    struct slot *slot = &slots[number];
    uint32_t type = slot->header.type;
    if (slot->status != 0)
        corrupt("disk: request %lu of block %lu failed with status %lu", (uint64_t)type,
                (uint64_t)slot->block, (uint64_t)slot->status);
    if (type == FLUSH) {
        disk.flushes++;
        return;
    }
    blocks[slot->block].busy = false;
    if (type == READ) {
        check_read(slot, pages[number]);
        if (++disk.reads % guest.options.disk_blocks == 0)
            say("disk pass %lu ok %lu", ++disk.passes, guest.options.disk_blocks);
        return;
    }
    blocks[slot->block].iteration++;
    blocks[slot->block].zeroed = type == ZEROES;
    disk.writes += type == WRITE;
    disk.zeroes += type == ZEROES;
}

static void collect(void)
{
    uint16_t head;
    while (virtio_take(&queue, &head))
        finish(head / CHAIN);
}

void disk_tick(void)
{
    virtio_check(&queue, __atomic_load_n(&disk_interrupts, __ATOMIC_RELAXED));
    for (unsigned i = 0; i < SLOTS; i++)
        if (is_busy(i) && ++slots[i].ticks > TICKS_MAX)
            corrupt("disk: request %lu of block %lu is not answered", (uint64_t)slots[i].header.type,
                    (uint64_t)slots[i].block);
}

/* --- what it is given --- */

static void describe(unsigned number, unsigned part, const void *at, uint32_t bytes, uint16_t flags)
{
    unsigned index = number * CHAIN + part;
    queue.descriptors[index] = (struct virtio_descriptor){
        .address = (uintptr_t)at, .bytes = bytes, .flags = flags, .next = (uint16_t)(index + 1)};
}

static void give(unsigned number, enum request type, uint32_t block)
{
    struct slot *slot = &slots[number];
    *slot = (struct slot){.header = {.type = type, .sector = type == FLUSH ? 0 : (uint64_t)block * SECTORS},
                          .range = {.sector = (uint64_t)block * SECTORS, .sectors = SECTORS},
                          .status = UNUSED_STATUS,
                          .block = block};
    unsigned part = 0;
    describe(number, part++, &slot->header, sizeof slot->header, VIRTIO_NEXT);
    if (type == READ)
        describe(number, part++, pages[number], WORKLOAD_PAGE_BYTES, VIRTIO_NEXT | VIRTIO_WRITE);
    else if (type == WRITE)
        describe(number, part++, pages[number], WORKLOAD_PAGE_BYTES, VIRTIO_NEXT);
    else if (type == ZEROES)
        describe(number, part++, &slot->range, sizeof slot->range, VIRTIO_NEXT);
    describe(number, part, &slot->status, 1, VIRTIO_WRITE);
    if (type != FLUSH)
        blocks[block].busy = true;
    disk.changes += type == WRITE || type == ZEROES;
    virtio_give(&queue, (uint16_t)(number * CHAIN));
}

static void give_write(unsigned number, uint32_t block)
{
    workload_write(pages[number], WORKLOAD_PAGE, WORKLOAD_RANDOM, block, blocks[block].iteration + 1);
    give(number, WRITE, block);
}

/* What comes next; false: its block has a request already. */
static bool give_next(unsigned number)
{
    if (disk.filled < guest.options.disk_blocks) {
        give_write(number, (uint32_t)disk.filled++);
        return true;
    }
    disk.seed = workload_mix(disk.seed, queue.given);
    uint32_t choice = (uint32_t)(disk.seed >> 8) % 32;
    uint32_t block = (uint32_t)((disk.seed >> 32) % guest.options.disk_blocks);
    bool over = guest.options.disk_writes && disk.changes >= guest.options.disk_writes;
    if (choice == 0) {
        give(number, FLUSH, 0);
        return true;
    }
    if (over || choice < 16)
        block = (uint32_t)disk.read_at;
    if (blocks[block].busy)
        return false;
    if (over || choice < 16) {
        disk.read_at = (disk.read_at + 1) % guest.options.disk_blocks;
        give(number, READ, block);
    } else if (choice == 16 && disk.can_zero) {
        give(number, ZEROES, block);
    } else {
        give_write(number, block);
    }
    return true;
}

void disk_work(uint64_t requests)
{
    uint64_t before = queue.given;
    collect();
    for (unsigned i = 0; i < SLOTS && requests; i++)
        if (!is_busy(i) && give_next(i))
            requests--;
    if (queue.given != before)
        virtio_notify(&queue);
}

void disk_say(void)
{
    say("disk requests %lu writes %lu zeroes %lu reads %lu flushes %lu interrupts %lu", queue.done,
        disk.writes, disk.zeroes, disk.reads, disk.flushes, queue.interrupts);
}
