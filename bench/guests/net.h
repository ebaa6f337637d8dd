/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_NET_H
#define UNDERSTUDY_BENCH_GUESTS_NET_H

#include <stdint.h>

/* The counter, sent out through virtio-net over MMIO. Used by the first vCPU alone. */

/* Ready the device at `address`, whose interrupt is the IO APIC's pin `irq`. FATAL if it is none. */
void net_start(uint64_t address, unsigned irq);
/* Send "counter VALUE" as a broadcast; or drop it, if all frames before are still with the device. */
void net_send(uint64_t value);
/* Say how many frames were sent, used by the device, dropped, and how often it interrupted. */
void net_say(void);

#endif
