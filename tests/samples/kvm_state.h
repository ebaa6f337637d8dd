/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_SAMPLES_KVM_STATE_H
#define UNDERSTUDY_TESTS_SAMPLES_KVM_STATE_H

#include "vmm/kvm/state.h"

/* The state of a machine that never was: two vCPUs, a small XSAVE area, two MSRs. */
extern const struct state_shape kvm_sample_shape;
#define KVM_SAMPLE_ROOM 65536

/* Bytes of the payload of a vCPU's record, by its place after STATE_MP; of the MSRs without the entries. */
extern const size_t kvm_sample_payload[STATE_PER_CPU];

/* Write it to `to` (KVM_SAMPLE_ROOM bytes), but for record `without` (the machine's is number 0). Returns how
 * many records there are in all. */
unsigned kvm_sample_state(unsigned without, void *to, size_t *ret_bytes);

#endif
