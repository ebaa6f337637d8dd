/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_OPTIONS_H
#define UNDERSTUDY_BENCH_OPTIONS_H

#include "bench/data.h"
#include "checkpoint/checkpoint.h"
#include "transport/tls.h"

/* Where the guest writes in an epoch: always somewhere else, or always in the same pages. */
enum bench_pattern { BENCH_SPREAD, BENCH_SPARSE };

struct bench_options {
    uint64_t size_bytes;  /* guest memory */
    uint64_t epoch_bytes; /* dirty in each staged epoch */
    unsigned lanes, epochs, rounds, vms;
    enum data_kind data;
    enum bench_pattern pattern;
    enum checkpoint_compression compression;
    enum tls_aes aes;
    const char *json; /* NULL: none; "-": standard output, and nothing else there */
    const char *html; /* NULL: none */
};

#define BENCH_LANES_MAX  16u
#define BENCH_EPOCHS_MAX 100000u
#define BENCH_ROUNDS_MAX 100u
#define BENCH_VMS_MAX    16u

/* Returns 0, 1 when --help was printed, or -EINVAL with error_text(). */
int bench_options_parse(int argc, char **argv, struct bench_options *ret_options);

/* Measurements of each round, in their order: those of enum measure from 0 on. */
unsigned bench_measures(const struct bench_options *options);

const char *bench_pattern_name(enum bench_pattern pattern);
const char *bench_compression_name(enum checkpoint_compression compression);

#endif
