/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <errno.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
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

void power_off(void)
{
    sleep_ns(50000000);
    reboot(RB_POWER_OFF);
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

uint64_t checked_so_far(void)
{
    return __atomic_load_n(&pages_checked, __ATOMIC_RELAXED);
}
