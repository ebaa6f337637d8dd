/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_EXPOSITION_H
#define UNDERSTUDY_WATCH_EXPOSITION_H

#include "watch/find.h"
#include "watch/sample.h"

/*
 * Prometheus' text format, version 0.0.4 (prometheus.io/docs/instrumenting/exposition_formats).
 * docs/metrics.md lists the names, and the suite compares.
 */
struct exposition_daemon {
    char socket[FIND_PATH_MAX]; /* its name in the runtime directory */
    bool up;                    /* it answered: `sample` holds */
    struct sample sample;
};

struct exposition {
    unsigned count;
    double seconds; /* that asking them took */
    struct exposition_daemon daemons[FIND_MAX];
};

/* The caller's to free; NULL: out of memory. No two lines name the same series, whatever the daemons said: of
 * two that claim to be the same the first is believed, and the other loses its `up`. */
char *exposition_write(struct exposition *exposition);

/* The value of a label: printable ASCII, of which quote and backslash are escaped; any other byte, and '%',
 * becomes %XX, so that different values stay different. */
#define EXPOSITION_LABEL_ROOM(length) (3 * (length) + 1)
void exposition_label(const char *text, char *ret_label);

#endif
