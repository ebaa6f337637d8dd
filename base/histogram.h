/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_HISTOGRAM_H
#define UNDERSTUDY_BASE_HISTOGRAM_H

#include <stdint.h>

/*
 * A histogram of unsigned values in fixed memory: 32 linear steps in every power of two, so that a
 * percentile is at most 3.2 % above the true value (the layout of HdrHistogram, Tene 2012, with 5 bits).
 * Not locked: one owner.
 */
#define HISTOGRAM_STEPS   32
#define HISTOGRAM_BUCKETS (60 * HISTOGRAM_STEPS)

struct histogram {
    uint64_t count, sum, min, max;
    uint32_t buckets[HISTOGRAM_BUCKETS];
};

void histogram_reset(struct histogram *histogram);
void histogram_add(struct histogram *histogram, uint64_t value);

/* Add everything that `from` has seen. */
void histogram_merge(struct histogram *histogram, const struct histogram *from);

/* The largest value that is counted in this bucket. */
uint64_t histogram_bucket_top(unsigned bucket);

/* The smallest recorded value (rounded up to its step, never above max) that `percent` of all values do not
 * exceed. 0 when empty. */
uint64_t histogram_percentile(const struct histogram *histogram, double percent);

/* How many of the recorded values are certainly at most `value`: those of the step in which it lies are not,
 * as long as a larger one was recorded. Never decreases with `value`. */
uint64_t histogram_at_most(const struct histogram *histogram, uint64_t value);

#endif
