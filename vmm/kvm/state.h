/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_STATE_H
#define UNDERSTUDY_VMM_KVM_STATE_H

#include "vmm/kvm/machine.h"

/*
 * The state of a machine as records (record.h): one of the machine, ten of each vCPU, those of the interrupt
 * controllers, the timer and the clock, then the devices'. A standby loads what a peer sent: the whole of it
 * is looked at before anything is done with it. The payloads are the kernel's structures (asm/kvm.h) but
 * where said.
 */

enum state_record {
    STATE_MACHINE = 1, /* struct state_shape in the order of its numbers */
    STATE_MP = 2,
    STATE_REGS = 3,
    STATE_SREGS = 4, /* struct kvm_sregs2 */
    STATE_XCRS = 5,
    STATE_XSAVE = 6,
    STATE_DEBUG = 7,
    STATE_EVENTS = 8,
    STATE_LAPIC = 9,
    STATE_MSRS = 10, /* struct kvm_msrs */
    STATE_TSC = 11,  /* u64: what is added to the host's counter */
    STATE_CHIP = 32, /* struct kvm_irqchip; instance: 0, 1 the PICs, 2 the IOAPIC */
    STATE_PIT = 33,
    STATE_CLOCK = 34, /* u64: the guest's clock, ns; u64: the host's time stamp counter at that time */
};

#define STATE_VERSION  1u
#define STATE_CHIPS    3u
#define STATE_PER_CPU  10u /* from STATE_MP to STATE_TSC */
#define STATE_MSRS_MAX 256u

/* What both sides must have in common. */
struct state_shape {
    uint64_t memory_bytes, cpu_sum;
    uint32_t cpus, tsc_khz;
    uint32_t xsave_bytes;
    uint32_t msr_count;
    uint32_t msrs[STATE_MSRS_MAX]; /* which there may be; not in the record */
};

/* Where the payloads lie in the state; nothing is NULL after state_parse(). */
struct state_parsed {
    const void *of_cpu[MACHINE_CPUS_MAX][STATE_PER_CPU]; /* by type, from STATE_MP on */
    const void *chips[STATE_CHIPS], *pit;
    uint64_t tsc_offset[MACHINE_CPUS_MAX];
    uint64_t clock_ns, host_tsc;
};

/*
 * Check all records but the devices' payloads against our own shape. -EBADMSG: no state, with the record that
 * is wrong; -EXDEV: one of another machine, with both values. Pure.
 */
int state_parse(const void *state, size_t bytes, const struct state_shape *ours,
                struct state_parsed *ret_parsed);

#endif
