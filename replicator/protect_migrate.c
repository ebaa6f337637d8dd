/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/clock.h"

#include <string.h>

/* The primary's daemon in a planned switchover: what it measures, and what the operator is told. */

static const char *const names[] = {
    [MIGRATION_NONE] = "none",   [MIGRATION_COPYING] = "copying", [MIGRATION_SWITCHING] = "switching",
    [MIGRATION_MOVED] = "moved", [MIGRATION_FAILED] = "failed",
};

/* What was sent and what came back, for the prediction. */
void protect_migrate_sent(struct protect *protect, enum wire_type type)
{
    struct protect_migrate *migrate = &protect->migrate;
    if (type == WIRE_COMMIT)
        migrate->commit_sent_ns = clock_now_ns();
    if (type == WIRE_SWITCH)
        migrate->switch_sent_ns = clock_now_ns();
}

void protect_migrate_heard(struct protect *protect, enum role_event_type type)
{
    struct protect_migrate *migrate = &protect->migrate;
    uint64_t now_ns = clock_now_ns();
    if (type == EVENT_ACK) {
        migrate->acked_ns = now_ns;
        if (migrate->commit_sent_ns)
            migrate_learn(&migrate->commit_ns, now_ns - migrate->commit_sent_ns);
    }
    if (type == EVENT_LOADED) {
        migrate->loaded_ns = now_ns;
        if (migrate->switch_sent_ns)
            migrate_learn(&migrate->takeover_ns, now_ns - migrate->switch_sent_ns);
    }
    if (type == EVENT_STARTED)
        migrate->started_ns = now_ns;
}

void protect_migrate_captured(struct protect *protect, const struct checkpoint_capture *captured,
                              uint64_t now_ns)
{
    protect->migrate.final = *captured;
    protect->migrate.captured_ns = now_ns;
}

static double ms_between(uint64_t from_ns, uint64_t to_ns)
{
    return to_ns > from_ns ? (double)(to_ns - from_ns) / 1e6 : 0;
}

/* What the downtime was made of, in order; the sum is the downtime. Saving the device state goes on beside
 * the scan and the copy, so `state` is what it takes longer than they do. */
static json_t *downtime_parts(const struct protect_migrate *migrate)
{
    const struct checkpoint_capture *final = &migrate->final;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f, s:f}", "stop", (double) final->stop_ns / 1e6, "scan",
                     (double) final->scan_ns / 1e6, "copy", (double) final->copy_ns / 1e6, "state",
                     ms_between(final->stop_ns + final->scan_ns + final->copy_ns, final->pause_ns), "carry",
                     ms_between(migrate->captured_ns, migrate->acked_ns), "load",
                     ms_between(migrate->acked_ns, migrate->loaded_ns), "run",
                     ms_between(migrate->loaded_ns, migrate->started_ns));
}

/* What the prediction was made of; its sum is expected_downtime_ms. */
static json_t *expected_parts(const struct migrate_costs *costs)
{
    uint64_t takeover_ns = migrate_after_ns(costs) - costs->arbiter_ns - MIGRATE_HANDOVER_NS;
    return json_pack("{s:f, s:f, s:f, s:f, s:f, s:f}", "pause", (double)costs->pause_ns / 1e6, "send",
                     (double)costs->send_ns / 1e6, "commit", (double)costs->commit_ns / 1e6, "takeover",
                     (double)takeover_ns / 1e6, "arbiter", (double)costs->arbiter_ns / 1e6, "handover",
                     MIGRATE_HANDOVER_NS / 1e6);
}

/* A round was made: what was dirty then, and what it leads to expect. */
void protect_migrate_round(struct protect *protect, const struct migrate_costs *costs, uint64_t dirty_bytes,
                           uint64_t max_ns)
{
    struct protect_migrate *migrate = &protect->migrate;
    uint64_t now = clock_now_ns();
    if (migrate->round_ns && now > migrate->round_ns && !protect->copying) {
        double rate = (double)dirty_bytes * 1e9 / (double)(now - migrate->round_ns);
        migrate->dirty_rate = migrate->dirty_rate > 0 ? (3 * migrate->dirty_rate + rate) / 4 : rate;
    }
    migrate->round_ns = now;
    migrate->expected = *costs;
    migrate->expected_ns = migrate_downtime_ns(costs);
    migrate->remaining_bytes = dirty_bytes;
    migrate->rounds += max_ns != 0;
}

