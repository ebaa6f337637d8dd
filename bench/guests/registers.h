/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_REGISTERS_H
#define UNDERSTUDY_BENCH_GUESTS_REGISTERS_H

#include <stdbool.h>
#include <stdint.h>

/*
 * State of a vCPU that compiled code would not miss: vector, debug and model-specific registers, the task
 * priority. They are given values that only this vCPU and this round have, and are found again with them.
 */
struct registers {
    uint64_t seed; /* of the values that lie in the registers now */
    bool wide;     /* the vector registers have 256 bits */
};

/* Give the vCPU its first values, also in the upper halves of its vector registers if `wide`. */
void registers_start(struct registers *registers, unsigned cpu, bool wide);
/* CORRUPT if one has lost its value. Then the next values. */
void registers_check(struct registers *registers, unsigned cpu);

#endif
