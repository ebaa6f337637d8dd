/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/reboot.h>
#include <time.h>
#include <unistd.h>

static pthread_mutex_t line_lock = PTHREAD_MUTEX_INITIALIZER;
static bool frozen; /* under line_lock: nothing is printed after a report of damage */
static uint64_t pages_checked;

static void vsay(const char *format, va_list arguments, bool last)
{
    char line[400];
    int length = vsnprintf(line, sizeof line - 1, format, arguments);
    if (length < 0 || length > (int)sizeof line - 2)
        length = sizeof line - 2;
    line[length] = '\n';
    pthread_mutex_lock(&line_lock);
    /* One write for each line, so that only the line under way can be cut in two by a takeover. */
    if (!frozen && write(STDOUT_FILENO, line, (size_t)length + 1) < 0)
        _exit(1);
    frozen |= last;
    pthread_mutex_unlock(&line_lock);
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsay(format, arguments, false);
    va_end(arguments);
}

static void vfreeze(const char *kind, const char *format, va_list arguments)
{
    char prefixed[200];
    snprintf(prefixed, sizeof prefixed, "%s %s", kind, format);
    vsay(prefixed, arguments, true);
    for (;;)
        pause();
}

void corrupt(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfreeze("CORRUPT", format, arguments);
    __builtin_unreachable();
}

void fatal(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vfreeze("FATAL", format, arguments);
    __builtin_unreachable();
}

void *must_map(uint64_t bytes)
{
    void *map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
    if (map == MAP_FAILED || mlock(map, bytes) < 0)
        fatal("%lu bytes of memory: %s", bytes, strerror(errno));
    return map;
}

void must_start(void *(*body)(void *), void *argument)
{
    pthread_t thread;
    int code = pthread_create(&thread, NULL, body, argument);
    if (code)
        fatal("thread: %s", strerror(code));
    pthread_detach(thread);
}

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

void sleep_ns(uint64_t ns)
{
    struct timespec time = {.tv_sec = (time_t)(ns / 1000000000u), .tv_nsec = (long)(ns % 1000000000u)};
    nanosleep(&time, NULL);
}

void checked(uint64_t pages)
{
    __atomic_add_fetch(&pages_checked, pages, __ATOMIC_RELAXED);
}

/*
 * The counter is kept three times: in the announced page, complemented in the same page, and on the stack. It
 * grows by one a millisecond or slower, never with the clock, so that no jump of the clock can move it.
 */
static void count(const struct options *options)
{
    volatile uint64_t *counter = must_map(PAGE_BYTES);
    counter[1] = ~0ull;
    uint64_t offset = boot_ram_offset((void *)counter), began = now_ns();
    say("probe %s:0x%lx", options->block, offset);
    for (uint64_t own = 1;; own++) {
        sleep_ns(1000000);
        if (counter[0] != own - 1 || counter[1] != ~(own - 1))
            corrupt("counter: %lu on the stack, %lu and ~%lu in memory", own - 1, counter[0], ~counter[1]);
        counter[0] = own;
        counter[1] = ~own;
        if (own % options->tick_ms == 0)
            say("tick %lu ok %lu", own, __atomic_load_n(&pages_checked, __ATOMIC_RELAXED));
        if (own % 1000 == 0 && boot_ram_offset((void *)counter) != offset)
            fatal("the probe's page moved");
        if (options->end_s && now_ns() - began > options->end_s * 1000000000u) {
            say("end %lu", own);
            sleep_ns(50000000); /* let the line out */
            reboot(RB_POWER_OFF);
        }
    }
}

int main(int argc, char **argv)
{
    static struct options options;
    if (getpid() != 1) {
        if (argc != 4 || strcmp(argv[1], "disk") != 0) {
            fprintf(stderr, "usage: %s disk FILE BYTES    write a test disk (as process 1: run as a guest)\n",
                    argv[0]);
            return 2;
        }
        int code = disk_make(argv[2], strtoull(argv[3], NULL, 0));
        if (code)
            fprintf(stderr, "%s: %s\n", argv[2], strerror(-code));
        return code ? 1 : 0;
    }
    boot_mount();
    boot_options(&options);
    if (options.modules || options.disk[0])
        boot_modules();
    workload_start(&options);
    if (options.disk[0])
        disk_start(&options);
    say("ready writers %u pages %lu rate %lu", options.writers, options.bytes / PAGE_BYTES, options.rate);
    count(&options);
    return 0;
}
