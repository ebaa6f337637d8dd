/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/known.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "checkpoint/source.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * A standby that was the guest's host before has nearly all of its memory; so has one whose first copy broke
 * off, and one whose primary's engine was started anew. So when everything is pending, a thread asks for
 * digests, window after window, and compares, while rounds send what was found to differ:
 *
 *      a block │ sent or known │ window: digests here │ windows: asked for │ left ...
 *                              ▲ the comparer
 *
 * A page that has the digest that the standby gave need not be sent: that is the same as sending what is
 * there. It counts as inflight, as if it had been sent: an epoch that is given up makes it pending again.
 *
 * Why that is right while the guest runs and pages come and go:
 *
 *   - A digest speaks for the standby's page as long as nothing of it was sent in this session. Nothing of a
 *     page that is left was: whoever sends a page takes it out of `left` first (known_written), under the
 *     lock, and the comparer judges only what is still in there after it has read and hashed. So it does not
 *     matter when the standby took its digest.
 *   - The guest may write the page after it was read, or while. Then its mark is still to be taken, and it
 *     comes in a later round. That of the pages' marks nothing is lost is the caller's: it tracks the guest
 *     since before known_begin(), and a capture waits until nothing is left.
 *
 * Does it pay? Comparing costs both sides SHA-256 of everything, in one thread each; it goes on beside the
 * sending, so it only costs time when it is slower than the lanes alone would be. That is measured: the time
 * in which pages are compared, against that in which live rounds carry them, from the first page until the
 * standby has them all. While next to nothing differs the latter is not known, and comparing goes on.
 *
 * A standby that does not answer in time, or says that it has nothing, is asked no more: everything is sent.
 */
#define WINDOWS      8 /* 16 MiB of memory: enough for some ms between question and answer */
#define ANSWER_NS    (5 * NS_PER_S)
#define CHUNK_PAGES  64u
#define GATHER_PAGES 16384u /* 64 MiB are worth a round */
#define JUDGE_PAGES  8192u  /* compared, and sent, before one is held against the other */

struct window {
    enum { WINDOW_NONE, WINDOW_ASKED, WINDOW_HERE } state;
    struct vmm_range range;
    uint64_t next;                                          /* page: everything before it was compared */
    uint64_t deadline_ns;                                   /* for the answer */
    uint8_t digests[WIRE_PAGE_SUMS_MAX][WIRE_DIGEST_BYTES]; /* WINDOW_HERE: the comparer's alone */
};

struct known {
    struct vmm *source;
    const struct vmm_description *guest;
    struct known_config config;
    pthread_t comparer;
    bool started;
    uint8_t *buffer; /* the comparer's: a chunk of pages */
    uint8_t zero[WIRE_DIGEST_BYTES];

    pthread_mutex_t lock; /* what follows; leaf */
    pthread_cond_t work;  /* for the comparer */
    pthread_cond_t news;  /* for the owner */
    struct pageset left, found, known;
    bool on, session, ending;
    uint64_t serial; /* grows with every known_begin() */
    struct window windows[WINDOWS];
    unsigned current;                           /* the window that is compared next */
    struct pageset_cursor cursor;               /* from where the next one is placed */
    uint64_t compared_pages, compared_since_ns; /* by this comparison, from the first answer on */
    uint64_t sent_pages, sent_ns;               /* in live rounds beside it */
    uint64_t sending_pages, sending_since_ns;
    struct known_stats stats;
};

/* --- with the lock held --- */

/* All that is left is to be sent. */
static void end(struct known *known)
{
    pageset_merge(&known->found, &known->left);
    pageset_clear(&known->left);
    known->on = false;
    pthread_cond_broadcast(&known->news);
}

static bool may_compare(const struct known *known)
{
    return known->on && known->session;
}

