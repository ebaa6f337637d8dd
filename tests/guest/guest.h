/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_GUEST_H
#define UNDERSTUDY_TESTS_GUEST_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The test guest: an init that keeps patterns in memory, rewrites them all the time, and checks them itself.
 * README.md in this folder describes its kernel parameters and its output.
 */

#define PAGE_BYTES 4096u
#define PAGE_WORDS (PAGE_BYTES / 8)
#define CPUS_MAX   64

enum pattern {
    PATTERN_RANDOM, /* does not compress */
    PATTERN_TEXT,   /* compresses about two to one */
    PATTERN_ZERO,   /* every other iteration of a page is all zeros */
    PATTERN_SPARSE, /* a few words change, the rest of the page stays */
    PATTERN_MIXED,  /* one of the four, chosen for each page and iteration */
};

struct options {
    uint64_t bytes;    /* us.mem */
    uint64_t rate;     /* us.rate: page writes a second, all writers together; UINT64_MAX: no limit */
    uint64_t hot;      /* us.hot: only this many pages are rewritten; 0: all */
    uint64_t check;    /* us.check: pages checked a second; UINT64_MAX: no limit */
    uint64_t tick_ms;  /* us.tick */
    uint64_t step_ms;  /* us.step */
    uint64_t steps;    /* us.steps: writes of each writer, then the result and the end; 0: no end */
    uint64_t end_s;    /* us.end: power off after this many seconds; 0: never */
    unsigned writers;  /* us.writers; default: one for each CPU */
    enum pattern mode; /* us.mode */
    bool sequential;   /* us.order=sequential */
    bool modules;      /* us.modules: load the virtio modules even without us.disk */
    char disk[64];     /* us.disk: device that is read with O_DIRECT; empty: none */
    uint64_t slots;    /* us.slots: pages that receive disk blocks */
    char block[64];    /* us.block: QEMU's name of the main RAM block, printed with the probe */
};

/* pattern.c: what a page must hold at an iteration. Pure, so that every reader can compute it again. */
void pattern_make(uint64_t page[PAGE_WORDS], enum pattern mode, uint64_t number, uint64_t iteration);
/* A computation that depends on both, and so on all that it was given in turn. */
uint64_t pattern_mix(uint64_t a, uint64_t b);
/* Content of block `number` of a test disk. */
void pattern_disk(uint64_t block[PAGE_WORDS], uint64_t number);

/* workload.c */
void workload_start(const struct options *options);

/* disk.c */
void disk_start(const struct options *options);
int disk_make(const char *path, uint64_t bytes);

/* boot.c */
void boot_mount(void);
/* Of the kernel's parameters. `other`, or NULL, is asked about those that are not known here. */
void boot_options(struct options *options, bool (*other)(const char *name, const char *value));
void boot_modules(void);
/* Offset of the page at `address` within QEMU's main RAM block. */
uint64_t boot_ram_offset(const void *address);

/* counter.c */
/* Announce the probe and count for ever. `tell`, or NULL, gets each new value, which then lies in memory. */
void counter_run(const struct options *options, void (*tell)(uint64_t counter)) __attribute__((noreturn));

/* say.c */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));
/* Report damage and freeze the guest: the ticks stop, and the memory stays as it is to be looked at. */
void corrupt(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* The guest cannot do what it was asked to. */
void fatal(const char *format, ...) __attribute__((format(printf, 1, 2), noreturn));
/* Let the last line out and power off. */
void power_off(void);
void *must_map(uint64_t bytes);
void must_start(void *(*body)(void *), void *argument);
uint64_t now_ns(void);
void sleep_ns(uint64_t ns);
/* Count pages that were verified; shown by the ticks. */
void checked(uint64_t pages);
uint64_t checked_so_far(void);

#endif
