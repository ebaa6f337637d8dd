/* SPDX-License-Identifier: Apache-2.0 */
#include "net.h"

#include "cpus.h"
#include "guest.h"
#include "virtio.h"

/* A driver for a network device as small as it can be: only the transmit queue, one descriptor for each
 * frame, whose place in the queue is its place in frames[] ("Virtual I/O Device 1.2", 5.1). */

#define FRAMES         8u /* under way */
#define TRANSMIT_QUEUE 1u
#define NET_DEVICE     1u
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

static struct virtio_queue queue = {.name = "network"};
static struct frame frames[FRAMES];
static uint64_t dropped;
static uint8_t our_mac[6];

/* For interrupt_net, in boot.S. */
uint64_t net_device, net_interrupts;

void net_start(uint64_t address, unsigned irq)
{
    net_device = address;
    virtio_negotiate(address, NET_DEVICE, "network device", FEATURE_MAC, 0);
    for (unsigned i = 0; i < sizeof our_mac; i++)
        our_mac[i] = *(volatile uint8_t *)(uintptr_t)(address + VIRTIO_CONFIG + i);
    virtio_start(&queue, address, TRANSMIT_QUEUE, irq, CPUS_VECTOR_NET);
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
    memcpy(frame->from, our_mac, sizeof our_mac);
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
    uint16_t head;
    while (virtio_take(&queue, &head))
        ;
    virtio_check(&queue, __atomic_load_n(&net_interrupts, __ATOMIC_RELAXED));
}

void net_send(uint64_t value)
{
    collect();
    uint16_t slot = 0;
    while (slot < FRAMES && queue.busy[slot])
        slot++;
    if (slot == FRAMES) {
        dropped++;
        return;
    }
    queue.descriptors[slot].address = (uintptr_t)&frames[slot];
    queue.descriptors[slot].bytes = make_frame(&frames[slot], value);
    virtio_give(&queue, slot);
    virtio_notify(&queue);
}

void net_say(void)
{
    collect();
    say("net sent %lu used %lu dropped %lu interrupts %lu", queue.given, queue.done, dropped,
        queue.interrupts);
}
