/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_DISK_H
#define UNDERSTUDY_BENCH_GUESTS_DISK_H

#include <stdint.h>

/* The workload of a virtio disk over MMIO; disk.c has the theory. Used by the first vCPU alone. */

/* Ready the device at `address`, whose interrupt is the IO APIC's pin `irq`. FATAL if it is none. */
void disk_start(uint64_t address, unsigned irq);
/* Check what the device has done, and give it at most so many requests more. */
void disk_work(uint64_t requests);
/* With each tick: the device interrupts, and keeps nothing for too many of them. */
void disk_tick(void);
/* Say what was done so far. */
void disk_say(void);

#endif
