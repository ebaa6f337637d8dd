/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/error.h"
#include "vmm/kvm/ioctl.h"

#include <asm/kvm_para.h>
#include <errno.h>
#include <string.h>

/*
 * What the guest's CPUID instruction says: all that this host's KVM supports, less what has state that nobody
 * saves: nested guests (VMX, SVM), and of KVM's own features those with pages or wake-ups under way in the
 * host's kernel; and less what the user hides (cpu_features.h). Both hosts must come out the same, and
 * cpu_sum in the description says whether they do.
 */

#define ECX1_VMX          (1u << 5)
#define ECX1_TSC_DEADLINE (1u << 24)
#define ECX1_OSXSAVE      (1u << 27)
#define ECX1_HYPERVISOR   (1u << 31)
#define EDX1_HTT          (1u << 28)
#define ECX81_SVM         (1u << 2)
#define ECX0D_SUPERVISOR  1u   /* a part of IA32_XSS */
#define XSAVE_BASIC       576u /* x87, SSE and the header */
#define FREQUENCIES       0x40000010u
#define APIC_BUS_KHZ      1000000u /* of KVM's */
#define KVM_FEATURES_KEPT                                                                                    \
    (1u << KVM_FEATURE_CLOCKSOURCE | 1u << KVM_FEATURE_NOP_IO_DELAY | 1u << KVM_FEATURE_CLOCKSOURCE2 |       \
     1u << KVM_FEATURE_CLOCKSOURCE_STABLE_BIT)

static bool nothing(const struct kvm_cpuid_entry2 *entry)
{
    return !(entry->eax | entry->ebx | entry->ecx | entry->edx);
}

static unsigned bits_for(unsigned count)
{
    unsigned bits = 0;
    while ((1u << bits) < count)
        bits++;
    return bits;
}

/* False: the entry is left out. */
static bool fit(struct machine *machine, struct kvm_cpuid_entry2 *entry)
{
    unsigned cpus = machine->config.cpus;
    switch (entry->function) {
    case 0x1:
        entry->ecx &= ~(ECX1_VMX | ECX1_OSXSAVE); /* the latter follows the guest's CR4 */
        entry->ecx |= ECX1_HYPERVISOR;
        if (kvm_call(machine->vm, KVM_CHECK_EXTENSION, KVM_CAP_TSC_DEADLINE_TIMER) > 0)
            entry->ecx |= ECX1_TSC_DEADLINE;
        entry->ebx = (entry->ebx & 0xff00) | (cpus & 0xff) << 16;
        entry->edx = cpus > 1 ? entry->edx | EDX1_HTT : entry->edx & ~EDX1_HTT;
        break;
    case 0x4:
        entry->eax &= 0x3fff; /* nobody shares a cache */
        break;
    case 0xb: /* written anew */
    case 0x1f:
    case 0x8000001e:
        return false;
    case 0xd:
        if (entry->index <= 1)
            entry->ebx = 0; /* follows the guest's XCR0 */
        break;
    case 0x40000001:
        entry->eax &= KVM_FEATURES_KEPT;
        break;
    case 0x80000001:
        entry->ecx &= ~ECX81_SVM;
        break;
    case 0x8000000a:
        return false;
    case 0x80000008:
        entry->ecx = (cpus - 1) | bits_for(cpus) << 12;
        break;
    case 0x8000001d:
        entry->eax &= 0x3fff;
        break;
    default:
        break;
    }
    return !nothing(entry) || (entry->flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX);
}

/* The area of XSAVE is as long as its last part needs; hidden ones need nothing. */
static void fit_xsave_area(struct cpuid_table *table)
{
    struct kvm_cpuid_entry2 *all = NULL;
    uint32_t bytes = XSAVE_BASIC;
    for (uint32_t i = 0; i < table->count; i++) {
        struct kvm_cpuid_entry2 *entry = &table->entries[i];
        if (entry->function == 0xd && entry->index == 0)
            all = entry;
        else if (entry->function == 0xd && entry->index > 1 && !(entry->ecx & ECX0D_SUPERVISOR) &&
                 entry->ebx + entry->eax > bytes)
            bytes = entry->ebx + entry->eax;
    }
    if (all)
        all->ecx = bytes;
}

static void add(struct cpuid_table *table, struct kvm_cpuid_entry2 entry)
{
    if (table->count < CPUID_MAX)
        table->entries[table->count++] = entry;
}

static uint64_t sum(const struct cpuid_table *table)
{
    uint64_t sum = 0xcbf29ce484222325ull; /* FNV-1a */
    for (uint32_t i = 0; i < table->count; i++) {
        const struct kvm_cpuid_entry2 *entry = &table->entries[i];
        const uint32_t words[] = {entry->function, entry->index, entry->eax,
                                  entry->ebx,      entry->ecx,   entry->edx};
        const uint8_t *bytes = (const uint8_t *)words;
        for (size_t k = 0; k < sizeof words; k++)
            sum = (sum ^ bytes[k]) * 0x100000001b3ull;
    }
    return sum;
}

int cpuid_for(struct machine *machine, struct cpuid_table *ret_table)
{
    unsigned cpus = machine->config.cpus;
    memset(ret_table, 0, sizeof *ret_table);
    ret_table->count = CPUID_MAX;
    int r = kvm_call(machine->kvm, KVM_GET_SUPPORTED_CPUID, ret_table);
    if (r < 0)
        return r;
    uint32_t kept = 0;
    for (uint32_t i = 0; i < ret_table->count && i < CPUID_MAX; i++) {
        struct kvm_cpuid_entry2 entry = ret_table->entries[i];
        if (fit(machine, &entry) && cpu_features_hide(&machine->config.features, &entry))
            ret_table->entries[kept++] = entry;
    }
    ret_table->count = kept;
    fit_xsave_area(ret_table);
    /* One package of as many cores; APIC ids are the vCPUs' numbers. */
    add(ret_table, (struct kvm_cpuid_entry2){
                       .function = 0xb, .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX, .ebx = 1, .ecx = 0x100});
    add(ret_table, (struct kvm_cpuid_entry2){.function = 0xb,
                                             .index = 1,
                                             .flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
                                             .eax = bits_for(cpus),
                                             .ebx = cpus,
                                             .ecx = 0x201});
    add(ret_table, (struct kvm_cpuid_entry2){.function = 0x8000001e});
    if (ret_table->count >= CPUID_MAX - 1)
        return error_set(-ENOBUFS, "CPUID of more than %d leaves", CPUID_MAX - 2);
    machine->cpu_sum = sum(ret_table);
    /* The frequencies of time stamp counter and APIC timer, in kHz, where hypervisors have them by custom.
     * They are no part of the sum: each host measures its own anew. */
    for (uint32_t i = 0; i < ret_table->count; i++)
        if (ret_table->entries[i].function == KVM_CPUID_SIGNATURE)
            ret_table->entries[i].eax = FREQUENCIES;
    add(ret_table,
        (struct kvm_cpuid_entry2){.function = FREQUENCIES, .eax = machine->tsc_khz, .ebx = APIC_BUS_KHZ});
    return 0;
}

void cpuid_of_vcpu(unsigned index, struct cpuid_table *table)
{
    for (uint32_t i = 0; i < table->count; i++) {
        struct kvm_cpuid_entry2 *entry = &table->entries[i];
        if (entry->function == 0x1)
            entry->ebx = (entry->ebx & 0xffffff) | index << 24;
        else if (entry->function == 0xb)
            entry->edx = index;
        else if (entry->function == 0x8000001e) {
            entry->eax = index;
            entry->ebx = index & 0xff;
        }
    }
}
