/* SPDX-License-Identifier: Apache-2.0 */
#include "base/histogram.h"

#include <math.h>
#include <string.h>

void histogram_reset(struct histogram *histogram)
{
    memset(histogram, 0, sizeof *histogram);
}

static unsigned bucket_of(uint64_t value)
{
    if (value < HISTOGRAM_STEPS)
        return (unsigned)value;
    unsigned exponent = 63 - (unsigned)__builtin_clzll(value); /* at least 5 */
    unsigned step = (unsigned)(value >> (exponent - 5)) & (HISTOGRAM_STEPS - 1);
    return (exponent - 4) * HISTOGRAM_STEPS + step;
}

uint64_t histogram_bucket_top(unsigned bucket)
{
    if (bucket < HISTOGRAM_STEPS)
        return bucket;
    unsigned exponent = bucket / HISTOGRAM_STEPS + 4;
    uint64_t step = bucket % HISTOGRAM_STEPS + HISTOGRAM_STEPS;
    return ((step + 1) << (exponent - 5)) - 1;
}

void histogram_add(struct histogram *histogram, uint64_t value)
{
    if (histogram->count == 0 || value < histogram->min)
        histogram->min = value;
    if (value > histogram->max)
        histogram->max = value;
    histogram->count++;
    histogram->sum += value;
    histogram->buckets[bucket_of(value)]++;
}

void histogram_merge(struct histogram *histogram, const struct histogram *from)
{
    if (from->count == 0)
        return;
    if (histogram->count == 0 || from->min < histogram->min)
        histogram->min = from->min;
    if (from->max > histogram->max)
        histogram->max = from->max;
    histogram->count += from->count;
    histogram->sum += from->sum;
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
        histogram->buckets[bucket] += from->buckets[bucket];
}

uint64_t histogram_percentile(const struct histogram *histogram, double percent)
{
    if (histogram->count == 0)
        return 0;
    uint64_t wanted = (uint64_t)ceil((double)histogram->count * percent / 100.0);
    if (wanted == 0)
        wanted = 1;
    uint64_t seen = 0;
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++) {
        seen += histogram->buckets[bucket];
        if (seen >= wanted) {
            uint64_t top = histogram_bucket_top(bucket);
            return top < histogram->max ? top : histogram->max;
        }
    }
    return histogram->max;
}

uint64_t histogram_at_most(const struct histogram *histogram, uint64_t value)
{
    uint64_t seen = 0;
    if (value >= histogram->max)
        return histogram->count;
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS && histogram_bucket_top(bucket) <= value; bucket++)
        seen += histogram->buckets[bucket];
    return seen;
}
