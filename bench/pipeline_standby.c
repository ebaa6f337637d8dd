/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/session.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "restore/restore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct standby {
    struct session session;
    struct restore *restore;

    /* Guarded by the session's lock. */
    bool whole; /* an epoch is there and verified */
};

static void on_round_complete(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                              const char *text)
{
    struct standby *standby = ctx;
    if (code < 0) {
        scope_lock(&standby->session.lock);
        standby->session.failure = code;
        snprintf(standby->session.text, sizeof standby->session.text, "%.200s", text);
        pthread_cond_broadcast(&standby->session.changed);
    } else if (commit) {
        session_signal(&standby->session, &standby->whole);
    } else {
        struct wire_round_done done = {.round = to_le32(round)};
        session_send(&standby->session, WIRE_ROUND_DONE, epoch, &done, sizeof done);
    }
}

static int receive(void *ctx, const struct wire_frame *frame)
{
    struct standby *standby = ctx;
    struct message_round round;
    struct message_commit commit;
    int r;
    switch (frame->type) {
    case WIRE_ROUND:
        r = message_round_parse(frame, &round);
        return r < 0 ? r : restore_expect(standby->restore, frame->epoch, round.round, &round.totals, NULL);
    case WIRE_COMMIT:
        r = message_commit_parse(frame, &commit);
        return r < 0 ? r
                     : restore_expect(standby->restore, frame->epoch, commit.round, &commit.totals, &commit);
    default:
        return restore_frame(standby->restore, frame);
    }
}

static int finish_epoch(struct standby *standby, uint64_t epoch)
{
    int r = session_wait(&standby->session, &standby->whole, "an epoch");
    if (r == 0)
        r = restore_commit(standby->restore, epoch);
    if (r < 0)
        return r;
    session_send(&standby->session, WIRE_ACK, epoch, NULL, 0);
    return restore_apply(standby->restore);
}

static int measure(struct standby *standby, struct worker *worker, uint64_t first, unsigned count,
                   struct sample *sample)
{
    int r = worker_start(worker);
    uint64_t start_ns = clock_now_ns(), cpu_ns = clock_cpu_ns();
    for (unsigned i = 0; r == 0 && i < count; i++)
        r = finish_epoch(standby, first + i);
    if (r == 0)
        r = worker_meet(worker, 0, NULL);
    struct restore_stats stats;
    restore_get_stats(standby->restore, &stats);
    *sample = (struct sample){.ns = clock_now_ns() - start_ns,
                              .cpu_ns = clock_cpu_ns() - cpu_ns,
                              .memory_bytes = stats.memory_bytes};
    return r;
}

int pipeline_run_standby(struct worker *worker, struct sample samples[MEASURE_COUNT])
{
    const uint32_t map[] = {0};
    unsigned epochs = worker->options->epochs;
    struct standby *standby = calloc(1, sizeof *standby);
    if (!standby)
        return error_errno(-ENOMEM, "standby");
    /* Two epochs, and the pieces that each lane holds. */
    struct restore_config config = {.staging_bytes = 2 * worker->options->epoch_bytes + (32u << 20),
                                    .round_complete = on_round_complete,
                                    .ctx = standby};
    standby->session.frame = receive;
    standby->session.ctx = standby;
    int r = restore_new(&standby->restore, worker->guest, &config);
    if (r == 0)
        r = restore_session(standby->restore, map, 1);
    if (r == 0)
        r = session_open(&standby->session, worker);
    if (r == 0)
        r = measure(standby, worker, 1, 1, &samples[MEASURE_FIRST_COPY]);
    if (r == 0)
        r = measure(standby, worker, 2, epochs, &samples[MEASURE_EPOCHS]);
    if (r == 0 && worker->options->pattern == BENCH_SPARSE)
        r = finish_epoch(standby, 2 + epochs);
    if (r == 0 && worker->options->pattern == BENCH_SPARSE)
        r = measure(standby, worker, 3 + epochs, epochs, &samples[MEASURE_CHANGES]);
    if (standby->restore)
        restore_abort(standby->restore);
    session_close(&standby->session);
    restore_free(standby->restore);
    free(standby);
    return r;
}
