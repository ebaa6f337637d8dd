/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/restore_kit.h"

#include <pthread.h>
#include <semaphore.h>

/*
 * Four lanes fill an epoch while the owner applies the one before, as in life: the primary sends epoch n + 1
 * as soon as n is acknowledged. Rounds overlap in pages (one replaces the other's), staging is small enough
 * that lanes wait for the apply now and then, and one page in each round comes on all lanes at once.
 */
#define LANES  4
#define EPOCHS 150
#define ROUNDS 3

struct thread {
    pthread_t thread;
    struct kit *kit;
    struct kit_lane lane;
    struct message_totals totals;
    unsigned number;
    uint64_t random;
    pthread_barrier_t *barrier;
};

static uint64_t epoch_now;
static uint32_t round_now;
static bool over;
static atomic_int failures;

/* Each lane has its own pages, so the model needs no lock; the last two pages of block 1 are everybody's, but
 * with the same content for all. */
static void send_one(struct thread *thread)
{
    struct kit *kit = thread->kit;
    uint64_t share = kit_pages[0] / LANES, from = share * thread->number;
    kit_frame(&thread->lane, 0);
    for (uint64_t page = from + kit_random(&thread->random) % 8; page + 4 < from + share; page += 60) {
        uint8_t encoding = (uint8_t)(kit_random(&thread->random) % 3);
        uint32_t pages = 1 + kit_random(&thread->random) % 4;
        for (uint32_t i = 0; i < pages; i++) {
            uint64_t seed = kit_random(&thread->random);
            memset(kit_page(kit, 0, page + i), 0, VMM_PAGE_BYTES);
            if (encoding == WIRE_RUN_LZ4)
                memcpy(kit_page(kit, 0, page + i) + 64, &seed, sizeof seed);
            else if (encoding == WIRE_RUN_RAW)
                kit_fill(kit_page(kit, 0, page + i), seed);
        }
        kit_run_of(&thread->lane, page, pages, encoding, kit_page(kit, 0, page));
    }
    if (restore_pages(kit->restore, kit_seal(&thread->lane, epoch_now, round_now, &thread->totals)) < 0)
        atomic_fetch_add(&failures, 1);
    kit_frame(&thread->lane, 1);
    kit_run_of(&thread->lane, 128, 2, WIRE_RUN_RAW, kit_page(kit, 1, 128));
    if (restore_pages(kit->restore, kit_seal(&thread->lane, epoch_now, round_now, &thread->totals)) < 0)
        atomic_fetch_add(&failures, 1);
}

static void *lane_thread(void *argument)
{
    struct thread *thread = argument;
    for (;;) {
        pthread_barrier_wait(thread->barrier);
        if (over)
            return NULL;
        send_one(thread);
        pthread_barrier_wait(thread->barrier);
    }
}

static struct restore *applying;
static sem_t apply_wanted, apply_done;
static atomic_bool stop_applying;

static void *owner_thread(void *argument)
{
    (void)argument;
    for (;;) {
        sem_wait(&apply_wanted);
        if (atomic_load(&stop_applying))
            return NULL;
        if (restore_apply(applying) < 0)
            atomic_fetch_add(&failures, 1);
        sem_post(&apply_done);
    }
}

