/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_OPTIONS_H
#define UNDERSTUDY_BENCH_OPTIONS_H

#include "bench/data.h"
#include "checkpoint/checkpoint.h"

struct bench_options {
    uint64_t size_bytes;  /* guest memory */
    uint64_t epoch_bytes; /* dirty in each staged epoch */
    unsigned lanes, epochs, rounds;
    enum data_kind data;
    enum checkpoint_compression compression;
    bool json;
};

#define BENCH_LANES_MAX  16u
#define BENCH_EPOCHS_MAX 100000u
#define BENCH_ROUNDS_MAX 100u

/* Returns 0, 1 when --help was printed, or -EINVAL with error_text(). */
int bench_options_parse(int argc, char **argv, struct bench_options *ret_options);

const char *bench_compression_name(enum checkpoint_compression compression);

#endif
