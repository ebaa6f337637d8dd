/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_MACHINE_INTERNAL_H
#define UNDERSTUDY_VMM_KVM_MACHINE_INTERNAL_H

#include "vmm/kvm/dirty_ring.h"
#include "vmm/kvm/machine.h"

#include <assert.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <stdatomic.h>
#include <sys/types.h>

/* What the files of the machine share. */

#define CPUID_MAX   256
#define SCRATCH_MIN 4096
#define MSRS_MAX    256

struct vcpu {
    struct machine *machine;
    unsigned index;
    int fd;
    struct kvm_run *run; /* the kernel's, run_bytes long */
    struct dirty_ring ring;
    unsigned full_in_vain; /* its ring was full, and nothing could be taken out of any; in a row */
    pthread_t thread;
    bool threaded, arrived; /* the latter under the lock */
};

/* struct kvm_cpuid2 with room for its entries. */
struct cpuid_table {
    uint32_t count, padding;
    struct kvm_cpuid_entry2 entries[CPUID_MAX];
};
static_assert(offsetof(struct cpuid_table, entries) == offsetof(struct kvm_cpuid2, entries),
              "as the kernel has it");

struct machine {
    struct machine_config config;
    int kvm, vm;

    int memory_fd;
    uint8_t *memory_map;
    struct guest_memory memory;
    bool tracked;
    pthread_mutex_t ring_lock; /* of all vCPUs' rings; leaf */

    struct bus bus;

    struct vcpu vcpus[MACHINE_CPUS_MAX];
    size_t run_bytes, xsave_bytes;
    void *scratch; /* as large as any structure of a vCPU's */
    uint32_t tsc_khz;
    uint64_t cpu_sum;        /* of what CPUID says, as far as it is the same for all vCPUs */
    uint32_t msrs[MSRS_MAX]; /* the state's */
    unsigned msr_count;
    void *power_on; /* the state (state.h) before anything booted, of no device */
    size_t power_on_bytes;

    pthread_mutex_t lock; /* of what follows; leaf */
    pthread_cond_t changed;
    unsigned inside; /* vCPUs in the guest, or handling its exits */
    bool stopped, ending, restart_wanted;
    uint64_t stopped_ns; /* when it was stopped last; 0: never */
    uint64_t stood_ns;   /* from there until all vCPUs ran again; 0: they do not */
    bool quiet;          /* the bus is; the owner's alone */
    atomic_bool over;
};

int machine_set_slot(struct machine *machine, unsigned index, uint32_t flags);

/* dirty_log.c: what the vCPUs' rings hold is marked; `protect`: and writes to it are told anew; returns how
 * many entries that made free. Any thread. */
int machine_empty_rings(struct machine *machine, bool protect);

/* vcpu.c */
int vcpu_new(struct machine *machine, unsigned index);
int vcpu_start(struct vcpu *vcpu);
/* Make it leave the guest soon, or not enter it. */
void vcpu_kick(struct vcpu *vcpu);
void vcpu_free(struct vcpu *vcpu);

/* cpuid.c: what KVM supports, made to fit this machine; sets machine->cpu_sum. */
int cpuid_for(struct machine *machine, struct cpuid_table *ret_table);
void cpuid_of_vcpu(unsigned index, struct cpuid_table *table);

/* machine.c: nobody enters the guest any more, and who is inside leaves it soon. Under the lock. */
void machine_shut_door(struct machine *machine);

/* state_kvm.c: which MSRs are part of the state; load all of a state but the devices. */
int machine_find_msrs(struct machine *machine);
int machine_load_kernel_parts(struct machine *machine, const void *state, size_t bytes);

/* restart.c: keep the state as it is now for machine_restart(). */
int machine_keep_power_on(struct machine *machine);

#endif
