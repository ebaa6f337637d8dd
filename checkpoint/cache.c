/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/cache.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/vmm.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

/*
 * Theory of operation
 *
 * A page may live in the eight entries of one set. An entry's content is what the standby has: committed, or
 * staged by this very session's frames of the present epoch. It is exchanged when the page is encoded, since
 * only then are the bytes that go out fixed; whether they arrive shows when the epoch ends:
 *
 *      exchange ──► written = epoch ──► committed: epoch + 1, the entry is older than the present one: stays
 *                                   └─► abandoned: entries of the present epoch are freed
 *
 * So an entry that is overwritten in an epoch that fails is lost, not restored; the page goes whole once.
 *
 * Who must go when a set is full: a free entry first, else the one unused for the longest; but never one that
 * was used in this epoch or the last. Guests write the same pages again and again; when those of an epoch are
 * more than the cache holds, replacing the oldest would replace each page just before it is written again,
 * and no base would ever be found. Like this, as many as fit keep theirs.
 */

#define LOCKS_MAX 1024u

/* The compiler makes vector instructions of whatever width there is from this. */
typedef uint64_t block_words __attribute__((vector_size(64), aligned(1), may_alias));

static_assert(sizeof(block_words) == 64 && VMM_PAGE_BYTES / sizeof(block_words) == 64,
              "64 blocks of 64 bytes in a page");

