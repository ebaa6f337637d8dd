/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/fault.h"
#include "base/scope.h"
#include "restore/restore.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <limits.h>
#include <lz4.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

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

static int count_flush(struct vmm *vmm)
{
    the_bench->flushes++;
    return the_bench->driver->disk_flush(vmm);
}

static void on_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code, const char *text)
{
    struct bench *bench = ctx;
    (void)round;
    (void)commit;
    (void)text;
    assert_int_equal(epoch, bench->epoch);
    bench->completed = code;
    bench->verdicts++;
}

static void on_notice(void *ctx, const char *text)
{
    struct bench *bench = ctx;
    bench->notices++;
    snprintf(bench->notice, sizeof bench->notice, "%s", text);
}

static void guest_open(struct bench *bench)
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

static struct bench *bench_new(void)
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

static void bench_free(struct bench *bench)
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

static void session(struct bench *bench, uint64_t epoch)
{
    assert_int_equal(restore_session(bench->restore, (uint32_t[]){0}, 1), 0);
    bench->epoch = epoch;
    bench->next = 0;
    bench->totals = (struct message_totals){0};
}

static void count(struct bench *bench, struct wire_frame *frame)
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

static int send_at(struct bench *bench, uint64_t first, const struct record *records, unsigned record_count)
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

static int send_some(struct bench *bench, const struct record *records, unsigned record_count)
{
    bench->next += record_count;
    return send_at(bench, bench->next - record_count, records, record_count);
}

static int send_one(struct bench *bench, uint8_t disk, uint8_t op, uint64_t offset, uint64_t bytes, int value)
{
    return send_some(bench, &(struct record){disk, op, offset, bytes, value}, 1);
}

/* The state is one byte: the epoch. */
static int complete(struct bench *bench)
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

static void commit(struct bench *bench)
{
    assert_int_equal(complete(bench), 0);
    assert_int_equal(restore_commit(bench->restore, bench->epoch), 0);
    bench->epoch++;
    bench->next = 0;
    bench->totals = (struct message_totals){0};
}

static void apply(struct bench *bench)
{
    assert_int_equal(restore_apply(bench->restore), 0);
}

static uint64_t journal_bytes(struct bench *bench)
{
    struct restore_stats stats;
    restore_get_stats(bench->restore, &stats);
    return stats.journal_bytes;
}

static void expect_disk(struct bench *bench, uint32_t disk, uint64_t offset, uint64_t bytes, int value)
{
    const uint8_t *found = memory_guest_disk(bench->guest, disk);
    for (uint64_t at = offset; at < offset + bytes; at++)
        if (found[at] != value)
            fail_msg("disk %u at %llu: %d, expected %d", disk, (unsigned long long)at, found[at], value);
}

/* A first epoch that fills the disks, committed and applied. */
static void first_commit(struct bench *bench)
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

static void directly_then_journaled(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    session(bench, 1);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 4096, 'x'), 0);
    expect_disk(bench, 1, 512, 4096, 'x'); /* nothing to keep: straight to the image */
    assert_int_equal(journal_bytes(bench), 0);
    commit(bench);
    assert_int_equal(bench->flushes, 0);
    apply(bench);
    assert_int_equal(bench->flushes, 1);

    const struct record records[] = {{1, WIRE_DISK_LZ4, 512, 4096, 'y'},
                                     {1, WIRE_DISK_DISCARD, 1024, 512, 0},
                                     {0, WIRE_DISK_RAW, SIZE - 512, 512, 'z'}};
    assert_int_equal(send_some(bench, records, 3), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 512, 'w'), 0);
    assert_true(journal_bytes(bench) > 0);
    expect_disk(bench, 1, 512, 4096, 'x');
    commit(bench);
    /* The next epoch comes while this one is applied. */
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 512, 512, 'v'), 0);
    expect_disk(bench, 1, 512, 4096, 'x');
    apply(bench);
    assert_int_equal(bench->flushes, 2);
    expect_disk(bench, 1, 512, 512, 'w');
    expect_disk(bench, 1, 1024, 512, 0);
    expect_disk(bench, 1, 1536, 3072, 'y');
    expect_disk(bench, 0, SIZE - 512, 512, 'z');
    commit(bench);
    apply(bench);
    expect_disk(bench, 1, 512, 512, 'v');
    /* An epoch without changes. */
    commit(bench);
    apply(bench);
    struct restore_stats stats;
    restore_get_stats(bench->restore, &stats);
    assert_int_equal(stats.journal_bytes, 0);
    assert_true(stats.journal_peak_bytes > 512);
    assert_int_equal(stats.disk_bytes_applied, 4096 + 4096 + 512 + 512 + 512 + 512);
    bench_free(bench);
}

