/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_LAYOUT_H
#define UNDERSTUDY_BENCH_GUESTS_LAYOUT_H

#include <stdint.h>

/*
 * Where things lie in the bare guest's physical memory: the contract between the guest and a host that reads
 * its memory. All numbers are little endian.
 *
 *     0x0000_8000  trampoline of the other vCPUs (real mode)
 *     0x0010_0000  image: code, data, stacks, page tables
 *     0x0020_0000  struct guest_header
 *     0x0020_1000  struct guest_cpu of vCPU 0, one page for each vCPU
 *     0x0040_0000  oracle ring of vCPU 0, GUEST_RING_ENTRIES page frame numbers for each vCPU
 *     0x0060_0000  table: one word for each page of the area, 2 * iteration + busy
 *        then      area: the pages that are written and checked, up to 1 MiB before the hole, then from 4 GiB
 * on
 */

#define GUEST_CPUS_MAX       16u
#define GUEST_TRAMPOLINE     0x8000u
#define GUEST_IMAGE          0x100000u
#define GUEST_HEADER         0x200000u
#define GUEST_CPUS           0x201000u
#define GUEST_RINGS          0x400000u
#define GUEST_RING_ENTRIES   8192u
#define GUEST_TABLE          0x600000u
#define GUEST_HIGH           0x100000000u
#define GUEST_PAGE_BYTES     4096u
#define GUEST_MAGIC          0x5453455547594455u /* "UDYGUEST" */
#define GUEST_LAYOUT_VERSION 1u

/* Written once, before "ready" is printed, but for `counter`. */
struct guest_header {
    uint64_t magic;
    uint32_t version;
    uint32_t cpus;
    uint64_t counter; /* grows by one a millisecond at most; every tick line says its value */
    uint64_t pages;   /* of the area */
    uint64_t area;    /* address of its first page */
    uint64_t low;     /* how many of its pages lie from `area` on; the others begin at `high` */
    uint64_t high;    /* 4 GiB, where low < pages */
    uint64_t tsc_khz;
};

/*
 * What a vCPU has done. With oracle=on each write of a page of the area is entered in the vCPU's ring: entry
 * n lies at n % GUEST_RING_ENTRIES.
 *
 *     begun grows  ->  the page is written  ->  done grows
 *
 * So for a host that stops all vCPUs at two instants A and B: the entries from begun(A) up to done(B) were
 * written between A and B, whole, and must be in the dirty log of that time. The one entry that may lie
 * between done and begun was under way, and may be in both logs or in either. If begun(B) - begun(A) >
 * GUEST_RING_ENTRIES, entries were lost.
 */
struct guest_cpu {
    uint64_t begun;
    uint64_t done;
    uint64_t writes; /* of the area, with or without the oracle, and those of fill=on */
    uint64_t checks; /* pages found right */
    uint64_t timer;  /* interrupts of its LAPIC timer */
    uint64_t
        gap; /* longest time between two looks at the TSC, in its cycles: downtime as the guest sees it */
    uint64_t steps;  /* writes without those of fill=on */
    uint64_t digest; /* of what was overwritten */
};

static inline uint64_t guest_cpu_address(unsigned cpu)
{
    return GUEST_CPUS + (uint64_t)cpu * GUEST_PAGE_BYTES;
}

static inline uint64_t guest_ring_address(unsigned cpu)
{
    return GUEST_RINGS + (uint64_t)cpu * GUEST_RING_ENTRIES * 8;
}

_Static_assert(sizeof(struct guest_header) == 64, "the layout is a contract");
_Static_assert(sizeof(struct guest_cpu) == 64, "the layout is a contract");
_Static_assert(GUEST_RINGS + GUEST_CPUS_MAX * GUEST_RING_ENTRIES * 8 <= GUEST_TABLE,
               "the rings end before the table");

#endif
