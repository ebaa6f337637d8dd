/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_RESTORE_DISKS_KIT_H
#define UNDERSTUDY_TESTS_UNIT_RESTORE_DISKS_KIT_H

#include "tests/unit/unit.h"

#include "base/scope.h"
#include "restore/restore.h"
#include "vmm/memory/memory.h"

#include <limits.h>
#include <lz4.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * Changes of disks at the standby: frames made by hand, before a guest with one page of memory and two disks.
 */
#define SIZE (8 * 65536u + 512)

struct bench {
    struct vmm *guest;
    struct vmm_ops ops;
    const struct vmm_ops *driver;
    struct restore *restore;
    struct restore_config config;
    char folder[PATH_MAX], journal[PATH_MAX + 16];
    uint64_t epoch, next;
    struct message_totals totals;
    int completed; /* the last verdict */
    unsigned verdicts, flushes, notices;
    char notice[512];
    pthread_mutex_t lock; /* of the totals, where several threads send */
};

static struct bench *the_bench;

static inline int count_flush(struct vmm *vmm)
{
    the_bench->flushes++;
    return the_bench->driver->disk_flush(vmm);
}

static inline void on_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                               const char *text)
{
    struct bench *bench = ctx;
    (void)round;
    (void)commit;
    (void)text;
    assert_int_equal(epoch, bench->epoch);
    bench->completed = code;
    bench->verdicts++;
}

static inline void on_notice(void *ctx, const char *text)
{
    struct bench *bench = ctx;
    bench->notices++;
    snprintf(bench->notice, sizeof bench->notice, "%s", text);
}

static inline void guest_open(struct bench *bench)
{
    struct memory_options options = {.blocks = {{"ram", VMM_PAGE_BYTES}},
                                     .block_count = 1,
                                     .disks = {{"disk0", SIZE}, {"disk1", SIZE}},
                                     .disk_count = 2};
    assert_int_equal(memory_guest_new(&bench->guest, &options), 0);
    bench->driver = bench->guest->ops;
    bench->ops = *bench->driver;
    bench->ops.disk_flush = count_flush;
    bench->guest->ops = &bench->ops;
}

static inline struct bench *bench_new(void)
{
    struct bench *bench = calloc(1, sizeof *bench);
    the_bench = bench;
    pthread_mutex_init(&bench->lock, NULL);
    strcpy(bench->folder, "/tmp/restore.XXXXXX");
    assert_non_null(mkdtemp(bench->folder));
    snprintf(bench->journal, sizeof bench->journal, "%s/journal", bench->folder);
    guest_open(bench);
    bench->config = (struct restore_config){.staging_bytes = 1u << 20,
                                            .round_complete = on_complete,
                                            .ctx = bench,
                                            .journal_path = bench->journal,
                                            .vm_uuid = {1},
                                            .notice = on_notice};
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    return bench;
}

static inline void bench_free(struct bench *bench)
{
    restore_free(bench->restore);
    vmm_close(bench->guest);
    for (unsigned i = 0; i < 2; i++) {
        char name[PATH_MAX + 32];
        snprintf(name, sizeof name, "%s.%u", bench->journal, i);
        assert_int_equal(unlink(name), 0);
    }
    assert_int_equal(rmdir(bench->folder), 0);
    pthread_mutex_destroy(&bench->lock);
    free(bench);
}

static inline void session(struct bench *bench, uint64_t epoch)
{
    assert_int_equal(restore_session(bench->restore, (uint32_t[]){0}, 1), 0);
    bench->epoch = epoch;
    bench->next = 0;
    bench->totals = (struct message_totals){0};
}

static inline void count(struct bench *bench, struct wire_frame *frame)
{
    scope_lock(&bench->lock);
    frame->epoch = bench->epoch;
    frame->header_sum = (bench->totals.frames + 1) * 0x9e3779b97f4a7c15u;
    bench->totals.frames++;
    bench->totals.bytes += frame->length;
    bench->totals.sum += frame->header_sum;
}

/* One frame with these records, the first of this number; a record's data are bytes of its `value`. */
struct record {
    uint8_t disk, op;
    uint64_t offset, bytes;
    int value;
};

