/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include "cpus.h"
#include "guest.h"

/*
 * Theory of operation
 *
 * A driver for a network device as small as it can be: only the transmit queue, one descriptor for each
 * frame, whose place in the queue is its place in frames[]. See "Virtual I/O Device 1.2", 2.7 (split
 * queues), 4.2 (MMIO) and 5.1.
 *
 *     available ring: what was given to the device     used ring: what it has done with
 *
 * Both indices only grow, so a device that was restored and does a frame twice, forgets one, or invents one
 * is seen here. Its interrupts are counted and nothing else: that there are none although frames were used
 * means that the way of an interrupt was not restored.
 */

#define QUEUE           8u /* frames under way */
#define TRANSMIT_QUEUE  1u
#define NET_DEVICE      1u
#define DEAF_FRAMES     64u /* used without a single interrupt */
#define COUNTER_PORT    7000u
#define SENDER_PORT     7001u
#define PAYLOAD_MAX     32u
#define STATUS_DRIVER   3u  /* ACKNOWLEDGE, DRIVER */
#define STATUS_FEATURES 11u /* and FEATURES_OK */
#define STATUS_OK       15u /* and DRIVER_OK */
#define STATUS_BROKEN   64u /* DEVICE_NEEDS_RESET */
#define FEATURE_MAC     (1u << 5)
#define FEATURE_MODERN  1u /* VERSION_1, bit 32 */

enum registers {
    MAGIC = 0x000,
    VERSION = 0x004,
    DEVICE_ID = 0x008,
    FEATURES = 0x010,
    FEATURES_SELECT = 0x014,
    DRIVER_FEATURES = 0x020,
    DRIVER_SELECT = 0x024,
    QUEUE_SELECT = 0x030,
    QUEUE_SIZE_MAX = 0x034,
    QUEUE_SIZE = 0x038,
    QUEUE_READY = 0x044,
    QUEUE_NOTIFY = 0x050,
    STATUS = 0x070,
    DESCRIPTORS = 0x080,
    AVAILABLE = 0x090,
    USED = 0x0a0,
    MAC = 0x100,
};

struct frame {
    uint8_t header[12]; /* virtio's: no checksum is to be made, nothing is to be cut */
    uint8_t to[6], from[6], type[2];
    uint8_t version, service, bytes[2], id[2], fragment[2], ttl, protocol, sum[2], source[4], destination[4];
    uint8_t source_port[2], destination_port[2], udp_bytes[2], udp_sum[2];
    uint8_t payload[PAYLOAD_MAX];
};
#define IP_OFFSET offsetof(struct frame, version)
_Static_assert(offsetof(struct frame, payload) == 12 + 14 + 20 + 8, "the headers have no holes");

static struct {
    struct {
        uint64_t address;
        uint32_t bytes;
        uint16_t flags, next;
    } descriptors[QUEUE] __attribute__((aligned(16)));
    struct {
        uint16_t flags, index, ring[QUEUE], event;
    } available;
    struct {
        uint16_t flags, index;
        struct {
            uint32_t id, bytes;
        } ring[QUEUE];
        uint16_t event;
    } used __attribute__((aligned(4)));
    struct frame frames[QUEUE];
} queue __attribute__((aligned(4096)));

static struct {
    uint64_t sent, done, dropped;
    uint64_t interrupts, deaf; /* as far as was seen; frames used since */
    bool busy[QUEUE];
    uint8_t mac[6];
} net;

/* For interrupt_net, in boot.S. */
uint64_t net_device, net_interrupts;

static uint32_t get(unsigned offset)
{
    return *(volatile uint32_t *)(uintptr_t)(net_device + offset);
}

static void set(unsigned offset, uint32_t value)
{
    *(volatile uint32_t *)(uintptr_t)(net_device + offset) = value;
}

static void set_address(unsigned offset, const void *at)
{
    set(offset, (uint32_t)(uintptr_t)at);
    set(offset + 4, (uint32_t)((uint64_t)(uintptr_t)at >> 32));
}

static void negotiate(void)
{
    set(STATUS, 0);
    set(STATUS, STATUS_DRIVER);
    set(FEATURES_SELECT, 0);
    bool has_mac = get(FEATURES) & FEATURE_MAC;
    set(FEATURES_SELECT, 1);
    if (!has_mac || !(get(FEATURES) & FEATURE_MODERN))
        fatal("the network device at 0x%lx has no MAC, or is no modern one", net_device);
    set(DRIVER_SELECT, 0);
    set(DRIVER_FEATURES, FEATURE_MAC);
    set(DRIVER_SELECT, 1);
    set(DRIVER_FEATURES, FEATURE_MODERN);
    set(STATUS, STATUS_FEATURES);
    if (get(STATUS) != STATUS_FEATURES)
        fatal("the network device at 0x%lx does not accept its own features", net_device);
    for (unsigned i = 0; i < sizeof net.mac; i++)
        net.mac[i] = *(volatile uint8_t *)(uintptr_t)(net_device + MAC + i);
}

