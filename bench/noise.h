/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_NOISE_H
#define UNDERSTUDY_BENCH_NOISE_H

#include "base/histogram.h"

#define NOISE_THREADS_MAX 64u

/*
 * How quiet the machine is: on each core that this process may use (at most NOISE_THREADS_MAX of them) a
 * thread does nothing but look at the clock for 200 ms. Two looks that lie more than 20 us apart are a gap,
 * in which somebody else had the core. Then each sleeps a millisecond, a hundred times, and sees how late it
 * wakes.
 */
struct noise {
    unsigned threads;
    double seconds;        /* that each thread has looked */
    double stolen_share;   /* of that time, in gaps; mean over the threads */
    struct histogram gaps; /* nanoseconds */
    struct histogram late; /* nanoseconds */
};

/* About 0.3 seconds. -ENOMEM, or what pthread_create(3) says. */
int noise_measure(struct noise *ret_noise);

#endif