/* A new session may send what is here already. */
static void known_content_is_left_out(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    session(bench, 9);
    for (uint8_t disk = 0; disk < 2; disk++) {
        assert_int_equal(send_one(bench, disk, WIRE_DISK_RAW, 0, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_LZ4, 4 * 65536, 4 * 65536, 'a' + disk), 0);
        assert_int_equal(send_one(bench, disk, WIRE_DISK_ZERO, 8 * 65536, 512, 0), 0);
    }
    assert_int_equal(journal_bytes(bench), 0);
    /* Changed, and changed back: the second is what the image says, and must not be left out. */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 65536, 512, 'n'), 0);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 65536, 512, 'a'), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_ZERO, 65536, 512, 0), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 65536, 'b'), 0); /* beside it: known */
    uint64_t bytes = journal_bytes(bench);
    assert_true(bytes > 1024 && bytes < 2048);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 8 * 65536, 'a');
    expect_disk(bench, 1, 0, 65536, 'b');
    expect_disk(bench, 1, 65536, 512, 0);
    /* Only the first epoch compares: this one is journaled though it is known. */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'a'), 0);
    assert_true(journal_bytes(bench) > 512);
    bench_free(bench);
}

struct lane {
    struct bench *bench;
    uint64_t first;
    int value, result;
    pthread_t thread;
};

static void *run_lane(void *argument)
{
    struct lane *lane = argument;
    lane->result =
        send_at(lane->bench, lane->first, &(struct record){0, WIRE_DISK_RAW, 0, 512, lane->value}, 1);
    return NULL;
}

static void start_lane(struct lane *lane, struct bench *bench, uint64_t first)
{
    *lane = (struct lane){.bench = bench, .first = first, .value = 'A' + (int)first, .result = 1};
    assert_int_equal(pthread_create(&lane->thread, NULL, run_lane, lane), 0);
}

static void lanes_wait_for_each_other(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    struct lane lanes[5];
    for (unsigned i = 4; i >= 1; i--)
        start_lane(&lanes[i], bench, i);
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    for (unsigned i = 1; i < 5; i++)
        assert_int_equal(__atomic_load_n(&lanes[i].result, __ATOMIC_RELAXED), 1);
    start_lane(&lanes[0], bench, 0);
    for (unsigned i = 0; i < 5; i++) {
        pthread_join(lanes[i].thread, NULL);
        assert_int_equal(lanes[i].result, 0);
    }
    bench->next = 5;
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'A' + 4);
    bench_free(bench);
}

static void an_abort_sends_them_away(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    struct lane lanes[2];
    start_lane(&lanes[0], bench, 3);
    start_lane(&lanes[1], bench, 7);
    nanosleep(&(struct timespec){0, 20000000}, NULL);
    restore_abort(bench->restore);
    for (unsigned i = 0; i < 2; i++) {
        pthread_join(lanes[i].thread, NULL);
        assert_int_equal(lanes[i].result, -ECANCELED);
    }
    session(bench, 5);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'n'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'n');
    bench_free(bench);
}

