/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/plan.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>

int plan_init(struct plan *plan)
{
    *plan = (struct plan){0};
    TAILQ_INIT(&plan->records);
    pthread_condattr_t attributes;
    int r = pthread_condattr_init(&attributes);
    if (r)
        return error_errno(-r, "round plan");
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    r = pthread_cond_init(&plan->changed, &attributes);
    pthread_condattr_destroy(&attributes);
    if (r)
        return error_errno(-r, "round plan");
    r = pthread_mutex_init(&plan->lock, NULL);
    if (r) {
        pthread_cond_destroy(&plan->changed);
        return error_errno(-r, "round plan");
    }
    return 0;
}

void plan_fini(struct plan *plan)
{
    pthread_mutex_destroy(&plan->lock);
    pthread_cond_destroy(&plan->changed);
}

void plan_rearm(struct plan *plan)
{
    scope_lock(&plan->lock);
    assert(!plan->open && !plan->busy);
    plan->cancelled = false;
}

void plan_open(struct plan *plan, const struct pageset *set, uint64_t direct, uint64_t generation,
               uint64_t epoch, uint32_t round)
{
    scope_lock(&plan->lock);
    assert(!plan->open && !plan->busy);
    assert(direct <= set->count);
    plan->set = set;
    plan->cursor = (struct pageset_cursor){0};
    plan->generation = generation;
    plan->epoch = epoch;
    plan->round = round;
    plan->serial++;
    plan->total = set->count;
    plan->limit = plan->direct = direct;
    plan->taken = plan->done = plan->direct_done = 0;
    plan->state_bytes = plan->state_taken = 0;
    plan->open = !plan->cancelled;
    plan->sealed = plan->complete = false;
    plan->failure = 0;
    plan->opened_ns = clock_now_ns();
    plan->totals = (struct message_totals){0};
}

void plan_put_records(struct plan *plan, struct disk_records *records, uint64_t first_number)
{
    scope_lock(&plan->lock);
    assert(TAILQ_EMPTY(&plan->records));
    TAILQ_CONCAT(&plan->records, records, link);
    plan->next_record = first_number;
}

static bool everything_done(const struct plan *plan)
{
    return plan->sealed && TAILQ_EMPTY(&plan->records) && plan->busy == 0 && plan->done == plan->total &&
           plan->state_taken == plan->state_bytes;
}

static bool complete_if_done(struct plan *plan, struct message_totals *ret_totals)
{
    if (!plan->open || !everything_done(plan))
        return false;
    plan->open = false;
    plan->complete = true;
    *ret_totals = plan->totals;
    return true;
}

void plan_staged(struct plan *plan)
{
    scope_lock(&plan->lock);
    plan->limit = plan->total;
}

bool plan_seal(struct plan *plan, uint64_t state_bytes, struct message_totals *ret_totals)
{
    scope_lock(&plan->lock);
    assert(plan->limit == plan->total);
    plan->state_bytes = state_bytes;
    plan->sealed = true;
    return complete_if_done(plan, ret_totals);
}

int plan_drain(struct plan *plan, uint64_t deadline_ns)
{
    struct timespec deadline = {.tv_sec = (time_t)(deadline_ns / NS_PER_S),
                                .tv_nsec = (long)(deadline_ns % NS_PER_S)};
    scope_lock(&plan->lock);
    while (plan->direct_done < plan->direct) {
        if (plan->failure)
            return error_set(plan->failure, "epoch %llu: a lane could not produce its pages",
                             (unsigned long long)plan->epoch);
        if (plan->cancelled)
            return error_set(-ECANCELED, "epoch %llu: the session ended", (unsigned long long)plan->epoch);
        if (pthread_cond_timedwait(&plan->changed, &plan->lock, &deadline) == ETIMEDOUT &&
            plan->direct_done < plan->direct)
            return error_set(-ETIME, "epoch %llu: the lanes carried %llu of %llu pages in time",
                             (unsigned long long)plan->epoch, (unsigned long long)plan->direct_done,
                             (unsigned long long)plan->direct);
    }
    return 0;
}

double plan_page_ns(struct plan *plan)
{
    scope_lock(&plan->lock);
    return plan->page_ns;
}

void plan_gave_up(struct plan *plan)
{
    scope_lock(&plan->lock);
    plan->page_ns *= 0.5;
}

void plan_close(struct plan *plan)
{
    scope_lock(&plan->lock);
    plan->open = false;
    while (plan->busy)
        pthread_cond_wait(&plan->changed, &plan->lock);
}

