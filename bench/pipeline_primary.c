/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/session.h"

#include "base/clock.h"
#include "base/error.h"
#include "checkpoint/checkpoint.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define GENERATION 1u
/* Guests write here and there, but seldom single pages: dirty memory comes in runs of this many. */
#define DIRTY_RUN_PAGES 8u

struct primary {
    struct worker *worker;
    struct session session;
    struct checkpoint *checkpoint;
    struct histogram pauses;

    /* Guarded by the session's lock. */
    bool sent, answered;
    struct message_totals totals;
};

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct primary *primary = ctx;
    (void)epoch;
    (void)round;
    primary->totals = *totals;
    session_signal(&primary->session, &primary->sent);
}

static void on_ready(void *ctx)
{
    struct primary *primary = ctx;
    for (unsigned i = 1; i < primary->session.lane_count; i++)
        lane_kick(primary->session.lanes[i].lane);
}

static int produce(void *ctx, unsigned lane, struct wire_writer *writer)
{
    struct primary *primary = ctx;
    return checkpoint_produce(primary->checkpoint, lane, writer);
}

static int answer(void *ctx, const struct wire_frame *frame)
{
    struct primary *primary = ctx;
    if (frame->type != WIRE_ROUND_DONE && frame->type != WIRE_ACK)
        return error_set(-EPROTO, "%s is no answer to a round", wire_type_name(frame->type));
    session_signal(&primary->session, &primary->answered);
    return 0;
}

static int send_live(struct primary *primary, uint64_t epoch)
{
    uint64_t pages;
    int r = checkpoint_round(primary->checkpoint, GENERATION, epoch, 0, &pages);
    if (r == 0)
        r = session_wait(&primary->session, &primary->sent, "the lanes");
    if (r < 0)
        return r;
    struct message_round round = {.round = 0, .totals = primary->totals};
    struct wire_round wire;
    message_round_build(&round, &wire);
    session_send(&primary->session, WIRE_ROUND, epoch, &wire, sizeof wire);
    return session_wait(&primary->session, &primary->answered, "the end of the round");
}

static int send_capture(struct primary *primary, uint64_t epoch, uint32_t round)
{
    struct checkpoint_capture capture;
    int r = checkpoint_capture(primary->checkpoint, GENERATION, epoch, round, NULL, &capture);
    if (r == 0)
        r = session_wait(&primary->session, &primary->sent, "the lanes");
    if (r < 0)
        return r;
    histogram_add(&primary->pauses, capture.pause_ns);
    struct message_commit commit = {.round = round,
                                    .totals = primary->totals,
                                    .state_bytes = capture.state_bytes,
                                    .state_sum = capture.state_sum};
    struct wire_commit wire;
    message_commit_build(&commit, &wire);
    session_send(&primary->session, WIRE_COMMIT, epoch, &wire, sizeof wire);
    r = session_wait(&primary->session, &primary->answered, "the acknowledgement");
    if (r == 0)
        checkpoint_committed(primary->checkpoint);
    return r;
}

/* Play the guest: write eight bytes to each page of runs that lie evenly over the memory, and move on by one
 * run with every epoch or stay. */
static void dirty(struct primary *primary, unsigned epoch)
{
    const struct bench_options *options = primary->worker->options;
    uint64_t all = options->size_bytes / VMM_PAGE_BYTES / DIRTY_RUN_PAGES;
    uint64_t runs = options->epoch_bytes / VMM_PAGE_BYTES / DIRTY_RUN_PAGES;
    uint64_t spread = runs ? all / runs : 1;
    uint64_t turn = primary->worker->turns++;
    uint64_t offset = options->pattern == BENCH_SPREAD ? epoch % spread : 0;
    for (uint64_t run = 0; run < runs; run++)
        for (unsigned page = 0; page < DIRTY_RUN_PAGES; page++) {
            uint64_t number = (run * spread + offset) * DIRTY_RUN_PAGES + page;
            uint64_t value = (number * 0x9e3779b97f4a7c15ull + turn) * 0xbf58476d1ce4e5b9ull;
            value ^= value >> 29; /* another in each turn, and elsewhere in the page */
            memory_guest_write(primary->worker->guest, 0, number * VMM_PAGE_BYTES + value % 512 * 8, &value,
                               sizeof value);
        }
}

struct mark {
    uint64_t ns, cpu_ns, wire_bytes;
    struct checkpoint_stats stats;
};

