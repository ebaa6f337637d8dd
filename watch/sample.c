/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/sample.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/control.h"

#include <errno.h>
#include <math.h>
#include <string.h>

#define MS 0.001

/* Where `status` has each value, and what makes base units of it. docs/man/understudy.1.scd names the
 * members. */
static const struct {
    const char *outer, *key; /* outer NULL: a member of the status itself */
    double scale;
    const char *inner; /* NULL: `key` is the value; else it is an object with this member */
} places[SAMPLE_VALUES] = {
    [SAMPLE_PROTECTED] = {NULL, "protected", 1},
    [SAMPLE_SINCE_S] = {NULL, "since_s", 1},
    [SAMPLE_UNPROTECTED_S] = {NULL, "unprotected_s", 1},
    [SAMPLE_GUEST_HERE] = {NULL, "guest_here", 1},
    [SAMPLE_GUEST_RUNNING] = {"guest", "running", 1},
    [SAMPLE_GENERATION] = {NULL, "generation", 1},
    [SAMPLE_EPOCH] = {NULL, "epoch", 1},
    [SAMPLE_COMMITTED_EPOCH] = {NULL, "committed_epoch", 1},
    [SAMPLE_COMMIT_AGE_S] = {NULL, "commit_age_ms", MS},
    [SAMPLE_INTERVAL_S] = {NULL, "interval_ms", MS},
    [SAMPLE_CHECKPOINTS] = {NULL, "checkpoints", 1},
    [SAMPLE_SESSIONS] = {NULL, "sessions", 1},
    [SAMPLE_DIRTY_PAGES] = {"dirty_pages", "sum", 1},
    [SAMPLE_GUEST_BYTES] = {"bytes", "guest", 1},
    [SAMPLE_PAYLOAD_BYTES] = {"bytes", "payload", 1},
    [SAMPLE_WIRE_BYTES] = {NULL, "wire_bytes", 1},
    [SAMPLE_PAGES_ZERO] = {"encoders", "zero", 1, "pages"},
    [SAMPLE_PAGES_RAW] = {"encoders", "raw", 1, "pages"},
    [SAMPLE_PAGES_LZ4] = {"encoders", "lz4", 1, "pages"},
    [SAMPLE_PAGES_DELTA] = {"encoders", "delta", 1, "pages"},
    [SAMPLE_PAGES_SAME] = {"encoders", "same", 1, "pages"},
    [SAMPLE_ROUNDS_LIVE] = {NULL, "rounds_live", 1},
    [SAMPLE_CAPTURES_GIVEN_UP] = {NULL, "captures_given_up", 1},
    [SAMPLE_OUTPUT_HOLDING] = {"output", "holding", 1},
    [SAMPLE_OUTPUT_HELD_FRAMES] = {"output", "held_frames", 1},
    [SAMPLE_OUTPUT_HELD_BYTES] = {"output", "held_bytes", 1},
    [SAMPLE_OUTPUT_FRAMES] = {"output", "frames_out", 1},
    [SAMPLE_OUTPUT_BYTES] = {"output", "bytes_out", 1},
    [SAMPLE_OUTPUT_DROPPED] = {"output", "dropped", 1},
    [SAMPLE_DISKS] = {"disks", "count", 1},
    [SAMPLE_DISK_PENDING_BYTES] = {"disks", "pending_bytes", 1},
    [SAMPLE_DISK_WRITTEN_BYTES] = {"disks", "written_bytes", 1},
    [SAMPLE_DISK_LOG_BYTES] = {"disks", "log_bytes", 1},
    [SAMPLE_DISK_STALL_S] = {"disks", "stall_ms", MS},
    [SAMPLE_DISK_LOST] = {"disks", "lost", 1},
    [SAMPLE_JOURNAL_BYTES] = {"disks", "journal_bytes", 1},
    [SAMPLE_DISK_APPLIED_BYTES] = {"disks", "applied_bytes", 1},
    [SAMPLE_STAGING_BYTES] = {"staging", "configured_bytes", 1},
    [SAMPLE_STAGING_PEAK_BYTES] = {"staging", "used_peak_bytes", 1},
    [SAMPLE_MEMORY_BYTES] = {NULL, "memory_bytes", 1},
    [SAMPLE_RSS_BYTES] = {NULL, "rss_bytes", 1},
    [SAMPLE_EVENTS] = {"events", "sequence", 1},
    [SAMPLE_EVENTS_DROPPED] = {"events", "dropped", 1},
    [SAMPLE_HOOKS_RUN] = {"events", "hooks_run", 1},
    [SAMPLE_HOOKS_FAILED] = {"events", "hooks_failed", 1},
    [SAMPLE_TAKEOVER_S] = {"takeover_ms", "total", MS},
};

