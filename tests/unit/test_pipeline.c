/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/fault.h"
#include "base/scope.h"
#include "checkpoint/checkpoint.h"
#include "restore/restore.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <limits.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/*
 * Both halves of an epoch together: checkpoint, lanes that are threads with a buffer, restore; a guest that
 * writes without end; sessions that are lost at any moment. After every commit the standby's memory must be
 * what the fingerprints say that the primary's was within the pause, and its disks what the primary's were
 * there.
 *
 *     writer thread ─► guest ─► checkpoint (test's thread) ─► lane threads ─► restore ─► target
 *                                                                  standby's thread: commit, apply, verify
 */
#define LANES   3u
#define PAGE    WIRE_PAGE_BYTES
#define PAGES   1500u
#define SMALL   33u
#define SESSION 99u
#define DISKS   2u

static const uint64_t disk_bytes[DISKS] = {3u << 20, 5 * 65536 + 512}; /* the last block is cut short */

struct pipeline;

struct lane_thread {
    struct pipeline *pipeline;
    unsigned index;
    pthread_t thread;
    struct wire_writer writer;
    struct wire_reader reader;
    uint8_t *buffer;
};

enum answer { ANSWER_NONE, ANSWER_ROUND_DONE, ANSWER_ACK };

struct pipeline {
    struct vmm *source, *target;
    struct checkpoint *checkpoint;
    struct restore *restore;
    struct lane_thread lanes[LANES];
    pthread_t standby, writer, disk_writers[DISKS];
    unsigned disk_count;
    struct vmm_ops source_ops; /* with a look at the disks in the pause */
    const struct vmm_ops *driver_ops;
    uint64_t captured_epoch;
    uint8_t *images[2][DISKS]; /* by epoch modulo 2, of the pause */
    char folder[PATH_MAX], journal[PATH_MAX + 16];
    atomic_bool session_over, stop_writer;
    bool touches; /* the guest writes mostly little, and changes of pages are sent */

    pthread_mutex_t lock;
    pthread_cond_t changed;
    bool sent;
    struct message_totals totals;
    enum answer answer;
    uint64_t whole_epoch;     /* verified, to be committed; 0: none */
    uint64_t committed_epoch; /* as the standby sees it */
    int failure;              /* of a lane */

    /* By epoch modulo 2: the next one is captured while the former is applied. */
    uint64_t fingerprints[2][PAGES];
    uint64_t state_sums[2];
    unsigned verified;
};

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct pipeline *pipeline = ctx;
    (void)epoch;
    (void)round;
    pthread_mutex_lock(&pipeline->lock);
    pipeline->sent = true;
    pipeline->totals = *totals;
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
}

static void on_ready(void *ctx)
{
    (void)ctx; /* the lanes look all the time */
}

static void on_round_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                              const char *text)
{
    struct pipeline *pipeline = ctx;
    (void)round;
    if (code < 0)
        fail_msg("epoch %llu: %s", (unsigned long long)epoch, text);
    pthread_mutex_lock(&pipeline->lock);
    if (commit)
        pipeline->whole_epoch = epoch;
    else
        pipeline->answer = ANSWER_ROUND_DONE;
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
}

static int deliver(struct lane_thread *lane)
{
    size_t at = 0;
    while (at < lane->writer.used) {
        struct wire_frame frame;
        long size = wire_reader_next(&lane->reader, lane->buffer + at, lane->writer.used - at, &frame);
        assert_true(size > 0);
        at += (size_t)size;
        int r = restore_frame(lane->pipeline->restore, &frame);
        if (r < 0)
            return r;
    }
    return 0;
}

static void *run_lane(void *argument)
{
    struct lane_thread *lane = argument;
    struct pipeline *pipeline = lane->pipeline;
    while (!atomic_load(&pipeline->session_over)) {
        lane->writer.used = 0;
        int r = checkpoint_produce(pipeline->checkpoint, lane->index, &lane->writer);
        if (r == 1)
            r = deliver(lane);
        else if (r == 0)
            sched_yield();
        if (r < 0) {
            if (r != -ECANCELED && r != -EIO)
                fail_msg("lane %u: %s", lane->index, error_text());
            pthread_mutex_lock(&pipeline->lock);
            pipeline->failure = r;
            pthread_cond_broadcast(&pipeline->changed);
            pthread_mutex_unlock(&pipeline->lock);
            break;
        }
    }
    return NULL;
}

