/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/state.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/record.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

/* Payloads whose length is always the same, in the order of their types. */
static const struct {
    const char *name;
    size_t bytes; /* 0: see where it is checked */
} of_cpu[STATE_PER_CPU] = {
    {"run state", sizeof(struct kvm_mp_state)},
    {"registers", sizeof(struct kvm_regs)},
    {"special registers", sizeof(struct kvm_sregs2)},
    {"XCRs", sizeof(struct kvm_xcrs)},
    {"XSAVE area", 0},
    {"debug registers", sizeof(struct kvm_debugregs)},
    {"events", sizeof(struct kvm_vcpu_events)},
    {"local APIC", sizeof(struct kvm_lapic_state)},
    {"MSRs", 0},
    {"time stamp counter", sizeof(uint64_t)},
};

static int wrong_bytes(const struct record *record, const char *what, size_t expected)
{
    return error_set(-EBADMSG, "state of %s %u: %u bytes, %zu are expected", what, record->instance,
                     record->bytes, expected);
}

static int doubled(const struct record *record, const char *what)
{
    return error_set(-EBADMSG, "state of %s %u: there are two records", what, record->instance);
}

static int parse_machine(struct record *record, const struct state_shape *ours)
{
    uint64_t memory_bytes = record_take_u64(record), cpu_sum = record_take_u64(record);
    uint32_t cpus = record_take_u32(record), tsc_khz = record_take_u32(record);
    uint32_t xsave_bytes = record_take_u32(record);
    int r = record_check_end(record, "machine");
    if (r < 0)
        return r;
    if (memory_bytes != ours->memory_bytes)
        return error_set(-EXDEV, "state: %llu bytes of memory, here are %llu",
                         (unsigned long long)memory_bytes, (unsigned long long)ours->memory_bytes);
    if (cpus != ours->cpus)
        return error_set(-EXDEV, "state: %u vCPUs, here are %u", cpus, ours->cpus);
    if (cpu_sum != ours->cpu_sum || xsave_bytes != ours->xsave_bytes)
        return error_set(-EXDEV, "state: CPU %016llx with %u bytes of XSAVE, here is %016llx with %u",
                         (unsigned long long)cpu_sum, xsave_bytes, (unsigned long long)ours->cpu_sum,
                         ours->xsave_bytes);
    /* The guest measured it once. KVM's own measure of the same clock differs by some ppm at each boot. */
    uint32_t apart = tsc_khz > ours->tsc_khz ? tsc_khz - ours->tsc_khz : ours->tsc_khz - tsc_khz;
    if (apart > ours->tsc_khz / 4000)
        return error_set(-EXDEV, "state: time stamp counter of %u kHz, here are %u", tsc_khz, ours->tsc_khz);
    return 0;
}

static bool msr_known(uint32_t index, const struct state_shape *ours)
{
    for (uint32_t i = 0; i < ours->msr_count; i++)
        if (ours->msrs[i] == index)
            return true;
    return false;
}

static int parse_msrs(struct record *record, const struct state_shape *ours)
{
    uint32_t count = record_take_u32(record);
    record_take_u32(record);
    if (count > ours->msr_count || record_left(record) != count * sizeof(struct kvm_msr_entry))
        return error_set(-EBADMSG, "state of MSRs %u: %u of them in %u bytes", record->instance, count,
                         record->bytes);
    for (uint32_t i = 0; i < count; i++) {
        struct kvm_msr_entry entry;
        record_take(record, &entry, sizeof entry);
        if (!msr_known(entry.index, ours))
            return error_set(-EXDEV, "state of MSRs %u: 0x%x is none that is saved here", record->instance,
                             entry.index);
    }
    return 0;
}

static int parse_cpu(struct record *record, const struct state_shape *ours, struct state_parsed *parsed)
{
    unsigned kind = record->type - STATE_MP;
    const char *name = of_cpu[kind].name;
    if (record->instance >= ours->cpus)
        return error_set(-EBADMSG, "state of %s %u: there are %u vCPUs", name, record->instance, ours->cpus);
    if (parsed->of_cpu[record->instance][kind])
        return doubled(record, name);
    size_t expected = record->type == STATE_XSAVE ? ours->xsave_bytes : of_cpu[kind].bytes;
    if (expected && record->bytes != expected)
        return wrong_bytes(record, name, expected);
    if (record->type == STATE_MSRS) {
        int r = parse_msrs(record, ours);
        if (r < 0)
            return r;
    }
    parsed->of_cpu[record->instance][kind] = record->payload;
    if (record->type == STATE_TSC)
        parsed->tsc_offset[record->instance] = record_take_u64(record);
    return 0;
}

