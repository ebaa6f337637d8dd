/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"
#include "vmm/kvm/record.h"
#include "vmm/kvm/state.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>
#include <x86intrin.h>

/*
 * Theory of operation
 *
 * What is saved first may change while the rest is: the timers in the kernel do not stand still with the
 * vCPUs. So an interrupt is saved where it goes after where it comes from:
 *
 *      PIT ──► PICs, IOAPIC ──► local APICs        saved in this order
 *
 * If the PIT fires in between, the saved PIT has still to fire, and the interrupt that is in the saved APIC
 * already comes once more: a tick too many, which every kernel bears, and never one that is lost, for which a
 * guest may wait for ever. They are loaded the other way round: an IOAPIC hands on at once what waits in it.
 *
 * The run state comes before the registers: asking for it lets a vCPU take an INIT or SIPI, which changes
 * them.
 *
 * Time: KVM adds an offset of each vCPU to the host's time stamp counter, which we never have it scale. Both
 * are saved, and the offsets of all vCPUs are set from one look at the new host's counter, so that the
 * guest's counters go on from where they were, and as far apart as they were. The clock of KVM (kvmclock)
 * goes on likewise. The guest does not see the time between.
 */

#define MSR_TSC       0x10u
#define STATE_FIXED   (64u << 10) /* what does not grow with the vCPUs, less the devices */
#define STATE_DEVICES (1u << 20)
#define CPU_FIXED     (4u << 10)

/* struct kvm_msrs with room for its entries. */
struct msrs {
    uint32_t count, padding;
    struct kvm_msr_entry entries[STATE_MSRS_MAX];
};
static_assert(offsetof(struct msrs, entries) == offsetof(struct kvm_msrs, entries), "as the kernel has it");

static int tsc_offset(const struct vcpu *vcpu, bool set, uint64_t *value)
{
    struct kvm_device_attr attr = {
        .group = KVM_VCPU_TSC_CTRL, .attr = KVM_VCPU_TSC_OFFSET, .addr = (uintptr_t)value};
    return set ? kvm_call(vcpu->fd, KVM_SET_DEVICE_ATTR, &attr)
               : kvm_call(vcpu->fd, KVM_GET_DEVICE_ATTR, &attr);
}

/* Those of KVM's own list that can be read and written back; a kernel lists some that this processor lacks.
 */
int machine_find_msrs(struct machine *machine)
{
    struct { /* struct kvm_msr_list */
        uint32_t count, indices[MSRS_MAX];
    } list = {.count = MSRS_MAX};
    const struct vcpu *vcpu = &machine->vcpus[0];
    int r = kvm_call(machine->kvm, KVM_GET_MSR_INDEX_LIST, &list);
    for (uint32_t i = 0; r >= 0 && i < list.count && i < MSRS_MAX; i++) {
        struct msrs one = {.count = 1, .entries = {{.index = list.indices[i]}}};
        if (one.entries[0].index == MSR_TSC)
            continue; /* by its offset */
        if (ioctl(vcpu->fd, KVM_GET_MSRS, &one) == 1 && ioctl(vcpu->fd, KVM_SET_MSRS, &one) == 1)
            machine->msrs[machine->msr_count++] = one.entries[0].index;
    }
    return r < 0 ? r : 0;
}

static void shape_of(const struct machine *machine, struct state_shape *ret_shape)
{
    *ret_shape = (struct state_shape){.memory_bytes = machine->config.memory_bytes,
                                      .cpu_sum = machine->cpu_sum,
                                      .cpus = machine->config.cpus,
                                      .tsc_khz = machine->tsc_khz,
                                      .xsave_bytes = (uint32_t)machine->xsave_bytes,
                                      .msr_count = machine->msr_count};
    memcpy(ret_shape->msrs, machine->msrs, sizeof machine->msrs);
}

size_t machine_state_bytes_max(const struct machine *machine)
{
    size_t cpu = CPU_FIXED + machine->xsave_bytes + MSRS_MAX * sizeof(struct kvm_msr_entry);
    return STATE_FIXED + STATE_DEVICES + machine->config.cpus * cpu;
}

/* --- save --- */

static void put(struct record_writer *writer, uint32_t type, uint32_t instance, const void *from,
                size_t bytes)
{
    record_begin(writer, type, STATE_VERSION, instance);
    record_put(writer, from, bytes);
    record_end(writer);
}