static void check_disks(struct pipeline *pipeline, uint64_t epoch)
{
    for (uint32_t i = 0; i < pipeline->disk_count; i++) {
        const uint8_t *wanted = pipeline->images[epoch % 2][i],
                      *found = memory_guest_disk(pipeline->target, i);
        for (uint64_t at = 0; at < disk_bytes[i]; at += WIRE_DISK_SECTOR)
            if (memcmp(wanted + at, found + at, WIRE_DISK_SECTOR))
                fail_msg("epoch %llu: disk %u differs at %llu", (unsigned long long)epoch, i,
                         (unsigned long long)at);
    }
}

static void check_committed(struct pipeline *pipeline, uint64_t epoch)
{
    check_disks(pipeline, epoch);
    const uint64_t *fingerprints = pipeline->fingerprints[epoch % 2];
    struct message_verify verify = {.count = PAGES, .fingerprints = (const le64 *)fingerprints};
    uint32_t differing;
    static uint64_t pages[WIRE_VERIFIED_MAX];
    assert_int_equal(restore_verify(pipeline->restore, &verify, &differing, pages), 0);
    if (differing)
        fail_msg("epoch %llu: %u pages differ, first %llu", (unsigned long long)epoch, differing,
                 (unsigned long long)pages[0]);
    pipeline->verified++;
}

/* The standby's owner: commit, acknowledge, apply, compare. */
static void *run_standby(void *argument)
{
    struct pipeline *pipeline = argument;
    for (;;) {
        pthread_mutex_lock(&pipeline->lock);
        while (!pipeline->whole_epoch && !atomic_load(&pipeline->session_over))
            pthread_cond_wait(&pipeline->changed, &pipeline->lock);
        uint64_t epoch = pipeline->whole_epoch;
        pipeline->whole_epoch = 0;
        pthread_mutex_unlock(&pipeline->lock);
        if (!epoch)
            return NULL;
        assert_int_equal(restore_commit(pipeline->restore, epoch), 0);
        pthread_mutex_lock(&pipeline->lock);
        pipeline->committed_epoch = epoch;
        pipeline->answer = ANSWER_ACK;
        pthread_cond_broadcast(&pipeline->changed);
        pthread_mutex_unlock(&pipeline->lock);
        assert_int_equal(restore_apply(pipeline->restore), 0);
        check_committed(pipeline, epoch);
    }
}

static void write_page(struct pipeline *pipeline, unsigned number)
{
    uint8_t bytes[PAGE];
    unsigned seed = number * 2654435761u;
    for (unsigned i = 0; i < PAGE; i++) {
        seed = seed * 1664525 + 1013904223;
        bytes[i] = number % 5 == 0 ? 0 : number % 2 && i % 4 ? 'x' : (uint8_t)(seed >> 24);
    }
    memory_guest_write(pipeline->source, number % 50 == 7,
                       (number * 37 % (number % 50 == 7 ? SMALL : PAGES)) * PAGE, bytes,
                       number % 11 == 0 ? 100 : PAGE);
}

/* A few bytes of a page, or none: what the page holds already. */
static void touch_page(struct pipeline *pipeline, unsigned number)
{
    uint64_t offset = number * 7919ull % (PAGES * PAGE / 8) * 8, value = number * 0x9e3779b97f4a7c15ull;
    if (number % 3 == 0)
        memcpy(&value, (uint8_t *)memory_guest_block(pipeline->source, 0) + offset, sizeof value);
    memory_guest_write(pipeline->source, 0, offset, &value, sizeof value);
}

static void *run_writer(void *argument)
{
    struct pipeline *pipeline = argument;
    for (unsigned i = 1; !atomic_load(&pipeline->stop_writer); i++) {
        if (pipeline->touches && i % 32)
            touch_page(pipeline, i);
        else
            write_page(pipeline, i);
        if (i % 64 == 0)
            usleep(
                500); /* still all over the pages in every epoch, and leaves the processors to the others */
    }
    return NULL;
}

static struct pipeline *the_pipeline; /* for the hook below, which is given the guest alone */

