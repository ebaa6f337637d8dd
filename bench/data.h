/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_DATA_H
#define UNDERSTUDY_BENCH_DATA_H

#include <stddef.h>
#include <stdint.h>

/* What synthetic guest memory looks like. */
enum data_kind {
    DATA_RANDOM, /* nothing compresses */
    DATA_ZERO,
    DATA_TEXT,  /* words of a small vocabulary: about half its size with LZ4 */
    DATA_MIXED, /* a quarter zero, half text, a quarter random, in stretches of 16 pages */
};

int data_kind_parse(const char *text, enum data_kind *ret_kind);
const char *data_kind_name(enum data_kind kind);

/* Whole pages. The same seed gives the same bytes. */
void data_fill(void *memory, size_t bytes, enum data_kind kind, uint64_t seed);

#endif
