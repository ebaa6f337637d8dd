/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "tests/samples/kvm_state.h"
#include "vmm/kvm/record.h"

#include <errno.h>
#include <linux/kvm.h>
#include <string.h>

/*
 * The state of a machine of our own, as a peer may send it. Properties: what is accepted lies, every payload
 * whole, within the input, and is of our own shape; what is refused has words, and leaves the result alone.
 */

static void check_inside(const void *payload, size_t bytes, const uint8_t *data, size_t size)
{
    const uint8_t *at = payload;
    fuzz_require(at >= data && at <= data + size && bytes <= (size_t)(data + size - at));
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct state_parsed parsed;
    memset(&parsed, 0xa5, sizeof parsed);
    error_clear();
    int r = state_parse(data, size, &kvm_sample_shape, &parsed);
    if (r < 0) {
        static struct state_parsed untouched;
        memset(&untouched, 0xa5, sizeof untouched);
        fuzz_require(r == -EBADMSG || r == -EXDEV);
        fuzz_require(strcmp(error_text(), "no error was recorded"));
        fuzz_require(memcmp(&parsed, &untouched, sizeof parsed) == 0);
        return 0;
    }
    fuzz_require(r == 0);
    for (unsigned cpu = 0; cpu < kvm_sample_shape.cpus; cpu++) {
        for (unsigned kind = 0; kind < STATE_PER_CPU; kind++)
            check_inside(parsed.of_cpu[cpu][kind], kvm_sample_payload[kind], data, size);
        struct kvm_msrs msrs;
        memcpy(&msrs, parsed.of_cpu[cpu][STATE_MSRS - STATE_MP], sizeof msrs);
        fuzz_require(msrs.nmsrs <= kvm_sample_shape.msr_count);
        check_inside(parsed.of_cpu[cpu][STATE_MSRS - STATE_MP],
                     sizeof msrs + msrs.nmsrs * sizeof(struct kvm_msr_entry), data, size);
    }
    for (unsigned chip = 0; chip < STATE_CHIPS; chip++)
        check_inside(parsed.chips[chip], sizeof(struct kvm_irqchip), data, size);
    check_inside(parsed.pit, sizeof(struct kvm_pit_state2), data, size);
    return 0;
}

/* A whole state; one with a device's record; then one that lacks each record in turn. */
size_t fuzz_seed(unsigned index, uint8_t *to)
{
    size_t bytes;
    unsigned records = kvm_sample_state(index < 2 ? UINT32_MAX : index - 2, to, &bytes);
    if (index >= records + 2)
        return 0;
    if (index == 1) {
        struct record_writer writer;
        size_t more;
        record_writer_init(&writer, to + bytes, FUZZ_INPUT_MAX - bytes);
        record_begin(&writer, RECORD_DEVICES, 7, 3);
        record_put_u64(&writer, 1);
        record_end(&writer);
        if (record_writer_end(&writer, &more) == 0)
            bytes += more;
    }
    return bytes;
}