/* The guest stands still here. */
static int look_and_save(struct vmm *source)
{
    struct pipeline *pipeline = the_pipeline;
    for (uint32_t i = 0; i < pipeline->disk_count; i++)
        memcpy(pipeline->images[pipeline->captured_epoch % 2][i], memory_guest_disk(source, i),
               disk_bytes[i]);
    return pipeline->driver_ops->save_begin(source);
}

static void change_disk(struct pipeline *pipeline, uint32_t disk, uint32_t *seed)
{
    static const enum vmm_disk_op ops[] = {VMM_DISK_WRITE, VMM_DISK_WRITE, VMM_DISK_WRITE, VMM_DISK_WRITE,
                                           VMM_DISK_WRITE, VMM_DISK_WRITE, VMM_DISK_ZERO,  VMM_DISK_DISCARD};
    static __thread uint8_t bytes[400 * 1024];
    *seed = *seed * 1664525 + 1013904223;
    uint32_t dice = *seed >> 8;
    uint64_t sectors = disk_bytes[disk] / WIRE_DISK_SECTOR;
    uint64_t length = dice % 50 == 0 ? 1 + dice % 800 : 1 + dice % 16;
    /* Most of it in a corner, so that records overlap and blocks are written while they are read. */
    uint64_t first = (dice % 3 ? dice / 7 % 200 : dice / 7) % sectors;
    if (length > sectors - first)
        length = sectors - first;
    enum vmm_disk_op op = ops[dice / 64 % array_length(ops)];
    if (op == VMM_DISK_WRITE)
        for (uint64_t i = 0; i < length * WIRE_DISK_SECTOR; i += 4)
            memcpy(bytes + i, dice % 9 ? seed : &(uint32_t){0}, 4);
    memory_guest_disk_change(pipeline->source, disk, op, first * WIRE_DISK_SECTOR, length * WIRE_DISK_SECTOR,
                             op == VMM_DISK_WRITE ? bytes : NULL);
}

struct disk_writer {
    struct pipeline *pipeline;
    uint32_t disk;
};

static void *run_disk_writer(void *argument)
{
    struct disk_writer writer = *(struct disk_writer *)argument;
    free(argument);
    uint32_t seed = writer.disk + 1;
    for (unsigned i = 1; !atomic_load(&writer.pipeline->stop_writer); i++) {
        change_disk(writer.pipeline, writer.disk, &seed);
        /* In bursts, so that the log overflows, and is caught up with. */
        if (i % 256 == 0)
            usleep(3000);
    }
    return NULL;
}

static void add_disks(struct pipeline *pipeline, struct memory_options *options, uint64_t *ret_log_bytes)
{
    options->disk_count = DISKS;
    options->disks[0].name = "disk0", options->disks[0].bytes = disk_bytes[0];
    options->disks[1].name = "disk1", options->disks[1].bytes = disk_bytes[1];
    pipeline->disk_count = DISKS;
    for (unsigned i = 0; i < 2 * DISKS; i++)
        pipeline->images[i / DISKS][i % DISKS] = malloc(disk_bytes[i % DISKS]);
    strcpy(pipeline->folder, "/tmp/pipeline.XXXXXX");
    assert_non_null(mkdtemp(pipeline->folder));
    snprintf(pipeline->journal, sizeof pipeline->journal, "%s/journal", pipeline->folder);
    *ret_log_bytes = 1u << 20;
}

static void start_disks(struct pipeline *pipeline)
{
    the_pipeline = pipeline;
    pipeline->driver_ops = pipeline->source->ops;
    pipeline->source_ops = *pipeline->source->ops;
    pipeline->source_ops.save_begin = look_and_save;
    pipeline->source->ops = &pipeline->source_ops;
    for (uint32_t i = 0; i < pipeline->disk_count; i++) {
        struct disk_writer *writer = malloc(sizeof *writer);
        *writer = (struct disk_writer){pipeline, i};
        assert_int_equal(pthread_create(&pipeline->disk_writers[i], NULL, run_disk_writer, writer), 0);
    }
}

