/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/checkpoint_disks_kit.h"

#include "base/clock.h"
#include "base/fault.h"

#include <errno.h>

static void a_full_log_waits_then_overflows(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 50 * NS_PER_MS);
    hold_reads(bench, true);
    unsigned fit = 0;
    for (; stats_of(bench).log_bytes + BLOCK + 200 < DISKS_LOG_MIN; fit++)
        write_disk(bench, fit % 8 * BLOCK, BLOCK, 'a' + (int)(fit % 20));
    assert_int_equal(stats_of(bench).stalls, 0);
    uint64_t start_ns = clock_now_ns();
    write_disk(bench, 8 * BLOCK, BLOCK, 'q');
    uint64_t waited_ns = clock_now_ns() - start_ns;
    assert_true(waited_ns >= 49 * NS_PER_MS && waited_ns < 5 * NS_PER_S);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.overflows, 1);
    assert_int_equal(stats.stalls, 1);
    assert_true(stats.stall_ns >= 49 * NS_PER_MS);
    assert_true(disks_behind(bench->disks));
    /* No further waiting before a round has come. */
    start_ns = clock_now_ns();
    for (unsigned i = 0; i < 40; i++)
        write_disk(bench, i % 8 * BLOCK, BLOCK, 'A' + (int)(i % 20));
    assert_int_equal(stats_of(bench).stalls, 1);
    hold_reads(bench, false);
    send_all(bench);
    bench_free(bench);
}

struct late_writer {
    struct bench *bench;
    uint64_t took_ns;
};

static void *write_late(void *argument)
{
    struct late_writer *late = argument;
    uint64_t start_ns = clock_now_ns();
    write_disk(late->bench, 8 * BLOCK, BLOCK, 'q');
    late->took_ns = clock_now_ns() - start_ns;
    return NULL;
}

static void fill_log(struct bench *bench)
{
    for (unsigned i = 0; stats_of(bench).log_bytes + BLOCK + 200 < DISKS_LOG_MIN; i++)
        write_disk(bench, i % 8 * BLOCK, BLOCK, 'a' + (int)(i % 20));
}

/* What ends a wait before its time: room, a pause, a session that is over. */
static void a_wait_ends(void **state)
{
    (void)state;
    for (unsigned way = 0; way < 4; way++) {
        struct bench *bench = bench_synced(DISKS_LOG_MIN, 60 * NS_PER_S);
        struct late_writer late = {.bench = bench};
        pthread_t thread;
        fill_log(bench);
        assert_int_equal(pthread_create(&thread, NULL, write_late, &late), 0);
        wait_ms(20);
        if (way == 0)
            send_some(bench, false);
        else if (way == 1)
            disks_pausing(bench->disks, true);
        else if (way == 2)
            disks_cancel(bench->disks);
        else
            abandoned(bench);
        pthread_join(thread, NULL);
        assert_true(late.took_ns < 10 * NS_PER_S);
        struct disks_stats stats = stats_of(bench);
        assert_int_equal(stats.overflows, 0);
        assert_int_equal(stats.pending_bytes, way == 2 ? BLOCK : way == 3 ? 9 * BLOCK : 0);
        disks_pausing(bench->disks, false);
        disks_session(bench->disks);
        send_all(bench);
        bench_free(bench);
    }
}

/* In a pause nothing waits, and yet there is a bound. */
static void a_pause_has_a_bound(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 60 * NS_PER_S);
    hold_reads(bench, true);
    disks_pausing(bench->disks, true);
    for (unsigned i = 0; i < 100; i++)
        write_disk(bench, i % 8 * BLOCK, BLOCK, 'a' + (int)(i % 20));
    disks_pausing(bench->disks, false);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.overflows, 1);
    assert_int_equal(stats.stalls, 0);
    assert_true(stats.log_peak_bytes > DISKS_LOG_MIN && stats.log_peak_bytes <= 2 * DISKS_LOG_MIN);
    hold_reads(bench, false);
    send_all(bench);
    bench_free(bench);
}

