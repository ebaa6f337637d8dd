/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_PACE_H
#define UNDERSTUDY_CHECKPOINT_PACE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * How long would a capture stop the guest, and would a live round first help? Measured costs, smoothed.
 * Pure: times are handed in.
 *
 * A live round helps when the guest writes fewer new pages during it than it sends. Within an epoch that is
 * seen from one round to the next; an epoch whose first round did not help keeps the next PACE_REST epochs
 * from trying, since a steady writer would only have everything sent twice.
 */
#define PACE_REST 16u

struct pace {
    double stop_ns, scan_ns, state_ns, resume_ns; /* 0: not measured yet */
    double page_ns;                               /* copy of one page to staging */
    uint64_t round_pages;                         /* sent by the latest live round of this epoch */
    unsigned rounds;                              /* live rounds of this epoch */
    unsigned rest;                                /* epochs that go without live rounds */
};

struct pace_times {
    uint64_t stop_ns, scan_ns, copy_ns, state_ns, resume_ns; /* resume_ns 0: it was not resumed */
};

/* A capture of `pages` pages was made: the epoch is over. `drained`: part of them went to the wire within the
 * pause, so that the copy says nothing about what a page costs. */
void pace_captured(struct pace *pace, const struct pace_times *times, uint64_t pages, bool drained);

/* A live round of `pages` pages went out after a stop. */
void pace_round(struct pace *pace, const struct pace_times *times, uint64_t pages);

/* The epoch will not be finished, or everything is pending: what was learnt of the present epoch is void. */
void pace_restart(struct pace *pace);

/* A capture was given up on the ground of these estimates: believe them less, so that one bad measurement
 * cannot refuse captures for ever. */
void pace_gave_up(struct pace *pace);

/* The pause of a capture of `pages` pages. */
uint64_t pace_pause_ns(const struct pace *pace, uint64_t pages);

/* Whether a live round should come before the capture. budget_ns 0: no budget. */
bool pace_wants_round(const struct pace *pace, uint64_t pages, uint64_t staging_pages, uint64_t budget_ns);

#endif
