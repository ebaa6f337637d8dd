/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_WORKER_H
#define UNDERSTUDY_BENCH_WORKER_H

#include "base/histogram.h"
#include "bench/options.h"
#include "transport/tls.h"
#include "vmm/vmm.h"

#include <pthread.h>
#include <sys/socket.h>

/*
 * Both workers walk through the same list of measurements and meet between them at a barrier, so that neither
 * is measured while the other prepares. Each sends a struct sample for each to the process that started them.
 */
enum measure { MEASURE_CEILING, MEASURE_FIRST_COPY, MEASURE_EPOCHS, MEASURE_CHANGES, MEASURE_COUNT };

struct sample {
    uint32_t measure; /* enum measure */
    uint32_t failed;  /* errno; `text` says why, and nothing follows */
    uint64_t ns, cpu_ns;
    uint64_t guest_bytes, wire_bytes;
    /* the primary's, of the pipeline */
    uint64_t pages_zero, pages_raw, pages_lz4, pages_delta;
    struct histogram pauses; /* nanoseconds */
    uint64_t memory_bytes;   /* either side's: what checkpoint or restore holds */
    char tls[64];
    char text[256];
};

struct worker {
    const struct bench_options *options;
    bool primary;
    unsigned vm;              /* from 0 */
    pthread_barrier_t *start; /* of all primaries, in shared memory */
    int results_fd;           /* samples go here */
    int peer_fd;              /* the other worker */
    int listen_fd;            /* standby accepts here */
    struct sockaddr_storage address;
    socklen_t address_length;
    struct tls_context *tls;
    struct vmm *guest; /* one block */
    uint8_t *memory;   /* of it */
    uint64_t turns;    /* primary: how often the guest has written */
};

/* Wait until the other worker is here too, and exchange a number. -EPIPE when it is gone. */
int worker_meet(const struct worker *worker, uint64_t mine, uint64_t *ret_other);

/* worker_meet() before a measurement; of several guests, all begin at the same time. */
int worker_start(const struct worker *worker);

/* Compare the memory of both; -EBADMSG in both when it differs. */
int worker_compare(const struct worker *worker, const char *after);

/* One measurement; fills in the sample. */
int ceiling_run(struct worker *worker, struct sample *ret_sample);

/* First copy, epochs of whole pages, and epochs in which changes of pages are sent: as many samples, by enum
 * measure, as the options ask for. */
int pipeline_run_primary(struct worker *worker, struct sample samples[MEASURE_COUNT]);
int pipeline_run_standby(struct worker *worker, struct sample samples[MEASURE_COUNT]);

/* A worker's process from fork to exit. */
int worker_run(struct worker *worker, const struct tls_files *files);

#endif