static struct pipeline *pipeline_new(bool unmapped, size_t staging_pages, size_t delta_pages, bool disks)
{
    struct pipeline *pipeline = calloc(1, sizeof *pipeline);
    uint64_t log_bytes = 0;
    struct memory_options options = {.blocks = {{"ram", PAGES * PAGE}, {"vga", SMALL * PAGE}},
                                     .block_count = 2,
                                     .state_bytes = 300000,
                                     .unmapped = unmapped};
    if (disks)
        add_disks(pipeline, &options, &log_bytes);
    pthread_mutex_init(&pipeline->lock, NULL);
    pthread_cond_init(&pipeline->changed, NULL);
    assert_int_equal(memory_guest_new(&pipeline->source, &options), 0);
    /* The standby knows the blocks in another order. */
    struct memory_options turned = options;
    turned.blocks[0].name = "vga", turned.blocks[0].bytes = SMALL * PAGE;
    turned.blocks[1].name = "ram", turned.blocks[1].bytes = PAGES * PAGE;
    assert_int_equal(memory_guest_new(&pipeline->target, &turned), 0);
    struct checkpoint_config config = {.staging_bytes = staging_pages * PAGE,
                                       .lanes = LANES,
                                       .lz4_allowed = true,
                                       .state_lz4_allowed = true,
                                       .delta_bytes = delta_pages * PAGE,
                                       .disk_log_bytes = log_bytes,
                                       .disk_stall_ns = 2000000,
                                       .round_sent = on_round_sent,
                                       .ready = on_ready,
                                       .ctx = pipeline};
    pipeline->touches = delta_pages > 0;
    assert_int_equal(checkpoint_new(&pipeline->checkpoint, pipeline->source, &config), 0);
    struct restore_config restore_config = {
        .staging_bytes = 4 * PAGES * PAGE,
        .round_complete = on_round_complete,
        .ctx = pipeline,
        .journal_path = pipeline->journal,
    };
    assert_int_equal(restore_new(&pipeline->restore, pipeline->target, &restore_config), 0);
    for (unsigned i = 0; i < LANES; i++)
        pipeline->lanes[i].buffer = malloc(1u << 20);
    start_disks(pipeline);
    assert_int_equal(pthread_create(&pipeline->writer, NULL, run_writer, pipeline), 0);
    return pipeline;
}

static void pipeline_free(struct pipeline *pipeline)
{
    atomic_store(&pipeline->stop_writer, true);
    pthread_join(pipeline->writer, NULL);
    for (uint32_t i = 0; i < pipeline->disk_count; i++)
        pthread_join(pipeline->disk_writers[i], NULL);
    restore_free(pipeline->restore);
    checkpoint_free(pipeline->checkpoint);
    vmm_close(pipeline->source);
    vmm_close(pipeline->target);
    for (unsigned i = 0; i < LANES; i++)
        free(pipeline->lanes[i].buffer);
    for (unsigned i = 0; i < 2 * DISKS; i++)
        free(pipeline->images[i / DISKS][i % DISKS]);
    for (unsigned i = 0; pipeline->disk_count && i < 2; i++) {
        char path[PATH_MAX + 32];
        snprintf(path, sizeof path, "%s.%u", pipeline->journal, i);
        assert_int_equal(unlink(path), 0);
    }
    if (pipeline->disk_count)
        assert_int_equal(rmdir(pipeline->folder), 0);
    pthread_mutex_destroy(&pipeline->lock);
    pthread_cond_destroy(&pipeline->changed);
    free(pipeline);
}

static void session_begin(struct pipeline *pipeline)
{
    const uint32_t map[] = {1, 0};
    assert_int_equal(restore_session(pipeline->restore, map, 2), 0);
    checkpoint_set_delta(pipeline->checkpoint, true);
    atomic_store(&pipeline->session_over, false);
    pipeline->sent = false;
    pipeline->answer = ANSWER_NONE;
    pipeline->failure = 0;
    pipeline->whole_epoch = 0;
    for (unsigned i = 0; i < LANES; i++) {
        struct lane_thread *lane = &pipeline->lanes[i];
        lane->pipeline = pipeline;
        lane->index = i + 1;
        lane->writer = (struct wire_writer){.buffer = lane->buffer, .room = 1u << 20, .session = SESSION};
        lane->reader =
            (struct wire_reader){.from = WIRE_SIDE_PRIMARY, .session_known = true, .session = SESSION};
        assert_int_equal(pthread_create(&lane->thread, NULL, run_lane, lane), 0);
    }
    assert_int_equal(pthread_create(&pipeline->standby, NULL, run_standby, pipeline), 0);
}

