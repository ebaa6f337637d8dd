/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_CHECKPOINT_DISKS_KIT_H
#define UNDERSTUDY_TESTS_UNIT_CHECKPOINT_DISKS_KIT_H

#include "tests/unit/unit.h"

#include "checkpoint/disks.h"
#include "vmm/memory/memory.h"
#include "wire/message.h"

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

static inline int bench_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
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

static inline int bench_open(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct bench *bench = (struct bench *)vmm;
    return bench->guest->ops->disks_open(bench->guest, sink);
}

static inline void bench_close(struct vmm *vmm)
{
    struct bench *bench = (struct bench *)vmm;
    bench->guest->ops->disks_close(bench->guest);
}

static inline void on_lost(void *ctx, uint32_t disk, const char *why)
{
    struct bench *bench = ctx;
    assert_int_equal(disk, 0);
    pthread_mutex_lock(&bench->lock);
    bench->lost++;
    snprintf(bench->why, sizeof bench->why, "%s", why);
    pthread_cond_broadcast(&bench->changed);
    pthread_mutex_unlock(&bench->lock);
}

static inline void on_sums_wanted(void *ctx, uint32_t disk, uint64_t first, uint32_t count)
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
static inline void answer(struct bench *bench)
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

static inline struct bench *bench_new(uint64_t log_bytes, uint64_t stall_ns)
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

static inline void bench_free(struct bench *bench)
{
    disks_free(bench->disks);
    vmm_close(bench->guest);
    pthread_mutex_destroy(&bench->lock);
    pthread_cond_destroy(&bench->changed);
    free(bench);
}

static inline void write_disk(struct bench *bench, uint64_t offset, uint64_t bytes, int value)
{
    uint8_t *data = malloc(bytes);
    memset(data, value, bytes);
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_WRITE, offset, bytes, data);
    free(data);
}

static inline struct disks_stats stats_of(struct bench *bench)
{
    struct disks_stats stats;
    disks_get_stats(bench->disks, &stats);
    return stats;
}

static inline void wait_ms(unsigned ms)
{
    nanosleep(&(struct timespec){0, (long)ms * 1000000}, NULL);
}

/* Send what was logged: apply it to the copy. Returns the number of records. */
static inline unsigned send_some(struct bench *bench, bool capture)
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

static inline void send_all(struct bench *bench)
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

static inline void committed(struct bench *bench)
{
    disks_committed(bench->disks);
    bench->next = 0;
}

static inline void abandoned(struct bench *bench)
{
    disks_abandon(bench->disks);
    bench->next = 0;
}

/* Open, copied and committed: nothing is pending. */
static inline struct bench *bench_synced(uint64_t log_bytes, uint64_t stall_ns)
{
    struct bench *bench = bench_new(log_bytes, stall_ns);
    write_disk(bench, 3 * BLOCK, BLOCK, 'a');
    assert_int_equal(disks_open(bench->disks), 0);
    disks_session(bench->disks);
    send_all(bench);
    committed(bench);
    return bench;
}

static inline void hold_reads(struct bench *bench, bool hold)
{
    pthread_mutex_lock(&bench->lock);
    bench->hold = hold;
    bench->inside = 0;
    pthread_cond_broadcast(&bench->changed);
    pthread_mutex_unlock(&bench->lock);
}

static inline void wait_read(struct bench *bench)
{
    pthread_mutex_lock(&bench->lock);
    while (!bench->inside)
        pthread_cond_wait(&bench->changed, &bench->lock);
    pthread_mutex_unlock(&bench->lock);
}

#endif