static bool sending_is_cheaper(const struct known *known)
{
    if (known->compared_pages < JUDGE_PAGES || known->sent_pages < JUDGE_PAGES)
        return false;
    double compare_ns = (double)(clock_now_ns() - known->compared_since_ns) / (double)known->compared_pages;
    return compare_ns > (double)known->sent_ns / (double)known->sent_pages;
}

/* The next stretch with pages that are left, for a window that is free. */
static bool place_window(struct known *known, struct window *window)
{
    struct vmm_range run;
    if (!pageset_next(&known->left, &known->cursor, WIRE_PAGE_SUMS_MAX, &run))
        return false;
    /* Pages in between that are not left make no smaller windows. */
    uint64_t room = (known->guest->blocks[run.block].bytes >> VMM_PAGE_SHIFT) - run.first;
    run.pages = room < WIRE_PAGE_SUMS_MAX ? room : WIRE_PAGE_SUMS_MAX;
    known->cursor = (struct pageset_cursor){.block = run.block, .page = run.first + run.pages};
    window->range = run;
    window->next = run.first;
    return true;
}

/* Gives the lock up for each question. */
static void ask(struct known *known)
{
    for (unsigned i = 0; i < WINDOWS && may_compare(known); i++) {
        struct window *window = &known->windows[(known->current + i) % WINDOWS];
        if (window->state != WINDOW_NONE || !place_window(known, window))
            continue;
        window->state = WINDOW_ASKED;
        window->deadline_ns = clock_now_ns() + ANSWER_NS;
        struct vmm_range range = window->range;
        pthread_mutex_unlock(&known->lock);
        known->config.wanted(known->config.ctx, range.block, range.first, (uint32_t)range.pages);
        pthread_mutex_lock(&known->lock);
    }
}

static void rest_until(struct known *known, pthread_cond_t *condition, uint64_t deadline_ns)
{
    struct timespec until = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                             .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    pthread_cond_timedwait(condition, &known->lock, &until);
}

/* The window's next pages that are left. */
static bool next_run(const struct known *known, const struct window *window, struct vmm_range *ret_run)
{
    struct pageset_cursor cursor = {.block = window->range.block, .page = window->next};
    uint64_t end = window->range.first + window->range.pages;
    if (!pageset_next(&known->left, &cursor, CHUNK_PAGES, ret_run) || ret_run->block != window->range.block ||
        ret_run->first >= end)
        return false;
    if (ret_run->pages > end - ret_run->first)
        ret_run->pages = end - ret_run->first;
    return true;
}

/* Without the lock: one bit for each page of the run that the standby has. */
static int compare_run(const struct known *known, const struct window *window, const struct vmm_range *run,
                       uint64_t *ret_same)
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    int r = source_read(known->source, known->guest, run, 1, known->buffer);
    uint64_t same = 0;
    for (uint64_t i = 0; r == 0 && i < run->pages; i++) {
        const uint8_t *page = known->buffer + i * VMM_PAGE_BYTES, *digest = known->zero;
        uint8_t own[WIRE_DIGEST_BYTES];
        if (memcmp(page, zeros, sizeof zeros) != 0) {
            r = wire_digest(page, VMM_PAGE_BYTES, own);
            digest = own;
        }
        const uint8_t *theirs = window->digests[run->first - window->range.first + i];
        same |= (uint64_t)(memcmp(digest, theirs, WIRE_DIGEST_BYTES) == 0) << i;
    }
    *ret_same = same;
    return r;
}

/* What is not left any more was written meanwhile, and is sent. */
static void judge(struct known *known, const struct vmm_range *run, uint64_t same)
{
    for (uint64_t i = 0; i < run->pages; i++) {
        if (pageset_missing(&known->left, run->block, run->first + i, 1))
            continue;
        bool is_known = same >> i & 1;
        pageset_remove(&known->left, run->block, run->first + i, 1);
        pageset_add(is_known ? &known->known : &known->found, run->block, run->first + i, 1);
        known->compared_pages++;
        known->stats.compared_pages++;
        known->stats.known_pages += is_known;
    }
    if (known->found.count >= GATHER_PAGES || known->left.count == 0)
        pthread_cond_broadcast(&known->news);
}

