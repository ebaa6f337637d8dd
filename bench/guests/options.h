/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BENCH_GUESTS_OPTIONS_H
#define UNDERSTUDY_BENCH_GUESTS_OPTIONS_H

#include "workload.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* The bare guest's command line, words NAME=VALUE between blanks. README.md describes them. Pure, like
 * workload.h. */

#define OPTIONS_UNLIMITED  UINT64_MAX
#define OPTIONS_RATE_MAX   100000000u
#define OPTIONS_BLOCK_SIZE 32u
#define OPTIONS_DISK_MAX   4096u

struct options {
    uint64_t bytes; /* mem */
    uint64_t rate;  /* page writes a second, all vCPUs together; OPTIONS_UNLIMITED; 0: none */
    uint64_t check; /* pages checked a second, all vCPUs together; OPTIONS_UNLIMITED; 0: none */
    uint64_t hot;   /* pages of a vCPU's slice */
    uint64_t steps; /* writes of each vCPU, and then the end; 0: no end */
    uint64_t tick_ms;
    uint64_t irq_hz;  /* 0: no timer */
    uint64_t tsc_khz; /* 0: find out */
    uint64_t cpus;
    enum workload_order order;
    enum workload_unit unit;
    enum workload_data data;
    uint64_t net; /* address of the virtio network device; 0: none */
    unsigned net_irq;
    uint64_t disk; /* the same of the virtio disk */
    unsigned disk_irq;
    uint64_t disk_rate;   /* requests a second; OPTIONS_UNLIMITED; 0: none */
    uint64_t disk_blocks; /* of 4 KiB, that are written and read */
    uint64_t disk_writes; /* so many writes, and then nothing but reads; 0: no end */
    bool fill;
    bool oracle;
    bool avx;
    char block[OPTIONS_BLOCK_SIZE];
};

void options_default(struct options *options);
/*
 * Read a command line of a machine with at most cpus_max vCPUs. Words "virtio_mmio.device=...", which QEMU's
 * microvm appends by itself, are passed over. If a word is not understood: false, with the word and its
 * length.
 */
bool options_parse(struct options *options, const char *line, unsigned cpus_max, const char **ret_word,
                   size_t *ret_length);

#endif