static void session_end(struct pipeline *pipeline)
{
    checkpoint_cancel(pipeline->checkpoint);
    restore_abort(pipeline->restore);
    pthread_mutex_lock(&pipeline->lock);
    atomic_store(&pipeline->session_over, true);
    pthread_cond_broadcast(&pipeline->changed);
    pthread_mutex_unlock(&pipeline->lock);
    for (unsigned i = 0; i < LANES; i++)
        pthread_join(pipeline->lanes[i].thread, NULL);
    pthread_join(pipeline->standby, NULL);
    checkpoint_abandoned(pipeline->checkpoint);
}

static bool wait_sent(struct pipeline *pipeline)
{
    pthread_mutex_lock(&pipeline->lock);
    while (!pipeline->sent && !pipeline->failure)
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    bool sent = pipeline->sent;
    pipeline->sent = false;
    pthread_mutex_unlock(&pipeline->lock);
    return sent;
}

static void wait_answer(struct pipeline *pipeline, enum answer answer)
{
    pthread_mutex_lock(&pipeline->lock);
    while (pipeline->answer == ANSWER_NONE)
        pthread_cond_wait(&pipeline->changed, &pipeline->lock);
    assert_int_equal(pipeline->answer, answer);
    pipeline->answer = ANSWER_NONE;
    pthread_mutex_unlock(&pipeline->lock);
}

/* One round, live although it should be the `*last` if the disks are behind; `lose` leaves it half done.
 * False when the session must end. */
static bool run_round(struct pipeline *pipeline, uint64_t epoch, uint32_t round, bool *last_wanted, bool lose)
{
    bool last = *last_wanted;
    struct checkpoint_capture capture = {0};
    struct checkpoint_verify verify = {.count = PAGES, .fingerprints = pipeline->fingerprints[epoch % 2]};
    uint64_t pages;
    pipeline->captured_epoch = epoch;
    int r = last ? checkpoint_capture(pipeline->checkpoint, 1, epoch, round, &verify, &capture) : -ETIME;
    last = r != -ETIME;
    *last_wanted = last;
    if (r == -ETIME)
        r = checkpoint_round(pipeline->checkpoint, 1, epoch, round, &pages);
    if (r < 0) /* a lane that failed on purpose while the capture waited for it */
        assert_int_equal(r, -EIO);
    if (r < 0 || lose || !wait_sent(pipeline))
        return false;
    struct message_commit commit = {.round = round,
                                    .totals = pipeline->totals,
                                    .state_bytes = capture.state_bytes,
                                    .state_sum = capture.state_sum};
    pipeline->state_sums[epoch % 2] = capture.state_sum;
    r = restore_expect(pipeline->restore, epoch, round, &pipeline->totals, last ? &commit : NULL);
    assert_int_equal(r, 0);
    wait_answer(pipeline, last ? ANSWER_ACK : ANSWER_ROUND_DONE);
    if (last)
        checkpoint_committed(pipeline->checkpoint);
    return true;
}

static void run_epochs(struct pipeline *pipeline, unsigned count)
{
    assert_int_equal(checkpoint_begin(pipeline->checkpoint), 0);
    uint64_t epoch = 1;
    bool alive = false;
    for (unsigned i = 0; i < count; i++, epoch++) {
        if (!alive)
            session_begin(pipeline);
        alive = true;
        if (i % 23 == 11)
            assert_int_equal(fault_arm("encode@3=error"), 0);
        bool last = false;
        for (uint32_t round = 0; alive && !last; round++) {
            last = round >= i % 3;
            alive = run_round(pipeline, epoch, round, &last, i % 9 == 4 && round == i % 2);
        }
        if (!alive)
            session_end(pipeline);
    }
    if (alive)
        session_end(pipeline);
}

static void takeover(struct pipeline *pipeline)
{
    uint64_t epoch = pipeline->committed_epoch;
    assert_int_equal(restore_takeover(pipeline->restore, NULL), 0);
    assert_true(memory_guest_running(pipeline->target));
    const uint8_t *memory = memory_guest_block(pipeline->target, 1);
    for (unsigned i = 0; i < PAGES; i++)
        assert_int_equal(wire_sum(memory + i * PAGE, PAGE), pipeline->fingerprints[epoch % 2][i]);
    check_disks(pipeline, epoch);
    size_t bytes;
    const void *loaded = memory_guest_loaded(pipeline->target, &bytes);
    assert_int_equal(bytes, 300000);
    assert_int_equal(wire_sum(loaded, bytes), pipeline->state_sums[epoch % 2]);
}

