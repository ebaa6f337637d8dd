/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_WATCH_KIT_H
#define UNDERSTUDY_TESTS_WATCH_KIT_H

#include "watch/sample.h"

#include <stdlib.h>

/* What a primary's `status` says: the members that watch/ reads, with numbers that tell them apart. */
static inline json_t *kit_status(const char *machine, const char *host, const char *state)
{
    json_t *status = json_pack(
        "{s:s, s:s, s:s, s:s, s:b, s:s, s:f, s:n, s:b, s:i, s:i, s:i, s:f, s:f, s:i, s:i}", "vm", machine,
        "host", host, "role", "primary", "state", state, "protected", !strcmp(state, "protected"), "reason",
        !strcmp(state, "protected") ? "" : "the link is down", "since_s", 12.5, "unprotected_s", "guest_here",
        1, "generation", 3, "epoch", 4712, "committed_epoch", 4711, "commit_age_ms", 8.5, "interval_ms", 50.0,
        "checkpoints", 100, "wire_bytes", 1000000);
    json_t *more = json_pack(
        "{s:{s:s}, s:{s:i, s:b}, s:{s:i, s:i}, s:{s:{s:i}, s:{s:i}}, "
        "s:{s:s, s:b, s:i, s:i, s:i, s:{s:f, s:f, s:f, s:f, s:f, s:i, s:[[f, i]]}}, "
        "s:{s:f, s:f, s:f, s:f, s:f, s:i, s:[[f, i], [f, i]]}}",
        "peer", "name", "beta", "guest", "pid", 17, "running", 1, "bytes", "guest", 8192000, "payload",
        4096000, "encoders", "zero", "pages", 7, "raw", "pages", 9, "output", "gate", "nfqueue", "holding", 1,
        "held_frames", 2, "held_bytes", 3000, "frames_out", 40, "delay_ms", "p50", 20.0, "p99", 45.0, "max",
        50.0, "last", 50.0, "sum", 800.0, "count", 40, "buckets", 50.0, 40, "pause_ms", "p50", 2.0, "p99",
        4.0, "max", 5.0, "last", 2.0, "sum", 210.0, "count", 100, "buckets", 2.0, 60, 5.0, 100);
    json_object_update(status, more);
    json_decref(more);
    return status;
}

static inline void kit_set(json_t *status, const char *outer, const char *key, json_t *value)
{
    json_object_set_new(outer ? json_object_get(status, outer) : status, key, value);
}

#endif
