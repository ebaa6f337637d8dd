/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "checkpoint/cache.h"
#include "checkpoint/delta.h"
#include "wire/wire.h"

#include <pthread.h>
#include <stdlib.h>

/* The copies of what the standby has, against a plain array that keeps everything. */

#define PAGE  WIRE_PAGE_BYTES
#define BLOCK WIRE_DELTA_BLOCK

static uint8_t blocks[PAGE];

static uint64_t next_random(uint64_t *state)
{
    uint64_t x = *state += 0x9e3779b97f4a7c15ull;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

static void fill(uint8_t *to, uint64_t seed)
{
    for (unsigned i = 0; i < PAGE; i += 8) {
        uint64_t word = next_random(&seed);
        memcpy(to + i, &word, sizeof word);
    }
}

static struct cache cache_new(uint64_t pages)
{
    struct cache cache;
    assert_int_equal(cache_init(&cache, pages * (PAGE + sizeof(struct cache_entry)), UINT32_MAX), 0);
    return cache;
}

static enum cache_found exchange(struct cache *cache, uint64_t page, const uint8_t *content)
{
    uint64_t changed;
    return cache_exchange(cache, 0, page, content, 64, &changed, blocks);
}

static void changes_are_found(void **state)
{
    (void)state;
    struct cache cache = cache_new(64);
    uint8_t before[PAGE], now[PAGE + 1];
    uint64_t changed = 0, random = 1;
    fill(before, 1);
    assert_int_equal(cache_exchange(&cache, 3, 9, before, 64, &changed, blocks), CACHE_ABSENT);
    assert_int_equal(cache_exchange(&cache, 3, 9, before, 64, &changed, blocks), CACHE_SAME);
    assert_int_equal(cache_exchange(&cache, 2, 9, before, 64, &changed, blocks), CACHE_ABSENT);
    for (unsigned round = 0; round < 2000; round++) {
        /* Content at any address: staging is aligned, but nothing says so. */
        uint8_t *content = now + round % 2;
        uint64_t expected = 0;
        memcpy(content, before, PAGE);
        for (unsigned i = (unsigned)next_random(&random) % 70; i > 0; i--) {
            unsigned at = (unsigned)next_random(&random) % PAGE;
            content[at] ^= (uint8_t)(1u << (at % 8));
        }
        for (unsigned i = 0; i < 64; i++)
            expected |= (uint64_t)(memcmp(before + i * BLOCK, content + i * BLOCK, BLOCK) != 0) << i;
        unsigned count = (unsigned)__builtin_popcountll(expected), most = (unsigned)next_random(&random) % 65;
        memset(blocks, 0xee, sizeof blocks);
        enum cache_found found = cache_exchange(&cache, 3, 9, content, most, &changed, blocks);
        assert_int_equal(found, count == 0 ? CACHE_SAME : count <= most ? CACHE_NEAR : CACHE_FAR);
        if (found == CACHE_NEAR) {
            assert_int_equal(changed, expected);
            for (unsigned i = 0, at = 0; i < 64; i++)
                if (expected >> i & 1)
                    for (unsigned k = 0; k < BLOCK; k++)
                        assert_int_equal(blocks[at++], before[i * BLOCK + k] ^ content[i * BLOCK + k]);
        }
        for (unsigned at = found == CACHE_NEAR ? count * BLOCK : 0; at < PAGE; at++)
            assert_int_equal(blocks[at], 0xee);
        memcpy(before, content, PAGE);
    }
    cache_fini(&cache);
    cache_fini(&cache);
}

static void what_an_epoch_wrote_ends_with_it(void **state)
{
    (void)state;
    struct cache cache = cache_new(64);
    uint8_t a[PAGE], b[PAGE];
    fill(a, 1);
    fill(b, 2);
    assert_int_equal(exchange(&cache, 1, a), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 2, a), CACHE_ABSENT);
    cache_abandoned(&cache);
    assert_int_equal(exchange(&cache, 1, a), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 2, a), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 3, a), CACHE_ABSENT);
    cache_committed(&cache);
    /* 1 changes, 2 is seen unchanged, 3 is left alone. */
    assert_int_equal(exchange(&cache, 1, b), CACHE_NEAR);
    assert_int_equal(exchange(&cache, 2, a), CACHE_SAME);
    cache_abandoned(&cache);
    assert_int_equal(exchange(&cache, 1, a), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 2, a), CACHE_SAME);
    assert_int_equal(exchange(&cache, 3, a), CACHE_SAME);
    cache_committed(&cache);
    cache_abandoned(&cache);
    assert_int_equal(exchange(&cache, 1, a), CACHE_SAME);

    cache_drop(&cache, 0, 1);
    cache_drop(&cache, 0, 77);
    cache_drop(&cache, 1, 2);
    assert_int_equal(exchange(&cache, 1, b), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 2, a), CACHE_SAME);
    cache_committed(&cache);
    cache_clear(&cache);
    for (uint64_t page = 1; page <= 3; page++)
        assert_int_equal(exchange(&cache, page, a), CACHE_ABSENT);
    cache_fini(&cache);
}

/* A third more pages than fit, all of them in every epoch: most of those that fit are found. When the guest
 * turns to others, they take the room. */
