/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_GUEST_H
#define UNDERSTUDY_BENCH_GUESTS_GUEST_H

#include "layout.h"
#include "options.h"
#include "workload.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The bare guest: an image that boots through PVH and is nothing but the workload. README.md says what it
 * does. */

/* say.c: lines on COM1, one at a time whoever speaks. Formats: %s, %lu, %lx, %%. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Damage was found: "CORRUPT ...", and all vCPUs stop with the memory as it is. */
void corrupt(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* The guest cannot do what it was asked to: "FATAL ...". */
void fatal(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Whether a vCPU has said its last; the others stop when they see it. */
bool said_last(void);

/* memory.c */
void *memcpy(void *to, const void *from, size_t bytes);
void *memset(void *to, int value, size_t bytes);

/* start.c: what the hypervisor handed over. */
struct start_info;
const char *start_cmdline(const struct start_info *info);
/* The end of free RAM from 1 MiB on below 4 GiB, and from 4 GiB on (4 GiB: none there). */
void start_memory(const struct start_info *info, uint64_t *ret_low_end, uint64_t *ret_high_end);

/* clock.c: the TSC, chosen because reading it leaves the guest alone: no exit, no interrupt, nothing dirtied.
 */
static inline uint64_t tsc_read(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
/* Its frequency: `given` if not 0, what the hypervisor or processor says, or measured against the PIT in 10
 * ms. */
uint64_t tsc_frequency_khz(uint64_t given, const char **ret_source);

/* main.c */
struct guest {
    struct options options;
    uint64_t pages, area, low; /* as in struct guest_header */
    uint64_t tsc_khz;
};
extern struct guest guest; /* written by the first vCPU before the others start */
/* What a vCPU does when it is ready. */
void guest_cpu_main(unsigned cpu) __attribute__((noreturn));

/* work.c: vCPU `cpu`'s part. Returns when its steps are done, never without steps=N. */
void work_run(unsigned cpu);

#endif
