/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_ENVIRONMENT_H
#define UNDERSTUDY_BENCH_ENVIRONMENT_H

#include <jansson.h>

/*
 * The machine as a result names it ("environment" of bench/schema.json): processor, memory, kernel, versions,
 * whether /dev/kvm can be used, load, and how quiet it is (0.3 seconds of all cores). NULL with error_text().
 */
json_t *environment_new(void);

/* Measure again and put it into "noise"."after" and "load_average_after". */
int environment_finish(json_t *environment);

#endif
