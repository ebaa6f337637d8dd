/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/blockset.h"
#include "base/clock.h"
#include "base/fault.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/disks.h"
#include "vmm/memory/memory.h"
#include "wire/message.h"

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

/*
 * The log of changes on its own, before a guest whose reads the test can hold: what comes out of disks_cut(),
 * applied in order to a copy of the disk, must be the disk.
 */
#define BLOCK DISKS_BLOCK_BYTES
#define SIZE  (10 * BLOCK + 1536u) /* the last block is cut short */

struct bench {
    struct vmm vmm; /* first: the guest is this */
    struct vmm_ops ops;
    struct vmm *guest;
    struct disks *disks;
    uint8_t copy[SIZE]; /* the standby's disk */
    uint64_t next;      /* number of the next record */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool hold;       /* reads wait */
    unsigned inside; /* reads that wait, or waited */
    int read_result;
    unsigned lost;
    char why[128];
    struct ask {
        uint64_t first;
        uint32_t count;
    } asks[4]; /* of the standby, not answered yet */
    unsigned ask_count, asked;
};

static int bench_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    struct bench *bench = (struct bench *)vmm;
    int r = bench->guest->ops->disk_read(bench->guest, disk, offset, bytes, to);
    pthread_mutex_lock(&bench->lock);
    bench->inside++;
    pthread_cond_broadcast(&bench->changed);
    while (bench->hold)
        pthread_cond_wait(&bench->changed, &bench->lock);
    if (bench->read_result < 0)
        r = error_set(bench->read_result, "the medium is worn out");
    pthread_mutex_unlock(&bench->lock);
    return r;
}

static int bench_open(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct bench *bench = (struct bench *)vmm;
    return bench->guest->ops->disks_open(bench->guest, sink);
}

static void bench_close(struct vmm *vmm)
{
    struct bench *bench = (struct bench *)vmm;
    bench->guest->ops->disks_close(bench->guest);
}

static void on_lost(void *ctx, uint32_t disk, const char *why)
{
    struct bench *bench = ctx;
    assert_int_equal(disk, 0);
    pthread_mutex_lock(&bench->lock);
    bench->lost++;
    snprintf(bench->why, sizeof bench->why, "%s", why);
    pthread_cond_broadcast(&bench->changed);
    pthread_mutex_unlock(&bench->lock);
}

static void on_sums_wanted(void *ctx, uint32_t disk, uint64_t first, uint32_t count)
{
    struct bench *bench = ctx;
    assert_int_equal(disk, 0);
    pthread_mutex_lock(&bench->lock);
    assert_true(bench->ask_count < 4);
    bench->asks[bench->ask_count++] = (struct ask){first, count};
    bench->asked++;
    pthread_mutex_unlock(&bench->lock);
}

/* The standby says what its copy has. */
static void answer(struct bench *bench)
{
    uint8_t digests[WIRE_SUMS_MAX * WIRE_DIGEST_BYTES];
    pthread_mutex_lock(&bench->lock);
    struct ask ask = bench->asks[0];
    bool any = bench->ask_count;
    if (any)
        memmove(bench->asks, bench->asks + 1, --bench->ask_count * sizeof ask);
    pthread_mutex_unlock(&bench->lock);
    if (!any)
        return;
    for (uint32_t i = 0; i < ask.count; i++) {
        uint64_t at = (ask.first + i) * BLOCK, bytes = SIZE - at < BLOCK ? SIZE - at : BLOCK;
        assert_int_equal(wire_digest(bench->copy + at, bytes, digests + i * WIRE_DIGEST_BYTES), 0);
    }
    disks_sums(bench->disks, 0, ask.first, ask.count, digests);
}

static struct bench *bench_new(uint64_t log_bytes, uint64_t stall_ns)
{
    struct bench *bench = calloc(1, sizeof *bench);
    struct memory_options options = {.blocks = {{"ram", 16 * VMM_PAGE_BYTES}},
                                     .block_count = 1,
                                     .disks = {{"disk0", SIZE}},
                                     .disk_count = 1};
    pthread_mutex_init(&bench->lock, NULL);
    pthread_cond_init(&bench->changed, NULL);
    assert_int_equal(memory_guest_new(&bench->guest, &options), 0);
    bench->ops = (struct vmm_ops){
        .driver = "bench", .disks_open = bench_open, .disks_close = bench_close, .disk_read = bench_read};
    bench->vmm.ops = &bench->ops;
    struct vmm_description description;
    bench->guest->ops->describe(bench->guest, &description);
    struct disks_config config = {.log_bytes = log_bytes,
                                  .stall_ns = stall_ns,
                                  .lost = on_lost,
                                  .sums_wanted = on_sums_wanted,
                                  .ctx = bench};
    assert_int_equal(disks_new(&bench->disks, &bench->vmm, &description, &config), 0);
    memset(bench->copy, 0xee, sizeof bench->copy);
    return bench;
}

