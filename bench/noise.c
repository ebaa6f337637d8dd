/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/noise.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <string.h>

#define SPIN_NS  (200 * NS_PER_MS)
#define GAP_NS   (20 * NS_PER_US)
#define SLEEP_NS NS_PER_MS
#define SLEEPS   100u

struct watcher {
    pthread_t thread;
    unsigned core;
    uint64_t spun_ns, stolen_ns;
    struct histogram gaps, late;
};

static void spin(struct watcher *watcher)
{
    uint64_t began = clock_now_ns(), last = began, now;
    do {
        now = clock_now_ns();
        if (now - last > GAP_NS) {
            histogram_add(&watcher->gaps, now - last);
            watcher->stolen_ns += now - last;
        }
        last = now;
    } while (now - began < SPIN_NS);
    watcher->spun_ns = now - began;
}

static void sleep_and_see(struct watcher *watcher)
{
    for (unsigned i = 0; i < SLEEPS; i++) {
        uint64_t due = clock_now_ns() + SLEEP_NS;
        struct timespec until = {.tv_sec = (time_t)(due / NS_PER_S), .tv_nsec = (long)(due % NS_PER_S)};
        while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL) == EINTR)
            ;
        histogram_add(&watcher->late, clock_now_ns() - due);
    }
}

static void *watch(void *argument)
{
    struct watcher *watcher = argument;
    cpu_set_t one;
    CPU_ZERO(&one);
    CPU_SET(watcher->core, &one);
    /* A core that was taken from us meanwhile is watched from another. */
    pthread_setaffinity_np(pthread_self(), sizeof one, &one);
    spin(watcher);
    sleep_and_see(watcher);
    return NULL;
}

static unsigned list_cores(unsigned cores[NOISE_THREADS_MAX])
{
    cpu_set_t set;
    unsigned count = 0;
    CPU_ZERO(&set);
    sched_getaffinity(0, sizeof set, &set);
    for (unsigned core = 0; core < CPU_SETSIZE && count < NOISE_THREADS_MAX; core++)
        if (CPU_ISSET(core, &set))
            cores[count++] = core;
    return count;
}

int noise_measure(struct noise *ret_noise)
{
    unsigned cores[NOISE_THREADS_MAX], count = list_cores(cores), started = 0;
    cleanup_free struct watcher *watchers = calloc(count + 1, sizeof *watchers);
    if (!watchers)
        return error_errno(-ENOMEM, "watchers of %u cores", count);
    int r = 0;
    for (; r == 0 && started < count; started++) {
        watchers[started].core = cores[started];
        int failed = pthread_create(&watchers[started].thread, NULL, watch, &watchers[started]);
        if (failed) {
            r = error_errno(-failed, "thread that watches core %u", cores[started]);
            break;
        }
    }
    memset(ret_noise, 0, sizeof *ret_noise);
    ret_noise->threads = started;
    for (unsigned i = 0; i < started; i++) {
        const struct watcher *watcher = &watchers[i];
        pthread_join(watcher->thread, NULL);
        histogram_merge(&ret_noise->gaps, &watcher->gaps);
        histogram_merge(&ret_noise->late, &watcher->late);
        ret_noise->seconds += (double)watcher->spun_ns / 1e9 / started;
        ret_noise->stolen_share += (double)watcher->stolen_ns / (double)watcher->spun_ns / started;
    }
    return r;
}