static void lanes_and_owner(bool unmapped)
{
    struct kit kit;
    struct thread threads[LANES] = {0};
    pthread_barrier_t barrier;
    pthread_t owner;
    /* An epoch has up to 150 different pages here, and each lane may hold a chunk. */
    kit_open(&kit, 320 << VMM_PAGE_SHIFT, unmapped);
    kit_first_commit(&kit);
    assert_int_equal(pthread_barrier_init(&barrier, NULL, LANES + 1), 0);
    sem_init(&apply_wanted, 0, 0);
    sem_init(&apply_done, 0, 1);
    applying = kit.restore;
    over = false;
    atomic_store(&stop_applying, false);
    assert_int_equal(pthread_create(&owner, NULL, owner_thread, NULL), 0);
    for (unsigned i = 0; i < LANES; i++) {
        threads[i] = (struct thread){.kit = &kit, .number = i, .random = i + 100, .barrier = &barrier};
        kit_lane_open(&threads[i].lane);
        assert_int_equal(pthread_create(&threads[i].thread, NULL, lane_thread, &threads[i]), 0);
    }
    for (unsigned epoch = 0; epoch < EPOCHS; epoch++) {
        for (unsigned round = 0; round < ROUNDS; round++) {
            kit_fill(kit_page(&kit, 1, 128), epoch * ROUNDS + round);
            kit_fill(kit_page(&kit, 1, 129), epoch * ROUNDS + round + 999);
            epoch_now = kit.epoch;
            round_now = kit.round;
            for (unsigned i = 0; i < LANES; i++)
                threads[i].totals = (struct message_totals){0};
            pthread_barrier_wait(&barrier);
            pthread_barrier_wait(&barrier);
            for (unsigned i = 0; i < LANES; i++) {
                kit.totals.frames += threads[i].totals.frames;
                kit.totals.pages += threads[i].totals.pages;
                kit.totals.bytes += threads[i].totals.bytes;
                kit.totals.sum += threads[i].totals.sum;
            }
            if (round + 1 < ROUNDS) {
                assert_int_equal(kit_expect_round(&kit), 0);
                assert_int_equal(kit.done.code, 0);
            }
        }
        /* The former epoch must be in the guest before this one is committed. */
        sem_wait(&apply_done);
        kit_commit(&kit);
        sem_post(&apply_wanted);
    }
    sem_wait(&apply_done);
    over = true;
    pthread_barrier_wait(&barrier);
    for (unsigned i = 0; i < LANES; i++) {
        pthread_join(threads[i].thread, NULL);
        kit_lane_close(&threads[i].lane);
    }
    atomic_store(&stop_applying, true);
    sem_post(&apply_wanted);
    pthread_join(owner, NULL);
    pthread_barrier_destroy(&barrier);
    assert_int_equal(atomic_load(&failures), 0);
    kit_assert_taken_over(&kit, kit.epoch - 1);
    kit_close(&kit);
}

static void test_lanes_and_owner(void **state)
{
    (void)state;
    lanes_and_owner(false);
    lanes_and_owner(true);
}

/* Lanes that are inside, or waiting, when the session is given up: all come out, and what is committed stays.
 */
static void *hammer(void *argument)
{
    struct thread *thread = argument;
    for (;;) {
        uint8_t page[VMM_PAGE_BYTES];
        kit_fill(page, kit_random(&thread->random));
        kit_frame(&thread->lane, 0);
        kit_run_of(&thread->lane, kit_random(&thread->random) % kit_pages[0], 1, WIRE_RUN_RAW, page);
        int r = restore_pages(thread->kit->restore,
                              kit_seal(&thread->lane, thread->kit->epoch, 0, &thread->totals));
        if (r < 0) {
            if (r != -ECANCELED && r != -ENOSPC)
                atomic_fetch_add(&failures, 1);
            return NULL;
        }
    }
}

static void test_abort_from_outside(void **state)
{
    (void)state;
    struct kit kit;
    struct thread threads[LANES] = {0};
    kit_open(&kit, 0, false);
    kit_first_commit(&kit);
    for (unsigned i = 0; i < 40; i++) {
        kit_session(&kit, 2);
        for (unsigned lane = 0; lane < LANES; lane++) {
            threads[lane] = (struct thread){.kit = &kit, .random = i * LANES + lane};
            kit_lane_open(&threads[lane].lane);
            assert_int_equal(pthread_create(&threads[lane].thread, NULL, hammer, &threads[lane]), 0);
        }
        struct restore_stats stats;
        do
            restore_get_stats(kit.restore, &stats);
        while (stats.staged_bytes < (i + 1) * 8 * VMM_PAGE_BYTES);
        restore_abort(kit.restore);
        for (unsigned lane = 0; lane < LANES; lane++) {
            pthread_join(threads[lane].thread, NULL);
            kit_lane_close(&threads[lane].lane);
        }
    }
    assert_int_equal(atomic_load(&failures), 0);
    kit_assert_taken_over(&kit, 1);
    kit_close(&kit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_lanes_and_owner),
        cmocka_unit_test(test_abort_from_outside),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
