/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/staging.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 * All pages of the guest have a position: its blocks stand one after another, each beginning on a group's
 * border. A stage is an index from position to entry (absent, zero, or a slot of the pool), a byte for each
 * group that says whether to look there at all, and the list of chunks whose slots it uses.
 *
 *      touched   0      1      0 ...           one byte a group
 *      index   [....] [.7.z] [....] ...        4 bytes a page
 *                       |
 *      pool   chunk 3: [ 6 | 7 | 8 |   |   ]   <- a writer fills from `next` to `end`
 *
 * A writer first fills a slot that nobody else knows and then exchanges the index entry. So whatever a peer
 * sends (the same page twice at once, on two lanes), no two threads ever write to one slot: the slot that
 * came out of the exchange belongs to the writer that got it, which puts it on its chain of recycled slots.
 * The chain runs through the free slots themselves and costs no memory.
 *
 * At the turn all writers are in. Their half-used chunks stay with the stage, and all its chunks go back to
 * the pool together when it was applied: nothing is freed page by page.
 *
 * The exchange is acquire and release, so that the one who gets a slot writes to it after the one who filled
 * it. Everything else that reads the index comes after the locks of staging_leave() and of the accounting,
 * which completes an epoch only when every frame has left.
 */

/* Below this many, recycled slots wait, since a chunk's consecutive ones can be decoded to directly. */
#define RECYCLED_WORTH_TAKING 64

static int stage_init(struct stage *stage, uint32_t groups, uint32_t chunks)
{
    size_t bytes = (size_t)groups * STAGE_GROUP_PAGES * sizeof *stage->index;
    void *index =
        mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (index == MAP_FAILED)
        return error_errno(-errno, "mapping a staging index of %zu bytes", bytes);
    stage->index = index;
    stage->touched = calloc(groups, sizeof *stage->touched);
    stage->chunks = calloc(chunks, sizeof *stage->chunks);
    if (!stage->touched || !stage->chunks)
        return error_set(-ENOMEM, "staging index of %u groups: out of memory", groups);
    return 0;
}

int staging_init(struct staging *staging, const struct vmm_block *blocks, size_t block_count, uint64_t bytes)
{
    assert(block_count >= 1 && block_count <= VMM_BLOCKS_MAX);
    *staging = (struct staging){.block_count = (unsigned)block_count};
    uint64_t groups = 0;
    for (size_t i = 0; i < block_count; i++) {
        uint64_t pages = blocks[i].bytes >> VMM_PAGE_SHIFT;
        staging->blocks[i] = (struct staging_block){(uint32_t)groups, pages};
        groups += (pages + STAGE_GROUP_PAGES - 1) / STAGE_GROUP_PAGES;
        if (groups > UINT32_MAX)
            return error_set(-E2BIG, "the guest's memory blocks are too large to be indexed");
    }
    staging->groups = (uint32_t)groups;
    int r = pool_init(&staging->pool, bytes);
    for (unsigned i = 0; r == 0 && i < 2; i++)
        r = stage_init(&staging->stages[i], staging->groups, staging->pool.chunk_count);
    return r;
}

void staging_fini(struct staging *staging)
{
    for (unsigned i = 0; i < 2; i++) {
        struct stage *stage = &staging->stages[i];
        if (stage->index)
            munmap((void *)stage->index, (size_t)staging->groups * STAGE_GROUP_PAGES * sizeof *stage->index);
        free((void *)stage->touched);
        free(stage->chunks);
    }
    for (unsigned i = 0; i < staging->writer_count; i++) {
        free(staging->writers[i]->scratch);
        free(staging->writers[i]);
    }
    pool_fini(&staging->pool);
}

static void chain_push(const struct staging *staging, struct slot_chain *chain, uint32_t slot)
{
    memcpy(staging_slot(staging, slot), &chain->first, sizeof chain->first);
    chain->first = slot;
    if (chain->count++ == 0)
        chain->last = slot;
}

static uint32_t chain_pop(const struct staging *staging, struct slot_chain *chain)
{
    assert(chain->count);
    uint32_t slot = chain->first;
    memcpy(&chain->first, staging_slot(staging, slot), sizeof chain->first);
    chain->count--;
    return slot;
}

/* Put all of `from` in front of `to`. */
static void chain_join(const struct staging *staging, struct slot_chain *to, struct slot_chain *from)
{
    if (from->count == 0)
        return;
    memcpy(staging_slot(staging, from->last), &to->first, sizeof to->first);
    to->first = from->first;
    if (to->count == 0)
        to->last = from->last;
    to->count += from->count;
    from->count = 0;
}

