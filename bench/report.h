/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_REPORT_H
#define UNDERSTUDY_BENCH_REPORT_H

#include "bench/worker.h"

struct report_row {
    unsigned count;
    double gb_per_s[BENCH_ROUNDS_MAX];
    double cpu_s_per_gb[BENCH_ROUNDS_MAX];
    double wire_bytes[BENCH_ROUNDS_MAX];
    double pause_p50_ms[BENCH_ROUNDS_MAX], pause_p99_ms[BENCH_ROUNDS_MAX], pause_max_ms[BENCH_ROUNDS_MAX];
    struct sample primary, standby; /* the latest */
};

struct report {
    const struct bench_options *options;
    struct report_row rows[MEASURE_COUNT];
};

void report_add(struct report *report, const struct sample *primary, const struct sample *standby);

/* On standard output, for people or as JSON. -ENOMEM. */
int report_print(const struct report *report);

#endif
