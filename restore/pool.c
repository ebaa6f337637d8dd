/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/pool.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <sys/mman.h>

/* A chunk is what a lane may hold half used, so it is small against the whole. */
#define CHUNK_SLOTS_MAX 512
#define CHUNKS_WANTED   64
/* Two slot numbers mean something else in a stage's index. */
#define SLOTS_MAX (UINT32_MAX - 2 * CHUNK_SLOTS_MAX)
/* Keeps memory whatever the latest epochs needed. */
#define KEEP_BYTES (16u << 20)

static int map_slots(struct pool *pool)
{
    size_t bytes = pool->chunk_count * pool_chunk_bytes(pool);
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (map == MAP_FAILED)
        return error_errno(-errno, "mapping %zu bytes of staging", bytes);
    pool->slots = map;
    pool->map_bytes = bytes;
    return 0;
}

static uint32_t kept_chunks(const struct pool *pool)
{
    uint32_t chunks = (uint32_t)(KEEP_BYTES / pool_chunk_bytes(pool));
    return chunks < pool->chunk_count ? chunks : pool->chunk_count;
}

int pool_init(struct pool *pool, uint64_t bytes)
{
    uint64_t slots = bytes >> VMM_PAGE_SHIFT;
    if (slots > SLOTS_MAX)
        slots = SLOTS_MAX;
    if (slots == 0)
        slots = 1;
    uint64_t chunk_slots = slots / CHUNKS_WANTED;
    if (chunk_slots > CHUNK_SLOTS_MAX)
        chunk_slots = CHUNK_SLOTS_MAX;
    if (chunk_slots == 0)
        chunk_slots = 1;

    *pool =
        (struct pool){.chunk_slots = (uint32_t)chunk_slots, .chunk_count = (uint32_t)(slots / chunk_slots)};
    pthread_mutex_init(&pool->lock, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pool->free = calloc(pool->chunk_count, sizeof *pool->free);
    pool->resident = calloc(pool->chunk_count, 1);
    if (!pool->free || !pool->resident)
        return error_set(-ENOMEM, "staging of %u chunks: out of memory", pool->chunk_count);
    for (uint32_t i = 0; i < pool->chunk_count; i++)
        pool->free[i] = pool->chunk_count - 1 - i;
    pool->free_count = pool->chunk_count;
    return map_slots(pool);
}

void pool_fini(struct pool *pool)
{
    if (!pool->chunk_slots)
        return;
    atomic_store(&pool->ending, true);
    if (pool->warming)
        pthread_join(pool->warmer, NULL);
    pool->warming = false;
    if (pool->slots)
        munmap(pool->slots, pool->map_bytes);
    free(pool->free);
    free(pool->resident);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->lock);
}

bool pool_take(struct pool *pool, uint32_t *ret_chunk, bool *ret_fresh)
{
    if (pool->free_count == 0)
        return false;
    uint32_t chunk = pool->free[--pool->free_count];
    *ret_fresh = !pool->resident[chunk];
    if (*ret_fresh) {
        pool->resident[chunk] = 1;
        pool->resident_count++;
    }
    *ret_chunk = chunk;
    return true;
}

/* Give memory of free chunks back to the kernel, coldest first, until `keep` chunks hold some. */
static void pool_trim(struct pool *pool, uint32_t keep)
{
    for (uint32_t i = 0; i < pool->free_count && pool->resident_count > keep; i++) {
        uint32_t chunk = pool->free[i];
        if (!pool->resident[chunk])
            continue;
        if (madvise(pool->slots + chunk * pool_chunk_bytes(pool), pool_chunk_bytes(pool), MADV_DONTNEED) < 0)
            return;
        pool->resident[chunk] = 0;
        pool->resident_count--;
    }
}

void pool_give(struct pool *pool, const uint32_t *chunks, uint32_t count)
{
    assert(count <= pool->chunk_count - pool->free_count);
    /* The first taken comes out on top again. */
    for (uint32_t i = count; i > 0; i--)
        pool->free[pool->free_count++] = chunks[i - 1];
    pool_trim(pool, count + pool->given_before + kept_chunks(pool));
    pool->given_before = count;
    pthread_cond_broadcast(&pool->changed);
}

void pool_cancel(struct pool *pool)
{
    scope_lock(&pool->lock);
    pool->cancelled = true;
    pthread_cond_broadcast(&pool->changed);
}

void pool_reopen(struct pool *pool)
{
    scope_lock(&pool->lock);
    pool->cancelled = false;
}

void pool_populate(struct pool *pool, uint32_t chunk)
{
    size_t bytes = pool_chunk_bytes(pool);
    (void)madvise(pool->slots + chunk * bytes, bytes, MADV_POPULATE_WRITE);
}

static bool warm_next(struct pool *pool, uint32_t chunk)
{
    scope_lock(&pool->lock);
    if (pool->resident[chunk])
        return false;
    pool->resident[chunk] = 1;
    pool->resident_count++;
    return true;
}

static void *warm_kept(void *argument)
{
    struct pool *pool = argument;
    for (uint32_t i = 0; i < kept_chunks(pool) && !atomic_load(&pool->ending); i++)
        if (warm_next(pool, i))
            pool_populate(pool, i);
    return NULL;
}

void pool_warm(struct pool *pool)
{
    if (atomic_load_explicit(&pool->warmed, memory_order_relaxed) || atomic_exchange(&pool->warmed, true))
        return;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    pool->warming = pthread_create(&pool->warmer, NULL, warm_kept, pool) == 0;
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (pool->warming)
        pthread_setname_np(pool->warmer, "staging");
}
