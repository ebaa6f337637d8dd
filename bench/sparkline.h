/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_SPARKLINE_H
#define UNDERSTUDY_BENCH_SPARKLINE_H

#include <stddef.h>

/*
 * One character of three bytes (UTF-8, U+2581 to U+2588) for each value, from the smallest to the largest of
 * them; all alike: the fourth. NUL-terminated; `ret_text` has 3 * count + 1 bytes. bench/figures.py draws the
 * same.
 */
void sparkline(const double *values, unsigned count, char *ret_text);

#endif
