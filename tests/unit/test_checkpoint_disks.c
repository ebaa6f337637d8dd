/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/checkpoint_disks_kit.h"

#include "base/blockset.h"
#include "base/clock.h"

#include <errno.h>

static void everything_is_copied_first(void **state)
{
    (void)state;
    struct bench *bench = bench_new(DISKS_LOG_MIN, 0);
    write_disk(bench, 0, SIZE, 'x');
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_ZERO, BLOCK, 3 * BLOCK, NULL);
    assert_int_equal(disks_open(bench->disks), 0);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.disks, 1);
    assert_int_equal(stats.bytes, SIZE);
    assert_int_equal(stats.pending_bytes, SIZE);
    /* Without a session nothing is read and nothing logged. */
    write_disk(bench, 0, 512, 'y');
    wait_ms(20);
    stats = stats_of(bench);
    assert_int_equal(stats.pending_bytes, SIZE);
    assert_int_equal(stats.records, 0);
    assert_true(disks_behind(bench->disks));
    struct disk_records none = TAILQ_HEAD_INITIALIZER(none);
    assert_int_equal(disks_cut(bench->disks, true, &none), -ETIME);
    assert_text_has("disks must be copied first");

    disks_session(bench->disks);
    send_all(bench);
    stats = stats_of(bench);
    assert_int_equal(stats.copied_bytes, SIZE);
    assert_int_equal(stats.logged_bytes, 0);
    assert_int_equal(stats.pending_bytes, 0);
    /* Blocks 1 to 3 came as zeros. */
    assert_true(stats.records >= 3 && stats.log_peak_bytes < SIZE - 2 * BLOCK);
    bench_free(bench);
}

static void changes_keep_their_order(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    write_disk(bench, 512, 1024, 'b');
    write_disk(bench, 1024, 512, 'c');
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_DISCARD, 3 * BLOCK + 512, BLOCK, NULL);
    write_disk(bench, 3 * BLOCK + 1024, 512, 'd');
    write_disk(bench, SIZE - 512, 512, 'e');
    write_disk(bench, 0, 600 * 1024, 'f'); /* in three pieces */
    assert_int_equal(send_some(bench, false), 8);
    write_disk(bench, 0, 8192, 0); /* zeros need no data */
    assert_true(stats_of(bench).log_bytes < 512);
    assert_int_equal(send_some(bench, true), 1);
    assert_memory_equal(bench->copy, memory_guest_disk(bench->guest, 0), SIZE);
    committed(bench);
    write_disk(bench, 0, 512, 'g');
    assert_int_equal(send_some(bench, true), 1); /* numbered from 0 again: send_some() looks */
    bench_free(bench);
}

/* A change of a block while it is read: what was read is older, and must come first. */
static void a_change_overtakes_no_read(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 0);
    hold_reads(bench, true);
    disks_all_pending(bench->disks);
    bench->next = 0;
    disks_session(bench->disks);
    wait_read(bench); /* it has read blocks 0 to 3 and is slow to say so */
    write_disk(bench, 2 * BLOCK, 4096, 'n');
    write_disk(bench, 9 * BLOCK, 512, 'p');       /* still pending: no need to log it */
    assert_int_equal(send_some(bench, false), 0); /* the change waits behind the read's place */
    assert_true(disks_behind(bench->disks));
    assert_int_equal(stats_of(bench).logged_bytes, 4096);
    hold_reads(bench, false);
    send_all(bench);
    assert_int_equal(bench->copy[2 * BLOCK], 'n');
    bench_free(bench);
}

static void an_overflow_during_a_read(void **state)
{
    (void)state;
    struct bench *bench = bench_synced(DISKS_LOG_MIN, 1);
    hold_reads(bench, true);
    disks_all_pending(bench->disks);
    bench->next = 0;
    disks_session(bench->disks);
    wait_read(bench);
    for (unsigned i = 0; stats_of(bench).overflows == 0; i++)
        write_disk(bench, i % 4 * BLOCK, BLOCK, 'a' + (int)(i % 20));
    assert_int_equal(stats_of(bench).log_bytes, 0);
    write_disk(bench, 0, 512, 'z');
    assert_int_equal(stats_of(bench).log_bytes, 0);
    hold_reads(bench, false);
    send_all(bench);
    assert_int_equal(bench->copy[0], 'z');
    /* Caught up with: changes are logged again. */
    write_disk(bench, 0, 512, 'y');
    assert_int_equal(send_some(bench, true), 1);
    bench_free(bench);
}

/* A guest that wrote here and there, and a standby that has the rest of it. */
static struct bench *bench_comparing(void)
{
    struct bench *bench = bench_new(4u << 20, NS_PER_S);
    assert_int_equal(disks_open(bench->disks), 0);
    for (unsigned i = 0; i < 10; i++)
        write_disk(bench, i * BLOCK, BLOCK, 'a' + (int)i);
    write_disk(bench, 10 * BLOCK, 1536, 'z');
    memcpy(bench->copy, memory_guest_disk(bench->guest, 0), SIZE);
    disks_all_pending(bench->disks);
    disks_compare(bench->disks);
    disks_session(bench->disks);
    disks_abandon(bench->disks); /* a round that begins makes sure of that */
    return bench;
}

