/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include "cpus.h"
#include "guest.h"
#include "virtio.h"

/*
 * Theory of operation
 *
 * A driver for a network device as small as it can be: only the transmit queue, one descriptor for each
 * frame, whose place in the queue is its place in frames[] ("Virtual I/O Device 1.2", 5.1).
 *
 * Interrupts are counted and nothing else: that there are none although frames were used means that the way
 * of an interrupt was not restored.
 */

#define QUEUE          8u /* frames under way */
#define TRANSMIT_QUEUE 1u
#define NET_DEVICE     1u
#define DEAF_FRAMES    64u /* used without a single interrupt */
#define COUNTER_PORT   7000u
#define SENDER_PORT    7001u
#define PAYLOAD_MAX    32u
#define FEATURE_MAC    (1u << 5)

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
    struct virtio_descriptor descriptors[QUEUE] __attribute__((aligned(16)));
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

void net_start(uint64_t address, unsigned irq)
{
    net_device = address;
    virtio_negotiate(address, NET_DEVICE, "network device", FEATURE_MAC, 0);
    for (unsigned i = 0; i < sizeof net.mac; i++)
        net.mac[i] = *(volatile uint8_t *)(uintptr_t)(address + VIRTIO_CONFIG + i);
    virtio_queue(address, TRANSMIT_QUEUE, QUEUE, queue.descriptors, &queue.available, &queue.used);
    virtio_go(address, irq, CPUS_VECTOR_NET);
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
    if (virtio_get(net_device, VIRTIO_STATUS) & VIRTIO_STATUS_BROKEN)
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
    virtio_set(net_device, VIRTIO_QUEUE_NOTIFY, TRANSMIT_QUEUE);
}

void net_say(void)
{
    collect();
    say("net sent %lu used %lu dropped %lu interrupts %lu", net.sent, net.done, net.dropped, net.interrupts);
}