static struct staging_writer *writer_new(struct staging *staging)
{
    assert(staging->writer_count < WIRE_LANES_MAX);
    cleanup_free struct staging_writer *writer = calloc(1, sizeof *writer);
    if (!writer)
        return NULL;
    writer->staging = staging;
    writer->scratch = malloc((size_t)STAGING_SCRATCH_PAGES << VMM_PAGE_SHIFT);
    if (!writer->scratch)
        return NULL;
    staging->writers[staging->writer_count++] = writer;
    return take_ptr(writer);
}

int staging_enter(struct staging *staging, struct staging_writer **ret_writer)
{
    scope_lock(&staging->pool.lock);
    struct staging_writer *writer = staging->idle;
    if (writer)
        staging->idle = writer->next_idle;
    else if (!(writer = writer_new(staging)))
        return error_set(-ENOMEM, "a lane's staging buffers: out of memory");
    writer->stage = &staging->stages[staging->filling];
    staging->writers_out++;
    *ret_writer = writer;
    return 0;
}

void staging_leave(struct staging_writer *writer)
{
    struct staging *staging = writer->staging;
    struct stage *stage = writer->stage;
    scope_lock(&staging->pool.lock);
    chain_join(staging, &stage->recycled, &writer->recycled);
    stage->slots += (uint64_t)writer->slots;
    stage->pages += (uint64_t)writer->pages;
    writer->slots = writer->pages = 0;
    uint64_t slots = staging->stages[0].slots + staging->stages[1].slots;
    if (slots > staging->slots_peak)
        staging->slots_peak = slots;
    writer->next_idle = staging->idle;
    staging->idle = writer;
    staging->writers_out--;
}

/* What another lane left of its chunk when it went home. With the lock held. */
static bool take_leftover(struct staging_writer *writer)
{
    for (struct staging_writer *idle = writer->staging->idle; idle; idle = idle->next_idle)
        if (idle->next < idle->end) {
            writer->next = idle->next;
            writer->end = idle->end;
            idle->next = idle->end;
            return true;
        }
    return false;
}

/* With the lock held: 1 with free slots and, if its memory is still to come, a fresh chunk; 0 if there are
 * none. */
static int find_slots(struct staging_writer *writer, uint32_t *ret_fresh)
{
    struct pool *pool = &writer->staging->pool;
    struct stage *stage = writer->stage;
    uint32_t chunk;
    bool fresh;
    if (stage->recycled.count < RECYCLED_WORTH_TAKING && pool_take(pool, &chunk, &fresh)) {
        stage->chunks[stage->chunk_count++] = chunk;
        writer->next = chunk * pool->chunk_slots;
        writer->end = writer->next + pool->chunk_slots;
        if (fresh)
            *ret_fresh = chunk;
        return 1;
    }
    if (stage->recycled.count) {
        writer->recycled = stage->recycled;
        stage->recycled.count = 0;
        return 1;
    }
    return take_leftover(writer);
}

static int refill(struct staging_writer *writer)
{
    struct pool *pool = &writer->staging->pool;
    uint32_t fresh = UINT32_MAX;
    assert(writer->next == writer->end && writer->recycled.count == 0);
    pthread_mutex_lock(&pool->lock);
    int r = find_slots(writer, &fresh);
    while (r == 0 && pool->refill && !pool->cancelled) {
        pthread_cond_wait(&pool->changed, &pool->lock);
        r = find_slots(writer, &fresh);
    }
    bool cancelled = pool->cancelled;
    pthread_mutex_unlock(&pool->lock);
    if (fresh != UINT32_MAX)
        pool_populate(pool, fresh);
    if (r)
        return 0;
    if (cancelled)
        return error_set(-ECANCELED, "staging pages: the session was given up");
    return error_set(-ENOSPC, "staging is full: the epoch does not fit in %zu MiB (%zu bytes)",
                     pool->map_bytes >> 20, pool->map_bytes);
}

long staging_take(struct staging_writer *writer, unsigned pages, uint32_t *ret_slot)
{
    if (writer->next == writer->end && writer->recycled.count == 0) {
        int r = refill(writer);
        if (r < 0)
            return r;
    }
    if (writer->recycled.count) {
        *ret_slot = chain_pop(writer->staging, &writer->recycled);
        return 1;
    }
    unsigned got = writer->end - writer->next;
    if (got > pages)
        got = pages;
    *ret_slot = writer->next;
    writer->next += got;
    return got;
}

