/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/samples/kvm_state.h"

#include "vmm/kvm/record.h"

#include <assert.h>
#include <linux/kvm.h>

#define XSAVE 576
#define MSRS  2

const struct state_shape kvm_sample_shape = {.memory_bytes = 1 << 24,
                                             .cpu_sum = 0x1234,
                                             .cpus = 2,
                                             .tsc_khz = 2000000,
                                             .xsave_bytes = XSAVE,
                                             .msr_count = MSRS,
                                             .msrs = {0x174, 0xc0000081}};

const size_t kvm_sample_payload[STATE_PER_CPU] = {sizeof(struct kvm_mp_state),
                                                  sizeof(struct kvm_regs),
                                                  sizeof(struct kvm_sregs2),
                                                  sizeof(struct kvm_xcrs),
                                                  XSAVE,
                                                  sizeof(struct kvm_debugregs),
                                                  sizeof(struct kvm_vcpu_events),
                                                  sizeof(struct kvm_lapic_state),
                                                  sizeof(struct kvm_msrs),
                                                  sizeof(uint64_t)};

static void put(struct record_writer *writer, uint32_t type, uint32_t instance)
{
    static const uint8_t zeros[4096];
    const struct state_shape *shape = &kvm_sample_shape;
    record_begin(writer, type, STATE_VERSION, instance);
    if (type == STATE_MACHINE) {
        record_put_u64(writer, shape->memory_bytes);
        record_put_u64(writer, shape->cpu_sum);
        record_put_u32(writer, shape->cpus);
        record_put_u32(writer, shape->tsc_khz);
        record_put_u32(writer, shape->xsave_bytes);
    } else if (type == STATE_MSRS) {
        const struct kvm_msr_entry entries[MSRS] = {{.index = 0x174}, {.index = 0xc0000081}};
        record_put_u32(writer, MSRS);
        record_put_u32(writer, 0);
        record_put(writer, entries, sizeof entries);
    } else if (type == STATE_CHIP) {
        const struct kvm_irqchip chip = {.chip_id = instance};
        record_put(writer, &chip, sizeof chip);
    } else if (type == STATE_PIT || type == STATE_CLOCK) {
        record_put(writer, zeros, type == STATE_PIT ? sizeof(struct kvm_pit_state2) : 16);
    } else {
        record_put(writer, zeros, kvm_sample_payload[type - STATE_MP]);
    }
    record_end(writer);
}

unsigned kvm_sample_state(unsigned without, void *to, size_t *ret_bytes)
{
    struct record_writer writer;
    unsigned number = 0;
    record_writer_init(&writer, to, KVM_SAMPLE_ROOM);
    if (without != number++)
        put(&writer, STATE_MACHINE, 0);
    for (unsigned cpu = 0; cpu < kvm_sample_shape.cpus; cpu++)
        for (unsigned type = STATE_MP; type <= STATE_TSC; type++)
            if (without != number++)
                put(&writer, type, cpu);
    for (unsigned chip = 0; chip < STATE_CHIPS; chip++)
        if (without != number++)
            put(&writer, STATE_CHIP, chip);
    if (without != number++)
        put(&writer, STATE_PIT, 0);
    if (without != number++)
        put(&writer, STATE_CLOCK, 0);
    int r = record_writer_end(&writer, ret_bytes);
    assert(r == 0);
    (void)r;
    return number;
}
