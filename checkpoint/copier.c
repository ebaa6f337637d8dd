/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/copier.h"

#include "base/clock.h"
#include "base/scope.h"
#include "checkpoint/source.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>

/* Between looks at the clock: 4 MiB, about a millisecond. */
#define BATCH_PAGES  1024u
#define BATCH_RANGES 256u
#define WARM_BYTES   (2u << 20) /* touched at once */

static int copy(const struct copy_job *job)
{
    struct pageset_cursor cursor = {0};
    struct vmm_range ranges[BATCH_RANGES];
    uint8_t *to = job->to;
    uint64_t left = job->pages;
    pageset_skip(job->set, &cursor, job->skip);
    while (left) {
        size_t count = 0;
        uint64_t pages = 0, most = left < BATCH_PAGES ? left : BATCH_PAGES;
        while (count < BATCH_RANGES && pages < most &&
               pageset_next(job->set, &cursor, most - pages, &ranges[count]))
            pages += ranges[count++].pages;
        assert(pages > 0);
        int r = source_read(job->source, job->guest, ranges, count, to);
        if (r < 0)
            return error_add(r, "staging %llu pages", (unsigned long long)pages);
        to += pages * VMM_PAGE_BYTES;
        left -= pages;
        if (clock_now_ns() > job->deadline_ns)
            return error_set(-ETIME, "the copy would stop the guest too long: %llu of %llu pages are left",
                             (unsigned long long)left, (unsigned long long)job->pages);
    }
    return 0;
}

/* With the lock held. False: nothing is cold. */
static bool warm_piece(struct copier *copier)
{
    if (!copier->cold_count)
        return false;
    unsigned last = copier->cold_count - 1;
    uint8_t *at = copier->cold[last].at;
    size_t bytes = copier->cold[last].bytes < WARM_BYTES ? copier->cold[last].bytes : WARM_BYTES;
    copier->cold[last].at += bytes;
    copier->cold[last].bytes -= bytes;
    if (!copier->cold[last].bytes)
        copier->cold_count--;
    pthread_mutex_unlock(&copier->lock);
    (void)madvise(at, bytes, MADV_POPULATE_WRITE); /* without memory, whoever writes there first will hear */
    pthread_mutex_lock(&copier->lock);
    return true;
}

static void *helper(void *argument)
{
    struct copier *copier = argument;
    pthread_mutex_lock(&copier->lock);
    for (;;) {
        while (!copier->job && !copier->ending)
            if (!warm_piece(copier))
                pthread_cond_wait(&copier->changed, &copier->lock);
        if (copier->ending)
            break;
        struct copy_job *job = copier->job;
        pthread_mutex_unlock(&copier->lock);
        int r = copy(job);
        pthread_mutex_lock(&copier->lock);
        copier->result = r;
        if (r < 0)
            memcpy(copier->text, error_text(), strlen(error_text()) + 1);
        copier->job = NULL;
        pthread_cond_broadcast(&copier->changed);
    }
    pthread_mutex_unlock(&copier->lock);
    return NULL;
}

int copier_init(struct copier *copier)
{
    *copier = (struct copier){0};
    pthread_mutex_init(&copier->lock, NULL);
    pthread_cond_init(&copier->changed, NULL);
    /* Signals are for the threads that expect them. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int r = pthread_create(&copier->thread, NULL, helper, copier);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r) {
        copier_fini(copier);
        return error_errno(-r, "thread that helps copying");
    }
    copier->started = true;
    pthread_setname_np(copier->thread, "copier");
    return 0;
}

void copier_fini(struct copier *copier)
{
    if (copier->started) {
        pthread_mutex_lock(&copier->lock);
        copier->ending = true;
        pthread_cond_broadcast(&copier->changed);
        pthread_mutex_unlock(&copier->lock);
        pthread_join(copier->thread, NULL);
    }
    copier->started = false;
    pthread_cond_destroy(&copier->changed);
    pthread_mutex_destroy(&copier->lock);
}

void copier_warm(struct copier *copier, void *memory, size_t bytes)
{
    scope_lock(&copier->lock);
    assert(copier->cold_count < COPIER_WARM_MAX && bytes > 0);
    copier->cold[copier->cold_count].at = memory;
    copier->cold[copier->cold_count++].bytes = bytes;
    pthread_cond_broadcast(&copier->changed);
}

int copier_run(struct copier *copier, const struct copy_job *job)
{
    if (job->pages < COPIER_HELP_PAGES)
        return copy(job);
    struct copy_job mine = *job, theirs = *job;
    mine.pages = job->pages / 2;
    theirs.pages = job->pages - mine.pages;
    theirs.skip += mine.pages;
    theirs.to += mine.pages * VMM_PAGE_BYTES;
    {
        scope_lock(&copier->lock);
        copier->job = &theirs;
        pthread_cond_broadcast(&copier->changed);
    }
    int r = copy(&mine);
    /* Even after a failure: the helper must be out of the guest's memory before the guest runs. */
    scope_lock(&copier->lock);
    while (copier->job)
        pthread_cond_wait(&copier->changed, &copier->lock);
    if (r == 0 && copier->result < 0)
        r = error_set(copier->result, "%s", copier->text);
    return r;
}
