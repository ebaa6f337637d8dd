/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_SAMPLE_H
#define UNDERSTUDY_WATCH_SAMPLE_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>

/*
 * What a daemon's `status` said, checked and in base units (seconds, bytes). A daemon of another version, or
 * whatever else sits at the socket, may say anything: a text is bounded and printable ASCII, a number is
 * finite and not negative, and what is missing or of another type was not told. Only who speaks must be told.
 */

enum sample_value {
    SAMPLE_PROTECTED, /* 0 or 1, as all that is a question */
    SAMPLE_SINCE_S,
    SAMPLE_UNPROTECTED_S, /* not told of a standby, nor while protected */
    SAMPLE_GUEST_HERE,
    SAMPLE_GUEST_RUNNING,
    SAMPLE_GENERATION,
    SAMPLE_EPOCH,
    SAMPLE_COMMITTED_EPOCH,
    SAMPLE_COMMIT_AGE_S,
    SAMPLE_INTERVAL_S,
    SAMPLE_CHECKPOINTS,
    SAMPLE_SESSIONS,
    SAMPLE_DIRTY_PAGES,
    SAMPLE_GUEST_BYTES,
    SAMPLE_PAYLOAD_BYTES,
    SAMPLE_WIRE_BYTES,
    SAMPLE_PAGES_ZERO,
    SAMPLE_PAGES_RAW,
    SAMPLE_PAGES_LZ4,
    SAMPLE_PAGES_DELTA,
    SAMPLE_PAGES_SAME,
    SAMPLE_ROUNDS_LIVE,
    SAMPLE_CAPTURES_GIVEN_UP,
    SAMPLE_OUTPUT_HOLDING,
    SAMPLE_OUTPUT_HELD_FRAMES,
    SAMPLE_OUTPUT_HELD_BYTES,
    SAMPLE_OUTPUT_FRAMES,
    SAMPLE_OUTPUT_BYTES,
    SAMPLE_OUTPUT_DROPPED,
    SAMPLE_DISKS,
    SAMPLE_DISK_PENDING_BYTES,
    SAMPLE_DISK_WRITTEN_BYTES,
    SAMPLE_DISK_LOG_BYTES,
    SAMPLE_DISK_STALL_S,
    SAMPLE_DISK_LOST,
    SAMPLE_JOURNAL_BYTES,
    SAMPLE_DISK_APPLIED_BYTES,
    SAMPLE_STAGING_BYTES,
    SAMPLE_STAGING_PEAK_BYTES,
    SAMPLE_MEMORY_BYTES,
    SAMPLE_RSS_BYTES,
    SAMPLE_EVENTS,
    SAMPLE_EVENTS_DROPPED,
    SAMPLE_HOOKS_RUN,
    SAMPLE_HOOKS_FAILED,
    SAMPLE_TAKEOVER_S,
    SAMPLE_VALUES,
};

#define SAMPLE_NAME_MAX    64
#define SAMPLE_BUCKETS_MAX 32

struct sample_times {
    bool told;
    double count, sum_s, p50_s, p99_s, max_s;
    unsigned bucket_count; /* 0: an engine that does not tell */
    struct {
        double bound_s, count; /* so many were at most that; both grow from bucket to bucket */
    } buckets[SAMPLE_BUCKETS_MAX];
};

enum sample_protection {
    SAMPLE_IS_UNPROTECTED, /* the guest here has nobody who could go on with it */
    SAMPLE_IS_DEGRADED,    /* not so, but a session is being set up, or an older checkpoint stands */
    SAMPLE_IS_PROTECTED,
    SAMPLE_IS_AWAY, /* the guest has left this host, or ended: nothing to protect here */
};

struct sample {
    char machine[SAMPLE_NAME_MAX], host[SAMPLE_NAME_MAX], peer[SAMPLE_NAME_MAX];
    char role[16], state[24], gate[16], reason[200];
    enum sample_protection protection;
    double values[SAMPLE_VALUES]; /* NAN: not told */
    struct sample_times pause, output_delay;
};

/* -EPROTO: not a status. `ret_sample` is untouched then. */
int sample_parse(const json_t *status, struct sample *ret_sample);

static inline bool sample_told(const struct sample *sample, enum sample_value value)
{
    return sample->values[value] >= 0; /* false for NAN */
}

/* "PROTECTED", "DEGRADED", "UNPROTECTED", "AWAY". */
const char *sample_protection_name(enum sample_protection protection);

#endif