bool staging_take_run(struct staging_writer *writer, unsigned pages, uint32_t *ret_slot)
{
    if (writer->next == writer->end && writer->recycled.count == 0 && refill(writer) < 0)
        return false;
    if (writer->end - writer->next < pages)
        return false;
    *ret_slot = writer->next;
    writer->next += pages;
    return true;
}

void staging_touch(struct staging_writer *writer, uint64_t position, uint64_t pages)
{
    for (uint64_t group = position / STAGE_GROUP_PAGES; group <= (position + pages - 1) / STAGE_GROUP_PAGES;
         group++)
        if (!atomic_load_explicit(&writer->stage->touched[group], memory_order_relaxed))
            atomic_store_explicit(&writer->stage->touched[group], 1, memory_order_relaxed);
}

void staging_put(struct staging_writer *writer, uint64_t position, uint32_t entry)
{
    uint32_t old = atomic_exchange_explicit(&writer->stage->index[position], entry, memory_order_acq_rel);
    writer->slots += (entry >= STAGE_SLOT) - (old >= STAGE_SLOT);
    writer->pages += (entry != STAGE_ABSENT) - (old != STAGE_ABSENT);
    if (old >= STAGE_SLOT)
        chain_push(writer->staging, &writer->recycled, old - STAGE_SLOT);
}

void staging_return(struct staging_writer *writer, uint32_t slot)
{
    chain_push(writer->staging, &writer->recycled, slot);
}

static void stage_clear(struct staging *staging, struct stage *stage)
{
    for (uint32_t group = 0; group < staging->groups; group++) {
        if (!atomic_load_explicit(&stage->touched[group], memory_order_relaxed))
            continue;
        atomic_store_explicit(&stage->touched[group], 0, memory_order_relaxed);
        memset((void *)&stage->index[(size_t)group * STAGE_GROUP_PAGES], STAGE_ABSENT,
               STAGE_GROUP_PAGES * sizeof *stage->index);
    }
    scope_lock(&staging->pool.lock);
    pool_give(&staging->pool, stage->chunks, stage->chunk_count);
    stage->chunk_count = 0;
    stage->recycled.count = 0;
    stage->slots = stage->pages = 0;
}

/* Half-used chunks belong to the stage that was filled. */
static void forget_leases(struct staging *staging)
{
    assert(staging->writers_out == 0);
    for (struct staging_writer *writer = staging->idle; writer; writer = writer->next_idle)
        writer->next = writer->end = 0;
}

void staging_turn(struct staging *staging)
{
    scope_lock(&staging->pool.lock);
    assert(!staging->pool.refill);
    forget_leases(staging);
    staging->filling = !staging->filling;
    staging->pool.refill = true;
}

void staging_drop(struct staging *staging)
{
    pthread_mutex_lock(&staging->pool.lock);
    forget_leases(staging);
    pthread_mutex_unlock(&staging->pool.lock);
    stage_clear(staging, &staging->stages[staging->filling]);
}

void staging_applied(struct staging *staging)
{
    struct stage *stage = staging_committed(staging);
    stage_clear(staging, stage);
    scope_lock(&staging->pool.lock);
    staging->pool.refill = false;
    pthread_cond_broadcast(&staging->pool.changed);
}

int staging_wait_applied(struct staging *staging)
{
    struct pool *pool = &staging->pool;
    scope_lock(&pool->lock);
    while (pool->refill && !pool->cancelled)
        pthread_cond_wait(&pool->changed, &pool->lock);
    if (pool->cancelled)
        return error_set(-ECANCELED, "waiting for the last commit to be applied: the session was given up");
    return 0;
}

uint64_t staging_committed_pages(struct staging *staging)
{
    scope_lock(&staging->pool.lock);
    return staging_committed(staging)->pages;
}

uint64_t staging_memory_bytes(struct staging *staging)
{
    struct pool *pool = &staging->pool;
    uint64_t groups = staging->groups;
    scope_lock(&pool->lock);
    return pool->resident_count * (uint64_t)pool_chunk_bytes(pool) + pool->chunk_count * 13ull +
           groups * 2 * (STAGE_GROUP_PAGES * sizeof(uint32_t) + 1) +
           staging->writer_count *
               (sizeof(struct staging_writer) + ((uint64_t)STAGING_SCRATCH_PAGES << VMM_PAGE_SHIFT));
}

void staging_use(struct staging *staging, uint64_t *ret_bytes, uint64_t *ret_peak_bytes)
{
    scope_lock(&staging->pool.lock);
    *ret_bytes = (staging->stages[0].slots + staging->stages[1].slots) << VMM_PAGE_SHIFT;
    *ret_peak_bytes = staging->slots_peak << VMM_PAGE_SHIFT;
}