static void save_shape(const struct machine *machine, struct record_writer *writer)
{
    record_begin(writer, STATE_MACHINE, STATE_VERSION, 0);
    record_put_u64(writer, machine->config.memory_bytes);
    record_put_u64(writer, machine->cpu_sum);
    record_put_u32(writer, machine->config.cpus);
    record_put_u32(writer, machine->tsc_khz);
    record_put_u32(writer, (uint32_t)machine->xsave_bytes);
    record_end(writer);
}

static int save_chips(const struct machine *machine, struct record_writer *writer)
{
    struct kvm_pit_state2 pit;
    int r = kvm_call(machine->vm, KVM_GET_PIT2, &pit);
    if (r < 0)
        return r;
    put(writer, STATE_PIT, 0, &pit, sizeof pit);
    for (unsigned i = 0; i < STATE_CHIPS; i++) {
        struct kvm_irqchip chip = {.chip_id = i};
        r = kvm_call(machine->vm, KVM_GET_IRQCHIP, &chip);
        if (r < 0)
            return r;
        put(writer, STATE_CHIP, i, &chip, sizeof chip);
    }
    return 0;
}

static int save_clock(const struct machine *machine, struct record_writer *writer)
{
    struct kvm_clock_data clock = {0};
    int r = kvm_call(machine->vm, KVM_GET_CLOCK, &clock);
    if (r < 0)
        return r;
    record_begin(writer, STATE_CLOCK, STATE_VERSION, 0);
    record_put_u64(writer, clock.clock);
    record_put_u64(writer, __rdtsc());
    record_end(writer);
    return 0;
}

/* Straight from the kernel into the record. */
static int save_from(const struct vcpu *vcpu, struct record_writer *writer, unsigned long request,
                     const char *name, uint32_t type, void *scratch, size_t bytes)
{
    int r = kvm_call_named(vcpu->fd, request, (uintptr_t)scratch, name);
    if (r >= 0)
        put(writer, type, vcpu->index, scratch, bytes);
    return r;
}
#define save(type, request, bytes) save_from(vcpu, writer, request, #request, type, scratch, bytes)

static int save_msrs(const struct vcpu *vcpu, struct record_writer *writer)
{
    const struct machine *machine = vcpu->machine;
    struct msrs msrs = {.count = machine->msr_count};
    for (unsigned i = 0; i < machine->msr_count; i++)
        msrs.entries[i].index = machine->msrs[i];
    int r = kvm_call(vcpu->fd, KVM_GET_MSRS, &msrs);
    if (r < 0)
        return r;
    if ((unsigned)r != machine->msr_count)
        return error_set(-EIO, "KVM_GET_MSRS: 0x%x cannot be read", machine->msrs[r]);
    put(writer, STATE_MSRS, vcpu->index, &msrs,
        offsetof(struct msrs, entries) + machine->msr_count * sizeof msrs.entries[0]);
    return 0;
}

static int save_cpu(const struct vcpu *vcpu, struct record_writer *writer, void *scratch)
{
    uint64_t offset;
    int r = save(STATE_MP, KVM_GET_MP_STATE, sizeof(struct kvm_mp_state));
    if (r >= 0)
        r = save(STATE_REGS, KVM_GET_REGS, sizeof(struct kvm_regs));
    if (r >= 0)
        r = save(STATE_SREGS, KVM_GET_SREGS2, sizeof(struct kvm_sregs2));
    if (r >= 0)
        r = save(STATE_XCRS, KVM_GET_XCRS, sizeof(struct kvm_xcrs));
    if (r >= 0)
        r = save(STATE_XSAVE, KVM_GET_XSAVE2, vcpu->machine->xsave_bytes);
    if (r >= 0)
        r = save(STATE_DEBUG, KVM_GET_DEBUGREGS, sizeof(struct kvm_debugregs));
    if (r >= 0)
        r = save(STATE_EVENTS, KVM_GET_VCPU_EVENTS, sizeof(struct kvm_vcpu_events));
    if (r >= 0)
        r = save(STATE_LAPIC, KVM_GET_LAPIC, sizeof(struct kvm_lapic_state));
    if (r >= 0)
        r = save_msrs(vcpu, writer);
    if (r >= 0)
        r = tsc_offset(vcpu, false, &offset);
    if (r < 0)
        return error_add(r, "state of vCPU %u", vcpu->index);
    record_begin(writer, STATE_TSC, STATE_VERSION, vcpu->index);
    record_put_u64(writer, offset);
    record_end(writer);
    return 0;
}