/* The test tested what it means to. */
static void check_disks_were_hard(struct pipeline *pipeline)
{
    struct checkpoint_stats primary;
    struct restore_stats standby;
    checkpoint_get_stats(pipeline->checkpoint, &primary);
    restore_get_stats(pipeline->restore, &standby);
    print_message(
        "disks: %llu records, %llu bytes logged, %llu copied, peak %llu, %llu overflows, %llu stalls; "
        "journal peak %llu, %llu bytes applied\n",
        (unsigned long long)primary.disks.records, (unsigned long long)primary.disks.logged_bytes,
        (unsigned long long)primary.disks.copied_bytes, (unsigned long long)primary.disks.log_peak_bytes,
        (unsigned long long)primary.disks.overflows, (unsigned long long)primary.disks.stalls,
        (unsigned long long)standby.journal_peak_bytes, (unsigned long long)standby.disk_bytes_applied);
    assert_true(primary.disks.log_peak_bytes <= (2u << 20) + 4096);
    assert_true(primary.disks.overflows > 0 && primary.disks.stalls > 0);
    assert_true(primary.disks.logged_bytes > 0 && primary.disks.copied_bytes > primary.disks.bytes);
    assert_true(standby.journal_peak_bytes > 0 && standby.disk_bytes_applied > primary.disks.bytes);
}

/* The epochs that the standby took over, with the last capture's fingerprints saved from what came later. */
static void run(bool unmapped, size_t staging_pages, size_t delta_pages, bool disks)
{
    struct pipeline *pipeline = pipeline_new(unmapped, staging_pages, delta_pages, disks);
    run_epochs(pipeline, UNIT_TURNS(130));
    assert_true(pipeline->verified > UNIT_TURNS(80));

    /* A last epoch that is committed for certain, then the primary is gone in the middle of the next. */
    uint64_t epoch = 1000;
    session_begin(pipeline);
    for (uint32_t round = 0;; round++) {
        bool last = true;
        if (run_round(pipeline, epoch, round, &last, false)) {
            if (last)
                break;
            continue;
        }
        session_end(pipeline);
        session_begin(pipeline);
        epoch += 2;
        round = UINT32_MAX;
    }
    run_round(pipeline, epoch + 1, 0, &(bool){true}, true);
    session_end(pipeline);
    assert_int_equal(pipeline->committed_epoch, epoch);
    takeover(pipeline);
    struct checkpoint_stats stats;
    checkpoint_get_stats(pipeline->checkpoint, &stats);
    assert_int_equal(stats.pages_delta > 0, delta_pages > 0);
    assert_int_equal(stats.pages_same > 0, delta_pages > 0);
    if (disks)
        check_disks_were_hard(pipeline);
    pipeline_free(pipeline);
}

static void mapped_guest(void **state)
{
    (void)state;
    run(false, 2 * PAGES, 0, false);
}

static void unmapped_guest(void **state)
{
    (void)state;
    run(true, 2 * PAGES, 0, false);
}

static void staging_smaller_than_the_epochs(void **state)
{
    (void)state;
    run(false, 200, 0, false);
}

static void changes_of_pages(void **state)
{
    (void)state;
    run(false, 2 * PAGES, 2 * PAGES, false);
    run(true, 2 * PAGES, 2 * PAGES, false);
}

static void changes_of_pages_that_are_too_many(void **state)
{
    (void)state;
    run(false, 2 * PAGES, 300, false);
    run(false, 200, 2 * PAGES, false);
}

static void guest_with_disks(void **state)
{
    (void)state;
    run(false, 2 * PAGES, 2 * PAGES, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mapped_guest),
        cmocka_unit_test(unmapped_guest),
        cmocka_unit_test(staging_smaller_than_the_epochs),
        cmocka_unit_test(changes_of_pages),
        cmocka_unit_test(changes_of_pages_that_are_too_many),
        cmocka_unit_test(guest_with_disks),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