static void compare_some(struct known *known, struct window *window)
{
    struct vmm_range run;
    uint64_t same, serial = known->serial;
    if (!next_run(known, window, &run)) {
        window->state = WINDOW_NONE;
        known->current = (known->current + 1) % WINDOWS;
        return;
    }
    window->next = run.first + run.pages;
    pthread_mutex_unlock(&known->lock);
    int r = compare_run(known, window, &run, &same);
    pthread_mutex_lock(&known->lock);
    if (!known->on || known->serial != serial)
        return;
    if (r == 0)
        judge(known, &run, same);
    else
        end(known); /* a guest that cannot be read shows itself when a lane reads it */
}

static void work(struct known *known)
{
    ask(known);
    struct window *window = &known->windows[known->current];
    if (!may_compare(known))
        return;
    if (window->state == WINDOW_HERE)
        compare_some(known, window);
    else if (window->state == WINDOW_ASKED && clock_now_ns() < window->deadline_ns)
        rest_until(known, &known->work, window->deadline_ns);
    else
        end(known); /* no answer; or everything was asked for and compared */
}

/* --- the comparer --- */

static void *run_comparer(void *argument)
{
    struct known *known = argument;
    scope_lock(&known->lock);
    while (!known->ending) {
        if (may_compare(known))
            work(known);
        else
            pthread_cond_wait(&known->work, &known->lock);
    }
    return NULL;
}

/* --- calls --- */

static int init_condition(pthread_cond_t *condition)
{
    pthread_condattr_t attributes;
    int r = pthread_condattr_init(&attributes);
    if (r)
        return -r;
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    r = pthread_cond_init(condition, &attributes);
    pthread_condattr_destroy(&attributes);
    return -r;
}

int known_new(struct known **ret_known, struct vmm *source, const struct vmm_description *guest,
              const struct known_config *config)
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    struct known *known = calloc(1, sizeof *known);
    if (!known)
        return error_errno(-ENOMEM, "comparing memory");
    known->source = source;
    known->guest = guest;
    known->config = *config;
    pthread_mutex_init(&known->lock, NULL);
    int r = init_condition(&known->work);
    if (r < 0 || (r = init_condition(&known->news)) < 0)
        error_errno(r, "comparing memory");
    known->buffer = aligned_alloc(VMM_PAGE_BYTES, (size_t)CHUNK_PAGES * VMM_PAGE_BYTES);
    if (r == 0 && !known->buffer)
        r = error_errno(-ENOMEM, "comparing memory");
    if (r == 0)
        r = wire_digest(zeros, sizeof zeros, known->zero);
    if (r == 0)
        r = pageset_init(&known->left, guest);
    if (r == 0)
        r = pageset_init(&known->found, guest);
    if (r == 0)
        r = pageset_init(&known->known, guest);
    if (r == 0 && (r = -pthread_create(&known->comparer, NULL, run_comparer, known)) < 0)
        error_errno(r, "comparing memory: thread");
    if (r < 0) {
        known_free(known);
        return r;
    }
    known->started = true;
    known->stats.memory_bytes = sizeof *known + (size_t)CHUNK_PAGES * VMM_PAGE_BYTES +
                                known->left.memory_bytes + known->found.memory_bytes +
                                known->known.memory_bytes;
    *ret_known = known;
    return 0;
}

void known_free(struct known *known)
{
    if (!known)
        return;
    if (known->started) {
        pthread_mutex_lock(&known->lock);
        known->ending = true;
        pthread_cond_signal(&known->work);
        pthread_mutex_unlock(&known->lock);
        pthread_join(known->comparer, NULL);
    }
    pageset_fini(&known->left);
    pageset_fini(&known->found);
    pageset_fini(&known->known);
    free(known->buffer);
    pthread_cond_destroy(&known->work);
    pthread_cond_destroy(&known->news);
    pthread_mutex_destroy(&known->lock);
    free(known);
}

