/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/scope.h"
#include "replicator/protect.h"
#include "replicator/report.h"
#include "replicator/guest_driver.h"

#include <string.h>

static json_t *distribution(const struct histogram *histogram, uint64_t last, double scale)
{
    return json_pack(
        "{s:f, s:f, s:f, s:f, s:f, s:I}", "p50", (double)histogram_percentile(histogram, 50) * scale, "p99",
        (double)histogram_percentile(histogram, 99) * scale, "max", (double)histogram->max * scale, "last",
        (double)last * scale, "sum", (double)histogram->sum * scale, "count", (json_int_t)histogram->count);
}

/* Of microseconds, told in milliseconds, with how many were at most so long. */
static json_t *durations(const struct histogram *histogram, uint64_t last_us)
{
    static const uint32_t bounds_us[] = {
        50,   100,  150,   200,   300,   400,   500,   700,    1000,   1500,   2000,    3000,    4000,
        5000, 7500, 10000, 15000, 20000, 30000, 50000, 100000, 200000, 500000, 1000000, 2000000, 5000000};
    json_t *object = distribution(histogram, last_us, 0.001), *buckets = json_array();
    for (size_t i = 0; i < array_length(bounds_us); i++)
        json_array_append_new(buckets, json_pack("[f, I]", bounds_us[i] / 1000.0,
                                                 (json_int_t)histogram_at_most(histogram, bounds_us[i])));
    json_object_set_new(object, "buckets", buckets);
    return object;
}

static json_t *parts(const struct protect *protect)
{
    static const char *const names[] = {"stop", "scan", "copy", "state", "resume"};
    json_t *object = json_object();
    for (unsigned i = 0; i < 5; i++)
        json_object_set_new(object, names[i],
                            json_real((double)histogram_percentile(&protect->part_us[i], 50) / 1000.0));
    return object;
}

static json_t *output(struct protect *protect)
{
    struct gate_stats stats;
    gate_get_stats(protect->gate, &stats);
    return json_pack("{s:s, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:I, s:o}", "gate",
                     gate_kind_name(gate_kind_of(protect->gate)), "holding", stats.holding, "held_frames",
                     (json_int_t)stats.held_frames, "held_bytes", (json_int_t)stats.held_bytes,
                     "held_bytes_peak", (json_int_t)stats.held_bytes_peak, "frames_out",
                     (json_int_t)stats.frames_out, "bytes_out", (json_int_t)stats.bytes_out, "frames_in",
                     (json_int_t)stats.frames_in, "dropped", (json_int_t)stats.dropped, "delay_ms",
                     durations(&stats.delay_us, stats.delay_us.max));
}

static json_t *encoder(uint64_t pages, uint64_t bytes_saved)
{
    return json_pack("{s:I, s:I}", "pages", (json_int_t)pages, "bytes_saved", (json_int_t)bytes_saved);
}

/* What each way to encode a page did, against sending it as it is; those that see what the standby has,
 * against sending it whole in the way that was best then. */
static json_t *encoders(const struct checkpoint_stats *stats)
{
    return json_pack("{s:o, s:o, s:o, s:o, s:o}", "zero",
                     encoder(stats->pages_zero, stats->pages_zero * VMM_PAGE_BYTES), "raw",
                     encoder(stats->pages_raw, 0), "lz4",
                     encoder(stats->pages_lz4, stats->pages_lz4 * VMM_PAGE_BYTES - stats->bytes_lz4), "delta",
                     encoder(stats->pages_delta, stats->bytes_delta_saved), "same",
                     encoder(stats->pages_same, stats->bytes_same_saved));
}

static json_t *delta(const struct checkpoint_stats *stats)
{
    return json_pack("{s:I, s:I, s:I, s:I}", "memory_bytes", (json_int_t)stats->delta_memory_bytes, "bytes",
                     (json_int_t)stats->bytes_delta, "hits", (json_int_t)stats->delta_hits, "misses",
                     (json_int_t)stats->delta_misses);
}

static json_t *disks(const struct protect *protect, const struct checkpoint_stats *stats)
{
    const struct disks_stats *d = &stats->disks;
    return json_pack("{s:I, s:I, s:I, s:b, s:I, s:I, s:I, s:I, s:I, s:I, s:f, s:I, s:I}", "count",
                     (json_int_t)d->disks, "bytes", (json_int_t)d->bytes, "pending_bytes",
                     (json_int_t)d->pending_bytes, "behind", d->pending_bytes > 0, "written_bytes",
                     (json_int_t)d->logged_bytes, "copied_bytes", (json_int_t)d->copied_bytes, "known_bytes",
                     (json_int_t)d->known_bytes, "payload_bytes", (json_int_t)stats->disk_bytes_payload,
                     "log_bytes", (json_int_t)d->log_bytes, "log_peak_bytes", (json_int_t)d->log_peak_bytes,
                     "stall_ms", (double)d->stall_ns / 1e6, "overflows", (json_int_t)d->overflows, "lost",
                     (json_int_t)protect->disks_lost);
}

static json_t *device_state(const struct checkpoint_stats *stats)
{
    return json_pack("{s:I, s:I}", "bytes", (json_int_t)stats->state_bytes, "payload_bytes",
                     (json_int_t)stats->state_bytes_payload);
}

