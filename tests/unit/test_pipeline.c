/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/fault.h"
#include "checkpoint/checkpoint.h"
#include "restore/restore.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

/*
 * Both halves of an epoch together: checkpoint, lanes that are threads with a buffer, restore; a guest that
 * writes without end; sessions that are lost at any moment. After every commit the standby's memory must be
 * what the fingerprints say that the primary's was within the pause.
 *
 *     writer thread ─► guest ─► checkpoint (test's thread) ─► lane threads ─► restore ─► target
 *                                                                  standby's thread: commit, apply, verify
 */
#define LANES   3u
#define PAGE    WIRE_PAGE_BYTES
#define PAGES   1500u
#define SMALL   33u
#define SESSION 99u

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
    pthread_t standby, writer;
    atomic_bool session_over, stop_writer;

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
        int r = frame.type == WIRE_STATE ? restore_state(lane->pipeline->restore, &frame)
                                         : restore_pages(lane->pipeline->restore, &frame);
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

static void check_committed(struct pipeline *pipeline, uint64_t epoch)
{
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

static void *run_writer(void *argument)
{
    struct pipeline *pipeline = argument;
    for (unsigned i = 1; !atomic_load(&pipeline->stop_writer); i++) {
        write_page(pipeline, i);
        if (i % 64 == 0)
            sched_yield();
    }
    return NULL;
}

static struct pipeline *pipeline_new(bool unmapped, size_t staging_pages)
{
    struct pipeline *pipeline = calloc(1, sizeof *pipeline);
    struct memory_options options = {.blocks = {{"ram", PAGES * PAGE}, {"vga", SMALL * PAGE}},
                                     .block_count = 2,
                                     .state_bytes = 300000,
                                     .unmapped = unmapped};
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
                                       .round_sent = on_round_sent,
                                       .ready = on_ready,
                                       .ctx = pipeline};
    assert_int_equal(checkpoint_new(&pipeline->checkpoint, pipeline->source, &config), 0);
    struct restore_config restore_config = {
        .staging_bytes = 4 * PAGES * PAGE, .round_complete = on_round_complete, .ctx = pipeline};
    assert_int_equal(restore_new(&pipeline->restore, pipeline->target, &restore_config), 0);
    for (unsigned i = 0; i < LANES; i++)
        pipeline->lanes[i].buffer = malloc(1u << 20);
    assert_int_equal(pthread_create(&pipeline->writer, NULL, run_writer, pipeline), 0);
    return pipeline;
}

static void pipeline_free(struct pipeline *pipeline)
{
    atomic_store(&pipeline->stop_writer, true);
    pthread_join(pipeline->writer, NULL);
    restore_free(pipeline->restore);
    checkpoint_free(pipeline->checkpoint);
    vmm_close(pipeline->source);
    vmm_close(pipeline->target);
    for (unsigned i = 0; i < LANES; i++)
        free(pipeline->lanes[i].buffer);
    pthread_mutex_destroy(&pipeline->lock);
    pthread_cond_destroy(&pipeline->changed);
    free(pipeline);
}

static void session_begin(struct pipeline *pipeline)
{
    const uint32_t map[] = {1, 0};
    assert_int_equal(restore_session(pipeline->restore, map, 2), 0);
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

/* One round; `lose` leaves it half done. False when the session must end. */
static bool run_round(struct pipeline *pipeline, uint64_t epoch, uint32_t round, bool last, bool lose)
{
    struct checkpoint_capture capture = {0};
    struct checkpoint_verify verify = {.count = PAGES, .fingerprints = pipeline->fingerprints[epoch % 2]};
    uint64_t pages;
    int r = last ? checkpoint_capture(pipeline->checkpoint, 1, epoch, round, &verify, &capture)
                 : checkpoint_round(pipeline->checkpoint, 1, epoch, round, &pages);
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
        for (uint32_t round = 0; alive && round <= i % 3; round++)
            alive = run_round(pipeline, epoch, round, round == i % 3, i % 9 == 4 && round == i % 2);
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
    size_t bytes;
    const void *loaded = memory_guest_loaded(pipeline->target, &bytes);
    assert_int_equal(bytes, 300000);
    assert_int_equal(wire_sum(loaded, bytes), pipeline->state_sums[epoch % 2]);
}

/* The epochs that the standby took over, with the last capture's fingerprints saved from what came later. */
static void run(bool unmapped, size_t staging_pages)
{
    struct pipeline *pipeline = pipeline_new(unmapped, staging_pages);
    run_epochs(pipeline, 130);
    assert_true(pipeline->verified > 80);

    /* A last epoch that is committed for certain, then the primary is gone in the middle of the next. */
    uint64_t epoch = 1000;
    session_begin(pipeline);
    while (!run_round(pipeline, epoch, 0, true, false)) {
        session_end(pipeline);
        session_begin(pipeline);
        epoch += 2;
    }
    run_round(pipeline, epoch + 1, 0, true, true);
    session_end(pipeline);
    assert_int_equal(pipeline->committed_epoch, epoch);
    takeover(pipeline);
    pipeline_free(pipeline);
}

static void mapped_guest(void **state)
{
    (void)state;
    run(false, 2 * PAGES);
}

static void unmapped_guest(void **state)
{
    (void)state;
    run(true, 2 * PAGES);
}

static void staging_smaller_than_the_epochs(void **state)
{
    (void)state;
    run(false, 200);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(mapped_guest),
        cmocka_unit_test(unmapped_guest),
        cmocka_unit_test(staging_smaller_than_the_epochs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