void plan_cancel(struct plan *plan)
{
    scope_lock(&plan->lock);
    plan->cancelled = true;
    plan->open = false;
    pthread_cond_broadcast(&plan->changed);
}

/* Fill the item with up to a chunk of pages of one block, not across the border between direct and staged. */
static void take_pages(struct plan *plan, struct plan_item *item)
{
    uint64_t border = plan->taken < plan->direct ? plan->direct : plan->limit;
    uint64_t room = border - plan->taken;
    if (room > PLAN_CHUNK_PAGES)
        room = PLAN_CHUNK_PAGES;
    item->direct = plan->taken < plan->direct;
    item->staged = plan->taken - plan->direct;
    while (room) {
        struct pageset_cursor behind = plan->cursor;
        struct vmm_range run;
        bool found = pageset_next(plan->set, &behind, room, &run);
        assert(found);
        if (!found || (item->range_count && run.block != item->ranges[0].block))
            break;
        plan->cursor = behind;
        item->ranges[item->range_count++] = run;
        item->pages += (uint32_t)run.pages;
        room -= run.pages;
    }
    plan->taken += item->pages;
}

/* As many as make a frame no larger than one of pages. */
static void take_records(struct plan *plan, struct plan_item *item)
{
    struct disk_record *record;
    size_t room = sizeof(struct wire_disk_record) + WIRE_DISK_BODY_MAX;
    item->first_record = plan->next_record;
    while ((record = TAILQ_FIRST(&plan->records)) && item->record_count < PLAN_RECORDS_MAX) {
        size_t bytes = sizeof(struct wire_disk_record) + disk_record_body(record);
        if (bytes > room)
            break;
        room -= bytes;
        TAILQ_REMOVE(&plan->records, record, link);
        TAILQ_INSERT_TAIL(&item->records, record, link);
        item->record_count++;
    }
    plan->next_record += item->record_count;
}

bool plan_take(struct plan *plan, struct plan_item *ret_item)
{
    scope_lock(&plan->lock);
    enum plan_kind kind = !TAILQ_EMPTY(&plan->records)            ? PLAN_DISK
                          : plan->state_taken < plan->state_bytes ? PLAN_STATE
                                                                  : PLAN_PAGES;
    if (!plan->open || (kind == PLAN_PAGES && plan->taken == plan->limit))
        return false;
    ret_item->kind = kind;
    TAILQ_INIT(&ret_item->records);
    ret_item->record_count = 0;
    ret_item->range_count = ret_item->pages = 0;
    ret_item->generation = plan->generation;
    ret_item->epoch = plan->epoch;
    ret_item->round = plan->round;
    ret_item->serial = plan->serial;
    if (kind == PLAN_DISK) {
        take_records(plan, ret_item);
    } else if (kind == PLAN_STATE) {
        ret_item->offset = plan->state_taken;
        ret_item->length = plan->state_bytes - plan->state_taken;
        if (ret_item->length > PLAN_STATE_PIECE)
            ret_item->length = PLAN_STATE_PIECE;
        ret_item->total = plan->state_bytes;
        plan->state_taken += ret_item->length;
    } else {
        take_pages(plan, ret_item);
    }
    plan->busy++;
    return true;
}

/* The last page is gone. The device state, which the lanes may have to wait for, is not in the price. */
static void measure(struct plan *plan)
{
    if (plan->done != plan->total || plan->total < PLAN_CHUNK_PAGES)
        return;
    double page_ns = (double)(clock_now_ns() - plan->opened_ns) / (double)plan->total;
    plan->page_ns = plan->page_ns > 0 ? plan->page_ns * 0.75 + page_ns * 0.25 : page_ns;
}

static void leave(struct plan *plan)
{
    plan->busy--;
    pthread_cond_broadcast(&plan->changed);
}

bool plan_done(struct plan *plan, const struct plan_item *item, const struct message_totals *sent,
               struct message_totals *ret_totals)
{
    scope_lock(&plan->lock);
    plan->totals.frames += sent->frames;
    plan->totals.pages += sent->pages;
    plan->totals.bytes += sent->bytes;
    plan->totals.sum += sent->sum;
    plan->done += item->pages;
    if (item->direct)
        plan->direct_done += item->pages;
    if (item->pages)
        measure(plan);
    leave(plan);
    return complete_if_done(plan, ret_totals);
}

void plan_failed(struct plan *plan, int code)
{
    scope_lock(&plan->lock);
    plan->open = false;
    plan->failure = code;
    leave(plan);
}