static double carried(const struct protect_migrate *migrate, const struct checkpoint_stats *stats,
                      uint64_t now)
{
    double seconds = (double)(now - migrate->began_ns) / 1e9;
    return seconds > 0 ? (double)(stats->bytes_guest - migrate->bytes_before) / seconds : 0;
}

json_t *protect_migrate_status(struct protect *protect, const struct role_status *status,
                               const struct checkpoint_stats *stats, uint64_t now)
{
    const struct protect_migrate *migrate = &protect->migrate;
    if (status->migration == MIGRATION_NONE)
        return json_pack("{s:s}", "state", names[MIGRATION_NONE]);
    uint64_t until = status->migration_until_ns ? status->migration_until_ns : now,
             remaining = migrate->remaining_bytes;
    if (protect->copying) {
        uint64_t total = 0, done = stats->bytes_guest - protect->copy_bytes_before;
        for (size_t i = 0; i < protect->description.block_count; i++)
            total += protect->description.blocks[i].bytes;
        remaining = total > done ? total - done : 0;
    }
    remaining += stats->disks.pending_bytes;
    char reason[sizeof status->migration_text];
    memcpy(reason, status->migration_text, sizeof reason);
    control_printable(reason);
    double eta = migrate_eta_s(remaining, carried(migrate, stats, now), migrate->dirty_rate);
    json_t *object = json_pack(
        "{s:s, s:s, s:f, s:I, s:I, s:f, s:f, s:f, s:I, s:s}", "state", names[status->migration], "reason",
        reason, "seconds", (double)(until - status->migration_since_ns) / 1e9, "copied_bytes",
        (json_int_t)(stats->bytes_guest - migrate->bytes_before), "remaining_bytes", (json_int_t)remaining,
        "dirty_bytes_per_s", migrate->dirty_rate, "expected_downtime_ms", (double)migrate->expected_ns / 1e6,
        "max_downtime_ms", (double)status->max_downtime_ns / 1e6, "rounds", (json_int_t)migrate->rounds, "to",
        status->peer);
    json_object_set_new(object, "taken_back", json_integer(status->migration_taken_back));
    json_object_set_new(object, "taken_back_ms", json_real((double)status->migration_lost_ns / 1e6));
    json_object_set_new(object, "stopped_percent", json_integer((json_int_t)migrate->share));
    json_object_set_new(object, "stopped_percent_max", json_integer((json_int_t)migrate->share_most));
    json_object_set_new(object, "eta_s", eta < 0 ? json_null() : json_real(eta));
    json_object_set_new(object, "payload_bytes",
                        json_integer((json_int_t)(stats->bytes_payload + stats->disk_bytes_payload -
                                                  migrate->payload_before)));
    if (status->migration == MIGRATION_MOVED) {
        json_object_set_new(object, "downtime_ms", json_real((double)status->downtime_ns / 1e6));
        json_object_set_new(object, "downtime_parts_ms", downtime_parts(migrate));
        json_object_set_new(object, "expected_parts_ms", expected_parts(&migrate->expected));
        json_object_set_new(object, "final_dirty_bytes",
                            json_integer((json_int_t)(migrate->final.dirty_pages * VMM_PAGE_BYTES)));
        json_object_set_new(object, "generation", json_integer((json_int_t)status->generation));
    }
    return object;
}

void protect_migrate_keep(struct protect *protect)
{
    struct role_status status;
    struct checkpoint_stats stats;
    primary_get_status(protect->machine, &status);
    checkpoint_get_stats(protect->checkpoint, &stats);
    json_decref(protect->hub.migration);
    protect->hub.migration = protect_migrate_status(protect, &status, &stats, clock_now_ns());
}

