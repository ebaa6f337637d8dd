/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/histogram.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

/*
 * What a pause costs that copies the dirty pages, and one that protects them, so that each is copied at its
 * first write or by and by. A VMM's mapping of a guest's memory is protected; an engine's is copied from; a
 * thread plays the guest that writes to what is protected, and another answers the faults.
 */

#define PAGE         4096u
#define MEMORY_PAGES (64u << 8) /* 64 MiB */
#define ROUNDS       200

struct setup {
    int fd, uffd;
    uint8_t *guest;  /* the VMM's */
    uint8_t *engine; /* the same memory */
    uint8_t *staging;
    uint32_t pages[MEMORY_PAGES];
};

static int open_userfaults(void)
{
    int fd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
    struct uffdio_api api = {.api = UFFD_API,
                             .features = UFFD_FEATURE_PAGEFAULT_FLAG_WP | UFFD_FEATURE_WP_HUGETLBFS_SHMEM};
    if (fd < 0 || ioctl(fd, UFFDIO_API, &api) < 0)
        return error_errno(-errno, "userfaultfd that protects shared memory");
    return fd;
}

static uint8_t *map(int fd)
{
    void *at = mmap(NULL, MEMORY_PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, fd, 0);
    return at == MAP_FAILED ? NULL : at;
}

static int set_up(struct setup *setup)
{
    setup->fd = memfd_create("guest", MFD_CLOEXEC);
    if (setup->fd < 0 || ftruncate(setup->fd, MEMORY_PAGES * PAGE) < 0)
        return error_errno(-errno, "memory");
    setup->guest = map(setup->fd);
    setup->engine = map(setup->fd);
    setup->staging = malloc(MEMORY_PAGES * PAGE);
    if (!setup->guest || !setup->engine || !setup->staging)
        return error_set(-ENOMEM, "no memory");
    memset(setup->guest, 1, MEMORY_PAGES * PAGE);
    memset(setup->staging, 1, MEMORY_PAGES * PAGE);
    setup->uffd = open_userfaults();
    struct uffdio_register whole = {.range = {(uintptr_t)setup->guest, MEMORY_PAGES * PAGE},
                                    .mode = UFFDIO_REGISTER_MODE_WP};
    if (setup->uffd < 0)
        return setup->uffd;
    return ioctl(setup->uffd, UFFDIO_REGISTER, &whole) < 0 ? error_errno(-errno, "userfaultfd") : 0;
}

static void protect(struct setup *setup, uint64_t first, uint64_t pages, bool on)
{
    struct uffdio_writeprotect range = {.range = {(uintptr_t)setup->guest + first * PAGE, pages * PAGE},
                                        .mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0};
    if (ioctl(setup->uffd, UFFDIO_WRITEPROTECT, &range) < 0) {
        perror("UFFDIO_WRITEPROTECT");
        exit(1);
    }
}

/* Copies the page that is to be written, then lets the writer go on. */
static void *answer_faults(void *argument)
{
    struct setup *setup = argument;
    struct pollfd readable = {.fd = setup->uffd, .events = POLLIN};
    struct uffd_msg message;
    for (;;) {
        poll(&readable, 1, -1);
        if (read(setup->uffd, &message, sizeof message) != sizeof message)
            continue;
        uint64_t page = (message.arg.pagefault.address - (uintptr_t)setup->guest) / PAGE;
        memcpy(setup->staging + page * PAGE, setup->engine + page * PAGE, PAGE);
        protect(setup, page, 1, false);
    }
    return NULL;
}

/* `run` adjacent pages at a time, spread over the memory. */
static void choose(struct setup *setup, uint32_t count, uint32_t run)
{
    uint32_t stride = MEMORY_PAGES / (count / run);
    for (uint32_t i = 0; i < count; i++)
        setup->pages[i] = i / run * stride + i % run;
}

static void print(const char *what, const struct histogram *histogram, double per)
{
    printf("  %-34s %8.1f %8.1f us\n", what, (double)histogram->min / per / 1e3,
           (double)histogram_percentile(histogram, 50) / per / 1e3);
}

static void measure(struct setup *setup, uint32_t count, uint32_t run)
{
    static struct histogram copying, protecting, writing;
    histogram_reset(&copying);
    histogram_reset(&protecting);
    histogram_reset(&writing);
    choose(setup, count, run);
    for (unsigned round = 0; round < ROUNDS; round++) {
        for (uint32_t i = 0; i < count; i++)
            setup->guest[setup->pages[i] * PAGE + round] = (uint8_t)round; /* as the guest leaves them */
        uint64_t start_ns = clock_now_ns();
        for (uint32_t i = 0; i < count; i++)
            memcpy(setup->staging + i * PAGE, setup->engine + setup->pages[i] * PAGE, PAGE);
        histogram_add(&copying, clock_now_ns() - start_ns);
        start_ns = clock_now_ns();
        for (uint32_t i = 0; i < count; i += run)
            protect(setup, setup->pages[i], run, true);
        histogram_add(&protecting, clock_now_ns() - start_ns);
        start_ns = clock_now_ns();
        for (uint32_t i = 0; i < count; i++)
            ((volatile uint8_t *)setup->guest)[setup->pages[i] * PAGE] = (uint8_t)round;
        histogram_add(&writing, clock_now_ns() - start_ns);
    }
    printf("%u pages, %u adjacent:                  best      p50\n", count, run);
    print("copy", &copying, 1);
    print("protect", &protecting, 1);
    print("first write, each page", &writing, count);
}

int main(void)
{
    static const uint32_t rows[][2] = {{50, 1}, {200, 1}, {1000, 1}, {1000, 10}, {1000, 100}};
    static struct setup setup;
    pthread_t thread;
    if (set_up(&setup) < 0 || pthread_create(&thread, NULL, answer_faults, &setup) != 0) {
        fprintf(stderr, "protect-cost: %s\n", error_text());
        return 1;
    }
    for (size_t i = 0; i < array_length(rows); i++)
        measure(&setup, rows[i][0], rows[i][1]);
    return 0;
}
