/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_WORKLOAD_H
#define UNDERSTUDY_BENCH_GUESTS_WORKLOAD_H

#include <stdbool.h>
#include <stdint.h>

/*
 * What the workload's pages hold, which of them is written next, and what was computed from them. Pure and
 * free of any library, so that the bare guest, a process and a unit test share it.
 *
 * A page is known by its number and by its iteration, how often it was written; iteration 0 is a page of
 * zeros, as fresh memory is. Everything else in it follows from these two:
 *
 *     whole pages   | iteration | number | data ... | sum of all words before |
 *     lines         64 times | iteration | number * 64 + line | data ... | sum |     a write changes one of
 * them
 */

#define WORKLOAD_PAGE_BYTES 4096u
#define WORKLOAD_PAGE_WORDS (WORKLOAD_PAGE_BYTES / 8)
#define WORKLOAD_LINE_BYTES 64u
#define WORKLOAD_LINE_WORDS (WORKLOAD_LINE_BYTES / 8)
#define WORKLOAD_LINES      (WORKLOAD_PAGE_BYTES / WORKLOAD_LINE_BYTES)

enum workload_data {
    WORKLOAD_RANDOM, /* does not compress; lines do by a tenth, as each names itself */
    WORKLOAD_TEXT,   /* words of English: compresses two to three times */
    WORKLOAD_ZERO,   /* all zeros every other time, so that a write that was lost still shows; text between */
};

enum workload_order {
    WORKLOAD_ORDER_RANDOM,
    WORKLOAD_ORDER_SEQUENTIAL,
    WORKLOAD_ORDER_HOT, /* nine writes of ten go to the first `hot` pages of the slice */
};

enum workload_unit {
    WORKLOAD_PAGE, /* a write replaces the page */
    WORKLOAD_LINE, /* a write replaces 64 bytes of it, line (iteration - 1) % 64 */
};

/* The pages of one vCPU or thread, from `first` on, and its way through them. */
struct workload_walk {
    uint64_t first, count;
    uint64_t hot;
    enum workload_order order;
    uint64_t seed; /* not 0 */
    uint64_t next;
};

/* What is wrong with a page, for a message. */
struct workload_fault {
    uint64_t wanted; /* iteration of the page or line that is wrong */
    uint64_t found;  /* the one that it claims */
    unsigned word;   /* the first of the page that differs */
    bool whole;      /* it is right for the iteration that it claims: stale, not torn */
};

void workload_walk_start(struct workload_walk *walk, uint64_t first, uint64_t count);
/* The number of the page that is written next. */
uint64_t workload_walk_next(struct workload_walk *walk);

/* Take the page from iteration - 1 to `iteration`, which is at least 1. */
void workload_write(uint64_t *page, enum workload_unit unit, enum workload_data data, uint64_t number,
                    uint64_t iteration);

/* Whether the page holds, to the last bit, what it must at this iteration; if not, ret_fault says what is
 * wrong. */
bool workload_check(const uint64_t *page, enum workload_unit unit, enum workload_data data, uint64_t number,
                    uint64_t iteration, struct workload_fault *ret_fault);

/* A computation that depends on all it was given, in its order. */
uint64_t workload_mix(uint64_t digest, uint64_t word);

#endif