/* Each ends the session; the last commit stays, and the next session works. */
static void hostile_frames(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    static const struct {
        struct record record;
        uint64_t first;
        int code;
        const char *text;
    } cases[] = {
        {{2, WIRE_DISK_RAW, 0, 512, 1}, 1, -EPROTO, "disk 2, the guest has 2"},
        {{31, WIRE_DISK_ZERO, 0, 512, 0}, 1, -EPROTO, "disk 31"},
        {{0, WIRE_DISK_RAW, SIZE - 512, 1024, 1}, 1, -EPROTO, "disk 'disk0' has 524800 bytes"},
        {{1, WIRE_DISK_ZERO, SIZE, 512, 0}, 1, -EPROTO, "disk 'disk1'"},
        {{0, WIRE_DISK_DISCARD, 512, 1ull << 61, 0}, 1, -EPROTO, "disk 'disk0'"},
        {{0, WIRE_DISK_DISCARD, 1ull << 61, 512, 0}, 1, -EPROTO, "disk 'disk0'"},
        {{0, WIRE_DISK_RAW, 0, 512, 1}, 0, -EPROTO, "first is 0, expected 1"},
    };
    uint64_t epoch = 10;
    for (size_t i = 0; i < array_length(cases); i++) {
        session(bench, epoch += 10);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'h'), 0);
        assert_int_equal(send_at(bench, cases[i].first, &cases[i].record, 1), cases[i].code);
        assert_text_has(cases[i].text);
    }
    /* A record that is right before one that is not: neither. */
    session(bench, epoch += 10);
    const struct record half[] = {{0, WIRE_DISK_RAW, 0, 512, 'h'}, {5, WIRE_DISK_RAW, 0, 512, 'h'}};
    assert_int_equal(send_some(bench, half, 2), -EPROTO);
    assert_int_equal(journal_bytes(bench), 0);
    /* What does not decode. What comes behind it has nothing to build on. */
    session(bench, epoch += 10);
    uint8_t payload[sizeof(struct wire_disk) + sizeof(struct wire_disk_record) + 3];
    struct message_disk_record lz4 = {.bytes = 512, .op = WIRE_DISK_LZ4, .body_bytes = 3};
    memset(payload + message_disk_build(0, 0, &lz4, 1, payload), 0xff, 3);
    struct wire_frame frame = {.type = WIRE_DISK, .length = sizeof payload, .payload = payload};
    count(bench, &frame);
    assert_int_equal(restore_disk(bench->restore, &frame), -EBADMSG);
    assert_int_equal(send_at(bench, 1, half, 1), -ECANCELED);
    /* Another round, another epoch. */
    session(bench, epoch += 10);
    struct message_disk_record zero = {.bytes = 512, .op = WIRE_DISK_ZERO};
    frame.length = (uint32_t)message_disk_build(1, 0, &zero, 1, payload);
    count(bench, &frame);
    assert_int_equal(restore_disk(bench->restore, &frame), -EPROTO);
    assert_text_has("round 1");
    expect_disk(bench, 0, 0, 8 * 65536, 'a');

    session(bench, epoch += 10);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 512, 'k');
    bench_free(bench);
}

static void a_guest_without_disks(void **state)
{
    (void)state;
    struct vmm *guest;
    struct restore *restore;
    struct bench bench = {.epoch = 1};
    pthread_mutex_init(&bench.lock, NULL);
    struct memory_options options = {.blocks = {{"ram", VMM_PAGE_BYTES}}, .block_count = 1};
    struct restore_config config = {.round_complete = on_complete, .ctx = &bench};
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    assert_int_equal(restore_new(&restore, guest, &config), 0);
    assert_int_equal(restore_session(restore, (uint32_t[]){0}, 1), 0);
    bench.restore = restore;
    assert_int_equal(send_one(&bench, 0, WIRE_DISK_ZERO, 0, 512, 0), -EPROTO);
    assert_text_has("no disks");
    restore_free(restore);
    vmm_close(guest);
    /* And the other way round: disks, and no journal. */
    options.disk_count = 1;
    options.disks[0].name = "disk0", options.disks[0].bytes = 512;
    assert_int_equal(memory_guest_new(&guest, &options), 0);
    assert_int_equal(restore_new(&restore, guest, &config), -EINVAL);
    assert_text_has("no journal");
    vmm_close(guest);
    pthread_mutex_destroy(&bench.lock);
}

