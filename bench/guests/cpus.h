/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_CPUS_H
#define UNDERSTUDY_BENCH_GUESTS_CPUS_H

#include <stdint.h>

/* vCPUs: exceptions, the timer of the local APIC, the start of the others. */

/* Ready this vCPU: exceptions are reported as FATAL, its APIC is on, interrupts are. */
void cpus_ready(unsigned cpu);
/* Start vCPUs 1 to count - 1, whose APIC ids are their numbers, at guest_ap_main(). FATAL if one does not
 * come. */
void cpus_start(unsigned count);
/* Let this vCPU's timer interrupt, hz times a second; each adds one to guest_cpu.timer. */
void cpus_timer(unsigned hz);
/* Let pin `irq` of the IO APIC interrupt the first vCPU: interrupt_net or interrupt_disk of boot.S. */
#define CPUS_VECTOR_NET  0x41u
#define CPUS_VECTOR_DISK 0x42u
void cpus_route(unsigned irq, unsigned vector);
/* Map memory up to `end`, at most 64 GiB, one to one. 4 GiB are from the beginning. */
void cpus_map(uint64_t end);
/* Reset the machine. */
void cpus_reset(void) __attribute__((noreturn));

#endif