static int parse_chip(struct record *record, struct state_parsed *parsed)
{
    struct kvm_irqchip chip;
    if (record->instance >= STATE_CHIPS || record->bytes != sizeof chip)
        return error_set(-EBADMSG, "state of interrupt controller %u: %u bytes", record->instance,
                         record->bytes);
    if (parsed->chips[record->instance])
        return doubled(record, "interrupt controller");
    memcpy(&chip, record->payload, sizeof chip);
    if (chip.chip_id != record->instance)
        return error_set(-EBADMSG, "state of interrupt controller %u: it says it is number %u",
                         record->instance, chip.chip_id);
    parsed->chips[record->instance] = record->payload;
    return 0;
}

static int parse_pit(const struct record *record, struct state_parsed *parsed)
{
    if (record->instance || record->bytes != sizeof(struct kvm_pit_state2))
        return wrong_bytes(record, "timer", sizeof(struct kvm_pit_state2));
    if (parsed->pit)
        return doubled(record, "timer");
    parsed->pit = record->payload;
    return 0;
}

static int parse_clock(struct record *record, bool *seen, struct state_parsed *parsed)
{
    if (*seen)
        return doubled(record, "clock");
    *seen = true;
    parsed->clock_ns = record_take_u64(record);
    parsed->host_tsc = record_take_u64(record);
    return record_check_end(record, "clock");
}

static int check_whole(const struct state_shape *ours, const struct state_parsed *parsed, bool clock)
{
    for (uint32_t cpu = 0; cpu < ours->cpus; cpu++)
        for (unsigned kind = 0; kind < STATE_PER_CPU; kind++)
            if (!parsed->of_cpu[cpu][kind])
                return error_set(-EBADMSG, "state: there is no record of the %s of vCPU %u",
                                 of_cpu[kind].name, cpu);
    for (unsigned chip = 0; chip < STATE_CHIPS; chip++)
        if (!parsed->chips[chip])
            return error_set(-EBADMSG, "state: there is no record of interrupt controller %u", chip);
    if (!parsed->pit || !clock)
        return error_set(-EBADMSG, "state: there is no record of the %s", parsed->pit ? "clock" : "timer");
    return 0;
}

int state_parse(const void *state, size_t bytes, const struct state_shape *ours,
                struct state_parsed *ret_parsed)
{
    struct record_reader reader;
    struct record record;
    struct state_parsed parsed = {0};
    bool clock = false, first = true;
    int r;
    record_reader_init(&reader, state, bytes);
    for (; (r = record_next(&reader, &record)) > 0; first = false) {
        if (first != (record.type == STATE_MACHINE))
            return error_set(-EBADMSG,
                             first ? "state: it begins with record 0x%x instead of the machine's"
                                   : "state: a second record of the machine (0x%x)",
                             record.type);
        if (record.type < RECORD_DEVICES && (r = record_check_version(&record, "state", STATE_VERSION)) < 0)
            return error_add(r, "record 0x%x", record.type);
        if (record.type == STATE_MACHINE)
            r = parse_machine(&record, ours);
        else if (record.type >= STATE_MP && record.type <= STATE_TSC)
            r = parse_cpu(&record, ours, &parsed);
        else if (record.type == STATE_CHIP)
            r = parse_chip(&record, &parsed);
        else if (record.type == STATE_PIT)
            r = parse_pit(&record, &parsed);
        else if (record.type == STATE_CLOCK)
            r = parse_clock(&record, &clock, &parsed);
        else if (record.type < RECORD_DEVICES)
            r = error_set(-EBADMSG, "state: record 0x%x is not known", record.type);
        if (r < 0)
            return r;
    }
    if (r == 0 && first)
        r = error_set(-EBADMSG, "state: it is empty");
    if (r == 0)
        r = check_whole(ours, &parsed, clock);
    if (r == 0)
        *ret_parsed = parsed;
    return r;
}
