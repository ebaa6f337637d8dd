/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"
#include "io.h"

/*
 * Theory of operation
 *
 * A guest that measures how long it was stopped must look at a clock often, so looking must cost little and
 * change nothing: the TSC. What it counts in a second is asked of the hypervisor (KVM's and VMware's leaf
 * 0x40000010), of the processor (leaf 0x15), and only then measured: channel 2 of the PIT counts down from a
 * known value with its output readable at port 0x61, without an interrupt.
 */

#define PIT_HZ       1193182u
#define PIT_COUNT    11932u /* 10 ms */
#define PIT_COMMAND  0x43
#define PIT_CHANNEL2 0x42
#define GATE_PORT    0x61
#define GATE_ON      0x01
#define GATE_SPEAKER 0x02
#define GATE_OUTPUT  0x20
#define POLLS_MAX    10000000u

static uint64_t told_khz(void)
{
    uint32_t a, b, c, d;
    cpuid(0x40000000, &a, &b, &c, &d);
    if (a >= 0x40000010 && a < 0x40010000) {
        cpuid(0x40000010, &a, &b, &c, &d);
        if (a)
            return a;
    }
    cpuid(0, &a, &b, &c, &d);
    if (a >= 0x15) {
        cpuid(0x15, &a, &b, &c, &d);
        if (a && b && c)
            return (uint64_t)c * b / a / 1000;
    }
    return 0;
}

static uint64_t measured_khz(void)
{
    outb(GATE_PORT, (uint8_t)((inb(GATE_PORT) & ~GATE_SPEAKER) | GATE_ON));
    outb(PIT_COMMAND, 0xb0); /* channel 2, both bytes, mode 0: the output rises when the count is done */
    outb(PIT_CHANNEL2, PIT_COUNT & 0xff);
    uint64_t began = tsc_read();
    outb(PIT_CHANNEL2, PIT_COUNT >> 8);
    unsigned polls = 0;
    while (!(inb(GATE_PORT) & GATE_OUTPUT))
        if (++polls == POLLS_MAX)
            fatal("neither the hypervisor nor the PIT tells the TSC's frequency; say tsc=KHZ");
    return (tsc_read() - began) * PIT_HZ / PIT_COUNT / 1000;
}

uint64_t tsc_frequency_khz(uint64_t given)
{
    uint64_t khz = given ? given : told_khz();
    return khz ? khz : measured_khz();
}