static int begin(struct primary *primary, struct mark *ret_mark)
{
    int r = worker_start(primary->worker);
    *ret_mark = (struct mark){
        .ns = clock_now_ns(), .cpu_ns = clock_cpu_ns(), .wire_bytes = session_bytes_sent(&primary->session)};
    checkpoint_get_stats(primary->checkpoint, &ret_mark->stats);
    histogram_reset(&primary->pauses);
    return r;
}

/* The standby comes to the barrier when it has applied the last checkpoint. */
static int end(struct primary *primary, const struct mark *mark, uint64_t guest_bytes, struct sample *sample)
{
    uint64_t cpu_ns = clock_cpu_ns();
    int r = worker_meet(primary->worker, 0, NULL);
    struct checkpoint_stats stats;
    struct lane_stats lane;
    checkpoint_get_stats(primary->checkpoint, &stats);
    lane_get_stats(primary->session.lanes[1].lane, &lane);
    *sample = (struct sample){
        .ns = clock_now_ns() - mark->ns,
        .cpu_ns = cpu_ns - mark->cpu_ns,
        .guest_bytes = guest_bytes,
        .wire_bytes = session_bytes_sent(&primary->session) - mark->wire_bytes,
        .pages_zero = stats.pages_zero - mark->stats.pages_zero,
        .pages_raw = stats.pages_raw - mark->stats.pages_raw,
        .pages_lz4 = stats.pages_lz4 - mark->stats.pages_lz4,
        .pages_delta = stats.pages_delta - mark->stats.pages_delta,
        .pauses = primary->pauses,
        .memory_bytes = stats.memory_bytes,
    };
    snprintf(sample->tls, sizeof sample->tls, "%s %s", lane.version, lane.cipher);
    return r;
}

static int run_epochs(struct primary *primary, uint64_t first, struct sample *sample)
{
    const struct bench_options *options = primary->worker->options;
    struct mark mark;
    int r = begin(primary, &mark);
    for (unsigned i = 0; r == 0 && i < options->epochs; i++) {
        dirty(primary, (unsigned)first + i);
        r = send_capture(primary, first + i, 0);
    }
    return r == 0 ? end(primary, &mark, options->epoch_bytes * options->epochs, sample) : r;
}

/* As a new session would be, but for its first epoch, which only shows what the standby has. */
static int run_changes(struct primary *primary, uint64_t first, struct sample *sample)
{
    checkpoint_set_delta(primary->checkpoint, true);
    dirty(primary, (unsigned)first);
    int r = send_capture(primary, first, 0);
    return r == 0 ? run_epochs(primary, first + 1, sample) : r;
}

static int measure(struct primary *primary, struct sample samples[MEASURE_COUNT])
{
    const struct bench_options *options = primary->worker->options;
    struct mark mark;
    int r = begin(primary, &mark);
    if (r == 0)
        r = checkpoint_begin(primary->checkpoint);
    if (r == 0)
        r = send_live(primary, 1);
    if (r == 0)
        r = send_capture(primary, 1, 1);
    if (r == 0)
        r = end(primary, &mark, options->size_bytes, &samples[MEASURE_FIRST_COPY]);
    if (r < 0)
        return error_add(r, "first copy");

    r = run_epochs(primary, 2, &samples[MEASURE_EPOCHS]);
    if (r == 0 && options->pattern == BENCH_SPARSE)
        r = run_changes(primary, 2 + options->epochs, &samples[MEASURE_CHANGES]);
    return r < 0 ? error_add(r, "epochs") : 0;
}

int pipeline_run_primary(struct worker *worker, struct sample samples[MEASURE_COUNT])
{
    struct primary *primary = calloc(1, sizeof *primary);
    if (!primary)
        return error_errno(-ENOMEM, "primary");
    primary->worker = worker;
    struct checkpoint_config config = {
        .staging_bytes = worker->options->epoch_bytes,
        .lanes = worker->options->lanes,
        .compression = worker->options->compression,
        .lz4_allowed = true,
        .state_lz4_allowed = true,
        .delta_bytes = worker->options->pattern == BENCH_SPARSE ? 2 * worker->options->epoch_bytes : 0,
        .round_sent = on_round_sent,
        .ready = on_ready,
        .ctx = primary};
    primary->session.produce = produce;
    primary->session.frame = answer;
    primary->session.ctx = primary;
    int r = checkpoint_new(&primary->checkpoint, worker->guest, &config);
    if (r == 0)
        r = session_open(&primary->session, worker);
    if (r == 0)
        r = measure(primary, samples);
    session_close(&primary->session);
    checkpoint_free(primary->checkpoint);
    free(primary);
    return r;
}
