/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_BENCH_H
#define UNDERSTUDY_BENCH_BENCH_H

#include <stdbool.h>

/*
 * `understudy bench WHAT`. argv[0] is the word that led here. Exit codes: 0 done, 1 failed, 2 usage;
 * `compare` has more (bench/compare.py).
 */
int command_bench(int argc, char **argv);

/* `bench replicate`: the whole pipeline between two processes of this machine, beside its ceiling. */
int bench_replicate(int argc, char **argv);

/* `bench environment`: the machine, as results name it. */
int bench_environment(int argc, char **argv);

/* What bench/NAME.py does: `name` is the word. One that `measures` is told which program to measure and where
 * guests' images are kept. Becomes python3, or returns 1. */
int bench_script(const char *name, bool measures, int argc, char **argv);

#endif
