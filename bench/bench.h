/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_BENCH_H
#define UNDERSTUDY_BENCH_BENCH_H

/*
 * `understudy bench WHAT`. argv[0] is the word that led here. Exit codes: 0 done, 1 failed, 2 usage.
 */
int command_bench(int argc, char **argv);

/* `bench replicate`: the whole pipeline between two processes of this machine, beside its ceiling. */
int bench_replicate(int argc, char **argv);

/* `bench protect`, a server in a guest, unprotected and protected, and `bench migrate`, the planned move of a
 * guest beside QEMU's own: `name` is the word. Becomes python3, or returns 1. */
int bench_script(const char *name, int argc, char **argv);

#endif