int machine_save(struct machine *machine, void *to, size_t room, size_t *ret_bytes)
{
    struct record_writer writer;
    assert(machine->quiet);
    record_writer_init(&writer, to, room);
    save_shape(machine, &writer);
    int r = save_chips(machine, &writer);
    for (unsigned i = 0; r >= 0 && i < machine->config.cpus; i++)
        r = save_cpu(&machine->vcpus[i], &writer, machine->scratch);
    if (r >= 0)
        r = save_clock(machine, &writer);
    if (r < 0)
        return r;
    bus_save(&machine->bus, &writer);
    return record_writer_end(&writer, ret_bytes);
}

/* --- load --- */

static int load_cpu(const struct vcpu *vcpu, const struct state_parsed *parsed, uint64_t passed)
{
    const void *const *of = parsed->of_cpu[vcpu->index];
    uint64_t offset = parsed->tsc_offset[vcpu->index] - passed;
    uint32_t msr_count;
    int r = kvm_call(vcpu->fd, KVM_SET_MP_STATE, of[STATE_MP - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_SREGS2, of[STATE_SREGS - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_REGS, of[STATE_REGS - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_XCRS, of[STATE_XCRS - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_XSAVE, of[STATE_XSAVE - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_DEBUGREGS, of[STATE_DEBUG - STATE_MP]);
    if (r >= 0)
        r = tsc_offset(vcpu, true, &offset);
    /* The base address of the APIC was among the special registers; its deadline is among the MSRs, and
     * counts only once the APIC is in that mode. */
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_LAPIC, of[STATE_LAPIC - STATE_MP]);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_MSRS, of[STATE_MSRS - STATE_MP]);
    if (r < 0)
        return r;
    memcpy(&msr_count, of[STATE_MSRS - STATE_MP], sizeof msr_count);
    if ((uint32_t)r != msr_count)
        return error_set(-EIO, "KVM_SET_MSRS: only %d of %u can be written", r, msr_count);
    return kvm_call(vcpu->fd, KVM_SET_VCPU_EVENTS, of[STATE_EVENTS - STATE_MP]);
}

static int load_chips(const struct machine *machine, const struct state_parsed *parsed)
{
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < STATE_CHIPS; i++)
        r = kvm_call(machine->vm, KVM_SET_IRQCHIP, parsed->chips[i]);
    if (r >= 0)
        r = kvm_call(machine->vm, KVM_SET_PIT2, parsed->pit);
    return r;
}

static int load_devices(struct machine *machine, const void *state, size_t bytes)
{
    struct record_reader reader;
    struct record record;
    int r;
    record_reader_init(&reader, state, bytes);
    bus_load_begin(&machine->bus);
    while ((r = record_next(&reader, &record)) > 0)
        if (record.type >= RECORD_DEVICES && (r = bus_load(&machine->bus, &record)) < 0)
            return r;
    return r < 0 ? r : bus_load_end(&machine->bus);
}

int machine_load_kernel_parts(struct machine *machine, const void *state, size_t bytes)
{
    struct state_shape ours;
    struct state_parsed *parsed cleanup_free = malloc(sizeof *parsed);
    assert(machine->quiet);
    if (!parsed)
        return error_set(-ENOMEM, "state: no memory");
    shape_of(machine, &ours);
    int r = state_parse(state, bytes, &ours, parsed);
    const uint64_t now = __rdtsc();
    for (unsigned i = 0; r >= 0 && i < machine->config.cpus; i++) {
        r = load_cpu(&machine->vcpus[i], parsed, now - parsed->host_tsc);
        if (r < 0)
            return error_add(r, "state of vCPU %u", i);
    }
    if (r >= 0)
        r = load_chips(machine, parsed);
    if (r < 0)
        return r;
    const struct kvm_clock_data clock = {.clock = parsed->clock_ns};
    r = kvm_call(machine->vm, KVM_SET_CLOCK, &clock);
    return r < 0 ? r : 0;
}

int machine_load(struct machine *machine, const void *state, size_t bytes)
{
    int r = machine_load_kernel_parts(machine, state, bytes);
    return r < 0 ? r : load_devices(machine, state, bytes);
}
