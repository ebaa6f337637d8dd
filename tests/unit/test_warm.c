/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/clock.h"
#include "checkpoint/copier.h"
#include "restore/pool.h"
#include "vmm/memory/memory.h"

#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

/* Memory that is touched before it is needed, beside what goes on. */

#define BYTES (48u << 20)

static uint64_t resident(uint8_t *memory, size_t bytes)
{
    static unsigned char pages[BYTES / VMM_PAGE_BYTES];
    uint64_t count = 0;
    assert_int_equal(mincore(memory, bytes, pages), 0);
    for (size_t i = 0; i < bytes / VMM_PAGE_BYTES; i++)
        count += pages[i] & 1;
    return count * VMM_PAGE_BYTES;
}

static void wait_resident(uint8_t *memory, size_t bytes)
{
    uint64_t by_ns = clock_now_ns() + 60 * NS_PER_S;
    while (resident(memory, bytes) < bytes) {
        assert_true(clock_now_ns() < by_ns);
        usleep(1000);
    }
}

static uint8_t *map(size_t bytes)
{
    uint8_t *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(memory != MAP_FAILED);
    return memory;
}

static void copier_touches_and_leaves_what_is_there(void **state)
{
    (void)state;
    uint8_t *a = map(BYTES), *b = map(BYTES);
    struct copier copier;
    assert_int_equal(copier_init(&copier), 0);
    memset(b + BYTES - 100, 'x', 100);
    copier_warm(&copier, a, BYTES);
    copier_warm(&copier, b, BYTES);
    a[5] = 'y'; /* beside it */
    wait_resident(a, BYTES);
    wait_resident(b, BYTES);
    assert_int_equal(a[5], 'y');
    for (unsigned i = BYTES - 100; i < BYTES; i++)
        assert_int_equal(b[i], 'x');
    assert_int_equal(b[0], 0);
    copier_fini(&copier);
    munmap(a, BYTES);
    munmap(b, BYTES);
}

/* A capture has the helper although much is cold, and whoever ends does not wait for all of it. */
static void copier_copies_meanwhile(void **state)
{
    (void)state;
    enum { PAGES = 2 * COPIER_HELP_PAGES };
    struct vmm *guest;
    struct memory_options options = {.blocks = {{"ram", (uint64_t)PAGES * VMM_PAGE_BYTES}}, .block_count = 1};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    struct vmm_description description;
    guest->ops->describe(guest, &description);
    uint64_t *words = memory_guest_block(guest, 0);
    for (unsigned page = 0; page < PAGES; page++)
        words[page * (VMM_PAGE_BYTES / sizeof *words)] = page + 1;
    struct pageset set;
    assert_int_equal(pageset_init(&set, &description), 0);
    pageset_fill(&set);
    for (unsigned i = 0; i < 5; i++) {
        uint8_t *cold = map(1u << 30), *to = map((size_t)PAGES * VMM_PAGE_BYTES);
        struct copier copier;
        assert_int_equal(copier_init(&copier), 0);
        copier_warm(&copier, cold, 1u << 30);
        struct copy_job job = {.source = guest,
                               .guest = &description,
                               .set = &set,
                               .pages = PAGES,
                               .to = to,
                               .deadline_ns = UINT64_MAX};
        assert_int_equal(copier_run(&copier, &job), 0);
        assert_memory_equal(to, words, (size_t)PAGES * VMM_PAGE_BYTES);
        copier_fini(&copier);
        munmap(cold, 1u << 30);
        munmap(to, (size_t)PAGES * VMM_PAGE_BYTES);
    }
    pageset_fini(&set);
    vmm_close(guest);
}

static void pool_has_its_first_chunks(void **state)
{
    (void)state;
    struct pool pool;
    assert_int_equal(pool_init(&pool, 256u << 20), 0);
    assert_int_equal(resident(pool.slots, BYTES), 0);
    pool_warm(&pool);
    pool_warm(&pool);
    wait_resident(pool.slots, 16u << 20);
    pthread_mutex_lock(&pool.lock);
    uint32_t chunks[100];
    for (unsigned i = 0; i < 100; i++) {
        bool fresh;
        assert_true(pool_take(&pool, &chunks[i], &fresh));
        assert_true(fresh == (i >= (16u << 20) / pool_chunk_bytes(&pool)));
    }
    assert_int_equal(pool.resident_count, 100);
    /* What was warmed stays, the rest goes when it is not wanted. */
    pool_give(&pool, chunks, 100);
    pool_give(&pool, NULL, 0);
    pool_give(&pool, NULL, 0);
    assert_int_equal(pool.resident_count * pool_chunk_bytes(&pool), 16u << 20);
    pthread_mutex_unlock(&pool.lock);
    pool_fini(&pool);
}

static void pool_ends_while_it_is_warmed(void **state)
{
    (void)state;
    for (unsigned i = 0; i < 20; i++) {
        struct pool pool;
        assert_int_equal(pool_init(&pool, i % 2 ? 256u << 20 : 3 * VMM_PAGE_BYTES), 0);
        pool_warm(&pool);
        pthread_mutex_lock(&pool.lock);
        uint32_t chunk;
        bool fresh;
        assert_true(pool_take(&pool, &chunk, &fresh));
        assert_true(pool.resident_count <= pool.chunk_count);
        pthread_mutex_unlock(&pool.lock);
        pool_fini(&pool);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(copier_touches_and_leaves_what_is_there),
        cmocka_unit_test(copier_copies_meanwhile),
        cmocka_unit_test(pool_has_its_first_chunks),
        cmocka_unit_test(pool_ends_while_it_is_warmed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
