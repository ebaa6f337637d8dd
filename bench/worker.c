/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/worker.h"

#include "base/error.h"
#include "vmm/memory/memory.h"
#include "wire/frame.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define PEER_PATIENCE_MS 120000

static int write_all(int fd, const void *bytes, size_t length)
{
    const char *from = bytes;
    while (length) {
        ssize_t n = write(fd, from, length); /* SIGPIPE is ignored */
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(-errno, "write to the other process");
        from += n;
        length -= (size_t)n;
    }
    return 0;
}

int worker_meet(const struct worker *worker, uint64_t mine, uint64_t *ret_other)
{
    uint64_t other;
    int r = write_all(worker->peer_fd, &mine, sizeof mine);
    if (r < 0)
        return r;
    struct pollfd waiting = {.fd = worker->peer_fd, .events = POLLIN};
    r = poll(&waiting, 1, PEER_PATIENCE_MS);
    if (r == 0)
        return error_set(-ETIMEDOUT, "the other process does not come to the barrier");
    ssize_t n = recv(worker->peer_fd, &other, sizeof other, MSG_WAITALL);
    if (n != (ssize_t)sizeof other)
        return error_set(-EPIPE, "the other process is gone");
    if (ret_other)
        *ret_other = other;
    return 0;
}

int worker_start(const struct worker *worker)
{
    if (worker->primary)
        pthread_barrier_wait(worker->start);
    return worker_meet(worker, 0, NULL);
}

int worker_compare(const struct worker *worker, const char *after)
{
    uint64_t sum = wire_sum(worker->memory, worker->options->size_bytes), other;
    int r = worker_meet(worker, sum, &other);
    if (r == 0 && sum != other)
        r = error_set(-EBADMSG, "after %s the two memories differ", after);
    return r;
}

static int prepare(struct worker *worker, const struct tls_files *given)
{
    struct tls_files files = *given;
    files.aes = worker->options->aes;
    struct memory_options memory = {.blocks = {{"ram", worker->options->size_bytes}}, .block_count = 1};
    int r = memory_guest_new(&worker->guest, &memory);
    if (r == 0)
        r = tls_context_new(&worker->tls, &files);
    if (r < 0)
        return r;
    worker->memory = memory_guest_block(worker->guest, 0);
    if (worker->primary)
        data_fill(worker->memory, worker->options->size_bytes, worker->options->data, 1 + worker->vm);
    return 0;
}

/* So that what was not written shows, and every page has memory before the clock runs. */
static void spoil(const struct worker *worker)
{
    if (!worker->primary)
        memset(worker->memory, 0x5a, worker->options->size_bytes);
}

static int report(const struct worker *worker, enum measure measure, struct sample *sample)
{
    sample->measure = measure;
    return write_all(worker->results_fd, sample, sizeof *sample);
}

static int measure_once(struct worker *worker)
{
    struct sample samples[MEASURE_COUNT] = {0};
    spoil(worker);
    int r = worker_meet(worker, 0, NULL);
    if (r == 0)
        r = ceiling_run(worker, &samples[MEASURE_CEILING]);
    if (r < 0)
        return error_add(r, "ceiling");
    r = worker_compare(worker, "the ceiling");
    if (r < 0)
        return r;
    spoil(worker);
    r = worker_meet(worker, 0, NULL);
    if (r < 0)
        return r;
    r = worker->primary ? pipeline_run_primary(worker, samples) : pipeline_run_standby(worker, samples);
    if (r == 0)
        r = worker_compare(worker, "the pipeline");
    for (unsigned i = 0; r == 0 && i < bench_measures(worker->options); i++)
        r = report(worker, (enum measure)i, &samples[i]);
    return r;
}

int worker_run(struct worker *worker, const struct tls_files *files)
{
    signal(SIGPIPE, SIG_IGN);
    int r = prepare(worker, files);
    for (unsigned round = 0; r == 0 && round < worker->options->rounds; round++)
        r = measure_once(worker);
    if (r < 0) {
        struct sample failure = {.failed = (uint32_t)-r};
        snprintf(failure.text, sizeof failure.text, "%s: %.200s", worker->primary ? "primary" : "standby",
                 error_text());
        write_all(worker->results_fd, &failure, sizeof failure);
    }
    vmm_close(worker->guest);
    tls_context_free(worker->tls);
    return r < 0;
}
