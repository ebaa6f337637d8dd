/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_PROGRAM_H
#define UNDERSTUDY_GATE_PROGRAM_H

/*
 * Runs a program to its end, without a shell: `input` (or NULL) on its standard input, its standard output in
 * `ret_output` (or NULL; to be freed), at most 10 s. -ENOENT: not installed. -EIO: it ended with a failure;
 * the text quotes what it said first.
 */
int program_run(const char *const argv[], const char *input, char **ret_output);

#endif