static void too_many_pages(void **state)
{
    (void)state;
    struct cache cache = cache_new(240);
    uint8_t content[PAGE] = {1};
    for (unsigned epoch = 0; epoch < 20; epoch++) {
        unsigned found = 0;
        content[0]++;
        for (uint64_t page = 0; page < 320; page++)
            found += exchange(&cache, page, content) == CACHE_NEAR;
        assert_int_equal(epoch == 0 ? found : 0, 0);
        if (epoch)
            assert_in_range(found, 180, 240);
        cache_committed(&cache);
    }
    for (unsigned epoch = 0; epoch < 4; epoch++) {
        unsigned found = 0;
        content[0]++;
        for (uint64_t page = 1000; page < 1100; page++)
            found += exchange(&cache, page, content) == CACHE_NEAR;
        if (epoch == 3)
            assert_in_range(found, 90, 100);
        cache_committed(&cache);
    }
    cache_fini(&cache);
}

static void memory_has_a_bound(void **state)
{
    (void)state;
    struct cache cache;
    for (uint64_t bytes = 1u << 20; bytes <= 64u << 20; bytes *= 4) {
        assert_int_equal(cache_init(&cache, bytes, UINT32_MAX), 0);
        assert_in_range(cache.memory_bytes, bytes * 95 / 100, bytes * 102 / 100);
        cache_fini(&cache);
    }
    /* A guest that is smaller than what may be used. */
    assert_int_equal(cache_init(&cache, 1ull << 40, 1000), 0);
    assert_in_range(cache.memory_bytes, 1000 * PAGE, 1400 * PAGE);
    uint8_t content[PAGE] = {1};
    unsigned kept = 0;
    for (uint64_t page = 0; page < 1000; page++)
        exchange(&cache, page, content);
    for (uint64_t page = 0; page < 1000; page++)
        kept += exchange(&cache, page, content) == CACHE_SAME;
    assert_in_range(kept, 990, 1000);
    cache_fini(&cache);
    assert_int_equal(cache_init(&cache, 1, 1), 0);
    assert_int_equal(exchange(&cache, 0, content), CACHE_ABSENT);
    assert_int_equal(exchange(&cache, 0, content), CACHE_SAME);
    cache_fini(&cache);
}

static void the_price_decides(void **state)
{
    (void)state;
    assert_int_equal(delta_blocks_max(1, 1), 63); /* 24 + 64 * 64 is more than the page */
    assert_int_equal(delta_blocks_max(1, 0.5), 64);
    assert_int_equal(delta_blocks_max(0.5, 1), 31);
    assert_int_equal(delta_blocks_max(0.25, 0.5), 31);
    assert_int_equal(delta_blocks_max(0.1, 0.1), 60);
    assert_int_equal(delta_blocks_max(0.005, 1), 0);
    assert_int_equal(delta_blocks_max(0, 1), 0);
    assert_int_equal(delta_blocks_max(0.01, 0), 4); /* nothing is believed to cost nothing */
}

/* Lanes: each page by one of them, sets by all. */
#define LANES      4u
#define LANE_PAGES 64u

struct lane {
    pthread_t thread;
    struct cache *cache;
    uint64_t number;
    uint8_t (*memory)[PAGE]; /* what this lane's pages are on the standby */
    unsigned near;
};

static void *run_lane(void *argument)
{
    struct lane *lane = argument;
    uint64_t random = lane->number;
    uint8_t now[PAGE], changes[PAGE];
    for (unsigned i = 0; i < 5000; i++) {
        uint64_t page = next_random(&random) % LANE_PAGES, changed;
        uint8_t *before = lane->memory[page];
        memcpy(now, before, PAGE);
        now[next_random(&random) % PAGE]++;
        switch (cache_exchange(lane->cache, 0, page * LANES + lane->number, now, 64, &changed, changes)) {
        case CACHE_NEAR:
            lane->near++;
            assert_int_equal(__builtin_popcountll(changed), 1);
            for (unsigned k = 0, at = (unsigned)__builtin_ctzll(changed) * BLOCK; k < BLOCK; k++)
                assert_int_equal(changes[k], before[at + k] ^ now[at + k]);
            break;
        case CACHE_ABSENT:
            break;
        default:
            fail();
        }
        if (i % 50 == 0)
            cache_drop(lane->cache, 0, page * LANES + lane->number);
        memcpy(before, now, PAGE);
    }
    return NULL;
}

static void lanes_at_once(void **state)
{
    (void)state;
    struct cache cache = cache_new(LANES * LANE_PAGES * 3 / 4);
    struct lane lanes[LANES];
    for (unsigned epoch = 0; epoch < 3; epoch++) {
        for (unsigned i = 0; i < LANES; i++) {
            if (epoch == 0)
                lanes[i] = (struct lane){.cache = &cache, .number = i, .memory = calloc(LANE_PAGES, PAGE)};
            assert_int_equal(pthread_create(&lanes[i].thread, NULL, run_lane, &lanes[i]), 0);
        }
        for (unsigned i = 0; i < LANES; i++)
            pthread_join(lanes[i].thread, NULL);
        cache_committed(&cache);
    }
    for (unsigned i = 0; i < LANES; i++) {
        assert_true(lanes[i].near > 1000);
        free(lanes[i].memory);
    }
    cache_fini(&cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(changes_are_found), cmocka_unit_test(what_an_epoch_wrote_ends_with_it),
        cmocka_unit_test(too_many_pages),    cmocka_unit_test(memory_has_a_bound),
        cmocka_unit_test(the_price_decides), cmocka_unit_test(lanes_at_once),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
