/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/events.h"

#include "base/clock.h"
#include "base/error.h"
#include "replicator/events_tell.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct events {
    const struct config *config;
    struct control *control;
    struct teller *teller;
    bool output_passes;                    /* news_derive()'s */
    uint64_t next;                         /* sequence of the next entry */
    struct events_entry ring[EVENTS_KEPT]; /* entry n at n % EVENTS_KEPT */
};

int events_open(struct events **ret_events, const struct config *config, struct control *control)
{
    struct events *events = calloc(1, sizeof *events);
    if (!events)
        return error_set(-ENOMEM, "events: out of memory");
    events->config = config;
    events->control = control;
    events->next = 1;
    int r = teller_new(&events->teller, config);
    if (r < 0) {
        free(events);
        return r;
    }
    *ret_events = events;
    return 0;
}

void events_close(struct events *events)
{
    if (!events)
        return;
    teller_free(events->teller);
    free(events);
}

void events_publish(struct events *events, enum news_kind kind, const struct role_status *status,
                    const char *reason)
{
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    struct events_entry *entry = &events->ring[events->next % EVENTS_KEPT];
    *entry = (struct events_entry){
        .sequence = events->next++,
        .kind = kind,
        .wall_ns = (uint64_t)wall.tv_sec * NS_PER_S + (uint64_t)wall.tv_nsec,
        .monotonic_ns = clock_now_ns(),
        .state = status->state,
        .generation = status->generation,
        .epoch = status->epoch,
        .committed_epoch = status->committed_epoch,
    };
    snprintf(entry->reason, sizeof entry->reason, "%s", reason);
    control_printable(entry->reason);
    teller_tell(events->teller, entry);
    if (events->control)
        control_wake(events->control);
}

void events_observe(struct events *events, const struct news_step *step)
{
    enum news_kind kinds[NEWS_STEP_MAX];
    unsigned count = news_derive(step, &events->output_passes, kinds);
    for (unsigned i = 0; i < count; i++)
        events_publish(events, kinds[i], step->after, news_reason(step));
}

void events_format_time(uint64_t wall_ns, char *ret_text, size_t room)
{
    time_t seconds = (time_t)(wall_ns / NS_PER_S);
    struct tm parts;
    char date[32];
    gmtime_r(&seconds, &parts);
    strftime(date, sizeof date, "%Y-%m-%dT%H:%M:%S", &parts);
    snprintf(ret_text, room, "%s.%03uZ", date, (unsigned)(wall_ns % NS_PER_S / NS_PER_MS));
}

static json_t *entry_json(const struct events *events, const struct events_entry *entry)
{
    const struct config *config = events->config;
    char when[40], uuid[37];
    events_format_time(entry->wall_ns, when, sizeof when);
    config_uuid_print(config->uuid, uuid);
    return json_pack("{s:s, s:s, s:f, s:I, s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:I, s:s}", "event",
                     news_name(entry->kind), "time", when, "monotonic_s", (double)entry->monotonic_ns / 1e9,
                     "sequence", (json_int_t)entry->sequence, "vm", config->name, "uuid", uuid, "host",
                     config->self.name, "peer", config->peer.name, "role", news_role(entry->state), "state",
                     role_state_name(entry->state), "generation", (json_int_t)entry->generation, "epoch",
                     (json_int_t)entry->epoch, "committed_epoch", (json_int_t)entry->committed_epoch,
                     "reason", entry->reason);
}

json_t *events_next(void *ctx, uint64_t *cursor)
{
    struct events *events = ctx;
    uint64_t oldest = events->next > EVENTS_KEPT ? events->next - EVENTS_KEPT : 1;
    if (*cursor < oldest) {
        json_int_t lost = (json_int_t)(oldest - *cursor);
        *cursor = oldest;
        return json_pack("{s:s, s:I, s:s, s:s}", "event", "dropped", "count", lost, "vm",
                         events->config->name, "host", events->config->self.name);
    }
    if (*cursor >= events->next)
        return NULL;
    return entry_json(events, &events->ring[(*cursor)++ % EVENTS_KEPT]);
}

void events_request(struct events *events, uint64_t client, const json_t *request)
{
    /* A newcomer missed nothing: it begins with the oldest that is kept. */
    uint64_t oldest = events->next > EVENTS_KEPT ? events->next - EVENTS_KEPT : 1;
    control_stream(events->control, client, events_next, events, oldest,
                   json_is_true(json_object_get(request, "follow")));
}

json_t *events_status(const struct events *events)
{
    struct teller_count count;
    teller_get_count(events->teller, &count);
    return json_pack("{s:I, s:I, s:I, s:I, s:I}", "sequence", (json_int_t)(events->next - 1), "hooks_run",
                     (json_int_t)count.run, "hooks_failed", (json_int_t)count.failed, "hooks_timed_out",
                     (json_int_t)count.timed_out, "dropped", (json_int_t)count.dropped);
}
