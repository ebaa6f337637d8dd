/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_REPORT_H
#define UNDERSTUDY_BENCH_REPORT_H

#include "bench/worker.h"

#include <jansson.h>

/* What one guest's two processes say of one measurement. */
struct report_samples {
    struct sample primary, standby;
};

/* One number of each round. */
struct report_series {
    double values[BENCH_ROUNDS_MAX];
};

struct report_row {
    unsigned count;
    struct report_series gb_per_s, cpu_s_per_gb, cpu_primary, cpu_standby, wire_bytes;
    struct report_series primary_bytes, standby_bytes; /* that checkpoint and restore hold */
    struct report_series pause_p50_ms, pause_p90_ms, pause_p99_ms, pause_max_ms;
    struct histogram pauses; /* of all rounds, nanoseconds */
    struct sample latest;    /* the primaries' of the latest round, added up */
};

struct report {
    const struct bench_options *options;
    struct report_row rows[MEASURE_COUNT];
};

extern const char *const report_keys[MEASURE_COUNT], *const report_titles[MEASURE_COUNT];

/* One round of one measurement, of all guests: their bytes and processor time are added up, and it took as
 * long as the slowest. -ENOMEM. */
int report_add(struct report *report, const struct report_samples *samples, unsigned vms);

double report_median(const struct report_series *series, unsigned count);

/* Each round against the ceiling of the same round: what else the machine does then weighs on both. */
void report_ratios(const struct report *report, const struct report_row *row,
                   struct report_series *ret_ratios);

/* For people, on standard output. */
void report_print(const struct report *report);

/* The whole result (bench/schema.json); takes `environment`. NULL with error_text(). */
json_t *report_json(const struct report *report, json_t *environment, double seconds);

#endif