void net_start(uint64_t address, unsigned irq)
{
    net_device = address;
    if (get(MAGIC) != 0x74726976 || get(VERSION) != 2 || get(DEVICE_ID) != NET_DEVICE)
        fatal("there is no virtio network device of version 2 at 0x%lx: magic 0x%lx version %lu device %lu",
              address, (uint64_t)get(MAGIC), (uint64_t)get(VERSION), (uint64_t)get(DEVICE_ID));
    negotiate();
    set(QUEUE_SELECT, TRANSMIT_QUEUE);
    if (get(QUEUE_SIZE_MAX) < QUEUE)
        fatal("the network device at 0x%lx has a queue of %lu", address, (uint64_t)get(QUEUE_SIZE_MAX));
    set(QUEUE_SIZE, QUEUE);
    set_address(DESCRIPTORS, queue.descriptors);
    set_address(AVAILABLE, &queue.available);
    set_address(USED, &queue.used);
    set(QUEUE_READY, 1);
    cpus_route(irq);
    set(STATUS, STATUS_OK);
}

static void put16(uint8_t *at, unsigned value)
{
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

/* "counter VALUE" and a line's end; how long it is. */
static unsigned put_text(uint8_t *at, uint64_t value)
{
    static const char word[] = "counter ";
    char digits[20];
    unsigned length = 0, count = 0;
    for (; word[length]; length++)
        at[length] = (uint8_t)word[length];
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        at[length++] = (uint8_t)digits[--count];
    at[length++] = '\n';
    return length;
}

/* RFC 791: the header's words and the sum of them are all ones together. */
static unsigned ip_sum(const uint8_t *header)
{
    uint32_t sum = 0;
    for (unsigned i = 0; i < 20; i += 2)
        sum += (uint32_t)header[i] << 8 | header[i + 1];
    sum = (sum & 0xffff) + (sum >> 16);
    return ~(sum + (sum >> 16)) & 0xffff;
}

/* From 10.78.0.2, the guest's address in the tests with services, to everybody. Returns the frame's length.
 */
static uint32_t make_frame(struct frame *frame, uint64_t value)
{
    *frame = (struct frame){
        .to = {255, 255, 255, 255, 255, 255},
        .type = {0x08, 0x00},
        .version = 0x45,
        .ttl = 64,
        .protocol = 17,
        .source = {10, 78, 0, 2},
        .destination = {255, 255, 255, 255},
    };
    unsigned text = put_text(frame->payload, value);
    memcpy(frame->from, net.mac, sizeof net.mac);
    put16(frame->bytes, 20 + 8 + text);
    put16(frame->source_port, SENDER_PORT);
    put16(frame->destination_port, COUNTER_PORT);
    put16(frame->udp_bytes, 8 + text);
    put16(frame->sum, ip_sum((const uint8_t *)frame + IP_OFFSET));
    return offsetof(struct frame, payload) + text;
}

/* Take back what the device has done with. */
static void collect(void)
{
    uint16_t index = __atomic_load_n(&queue.used.index, __ATOMIC_ACQUIRE);
    if ((uint16_t)(index - (uint16_t)net.done) > net.sent - net.done)
        corrupt("network: %lu frames sent, %lu used, and the device's index is %lu", net.sent, net.done,
                (uint64_t)index);
    while ((uint16_t)net.done != index) {
        uint32_t id = queue.used.ring[net.done % QUEUE].id;
        if (id >= QUEUE || !net.busy[id])
            corrupt("network: the device has used frame %lu, which it was not given", (uint64_t)id);
        net.busy[id] = false;
        net.done++;
        net.deaf++;
    }
    uint64_t interrupts = __atomic_load_n(&net_interrupts, __ATOMIC_RELAXED);
    if (interrupts != net.interrupts)
        net.deaf = 0;
    net.interrupts = interrupts;
    if (net.deaf >= DEAF_FRAMES)
        corrupt("network: %lu frames used without an interrupt", net.deaf);
    if (get(STATUS) & STATUS_BROKEN)
        corrupt("network: the device wants a reset");
}

void net_send(uint64_t value)
{
    collect();
    unsigned slot = 0;
    while (slot < QUEUE && net.busy[slot])
        slot++;
    if (slot == QUEUE) {
        net.dropped++;
        return;
    }
    queue.descriptors[slot].address = (uintptr_t)&queue.frames[slot];
    queue.descriptors[slot].bytes = make_frame(&queue.frames[slot], value);
    net.busy[slot] = true;
    queue.available.ring[net.sent % QUEUE] = (uint16_t)slot;
    net.sent++;
    __atomic_store_n(&queue.available.index, (uint16_t)net.sent, __ATOMIC_SEQ_CST);
    set(QUEUE_NOTIFY, TRANSMIT_QUEUE);
}

void net_say(void)
{
    collect();
    say("net sent %lu used %lu dropped %lu interrupts %lu", net.sent, net.done, net.dropped, net.interrupts);
}
