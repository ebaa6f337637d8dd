/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "tests/samples/kvm_state.h"
#include "vmm/kvm/record.h"

#include <errno.h>
#include <linux/kvm.h>
#include <stdlib.h>

/* A state that a peer sent: everything that is wrong with it is refused, and named. */

static uint8_t state[KVM_SAMPLE_ROOM];
static size_t state_bytes;

static int setup(void **ctx)
{
    (void)ctx;
    kvm_sample_state(UINT32_MAX, state, &state_bytes);
    return 0;
}

static int parse(void)
{
    struct state_parsed parsed;
    return state_parse(state, state_bytes, &kvm_sample_shape, &parsed);
}

/* The record of this type and instance: its head in the state. */
static uint32_t *head_of(uint32_t type, uint32_t instance)
{
    for (size_t at = 0; at < state_bytes;) {
        uint32_t *head = (uint32_t *)(state + at);
        if (head[0] == type && head[3] == instance)
            return head;
        at += RECORD_HEADER_BYTES + head[2];
    }
    fail_msg("no record %u %u", type, instance);
    return NULL;
}

static void test_whole(void **ctx)
{
    (void)ctx;
    struct state_parsed parsed;
    assert_int_equal(state_parse(state, state_bytes, &kvm_sample_shape, &parsed), 0);
    assert_ptr_equal(parsed.of_cpu[1][STATE_REGS - STATE_MP], head_of(STATE_REGS, 1) + 4);
    assert_ptr_equal(parsed.chips[2], head_of(STATE_CHIP, 2) + 4);
}

static void test_missing(void **ctx)
{
    (void)ctx;
    unsigned records = kvm_sample_state(UINT32_MAX, state, &state_bytes);
    for (unsigned i = 0; i < records; i++) {
        kvm_sample_state(i, state, &state_bytes);
        assert_int_equal(parse(), -EBADMSG);
        assert_text_has(i ? "there is no record of" : "begins with record");
    }
    kvm_sample_state(2, state, &state_bytes);
    parse();
    assert_text_has("registers of vCPU 0");
    state_bytes = 0;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("empty");
}

static void test_doubled(void **ctx)
{
    (void)ctx;
    static const struct {
        uint32_t type, instance;
        const char *text;
    } rows[] = {{STATE_MACHINE, 0, "second record of the machine"},
                {STATE_LAPIC, 1, "local APIC 1: there are two"},
                {STATE_CHIP, 2, "interrupt controller 2: there are two"},
                {STATE_PIT, 0, "timer 0: there are two"},
                {STATE_CLOCK, 0, "clock 0: there are two"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        setup(NULL);
        const uint32_t *head = head_of(rows[i].type, rows[i].instance);
        size_t bytes = RECORD_HEADER_BYTES + head[2];
        memcpy(state + state_bytes, head, bytes);
        state_bytes += bytes;
        assert_int_equal(parse(), -EBADMSG);
        assert_text_has(rows[i].text);
    }
}

static void test_length(void **ctx)
{
    (void)ctx;
    /* Each record one byte shorter, the rest moved up. */
    for (size_t at = 0; at < state_bytes;) {
        setup(NULL);
        uint32_t *head = (uint32_t *)(state + at);
        size_t next = at + RECORD_HEADER_BYTES + head[2];
        memmove(state + next - 1, state + next, state_bytes - next);
        head[2]--;
        state_bytes--;
        assert_int_equal(parse(), -EBADMSG);
        at = next;
        setup(NULL);
    }
    state_bytes--;
    assert_int_equal(parse(), -EBADMSG);
}

static void test_unknown(void **ctx)
{
    (void)ctx;
    head_of(STATE_XCRS, 0)[0] = 99;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("0x63 is not known");
    setup(NULL);
    head_of(STATE_EVENTS, 1)[1] = 2;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("version 2", "0x8");
    setup(NULL);
    head_of(STATE_REGS, 1)[3] = 2;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("registers 2: there are 2 vCPUs");
    setup(NULL);
    head_of(STATE_CHIP, 1)[4] = 2;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("controller 1: it says it is number 2");
}

static void test_msrs(void **ctx)
{
    (void)ctx;
    head_of(STATE_MSRS, 0)[4 + 2] = 0x175;
    assert_int_equal(parse(), -EXDEV);
    assert_text_has("MSRs 0", "0x175");
    setup(NULL);
    head_of(STATE_MSRS, 1)[4] = 0x10000000;
    assert_int_equal(parse(), -EBADMSG);
    assert_text_has("MSRs 1", "268435456");
}

static void test_other_machine(void **ctx)
{
    (void)ctx;
    static const struct {
        unsigned word; /* of the machine's record */
        const char *text;
    } rows[] = {{4, "memory"}, {6, "CPU"}, {8, "vCPUs"}, {9, "kHz"}, {10, "XSAVE"}};
    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++) {
        setup(NULL);
        uint32_t *word = head_of(STATE_MACHINE, 0) + rows[i].word;
        *word += *word / 100 + 1;
        assert_int_equal(parse(), -EXDEV);
        assert_text_has(rows[i].text, "here");
    }
    /* What KVM measures anew at each boot differs by this much. */
    setup(NULL);
    head_of(STATE_MACHINE, 0)[9] += 100;
    assert_int_equal(parse(), 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_whole, setup),        cmocka_unit_test_setup(test_missing, setup),
        cmocka_unit_test_setup(test_doubled, setup),      cmocka_unit_test_setup(test_length, setup),
        cmocka_unit_test_setup(test_unknown, setup),      cmocka_unit_test_setup(test_msrs, setup),
        cmocka_unit_test_setup(test_other_machine, setup)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