static bool wants_switchback(struct protect *protect, uint64_t client, const struct role_status *status)
{
    const struct config *config = protect->hub.config;
    struct control *control = protect->hub.control;
    if (!strcmp(config->home, config->self.name)) {
        control_refuse(control, client, "switchback: the guest is at home: %s is where it runs",
                       config->home);
        return false;
    }
    if (!status->protected_now) {
        control_refuse(control, client, "switchback: %s does not protect the guest yet: state is %s%s%s",
                       config->home, role_state_name(status->state), status->reason[0] ? ", " : "",
                       status->reason);
        return false;
    }
    return true;
}

void protect_migrate_request(struct protect *protect, uint64_t client, json_t *request)
{
    struct control *control = protect->hub.control;
    json_int_t downtime_ms = json_integer_value(json_object_get(request, "max_downtime_ms"));
    json_int_t timeout_ms = json_integer_value(json_object_get(request, "timeout_ms"));
    struct role_status status;
    struct checkpoint_stats stats;
    primary_get_status(protect->machine, &status);
    if (downtime_ms < 1 || downtime_ms > MIGRATE_DOWNTIME_MS_MAX || timeout_ms < 0 ||
        timeout_ms > MIGRATE_TIMEOUT_MS_MAX) {
        control_refuse(control, client, "migrate: max-downtime is 1 to %u ms, timeout at most %u s",
                       MIGRATE_DOWNTIME_MS_MAX, MIGRATE_TIMEOUT_MS_MAX / 1000);
        return;
    }
    json_t *bandwidth = json_object_get(request, "bandwidth");
    json_int_t rate = json_integer_value(bandwidth);
    if (bandwidth &&
        (rate < 0 || (rate && (rate < (json_int_t)CONFIG_RATE_MIN || rate > (json_int_t)CONFIG_RATE_MAX)))) {
        control_refuse(control, client,
                       "migrate: bandwidth is 100K to 1000G bytes a second, or 0 for no bound");
        return;
    }
    if (!status.guest_here) {
        control_refuse(control, client, "migrate: the guest does not run here: %s", status.reason);
        return;
    }
    if (status.migration == MIGRATION_COPYING || status.migration == MIGRATION_SWITCHING) {
        control_refuse(control, client, "migrate: a migration is under way already");
        return;
    }
    if (protect->verify.client) {
        control_refuse(control, client, "migrate: a verification is under way; wait until it is done");
        return;
    }
    if (json_is_true(json_object_get(request, "switchback")) && !wants_switchback(protect, client, &status))
        return;
    const char *left = json_string_value(json_object_get(request, "left"));
    checkpoint_get_stats(protect->checkpoint, &stats);
    struct protect_migrate *migrate = &protect->migrate;
    migrate->began_ns = clock_now_ns();
    migrate->bytes_before = stats.bytes_guest;
    migrate->payload_before = stats.bytes_payload + stats.disk_bytes_payload;
    if (protect->copying) { /* the first copy is part of it */
        migrate->began_ns = protect->copy_began_ns;
        migrate->bytes_before = protect->copy_bytes_before;
        migrate->payload_before = protect->copy_payload_before;
    }
    migrate->rounds = migrate->share_most = 0;
    if (bandwidth)
        pacer_set(&protect->pacer, (uint64_t)rate);
    struct role_event event = {.type = EVENT_MIGRATE,
                               .downtime_ns = (uint64_t)downtime_ms * NS_PER_MS,
                               .timeout_ns = (uint64_t)timeout_ms * NS_PER_MS,
                               .force = json_is_true(json_object_get(request, "switchover_at_timeout")),
                               .throttle = json_is_true(json_object_get(request, "throttle_at_timeout")),
                               .left = !left                   ? ROLE_LEFT_POLICY
                                       : !strcmp(left, "swap") ? ROLE_LEFT_SWAP
                                       : !strcmp(left, "cold") ? ROLE_LEFT_COLD
                                                               : ROLE_LEFT_POLICY};
    protect_step(protect, &event);
    control_reply(control, client, protect_status(protect));
}

void protect_migrate_cancel(struct protect *protect, uint64_t client)
{
    struct role_event event = {.type = EVENT_MIGRATE_CANCEL};
    protect_step(protect, &event);
    control_reply(protect->hub.control, client, protect_status(protect));
}
