/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"
#include "io.h"

/*
 * Theory of operation
 *
 * A guest that measures how long it was stopped must look at a clock often, so looking must cost little and
 * change nothing: the TSC. What it counts in a second is asked of the hypervisor (KVM's and VMware's leaf
 * 0x40000010), of the processor (leaf 0x15), and only then measured: channel 0 of the PIT counts down from a
 * known value, and its status says when it is through. Nobody hears its interrupt. Port 0x61, where others
 * look, is missing on QEMU's microvm.
 */

#define PIT_HZ          1193182u
#define PIT_COUNT       11932u /* 10 ms */
#define PIT_COMMAND     0x43
#define PIT_CHANNEL0    0x40
#define PIT_MODE0       0x30 /* channel 0, both bytes: the output rises when the count is done */
#define PIT_READ_STATUS 0xe2 /* of channel 0 */
#define PIT_OUTPUT      0x80
#define POLLS_MAX       10000000u

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

static bool pit_done(void)
{
    outb(PIT_COMMAND, PIT_READ_STATUS);
    return inb(PIT_CHANNEL0) & PIT_OUTPUT;
}

static uint64_t measured_khz(void)
{
    outb(PIT_COMMAND, PIT_MODE0);
    outb(PIT_CHANNEL0, PIT_COUNT & 0xff);
    uint64_t began = tsc_read();
    outb(PIT_CHANNEL0, PIT_COUNT >> 8);
    unsigned polls = 0;
    while (!pit_done())
        if (++polls == POLLS_MAX)
            break;
    uint64_t cycles = tsc_read() - began;
    if (polls == 0 || polls == POLLS_MAX) /* a port where nothing is reads as done */
        fatal("neither the hypervisor nor a PIT tells the TSC's frequency: say tsc=KHZ");
    return cycles * PIT_HZ / PIT_COUNT / 1000;
}

uint64_t tsc_frequency_khz(uint64_t given)
{
    uint64_t khz = given ? given : told_khz();
    return khz ? khz : measured_khz();
}
