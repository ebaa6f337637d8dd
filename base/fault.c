/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"

#include "base/error.h"

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum action { ACTION_NONE, ACTION_KILL, ACTION_STOP, ACTION_ERROR, ACTION_DELAY };

struct armed {
    enum action action;
    unsigned delay_ms;
    atomic_uint passes_left; /* the pass that brings this to 0 acts */
};

static struct armed points[FAULT_COUNT];
static atomic_bool anything_armed;
static pthread_once_t once = PTHREAD_ONCE_INIT;

static const char *const names[] = {
#define FAULT_STRING(id, name) name,
    FAULT_POINTS(FAULT_STRING)
#undef FAULT_STRING
};

const char *fault_name(enum fault_point point)
{
    return (unsigned)point < FAULT_COUNT ? names[point] : NULL;
}

/* "delay:MS", at most an hour; false for anything else. */
static bool parse_delay(const char *action, unsigned *ret_ms)
{
    static const char prefix[] = "delay:";
    if (strncmp(action, prefix, sizeof prefix - 1))
        return false;
    const char *digits = action + sizeof prefix - 1;
    char *end;
    unsigned long ms = strtoul(digits, &end, 10);
    if (*digits < '0' || *digits > '9' || *end || ms > 3600000)
        return false;
    *ret_ms = (unsigned)ms;
    return true;
}

static int arm_one(const char *item, size_t length)
{
    char copy[96];
    if (length >= sizeof copy)
        return error_set(-EINVAL, "fault '%.*s': too long", (int)length, item);
    memcpy(copy, item, length);
    copy[length] = 0;

    char *action = strchr(copy, '=');
    if (!action)
        return error_set(-EINVAL, "fault '%s': NAME[@N]=ACTION expected", copy);
    *action++ = 0;
    unsigned long pass = 1;
    char *at = strchr(copy, '@');
    if (at) {
        char *end;
        *at++ = 0;
        pass = strtoul(at, &end, 10);
        if (*end || end == at || pass == 0 || pass > 1000000000)
            return error_set(-EINVAL, "fault '%s': '%s' is no pass number", copy, at);
    }
    unsigned point = 0;
    while (point < FAULT_COUNT && strcmp(names[point], copy))
        point++;
    if (point == FAULT_COUNT)
        return error_set(-EINVAL, "fault '%s': no such point", copy);

    struct armed *armed = &points[point];
    if (!strcmp(action, "kill"))
        armed->action = ACTION_KILL;
    else if (!strcmp(action, "stop"))
        armed->action = ACTION_STOP;
    else if (!strcmp(action, "error"))
        armed->action = ACTION_ERROR;
    else if (parse_delay(action, &armed->delay_ms))
        armed->action = ACTION_DELAY;
    else
        return error_set(-EINVAL, "fault '%s': action '%s' is not kill, stop, error or delay:MS", copy,
                         action);
    atomic_store(&armed->passes_left, (unsigned)pass);
    atomic_store(&anything_armed, true);
    return 0;
}

int fault_arm(const char *specification)
{
    while (*specification) {
        size_t length = strcspn(specification, ",");
        int r = arm_one(specification, length);
        if (r < 0)
            return r;
        specification += length + (specification[length] == ',');
    }
    return 0;
}

static void arm_from_environment(void)
{
    const char *specification = getenv("UNDERSTUDY_FAULT");
    if (specification && fault_arm(specification) < 0) {
        fprintf(stderr, "UNDERSTUDY_FAULT: %s\n", error_text());
        abort();
    }
}

int fault_point(enum fault_point point)
{
    pthread_once(&once, arm_from_environment);
    if (__builtin_expect(!atomic_load_explicit(&anything_armed, memory_order_relaxed), 1))
        return 0;
    struct armed *armed = &points[point];
    if (armed->action == ACTION_NONE || atomic_load(&armed->passes_left) == 0 ||
        atomic_fetch_sub(&armed->passes_left, 1) != 1)
        return 0;
    switch (armed->action) {
    case ACTION_KILL:
        kill(getpid(), SIGKILL);
        return 0;
    case ACTION_STOP:
        kill(getpid(), SIGSTOP);
        return 0;
    case ACTION_DELAY:
        nanosleep(&(struct timespec){armed->delay_ms / 1000, (long)(armed->delay_ms % 1000) * 1000000}, NULL);
        return 0;
    case ACTION_ERROR:
        return error_set(-EIO, "fault point '%s' failed on purpose", names[point]);
    case ACTION_NONE:
        break;
    }
    return 0;
}