json_t *protect_status(struct protect *protect)
{
    const struct config *config = protect->hub.config;
    struct role_status status;
    struct checkpoint_stats stats;
    struct links_stats links;
    uint64_t now = clock_now_ns();
    primary_get_status(protect->machine, &status);
    checkpoint_get_stats(protect->checkpoint, &stats);
    links_get_stats(protect->hub.links, &links);

    json_t *object = report_common(config, "primary", &status, &links, now);
    json_object_set_new(object, "events", events_status(protect->hub.events));
    double seconds = protect->first_protected_ns ? (double)(now - protect->first_protected_ns) / 1e9 : 0;
    json_object_set_new(object, "checkpoints", json_integer((json_int_t)protect->checkpoints));
    json_object_set_new(object, "checkpoints_per_s",
                        json_real(seconds > 0 ? (double)protect->checkpoints / seconds : 0));
    json_object_set_new(object, "pause_ms", durations(&protect->pause_us, protect->last_pause_us));
    json_object_set_new(object, "pause_parts_p50_ms", parts(protect));
    json_object_set_new(object, "dirty_pages", distribution(&protect->dirty, protect->last_dirty, 1));
    json_object_set_new(object, "initial_copy",
                        json_pack("{s:I, s:f, s:I, s:I}", "bytes", (json_int_t)protect->copy_bytes, "seconds",
                                  (double)protect->copy_ns / 1e9, "rounds", (json_int_t)protect->copy_rounds,
                                  "known_bytes", (json_int_t)protect->copy_known));
    json_object_set_new(object, "pages",
                        json_pack("{s:I, s:I, s:I}", "zero", (json_int_t)stats.pages_zero, "raw",
                                  (json_int_t)stats.pages_raw, "lz4", (json_int_t)stats.pages_lz4));
    json_object_set_new(object, "encoders", encoders(&stats));
    json_object_set_new(object, "delta", delta(&stats));
    json_object_set_new(object, "device_state", device_state(&stats));
    json_object_set_new(object, "bytes",
                        json_pack("{s:I, s:I}", "guest", (json_int_t)stats.bytes_guest, "payload",
                                  (json_int_t)stats.bytes_payload));
    json_object_set_new(object, "compressing", json_boolean(stats.compressing));
    json_object_set_new(object, "rounds_live", json_integer((json_int_t)stats.rounds_live));
    json_object_set_new(object, "captures_given_up", json_integer((json_int_t)stats.captures_given_up));
    json_object_set_new(object, "staging",
                        json_pack("{s:I, s:I}", "configured_bytes", (json_int_t)stats.staging_bytes,
                                  "used_peak_bytes", (json_int_t)stats.staging_peak_bytes));
    json_object_set_new(object, "memory_bytes", json_integer((json_int_t)stats.memory_bytes));
    json_object_set_new(object, "output", output(protect));
    json_object_set_new(object, "disks", disks(protect, &stats));
    json_object_set_new(object, "sessions", json_integer((json_int_t)protect->sessions));
    json_object_set_new(object, "probe",
                        json_pack("{s:I, s:I}", "captured", (json_int_t)protect->probe_captured,
                                  "acknowledged", (json_int_t)protect->probe_acknowledged));
    json_object_set_new(
        object, "guest",
        json_pack("{s:i, s:b}", "pid", guest_pid(protect->guest), "running",
                  status.state != PRIMARY_STALLED && status.state != PRIMARY_SWITCHING && status.guest_here));
    json_object_set_new(object, "migration", protect_migrate_status(protect, &status, &stats, now));
    return object;
}

void protect_progress(void *daemon, char *ret_line, size_t room)
{
    struct protect *protect = daemon;
    struct role_status status;
    struct checkpoint_stats stats;
    primary_get_status(protect->machine, &status);
    checkpoint_get_stats(protect->checkpoint, &stats);
    if (status.state == PRIMARY_COPYING) {
        uint64_t total = 0;
        for (size_t i = 0; i < protect->description.block_count; i++)
            total += protect->description.blocks[i].bytes;
        double done = (double)(stats.bytes_guest - protect->copy_bytes_before) +
                      (double)((stats.pages_known - protect->copy_known_before) * VMM_PAGE_BYTES);
        double seconds = (double)(clock_now_ns() - protect->copy_began_ns) / 1e9;
        snprintf(ret_line, room, "%s: copying %.0f of %.0f MiB, %.0f MiB/s, round %llu",
                 protect->hub.config->name, done / 1048576, (double)total / 1048576,
                 seconds > 0 ? done / 1048576 / seconds : 0, (unsigned long long)protect->copy_rounds);
    } else if (!status.guest_here) {
        snprintf(ret_line, room, "%s: %.180s", protect->hub.config->name, status.reason);
    } else if (status.protected_now) {
        snprintf(
            ret_line, room,
            "%s: protected, checkpoint %llu, pause p50 %.1f p99 %.1f ms, %llu dirty pages, every %.0f ms",
            protect->hub.config->name, (unsigned long long)status.committed_epoch,
            (double)histogram_percentile(&protect->pause_us, 50) / 1000,
            (double)histogram_percentile(&protect->pause_us, 99) / 1000,
            (unsigned long long)protect->last_dirty, (double)status.interval_ns / NS_PER_MS);
    } else {
        snprintf(ret_line, room, "%s: NOT PROTECTED (%s) %.140s", protect->hub.config->name,
                 role_state_name(status.state), status.reason);
    }
}
