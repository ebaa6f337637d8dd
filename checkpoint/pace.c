/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/pace.h"

/* Until the first capture has shown better: 4 KiB at 8 GB/s. */
#define PAGE_NS_GUESS 500.0

/* A round that leaves more than this share of what it sent dirty has not helped. */
#define HELPFUL(pages) ((pages) - (pages) / 4)

static void learn(double *smoothed, double sample)
{
    *smoothed = *smoothed > 0 ? *smoothed * 0.75 + sample * 0.25 : sample;
}

static void learn_stop(struct pace *pace, const struct pace_times *times)
{
    learn(&pace->stop_ns, (double)times->stop_ns);
    learn(&pace->scan_ns, (double)times->scan_ns);
    if (times->resume_ns)
        learn(&pace->resume_ns, (double)times->resume_ns);
}

void pace_captured(struct pace *pace, const struct pace_times *times, uint64_t pages, bool drained)
{
    learn_stop(pace, times);
    if (!drained)
        learn(&pace->state_ns, (double)times->state_ns);
    /* The fixed cost of a small copy would pass for a high price of each page. */
    if (pages >= 64 && !drained)
        learn(&pace->page_ns, (double)times->copy_ns / (double)pages);

    bool helped = pace->rounds > 0 && pages < HELPFUL(pace->round_pages);
    if (pace->rounds == 1 && !helped)
        pace->rest = PACE_REST;
    else if (pace->rest > 0)
        pace->rest--;
    pace->rounds = 0;
    pace->round_pages = 0;
}

void pace_round(struct pace *pace, const struct pace_times *times, uint64_t pages)
{
    learn_stop(pace, times);
    pace->rounds++;
    pace->round_pages = pages;
}

void pace_restart(struct pace *pace)
{
    pace->rounds = 0;
    pace->round_pages = 0;
    pace->rest = 0;
}

void pace_gave_up(struct pace *pace)
{
    pace->page_ns *= 0.5;
    pace->state_ns *= 0.5;
    pace->scan_ns *= 0.5;
    pace->resume_ns *= 0.5;
}

uint64_t pace_pause_ns(const struct pace *pace, uint64_t pages)
{
    double page_ns = pace->page_ns > 0 ? pace->page_ns : PAGE_NS_GUESS;
    double memory_ns = pace->scan_ns + page_ns * (double)pages;
    double inside_ns = memory_ns > pace->state_ns ? memory_ns : pace->state_ns;
    return (uint64_t)(pace->stop_ns + inside_ns + pace->resume_ns);
}

bool pace_wants_round(const struct pace *pace, uint64_t pages, uint64_t staging_pages, uint64_t budget_ns)
{
    bool over_budget = budget_ns && pace_pause_ns(pace, pages) > budget_ns;
    if (!over_budget && pages <= staging_pages)
        return false;
    /* With nothing to send, the pause is all stop and state: a round cannot make it shorter. */
    if (pages == 0 || (pages <= staging_pages && pace_pause_ns(pace, 0) > budget_ns &&
                       pace_pause_ns(pace, pages) < pace_pause_ns(pace, 0) + pace_pause_ns(pace, 0) / 4))
        return false;
    if (pace->rounds == 0)
        return pace->rest == 0;
    return pages < HELPFUL(pace->round_pages);
}
