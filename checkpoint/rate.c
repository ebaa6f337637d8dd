/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/rate.h"

/* Samples fade over this many bytes: 32 chunks, a few milliseconds of a busy lane. */
#define MEMORY_BYTES 8e6

/* A sample is small, so what else took the processor while it was made would weigh a lot. */
#define SAMPLE_MOST 4.0 /* times what is known */

/* Compression begins only for a gain of this factor and ends when it is none, so that noise does not turn the
 * decision to and fro; and in doubt the standby is spared the work. */
#define GAIN 0.93

static void meter_add(struct rate_meter *meter, double value, double weight)
{
    meter->value += value;
    meter->weight += weight;
    if (meter->weight > MEMORY_BYTES) {
        double keep = MEMORY_BYTES / meter->weight;
        meter->value *= keep;
        meter->weight *= keep;
    }
}

static double meter_ratio(const struct rate_meter *meter)
{
    return meter->value / meter->weight;
}

static void decide(struct rate *rate)
{
    if (rate->raw_ns.weight <= 0 || rate->lz4_ns.weight <= 0 || rate->carry_ns.weight <= 0)
        return;
    double carry = meter_ratio(&rate->carry_ns);
    double raw_ns = meter_ratio(&rate->raw_ns), lz4_ns = meter_ratio(&rate->lz4_ns);
    double raw = raw_ns + carry;
    double lz4 = (lz4_ns > raw_ns ? lz4_ns : raw_ns) + meter_ratio(&rate->lz4_out) * carry;
    rate->compressing = lz4 < (rate->compressing ? raw : raw * GAIN);
}

enum rate_way rate_next(struct rate *rate)
{
    /* Whatever is unknown is tried first. */
    if (rate->raw_ns.weight <= 0)
        return RATE_RAW;
    if (rate->lz4_ns.weight <= 0)
        return RATE_RAW_AND_SAMPLE;
    if (rate->until_sample == 0) {
        rate->until_sample = RATE_SAMPLE_EVERY;
        return rate->compressing ? RATE_RAW : RATE_RAW_AND_SAMPLE;
    }
    rate->until_sample--;
    return rate->compressing ? RATE_LZ4 : RATE_RAW;
}

void rate_encoded(struct rate *rate, bool lz4, uint64_t in, uint64_t out, uint64_t ns)
{
    if (in == 0)
        return;
    meter_add(lz4 ? &rate->lz4_ns : &rate->raw_ns, (double)ns, (double)in);
    if (lz4)
        meter_add(&rate->lz4_out, (double)out, (double)in);
    decide(rate);
}

void rate_sampled(struct rate *rate, uint64_t whole, uint64_t in, uint64_t out, uint64_t ns)
{
    if (in == 0)
        return;
    /* As if the whole chunk had been: it was read, which is what raw takes, and compressed. */
    double scale = (double)whole / (double)in;
    double read_ns = rate->raw_ns.weight > 0 ? meter_ratio(&rate->raw_ns) : 0;
    double whole_ns = (double)ns * scale + read_ns * (double)whole;
    if (rate->lz4_ns.weight > 0 && whole_ns > SAMPLE_MOST * meter_ratio(&rate->lz4_ns) * (double)whole)
        whole_ns = SAMPLE_MOST * meter_ratio(&rate->lz4_ns) * (double)whole;
    meter_add(&rate->lz4_ns, whole_ns, (double)whole);
    meter_add(&rate->lz4_out, (double)out * scale, (double)whole);
    decide(rate);
}

void rate_changes(struct rate *rate, uint64_t in, uint64_t out)
{
    meter_add(&rate->change_out, (double)out, (double)in);
}

double rate_lz4_out(const struct rate *rate)
{
    return rate->lz4_out.weight > 0 ? meter_ratio(&rate->lz4_out) : 1;
}

double rate_change_out(const struct rate *rate)
{
    return rate->change_out.weight > 0 ? meter_ratio(&rate->change_out) : 1;
}

void rate_carried(struct rate *rate, uint64_t bytes, uint64_t ns)
{
    if (bytes == 0)
        return;
    meter_add(&rate->carry_ns, (double)ns, (double)bytes);
    decide(rate);
}
