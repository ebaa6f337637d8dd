/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_COPIER_H
#define UNDERSTUDY_CHECKPOINT_COPIER_H

#include "base/error.h"
#include "checkpoint/pageset.h"

#include <pthread.h>

/*
 * Copying the pages of a paused guest to staging, by the caller and one helper thread when there are many.
 *
 * While the guest stands still its processors are idle, and two threads copy mapped memory faster than
 * one (process_vm_readv gains less); waking the helper costs some ten microseconds, so few pages are left
 * to the caller alone.
 *
 * Until the first capture the helper has time: it touches what captures will write to (copier_warm()), since
 * the first touch of a page costs more than its copy and would come inside a pause. A capture that wants its
 * help meanwhile waits for one piece of that, a huge page at most.
 */
#define COPIER_HELP_PAGES 2048u /* from here on the helper takes half */
#define COPIER_WARM_MAX   3u

struct copy_job {
    struct vmm *source;
    const struct vmm_description *guest;
    const struct pageset *set;
    uint64_t skip, pages; /* of the set, in its order */
    uint8_t *to;
    uint64_t deadline_ns; /* -ETIME when it passes */
};

struct copier {
    pthread_t thread;
    bool started;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct copy_job *job; /* the helper's; NULL when it is done */
    struct {
        uint8_t *at;
        size_t bytes;
    } cold[COPIER_WARM_MAX]; /* not touched yet */
    unsigned cold_count;
    bool ending;
    int result; /* of the helper's latest */
    char text[ERROR_TEXT_MAX];
};

int copier_init(struct copier *copier);
void copier_fini(struct copier *copier);

/* Anonymous memory, mapped until copier_fini(), to be touched beside whatever goes on, what came last first;
 * its content stays. At most COPIER_WARM_MAX times. */
void copier_warm(struct copier *copier, void *memory, size_t bytes);

int copier_run(struct copier *copier, const struct copy_job *job);

#endif
