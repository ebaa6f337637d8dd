/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "replicator/report.h"
#include "replicator/standbyd.h"

static double ms(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

json_t *standbyd_status(struct standbyd *standbyd)
{
    struct role_status status;
    struct links_stats links;
    struct restore_stats stats = {0};
    standby_get_status(standbyd->machine, &status);
    links_get_stats(standbyd->hub.links, &links);
    if (standbyd->restore_ours)
        restore_get_stats(standbyd->restore, &stats);

    json_t *object = report_common(standbyd->hub.config, standbyd->running ? "primary" : "standby", &status,
                                   &links, clock_now_ns());
    json_object_set_new(object, "events", events_status(standbyd->hub.events));
    json_object_set_new(object, "checkpoints", json_integer((json_int_t)stats.epochs));
    json_object_set_new(
        object, "applied",
        json_pack("{s:I, s:I}", "pages", (json_int_t)stats.pages, "bytes", (json_int_t)stats.bytes));
    json_object_set_new(object, "staging",
                        json_pack("{s:I, s:I, s:I}", "configured_bytes", (json_int_t)stats.staging_bytes,
                                  "used_bytes", (json_int_t)stats.staged_bytes, "used_peak_bytes",
                                  (json_int_t)stats.staged_peak_bytes));
    json_object_set_new(object, "disks",
                        json_pack("{s:I, s:I, s:I}", "journal_bytes", (json_int_t)stats.journal_bytes,
                                  "journal_peak_bytes", (json_int_t)stats.journal_peak_bytes, "applied_bytes",
                                  (json_int_t)stats.disk_bytes_applied));
    json_object_set_new(object, "memory_bytes", json_integer((json_int_t)stats.memory_bytes));
    json_object_set_new(object, "sessions", json_integer((json_int_t)standbyd->sessions));
    json_object_set_new(
        object, "probe",
        json_pack("{s:o}", "committed",
                  standbyd->probe_known ? json_integer((json_int_t)standbyd->probe) : json_null()));
    json_object_set_new(object, "guest",
                        json_pack("{s:i, s:b}", "pid", standbyd->guest_pid, "running", standbyd->running));
    if (standbyd->hub.migration)
        json_object_set(object, "migration", standbyd->hub.migration);
    if (standbyd->running) {
        const struct restore_timing *timing = &standbyd->timing;
        json_object_set_new(object, "takeover_ms",
                            json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "detect",
                                      ms(standbyd->last_sign_ns, standbyd->decided_ns), "arbitrate",
                                      ms(standbyd->decided_ns, standbyd->arbitrated_ns), "apply",
                                      (double)timing->apply_ns / 1e6, "load", (double)timing->load_ns / 1e6,
                                      "run", (double)timing->run_ns / 1e6, "announce",
                                      (double)timing->announce_ns / 1e6, "total",
                                      ms(standbyd->decided_ns, standbyd->running_ns)));
    }
    return object;
}

void standbyd_progress(void *daemon, char *ret_line, size_t room)
{
    struct standbyd *standbyd = daemon;
    struct role_status status;
    standby_get_status(standbyd->machine, &status);
    const char *name = standbyd->hub.config->name;
    if (status.state == STANDBY_RECEIVING && status.committed_epoch)
        snprintf(ret_line, room, "%s: standing by, checkpoint %llu committed %.0f ms ago", name,
                 (unsigned long long)status.committed_epoch, ms(status.committed_at_ns, clock_now_ns()));
    else
        snprintf(ret_line, room, "%s: %s %.150s", name, role_state_name(status.state), status.reason);
}