static void bench_free(struct bench *bench)
{
    disks_free(bench->disks);
    vmm_close(bench->guest);
    pthread_mutex_destroy(&bench->lock);
    pthread_cond_destroy(&bench->changed);
    free(bench);
}

static void write_disk(struct bench *bench, uint64_t offset, uint64_t bytes, int value)
{
    uint8_t *data = malloc(bytes);
    memset(data, value, bytes);
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_WRITE, offset, bytes, data);
    free(data);
}

static struct disks_stats stats_of(struct bench *bench)
{
    struct disks_stats stats;
    disks_get_stats(bench->disks, &stats);
    return stats;
}

static void wait_ms(unsigned ms)
{
    nanosleep(&(struct timespec){0, (long)ms * 1000000}, NULL);
}

/* Send what was logged: apply it to the copy. Returns the number of records. */
static unsigned send_some(struct bench *bench, bool capture)
{
    struct disk_records records = TAILQ_HEAD_INITIALIZER(records);
    const struct disk_record *record;
    unsigned count = 0;
    assert_int_equal(disks_cut(bench->disks, capture, &records), 0);
    assert_int_equal(disks_publish(bench->disks, &records), bench->next);
    TAILQ_FOREACH(record, &records, link)
    {
        assert_int_equal(record->disk, 0);
        assert_true(record->op != WIRE_DISK_RAW || record->bytes <= WIRE_DISK_BODY_MAX);
        assert_true(record->offset + record->bytes <= SIZE);
        if (record->op == WIRE_DISK_RAW)
            memcpy(bench->copy + record->offset, record->data, record->bytes);
        else
            memset(bench->copy + record->offset, 0, record->bytes);
        count++;
    }
    bench->next += count;
    disks_release(bench->disks, &records);
    return count;
}

static void send_all(struct bench *bench)
{
    while (disks_behind(bench->disks)) {
        answer(bench);
        send_some(bench, false);
        wait_ms(1);
    }
    send_some(bench, true);
    assert_memory_equal(bench->copy, memory_guest_disk(bench->guest, 0), SIZE);
    assert_int_equal(stats_of(bench).log_bytes, 0);
}

static void committed(struct bench *bench)
{
    disks_committed(bench->disks);
    bench->next = 0;
}

static void abandoned(struct bench *bench)
{
    disks_abandon(bench->disks);
    bench->next = 0;
}

/* Open, copied and committed: nothing is pending. */
static struct bench *bench_synced(uint64_t log_bytes, uint64_t stall_ns)
{
    struct bench *bench = bench_new(log_bytes, stall_ns);
    write_disk(bench, 3 * BLOCK, BLOCK, 'a');
    assert_int_equal(disks_open(bench->disks), 0);
    disks_session(bench->disks);
    send_all(bench);
    committed(bench);
    return bench;
}

static void hold_reads(struct bench *bench, bool hold)
{
    pthread_mutex_lock(&bench->lock);
    bench->hold = hold;
    bench->inside = 0;
    pthread_cond_broadcast(&bench->changed);
    pthread_mutex_unlock(&bench->lock);
}

static void wait_read(struct bench *bench)
{
    pthread_mutex_lock(&bench->lock);
    while (!bench->inside)
        pthread_cond_wait(&bench->changed, &bench->lock);
    pthread_mutex_unlock(&bench->lock);
}

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
        cmocka_unit_test(a_full_log_waits_then_overflows),
        cmocka_unit_test(a_wait_ends),
        cmocka_unit_test(a_pause_has_a_bound),
        cmocka_unit_test(an_abandoned_epoch_is_pending_again),
        cmocka_unit_test(what_was_cut_goes_back),
        cmocka_unit_test(what_the_standby_has_is_not_sent),
        cmocka_unit_test(what_was_touched_is_not_believed),
        cmocka_unit_test(a_standby_that_does_not_say),
        cmocka_unit_test(a_lost_disk_is_copied_anew),
        cmocka_unit_test(a_read_that_fails),
        cmocka_unit_test(a_change_that_cannot_be_logged),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