void known_begin(struct known *known, struct pageset *pending)
{
    scope_lock(&known->lock);
    assert(!known->left.count && !known->found.count && !known->known.count);
    for (unsigned i = 0; i < WINDOWS; i++)
        known->windows[i].state = WINDOW_NONE;
    known->current = 0;
    known->cursor = (struct pageset_cursor){0};
    known->compared_pages = known->sent_pages = known->sent_ns = known->sending_pages = 0;
    known->serial++;
    known->on = true;
    known->session = false;
    pageset_swap(&known->left, pending);
}

/* What the former round sent is with the standby. */
static void measure_sending(struct known *known)
{
    if (known->sending_pages)
        known->sent_ns += clock_now_ns() - known->sending_since_ns;
    known->sent_pages += known->sending_pages;
    known->sending_pages = 0;
}

bool known_take(struct known *known, uint64_t limit_ns, struct pageset *pending, struct pageset *inflight)
{
    scope_lock(&known->lock);
    if (!known->on && !known->found.count && !known->known.count)
        return false;
    if (known->on && !known->session) {
        known->session = true;
        pthread_cond_signal(&known->work);
    }
    measure_sending(known);
    if (known->on && sending_is_cheaper(known))
        end(known);
    for (uint64_t now_ns = clock_now_ns(), until_ns = now_ns + limit_ns;
         may_compare(known) && known->left.count && known->found.count < GATHER_PAGES && now_ns < until_ns;
         now_ns = clock_now_ns())
        rest_until(known, &known->news, until_ns);
    pageset_merge(pending, &known->found);
    pageset_merge(inflight, &known->known);
    pageset_clear(&known->found);
    pageset_clear(&known->known);
    known->on &= known->left.count > 0; /* what is still asked for was written meanwhile */
    return known->left.count == 0;
}

void known_sending(struct known *known, uint64_t pages)
{
    scope_lock(&known->lock);
    known->sending_pages = known->on ? pages : 0;
    known->sending_since_ns = clock_now_ns();
}

void known_written(struct known *known, const struct vmm_range *ranges, size_t count)
{
    scope_lock(&known->lock);
    for (size_t i = 0; known->left.count && i < count; i++)
        pageset_remove(&known->left, ranges[i].block, ranges[i].first, ranges[i].pages);
}

void known_abandon(struct known *known, struct pageset *pending)
{
    scope_lock(&known->lock);
    end(known);
    known->session = false;
    pageset_merge(pending, &known->found);
    pageset_merge(pending, &known->known);
    pageset_clear(&known->found);
    pageset_clear(&known->known);
}

void known_cancel(struct known *known)
{
    scope_lock(&known->lock);
    known->session = false;
    pthread_cond_broadcast(&known->news);
}

void known_sums(struct known *known, const struct message_page_sums *sums)
{
    scope_lock(&known->lock);
    for (unsigned i = 0; may_compare(known) && i < WINDOWS; i++) {
        struct window *window = &known->windows[i];
        if (window->state != WINDOW_ASKED || window->range.block != sums->block ||
            window->range.first != sums->first)
            continue;
        if (sums->count == 0) {
            end(known);
            return;
        }
        if (window->range.pages != sums->count)
            continue;
        memcpy(window->digests, sums->digests, (size_t)sums->count * WIRE_DIGEST_BYTES);
        window->state = WINDOW_HERE;
        if (!known->compared_pages)
            known->compared_since_ns = clock_now_ns();
        pthread_cond_signal(&known->work);
        return;
    }
}

void known_get_stats(struct known *known, struct known_stats *ret_stats)
{
    scope_lock(&known->lock);
    *ret_stats = known->stats;
    ret_stats->waiting_pages = known->left.count + known->found.count;
}
