/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_RESULT_H
#define UNDERSTUDY_BENCH_RESULT_H

#include "base/histogram.h"

#include <jansson.h>
#include <stdbool.h>

/*
 * A result as bench/schema.json and docs/bench.md have it: what was measured, where, with all samples. The
 * root is the caller's to add to; `failed` is set when there was no memory, and result_check() says so.
 */
struct result {
    json_t *root;
    bool failed;
};

/* Which way is better, and whose it is beside what it is compared with. */
#define RESULT_LOWER  "lower"
#define RESULT_HIGHER "higher"

struct result_figure {
    const char *name, *title; /* "first_copy.throughput", and in words */
    const char *unit, *better;
    const char *group; /* figures that belong beside each other */
    const char *who;   /* ours, ceiling, peer or base */
    const double *samples;
    unsigned count;
};

/* Takes `options` and `environment`. `seconds`: how long it took; began that long ago. */
void result_begin(struct result *result, const char *subcommand, json_t *options, json_t *environment,
                  double seconds);

void result_figure(struct result *result, const struct result_figure *figure);

/* `samples`: one quotient of each round, of the figures named `of` and `to`. */
void result_ratio(struct result *result, const char *of, const char *to, const char *title,
                  const double *samples, unsigned count);

/* Of nanoseconds; told in milliseconds. */
void result_histogram(struct result *result, const char *name, const char *title,
                      const struct histogram *histogram);

/* -ENOMEM when anything that was to be added is missing. */
int result_check(const struct result *result);

#endif