/* NAN: not told, or nothing that can be meant. */
static double value_of(const json_t *json, double scale)
{
    double value = json_is_boolean(json)  ? json_is_true(json)
                   : json_is_number(json) ? json_number_value(json)
                                          : NAN;
    return isfinite(value) && value >= 0 ? value * scale : NAN;
}

static double member(const json_t *object, const char *key, double scale)
{
    return value_of(json_object_get(object, key), scale);
}

static void take_text(const json_t *object, const char *key, char *to, size_t room)
{
    const char *text = json_string_value(json_object_get(object, key));
    snprintf(to, room, "%s", text ? text : "");
    control_printable(to);
}

/* All buckets, or none: a part of a distribution would be another distribution. */
static unsigned take_buckets(const json_t *array, struct sample_times *times)
{
    double bound = -1, count = 0;
    size_t size = json_array_size(array);
    if (size > SAMPLE_BUCKETS_MAX)
        return 0;
    for (size_t i = 0; i < size; i++) {
        const json_t *pair = json_array_get(array, i);
        double next_bound = value_of(json_array_get(pair, 0), MS),
               next_count = value_of(json_array_get(pair, 1), 1);
        if (!(next_bound > bound) || !(next_count >= count) || !(next_count <= times->count))
            return 0;
        times->buckets[i].bound_s = bound = next_bound;
        times->buckets[i].count = count = next_count;
    }
    return (unsigned)size;
}

static void take_times(const json_t *object, struct sample_times *times)
{
    times->count = member(object, "count", 1);
    times->sum_s = member(object, "sum", MS);
    times->p50_s = member(object, "p50", MS);
    times->p99_s = member(object, "p99", MS);
    times->max_s = member(object, "max", MS);
    times->told = times->count >= 0 && times->sum_s >= 0 && times->p50_s >= 0 && times->p99_s >= 0;
    times->bucket_count = times->told ? take_buckets(json_object_get(object, "buckets"), times) : 0;
}

/*
 * By the state's name (replicator/role.h). A primary that nobody hears is unprotected even while it calls: it
 * goes back and forth between calling and waiting. A name that we do not know is of another version: believe
 * `protected` alone.
 */
static enum sample_protection judge(const struct sample *sample)
{
    static const char *const degraded[] = {"greeting",    "describing", "copying", "switching-over",
                                           "arbitrating", "stalled",    "greeted", "receiving",
                                           "lost",        "taking-over"};
    static const char *const away[] = {"yielded", "moved", "ended"};
    if (sample->values[SAMPLE_PROTECTED] > 0)
        return SAMPLE_IS_PROTECTED;
    for (size_t i = 0; i < array_length(degraded); i++)
        if (!strcmp(sample->state, degraded[i]))
            return SAMPLE_IS_DEGRADED;
    for (size_t i = 0; i < array_length(away); i++)
        if (!strcmp(sample->state, away[i]))
            return SAMPLE_IS_AWAY;
    return SAMPLE_IS_UNPROTECTED;
}

int sample_parse(const json_t *status, struct sample *ret_sample)
{
    static const char *const needed[] = {"vm", "host", "role", "state"};
    struct sample sample = {0};
    for (size_t i = 0; i < array_length(needed); i++) {
        const char *text = json_string_value(json_object_get(status, needed[i]));
        if (!text || !*text)
            return error_set(-EPROTO, "status: no \"%s\"", needed[i]);
    }
    take_text(status, "vm", sample.machine, sizeof sample.machine);
    take_text(status, "host", sample.host, sizeof sample.host);
    take_text(status, "role", sample.role, sizeof sample.role);
    take_text(status, "state", sample.state, sizeof sample.state);
    take_text(status, "reason", sample.reason, sizeof sample.reason);
    take_text(json_object_get(status, "peer"), "name", sample.peer, sizeof sample.peer);
    take_text(json_object_get(status, "output"), "gate", sample.gate, sizeof sample.gate);
    for (unsigned i = 0; i < SAMPLE_VALUES; i++) {
        const json_t *object = places[i].outer ? json_object_get(status, places[i].outer) : status;
        if (places[i].inner)
            sample.values[i] =
                member(json_object_get(object, places[i].key), places[i].inner, places[i].scale);
        else
            sample.values[i] = member(object, places[i].key, places[i].scale);
    }
    take_times(json_object_get(status, "pause_ms"), &sample.pause);
    take_times(json_object_get(json_object_get(status, "output"), "delay_ms"), &sample.output_delay);
    sample.protection = judge(&sample);
    *ret_sample = sample;
    return 0;
}

const char *sample_protection_name(enum sample_protection protection)
{
    static const char *const names[] = {[SAMPLE_IS_UNPROTECTED] = "UNPROTECTED",
                                        [SAMPLE_IS_DEGRADED] = "DEGRADED",
                                        [SAMPLE_IS_PROTECTED] = "PROTECTED",
                                        [SAMPLE_IS_AWAY] = "AWAY"};
    return names[protection];
}