static void an_abandoned_epoch_is_pending_again(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    write_disk(bench, 0, 512, 'a');
    send_some(bench, false); /* sent, and not acknowledged */
    write_disk(bench, 2 * BLOCK + 512, BLOCK, 'b');
    struct disk_records cut = TAILQ_HEAD_INITIALIZER(cut);
    assert_int_equal(disks_cut(bench->disks, true, &cut), 0);
    write_disk(bench, 5 * BLOCK, 512, 'c');
    disks_uncut(bench->disks, &cut);
    assert_true(TAILQ_EMPTY(&cut));
    abandoned(bench);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.pending_bytes, 4 * BLOCK);
    assert_int_equal(stats.log_bytes, 0);
    write_disk(bench, 9 * BLOCK, 512, 'd');
    assert_int_equal(stats_of(bench).pending_bytes, 5 * BLOCK);
    memset(bench->copy, 0, BLOCK); /* the standby never took it */
    disks_session(bench->disks);
    send_all(bench);
    committed(bench);
    /* What is committed is not pending after the next loss. */
    write_disk(bench, 7 * BLOCK, 512, 'e');
    abandoned(bench);
    assert_int_equal(stats_of(bench).pending_bytes, BLOCK);
    bench_free(bench);
}

/* The order is kept when a capture is given up before anything was sent. */
static void what_was_cut_goes_back(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    write_disk(bench, 0, 512, 'a');
    write_disk(bench, 0, 1024, 'b');
    struct disk_records cut = TAILQ_HEAD_INITIALIZER(cut);
    assert_int_equal(disks_cut(bench->disks, true, &cut), 0);
    write_disk(bench, 512, 512, 'c');
    disks_uncut(bench->disks, &cut);
    assert_int_equal(send_some(bench, true), 3);
    assert_memory_equal(bench->copy, memory_guest_disk(bench->guest, 0), SIZE);
    bench_free(bench);
}

static void a_lost_disk_is_copied_anew(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    memory_guest_disk_lose(bench->guest, 0);
    assert_int_equal(bench->lost, 1);
    assert_string_equal(bench->why, "lost on purpose");
    write_disk(bench, 4 * BLOCK, 512, 'u'); /* not told */
    wait_ms(20);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.lost, 1);
    assert_int_equal(stats.pending_bytes, SIZE); /* what is not told of is not read either */
    assert_true(disks_behind(bench->disks));
    assert_int_equal(disks_repair(bench->disks), 0);
    send_all(bench);
    assert_int_equal(stats_of(bench).lost, 0);
    write_disk(bench, 0, 512, 'v');
    assert_int_equal(send_some(bench, true), 1);
    bench_free(bench);
}

static void a_read_that_fails(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    bench->read_result = -EIO;
    disks_all_pending(bench->disks);
    bench->next = 0;
    disks_session(bench->disks);
    pthread_mutex_lock(&bench->lock);
    while (!bench->lost)
        pthread_cond_wait(&bench->changed, &bench->lock);
    bench->read_result = 0;
    pthread_mutex_unlock(&bench->lock);
    assert_string_equal(bench->why, "the medium is worn out");
    wait_ms(20);
    assert_int_equal(bench->lost, 1);
    assert_int_equal(stats_of(bench).pending_bytes, SIZE);
    assert_int_equal(stats_of(bench).log_bytes, 0);
    assert_int_equal(disks_repair(bench->disks), 0);
    send_all(bench);
    bench_free(bench);
}

static void a_change_that_cannot_be_logged(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    hold_reads(bench, true);
    assert_int_equal(fault_arm("disk-change=error"), 0);
    write_disk(bench, BLOCK - 512, 1024, 'a');
    assert_int_equal(stats_of(bench).logged_bytes, 0);
    assert_true(disks_behind(bench->disks));
    hold_reads(bench, false);
    send_all(bench);
    bench_free(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_full_log_waits_then_overflows),
        cmocka_unit_test(a_wait_ends),
        cmocka_unit_test(a_pause_has_a_bound),
        cmocka_unit_test(an_abandoned_epoch_is_pending_again),
        cmocka_unit_test(what_was_cut_goes_back),
        cmocka_unit_test(a_lost_disk_is_copied_anew),
        cmocka_unit_test(a_read_that_fails),
        cmocka_unit_test(a_change_that_cannot_be_logged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
