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
#define PIT_COUNT       2386u /* 2 ms */
#define PIT_COMMAND     0x43
#define PIT_CHANNEL0    0x40
#define PIT_MODE0       0x30 /* channel 0, both bytes: the output rises when the count is done */
#define PIT_READ_STATUS 0xe2 /* of channel 0 */
#define PIT_SETTING     0x3f /* the command that it obeys */
#define PIT_OUTPUT      0x80
#define TRIES           10u
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

static uint8_t pit_status(void)
{
    outb(PIT_COMMAND, PIT_READ_STATUS);
    return inb(PIT_CHANNEL0);
}

/* Of many short tries the shortest, because whatever comes between makes it longer. */
static uint64_t measured_khz(void)
{
    uint64_t shortest = UINT64_MAX;
    for (unsigned try = 0; try < TRIES; try++) {
        outb(PIT_COMMAND, PIT_MODE0);
        bool there = (pit_status() & PIT_SETTING) == PIT_MODE0; /* a port where nothing is reads as ones */
        outb(PIT_CHANNEL0, PIT_COUNT & 0xff);
        uint64_t began = tsc_read();
        outb(PIT_CHANNEL0, PIT_COUNT >> 8);
        unsigned polls = 0;
        while (there && polls < POLLS_MAX && !(pit_status() & PIT_OUTPUT))
            polls++;
        uint64_t cycles = tsc_read() - began;
        if (!there || polls == POLLS_MAX)
            fatal("neither the hypervisor nor a PIT tells the TSC's frequency: say tsc=KHZ");
        shortest = cycles < shortest ? cycles : shortest;
    }
    return shortest * PIT_HZ / PIT_COUNT / 1000;
}

uint64_t tsc_frequency_khz(uint64_t given, const char **ret_source)
{
    *ret_source = "given";
    if (given)
        return given;
    *ret_source = "told";
    uint64_t khz = told_khz();
    if (khz)
        return khz;
    *ret_source = "measured";
    return measured_khz();
}