static void a_full_journal(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    restore_free(bench->restore);
    bench->config.journal_bytes_max = 8192;
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    first_commit(bench); /* directly: needs none */
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'f'), 0);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'g'), -ENOSPC);
    assert_text_has("journal full");
    session(bench, 20);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 4096, 'h'), 0);
    commit(bench);
    apply(bench);
    expect_disk(bench, 0, 0, 4096, 'h');
    bench_free(bench);
}

/* The standby dies between its commit and the end of the apply; its guest is started anew on the same images.
 */
static void killed_between_commit_and_apply(void **state)
{
    (void)state;
    for (unsigned half = 0; half < 2; half++) {
        struct bench *bench = bench_new();
        first_commit(bench);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
        assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 512, 'l'), 0);
        commit(bench);
        assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 0, 512, 'm'), 0); /* not committed */
        if (half) {
            assert_int_equal(fault_arm("journal-apply=error"), 0);
            assert_int_equal(restore_apply(bench->restore), -EIO);
            assert_text_has("applying epoch 2");
            expect_disk(bench, 0, 0, 512, 'k');
        }
        expect_disk(bench, 1, 0, 512, 'b');
        restore_free(bench->restore);
        assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
        expect_disk(bench, 0, 0, 512, 'k');
        expect_disk(bench, 1, 0, 512, 'l');
        assert_int_equal(bench->notices, 2);
        restore_free(bench->restore);
        assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
        assert_int_equal(bench->notices, 2);
        bench_free(bench);
    }
}

/* An apply that failed leaves a journal that a full copy must not be undone by. */
static void a_failed_apply_is_forgotten_by_a_full_copy(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'k'), 0);
    commit(bench);
    assert_int_equal(fault_arm("journal-apply=error"), 0);
    assert_int_equal(restore_apply(bench->restore), -EIO);
    assert_int_equal(restore_takeover(bench->restore, NULL), -ENODATA);
    session(bench, 30);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'n'), 0);
    expect_disk(bench, 0, 0, 512, 'n'); /* directly */
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'n');
    bench_free(bench);
}

static int load_after_flush(struct vmm *vmm, const void *state, size_t bytes)
{
    assert_int_equal(the_bench->flushes, 2);
    return the_bench->driver->load(vmm, state, bytes);
}

/* What is loaded, and the disks, are the committed epoch's, whatever is under way. */
static void a_takeover(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    bench->ops.load = load_after_flush;
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'u'), 0);
    assert_int_equal(restore_takeover(bench->restore, NULL), 0);
    assert_true(memory_guest_running(bench->guest));
    size_t bytes;
    assert_int_equal(*(const uint8_t *)memory_guest_loaded(bench->guest, &bytes), 2);
    expect_disk(bench, 0, 0, 512, 't');
    /* From now on the images are the guest's. */
    memory_guest_disk_change(bench->guest, 0, VMM_DISK_WRITE, 0, 512, memset((uint8_t[512]){0}, 'g', 512));
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    expect_disk(bench, 0, 0, 512, 'g');
    assert_int_equal(bench->notices, 0);
    bench_free(bench);
}

/* Complete, and the session ends before it is committed. */
static void a_complete_epoch_that_is_not_committed(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    assert_int_equal(complete(bench), 0);
    restore_abort(bench->restore);
    session(bench, 2);
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'a');
    first_commit(bench);
    assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
    assert_int_equal(complete(bench), 0);
    assert_int_equal(restore_takeover(bench->restore, NULL), 0);
    restore_free(bench->restore);
    assert_int_equal(restore_new(&bench->restore, bench->guest, &bench->config), 0);
    assert_int_equal(bench->notices, 0);
    expect_disk(bench, 0, 0, 512, 'a');
    bench_free(bench);
}