int cache_init(struct cache *cache, uint64_t bytes, uint64_t pages)
{
    const uint64_t set_bytes = CACHE_WAYS * (VMM_PAGE_BYTES + sizeof(struct cache_entry));
    uint64_t sets = bytes / set_bytes, wanted = (pages + CACHE_WAYS - 1) / CACHE_WAYS;
    /* Pages fall into sets by chance: with room for each, a quarter more than that finds a place for nearly
     * all. */
    wanted += wanted / 4 + 1;
    if (sets > wanted)
        sets = wanted;
    if (sets == 0)
        sets = 1;
    *cache = (struct cache){.sets = (size_t)sets, .epoch = 1};
    cache->locks_count = sets < LOCKS_MAX ? (size_t)sets : LOCKS_MAX;
    cache->map_bytes = (size_t)sets * CACHE_WAYS * VMM_PAGE_BYTES;
    cache->memory_bytes = (size_t)(sets * set_bytes) + cache->locks_count * sizeof *cache->locks;
    cache->locks = calloc(cache->locks_count, sizeof *cache->locks);
    cache->entries = calloc((size_t)sets * CACHE_WAYS, sizeof *cache->entries);
    void *contents = mmap(NULL, cache->map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (contents != MAP_FAILED)
        cache->contents = contents;
    for (size_t i = 0; cache->locks && i < cache->locks_count; i++)
        pthread_mutex_init(&cache->locks[i], NULL);
    if (!cache->locks || !cache->entries || !cache->contents) {
        cache_fini(cache);
        return error_errno(-ENOMEM, "%llu bytes for copies of what the standby has",
                           (unsigned long long)(sets * set_bytes));
    }
    madvise(contents, cache->map_bytes, MADV_HUGEPAGE);
    return 0;
}

void cache_fini(struct cache *cache)
{
    for (size_t i = 0; cache->locks && i < cache->locks_count; i++)
        pthread_mutex_destroy(&cache->locks[i]);
    free(cache->locks);
    free(cache->entries);
    if (cache->contents)
        munmap(cache->contents, cache->map_bytes);
    *cache = (struct cache){0};
}

static size_t set_of(const struct cache *cache, uint32_t block, uint64_t page)
{
    uint64_t hash = (page + ((uint64_t)block << 40)) * 0x9e3779b97f4a7c15ull;
    return (size_t)((unsigned __int128)hash * cache->sets >> 64);
}

static struct cache_entry *find(struct cache *cache, size_t set, uint32_t block, uint64_t page)
{
    struct cache_entry *entry = &cache->entries[set * CACHE_WAYS];
    for (unsigned way = 0; way < CACHE_WAYS; way++, entry++)
        if (entry->written && entry->page == page && entry->block == block)
            return entry;
    return NULL;
}

/* An entry that may be taken, or NULL. */
static struct cache_entry *find_victim(struct cache *cache, size_t set)
{
    struct cache_entry *entry = &cache->entries[set * CACHE_WAYS], *oldest = NULL;
    for (unsigned way = 0; way < CACHE_WAYS; way++, entry++) {
        if (!entry->written)
            return entry;
        if (entry->used + 1 < cache->epoch && (!oldest || entry->used < oldest->used))
            oldest = entry;
    }
    return oldest;
}

static uint8_t *content_of(const struct cache *cache, const struct cache_entry *entry)
{
    return cache->contents + (size_t)(entry - cache->entries) * VMM_PAGE_BYTES;
}

static uint64_t differing(const uint8_t *a, const uint8_t *b)
{
    const block_words *x = (const block_words *)a, *y = (const block_words *)b;
    uint64_t changed = 0;
    for (unsigned i = 0; i < 64; i++) {
        block_words d = x[i] ^ y[i];
        uint64_t any = d[0] | d[1] | d[2] | d[3] | d[4] | d[5] | d[6] | d[7];
        changed |= (uint64_t)(any != 0) << i;
    }
    return changed;
}

/* Make `old` what `now` is; the differences go to `to`, unless that is NULL. */
static void take_over(uint8_t *old, const uint8_t *now, uint64_t changed, uint8_t *to)
{
    block_words *base = (block_words *)old, *xor = (block_words *)to;
    const block_words *content = (const block_words *)now;
    for (; changed; changed &= changed - 1) {
        unsigned i = (unsigned)__builtin_ctzll(changed);
        block_words fresh = content[i];
        if (to)
            *xor++ = base[i] ^ fresh;
        base[i] = fresh;
    }
}

enum cache_found cache_exchange(struct cache *cache, uint32_t block, uint64_t page, const uint8_t *content,
                                unsigned blocks_max, uint64_t *ret_changed, uint8_t *ret_blocks)
{
    size_t set = set_of(cache, block, page);
    scope_lock(&cache->locks[set % cache->locks_count]);
    struct cache_entry *entry = find(cache, set, block, page);
    if (!entry) {
        entry = find_victim(cache, set);
        if (entry) {
            *entry = (struct cache_entry){
                .page = page, .block = block, .written = cache->epoch, .used = cache->epoch};
            memcpy(content_of(cache, entry), content, VMM_PAGE_BYTES);
        }
        return CACHE_ABSENT;
    }
    uint8_t *base = content_of(cache, entry);
    uint64_t changed = differing(base, content);
    entry->used = cache->epoch;
    if (!changed)
        return CACHE_SAME; /* written when it was: a failed epoch takes nothing from it */
    entry->written = cache->epoch;
    bool near = (unsigned)__builtin_popcountll(changed) <= blocks_max;
    take_over(base, content, changed, near ? ret_blocks : NULL);
    *ret_changed = changed;
    return near ? CACHE_NEAR : CACHE_FAR;
}

void cache_drop(struct cache *cache, uint32_t block, uint64_t page)
{
    size_t set = set_of(cache, block, page);
    scope_lock(&cache->locks[set % cache->locks_count]);
    struct cache_entry *entry = find(cache, set, block, page);
    if (entry)
        entry->written = 0;
}

void cache_committed(struct cache *cache)
{
    cache->epoch++;
}

static void forget_from(struct cache *cache, uint64_t epoch)
{
    for (size_t i = 0; i < cache->sets * CACHE_WAYS; i++)
        if (cache->entries[i].written >= epoch)
            cache->entries[i].written = 0;
    cache->epoch++;
}

void cache_abandoned(struct cache *cache)
{
    forget_from(cache, cache->epoch);
}

void cache_clear(struct cache *cache)
{
    forget_from(cache, 1);
}