static inline int send_at(struct bench *bench, uint64_t first, const struct record *records,
                          unsigned record_count)
{
    uint8_t *payload cleanup_free = malloc(WIRE_PAYLOAD_MAX);
    uint8_t *bodies cleanup_free = malloc(WIRE_PAYLOAD_MAX);
    uint8_t *data cleanup_free = malloc(WIRE_DISK_BODY_MAX);
    struct message_disk_record wire[16];
    size_t at = 0;
    for (unsigned i = 0; i < record_count; i++) {
        wire[i] = (struct message_disk_record){.offset = records[i].offset,
                                               .bytes = records[i].bytes,
                                               .disk = records[i].disk,
                                               .op = records[i].op};
        if (records[i].op == WIRE_DISK_ZERO || records[i].op == WIRE_DISK_DISCARD)
            continue;
        memset(data, records[i].value, records[i].bytes);
        wire[i].body_bytes = (uint32_t)records[i].bytes;
        if (records[i].op == WIRE_DISK_RAW)
            memcpy(bodies + at, data, records[i].bytes);
        else
            wire[i].body_bytes = (uint32_t)LZ4_compress_default((const char *)data, (char *)bodies + at,
                                                                (int)records[i].bytes, (int)records[i].bytes);
        at += wire[i].body_bytes;
    }
    size_t body = message_disk_build(0, first, wire, record_count, payload);
    memcpy(payload + body, bodies, at);
    struct wire_frame frame = {.type = WIRE_DISK, .length = (uint32_t)(body + at), .payload = payload};
    count(bench, &frame);
    return restore_disk(bench->restore, &frame);
}

static inline int send_some(struct bench *bench, const struct record *records, unsigned record_count)
{
    bench->next += record_count;
    return send_at(bench, bench->next - record_count, records, record_count);
}

static inline int send_one(struct bench *bench, uint8_t disk, uint8_t op, uint64_t offset, uint64_t bytes,
                           int value)
{
    return send_some(bench, &(struct record){disk, op, offset, bytes, value}, 1);
}

/* The state is one byte: the epoch. */
static inline int complete(struct bench *bench)
{
    uint8_t payload[sizeof(struct wire_state) + 1], state = (uint8_t)bench->epoch;
    size_t at = message_state_build(0, 1, payload);
    payload[at] = state;
    struct wire_frame frame = {.type = WIRE_STATE, .length = sizeof payload, .payload = payload};
    count(bench, &frame);
    assert_int_equal(restore_state(bench->restore, &frame), 0);
    struct message_commit commit = {
        .totals = bench->totals, .state_bytes = 1, .state_sum = wire_sum(&state, 1)};
    unsigned verdicts = bench->verdicts;
    assert_int_equal(restore_expect(bench->restore, bench->epoch, 0, &bench->totals, &commit), 0);
    assert_int_equal(bench->verdicts, verdicts + 1);
    return bench->completed;
}

static inline void commit(struct bench *bench)
{
    assert_int_equal(complete(bench), 0);
    assert_int_equal(restore_commit(bench->restore, bench->epoch), 0);
    bench->epoch++;
    bench->next = 0;
    bench->totals = (struct message_totals){0};
}

static inline void apply(struct bench *bench)
{
    assert_int_equal(restore_apply(bench->restore), 0);
}

static inline uint64_t journal_bytes(struct bench *bench)
{
    struct restore_stats stats;
    restore_get_stats(bench->restore, &stats);
    return stats.journal_bytes;
}

static inline void expect_disk(struct bench *bench, uint32_t disk, uint64_t offset, uint64_t bytes, int value)
{
    const uint8_t *found = memory_guest_disk(bench->guest, disk);
    for (uint64_t at = offset; at < offset + bytes; at++)
        if (found[at] != value)
            fail_msg("disk %u at %llu: %d, expected %d", disk, (unsigned long long)at, found[at], value);
}

/* A first epoch that fills the disks, committed and applied. */
static inline void first_commit(struct bench *bench)
{
    session(bench, 1);
    for (uint8_t disk = 0; disk < 2; disk++) {
        assert_int_equal(send_one(bench, disk, WIRE_DISK_LZ4, 0, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_RAW, 4 * 65536, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_ZERO, 8 * 65536, 512, 0), 0);
    }
    commit(bench);
    apply(bench);
}

#endif
