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

/* Play the guest: write eight bytes to each page of runs that lie evenly over the memory. */
static void dirty(struct primary *primary, unsigned epoch)
{
    const struct bench_options *options = primary->worker->options;
    uint64_t all = options->size_bytes / VMM_PAGE_BYTES / DIRTY_RUN_PAGES;
    uint64_t runs = options->epoch_bytes / VMM_PAGE_BYTES / DIRTY_RUN_PAGES;
    uint64_t spread = runs ? all / runs : 1;
    for (uint64_t run = 0; run < runs; run++)
        for (unsigned page = 0; page < DIRTY_RUN_PAGES; page++) {
            uint64_t number = (run * spread + epoch % spread) * DIRTY_RUN_PAGES + page;
            uint64_t value = number * 0x9e3779b97f4a7c15ull + epoch;
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
    int r = worker_meet(primary->worker, 0, NULL);
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
        .pause_p50_ns = histogram_percentile(&primary->pauses, 50),
        .pause_p99_ns = histogram_percentile(&primary->pauses, 99),
        .pause_max_ns = primary->pauses.max,
        .memory_bytes = stats.memory_bytes,
    };
    snprintf(sample->tls, sizeof sample->tls, "%s %s", lane.version, lane.cipher);
    return r;
}

static int measure(struct primary *primary, struct sample *ret_first, struct sample *ret_epochs)
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
        r = end(primary, &mark, options->size_bytes, ret_first);
    if (r < 0)
        return error_add(r, "first copy");

    r = begin(primary, &mark);
    for (unsigned epoch = 0; r == 0 && epoch < options->epochs; epoch++) {
        dirty(primary, epoch);
        r = send_capture(primary, 2 + epoch, 0);
    }
    if (r == 0)
        r = end(primary, &mark, options->epoch_bytes * options->epochs, ret_epochs);
    return r < 0 ? error_add(r, "epochs") : 0;
}

int pipeline_run_primary(struct worker *worker, struct sample *ret_first, struct sample *ret_epochs)
{
    struct primary *primary = calloc(1, sizeof *primary);
    if (!primary)
        return error_errno(-ENOMEM, "primary");
    primary->worker = worker;
    struct checkpoint_config config = {.staging_bytes = worker->options->epoch_bytes,
                                       .lanes = worker->options->lanes,
                                       .compression = worker->options->compression,
                                       .lz4_allowed = true,
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
        r = measure(primary, ret_first, ret_epochs);
    session_close(&primary->session);
    checkpoint_free(primary->checkpoint);
    free(primary);
    return r;
}