static void what_the_standby_has_is_not_sent(void **state)
{
    (void)state;
    struct bench *bench = bench_comparing();
    bench->copy[3 * BLOCK + 77] ^= 1; /* one bit */
    memset(bench->copy + 7 * BLOCK, 0, BLOCK);
    bench->copy[SIZE - 1] ^= 1; /* of the block that is cut short */
    disks_session(bench->disks);
    send_all(bench);
    struct disks_stats stats = stats_of(bench);
    assert_int_equal(stats.copied_bytes, SIZE);
    assert_int_equal(stats.known_bytes, 8 * BLOCK);
    assert_int_equal(bench->next, 3);
    assert_int_equal(bench->asked, 1);
    /* From here on it is a disk like any other; the next full copy compares nothing unless it is told to. */
    committed(bench);
    write_disk(bench, 2 * BLOCK, 512, 'n');
    send_all(bench);
    disks_all_pending(bench->disks);
    bench->next = 0;
    disks_session(bench->disks);
    send_all(bench);
    assert_int_equal(stats_of(bench).known_bytes, 8 * BLOCK);
    assert_int_equal(bench->asked, 1);
    bench_free(bench);
}

static unsigned look(struct bench *bench, const unsigned *at)
{
    pthread_mutex_lock(&bench->lock);
    unsigned value = *at;
    pthread_mutex_unlock(&bench->lock);
    return value;
}

/* The guest writes into a block of which the digest was given before, which is sent, and back again, which is
 * not: what is there again here is not what the standby has. */
static void what_was_touched_is_not_believed(void **state)
{
    (void)state;
    struct bench *bench = bench_comparing();
    disks_session(bench->disks);
    hold_reads(bench, true);
    while (!look(bench, &bench->ask_count))
        wait_ms(1);
    answer(bench); /* all of the disk: from here on the copier reads, and is held in blocks 0 to 3 */
    while (!look(bench, &bench->inside))
        wait_ms(1);
    write_disk(bench, 3 * BLOCK + 512, BLOCK, 'X'); /* blocks 3 (being read) and 4 (pending): logged */
    assert_int_equal(stats_of(bench).logged_bytes, BLOCK);
    write_disk(bench, 4 * BLOCK, BLOCK, 'e'); /* as it was; pending alone, so it is not logged */
    write_disk(bench, 6 * BLOCK, BLOCK, 'Y');
    assert_int_equal(stats_of(bench).logged_bytes, BLOCK);
    hold_reads(bench, false);
    send_all(bench);
    uint64_t known = stats_of(bench).known_bytes; /* all but 4 and 6, and 3 if it was read with the X */
    assert_true(known == SIZE - 2 * BLOCK || known == SIZE - 3 * BLOCK);
    bench_free(bench);
}

static void a_standby_that_does_not_say(void **state)
{
    (void)state;
    struct bench *bench = bench_comparing();
    memset(bench->copy, 0xee, sizeof bench->copy);
    disks_session(bench->disks);
    while (!look(bench, &bench->ask_count))
        wait_ms(1);
    /* Answers to other questions are none. */
    uint8_t digests[WIRE_DIGEST_BYTES] = {0};
    disks_sums(bench->disks, 0, 5, 1, digests);
    disks_sums(bench->disks, 7, 0, 1, digests);
    wait_ms(50);
    assert_int_equal(stats_of(bench).copied_bytes, 0);
    assert_true(disks_behind(bench->disks));
    uint64_t start_ns = clock_now_ns();
    while (disks_behind(bench->disks)) {
        send_some(bench, false);
        wait_ms(5);
        assert_true(clock_now_ns() < start_ns + 30 * NS_PER_S);
    }
    send_all(bench);
    assert_int_equal(stats_of(bench).known_bytes, 0);
    bench_free(bench);
}

static void block_sets(void **state)
{
    (void)state;
    struct blockset set, other;
    uint64_t first, blocks;
    assert_int_equal(blockset_init(&set, 1000), 0);
    assert_int_equal(blockset_init(&other, 1000), 0);
    assert_false(blockset_next(&set, 0, 4, &first, &blocks));
    blockset_add(&set, 60, 10);
    blockset_add(&set, 65, 2);
    blockset_add(&set, 999, 1);
    assert_int_equal(set.count, 11);
    assert_true(blockset_has_all(&set, 60, 10));
    assert_false(blockset_has_all(&set, 59, 2));
    assert_true(blockset_has_any(&set, 59, 2));
    assert_false(blockset_has_any(&set, 70, 929));
    assert_true(blockset_next(&set, 0, 4, &first, &blocks));
    assert_int_equal(first, 60);
    assert_int_equal(blocks, 4);
    assert_true(blockset_next(&set, 64, 100, &first, &blocks));
    assert_int_equal(first, 64);
    assert_int_equal(blocks, 6);
    assert_true(blockset_next(&set, 70, 100, &first, &blocks));
    assert_int_equal(first, 999);
    assert_int_equal(blocks, 1);
    blockset_remove(&set, 999, 1);
    assert_true(blockset_next(&set, 70, 100, &first, &blocks)); /* from the start */
    assert_int_equal(first, 60);
    blockset_add(&other, 0, 1000);
    assert_int_equal(other.count, 1000);
    blockset_merge(&set, &other);
    assert_int_equal(set.count, 1000);
    blockset_clear(&set);
    assert_int_equal(set.count, 0);
    blockset_merge(&other, &set);
    assert_int_equal(other.count, 1000);
    blockset_fini(&set);
    blockset_fini(&other);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(block_sets),
        cmocka_unit_test(everything_is_copied_first),
        cmocka_unit_test(changes_keep_their_order),
        cmocka_unit_test(a_change_overtakes_no_read),
        cmocka_unit_test(an_overflow_during_a_read),
        cmocka_unit_test(what_the_standby_has_is_not_sent),
        cmocka_unit_test(what_was_touched_is_not_believed),
        cmocka_unit_test(a_standby_that_does_not_say),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