/* A journal that cannot be committed: the epoch is not, and the former one can be taken over. */
static void a_commit_that_fails(void **state)
{
    (void)state;
    static const char *const faults[] = {"journal-commit=error", "journal-committed=error"};
    for (unsigned i = 0; i < 2; i++) {
        struct bench *bench = bench_new();
        first_commit(bench);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 't'), 0);
        assert_int_equal(fault_arm(faults[i]), 0);
        assert_int_equal(complete(bench), -EIO);
        assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'u'), -ECANCELED);
        struct restore_stats stats;
        restore_get_stats(bench->restore, &stats);
        assert_int_equal(stats.committed_epoch, 1);
        if (i == 0) {
            session(bench, 2);
            assert_int_equal(send_one(bench, 0, WIRE_DISK_RAW, 0, 512, 'v'), 0);
            commit(bench);
            apply(bench);
            expect_disk(bench, 0, 0, 512, 'v');
        } else {
            assert_int_equal(restore_takeover(bench->restore, NULL), 0);
            expect_disk(bench, 0, 0, 512, 'a');
            size_t bytes;
            assert_int_equal(*(const uint8_t *)memory_guest_loaded(bench->guest, &bytes), 1);
        }
        bench_free(bench);
    }
}

static void digests_of_what_is_here(void **state)
{
    (void)state;
    struct bench *bench = bench_new();
    uint8_t digests[9 * WIRE_DIGEST_BYTES], expected[WIRE_DIGEST_BYTES];
    session(bench, 1);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 2 * 65536, 65536, 'b'), 0);
    assert_int_equal(send_one(bench, 1, WIRE_DISK_RAW, 8 * 65536, 512, 'e'), 0);
    struct message_sums wanted = {.disk = 1, .first = 0, .count = 9};
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, digests), 0);
    const uint8_t *disk = memory_guest_disk(bench->guest, 1);
    for (unsigned i = 0; i < 9; i++) {
        assert_int_equal(wire_digest(disk + i * 65536, i < 8 ? 65536 : 512, expected), 0);
        assert_memory_equal(digests + i * WIRE_DIGEST_BYTES, expected, sizeof expected);
    }
    wanted = (struct message_sums){.disk = 1, .first = 2, .count = 1};
    uint8_t again[WIRE_DIGEST_BYTES];
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, again), 0);
    assert_memory_equal(again, digests + 2 * WIRE_DIGEST_BYTES, sizeof again);

    static const struct message_sums wrong[] = {{.disk = 2, .count = 1},
                                                {.disk = 0, .count = 10},
                                                {.disk = 0, .first = 9, .count = 1},
                                                {.disk = 0, .first = (1ull << 46) - 512, .count = 512}};
    for (unsigned i = 0; i < sizeof wrong / sizeof *wrong; i++)
        assert_int_equal(restore_disk_sums(bench->restore, &wrong[i], digests), -EPROTO);
    commit(bench);
    apply(bench);
    restore_abort(bench->restore);
    assert_int_equal(restore_disk_sums(bench->restore, &wanted, again), -ECANCELED);
    bench_free(bench);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(directly_then_journaled),
        cmocka_unit_test(known_content_is_left_out),
        cmocka_unit_test(digests_of_what_is_here),
        cmocka_unit_test(lanes_wait_for_each_other),
        cmocka_unit_test(an_abort_sends_them_away),
        cmocka_unit_test(hostile_frames),
        cmocka_unit_test(a_guest_without_disks),
        cmocka_unit_test(a_full_journal),
        cmocka_unit_test(killed_between_commit_and_apply),
        cmocka_unit_test(a_failed_apply_is_forgotten_by_a_full_copy),
        cmocka_unit_test(a_takeover),
        cmocka_unit_test(a_complete_epoch_that_is_not_committed),
        cmocka_unit_test(a_commit_that_fails),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
