/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/sim/sim.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

/*
 * Connections. A session has a control lane (both ways) and data, each a queue that keeps its order; lanes
 * and sessions overtake each other. A cut direction holds packets back as TCP does: they arrive when it
 * heals, if anybody still listens. An end that closes, or whose process dies, sends a last packet; a host
 * that is down sends nothing.
 */

#define CONNECT_TIMEOUT (300 * MS)
#define DOOR_NUMBERS    (UINT64_C(1) << 32) /* who comes to a primary's door is none of its sessions */

static int other(int index)
{
    return !index;
}

static int sender(const struct session *session, enum channel channel)
{
    return channel == CONTROL_TO_PRIMARY ? other(session->primary) : session->primary;
}

static struct session *find(struct sim *sim, int index, uint64_t number)
{
    for (unsigned i = 0; number && i < SESSIONS_MAX; i++) {
        struct session *session = &sim->sessions[i];
        if (session->used && session->open[index] && session->number[index] == number &&
            session->life[index] == sim->hosts[index].life)
            return session;
    }
    return NULL;
}

static void plan_pump(struct sim *sim, struct session *session, enum channel channel)
{
    struct queue *queue = &session->queues[channel];
    if (queue->pumping || !queue->count || sim->cut[sender(session, channel)])
        return;
    uint64_t at_ns = queue->items[queue->head].at_ns;
    queue->pumping = true;
    struct sim_event *event =
        sim_push(sim, SIM_PUMP, at_ns > sim->now_ns ? at_ns - sim->now_ns : 0, session->primary);
    event->a = (uint64_t)(session - sim->sessions);
    event->b = channel;
}

static struct packet *put(struct sim *sim, struct session *session, enum channel channel)
{
    struct queue *queue = &session->queues[channel];
    if (queue->count == QUEUE_MAX) /* an unread connection: the sender blocks; what it says is lost with it */
        return NULL;
    struct packet *packet = &queue->items[(queue->head + queue->count++) % QUEUE_MAX];
    memset(packet, 0, offsetof(struct packet, hello));
    uint64_t delay = sim->delay_ns / 2 + sim_between(sim, 0, sim->delay_ns);
    packet->at_ns = sim->now_ns + delay;
    if (packet->at_ns < queue->last_ns)
        packet->at_ns = queue->last_ns;
    queue->last_ns = packet->at_ns;
    return packet;
}

static void fin(struct sim *sim, struct session *session, int from)
{
    for (enum channel channel = 0; channel < CHANNELS; channel++) {
        if (sender(session, channel) != from)
            continue;
        /* The control lane closes first, so that a GOODBYE is not overtaken by the end of a data lane. */
        uint64_t control_ns = session->queues[CONTROL_TO_STANDBY].last_ns;
        if (channel == DATA_TO_STANDBY && session->queues[channel].last_ns <= control_ns)
            session->queues[channel].last_ns = control_ns + 1;
        struct packet *packet = put(sim, session, channel);
        if (!packet)
            continue;
        packet->kind = PACKET_FIN;
        plan_pump(sim, session, channel);
    }
}

static void reap(struct sim *sim, struct session *session)
{
    (void)sim;
    bool pumping = false;
    for (enum channel channel = 0; channel < CHANNELS; channel++)
        pumping = pumping || session->queues[channel].pumping;
    if (!session->open[0] && !session->open[1] && !pumping)
        session->used = false;
}

static void close_end(struct sim *sim, struct session *session, int index, bool silent)
{
    session->open[index] = false;
    if (!silent)
        fin(sim, session, index);
    reap(sim, session);
}

void net_disconnect(struct sim *sim, int index, uint64_t number)
{
    struct session *session = find(sim, index, number);
    if (session)
        close_end(sim, session, index, false);
}

void net_engine_died(struct sim *sim, int index, bool silent)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        struct session *session = &sim->sessions[i];
        if (session->used && session->open[index])
            close_end(sim, session, index, silent);
    }
}

static void link_down(struct sim *sim, int index, uint64_t number, uint64_t delay_ns, const char *why)
{
    struct parcel *parcel = host_post(sim, index, delay_ns, EVENT_LINK_DOWN);
    parcel->event.session = number;
    parcel->event.code = -ECONNRESET;
    parcel->event.text = why;
}

void net_connect(struct sim *sim, int index, uint64_t number)
{
    struct host *target = &sim->hosts[other(index)];
    struct session *session = NULL;
    bool reachable = target->up && !sim->cut[0] && !sim->cut[1];
    for (unsigned i = 0; i < SESSIONS_MAX && !session; i++)
        if (!sim->sessions[i].used)
            session = &sim->sessions[i];
    /* The oldest connections whose peer will never close them are forgotten by the kernel at last. */
    for (unsigned i = 0; i < SESSIONS_MAX && !session; i++)
        if (!sim->sessions[i].open[0] || !sim->sessions[i].open[1]) {
            session = &sim->sessions[i];
            for (enum channel channel = 0; channel < CHANNELS; channel++)
                if (session->queues[channel].pumping)
                    session = NULL;
            if (session)
                break;
        }
    if (!reachable || target->role == ENGINE_NONE || !session) {
        link_down(sim, index, number, reachable ? 2 * sim->delay_ns : CONNECT_TIMEOUT,
                  reachable ? "connection refused" : "connection timed out");
        return;
    }
    memset(session, 0, offsetof(struct session, queues));
    for (enum channel channel = 0; channel < CHANNELS; channel++) {
        struct queue *queue = &session->queues[channel];
        queue->head = queue->count = 0;
        queue->pumping = false;
        queue->last_ns = sim->now_ns;
    }
    session->used = true;
    session->primary = index;
    session->open[0] = session->open[1] = true;
    session->life[0] = sim->hosts[0].life;
    session->life[1] = sim->hosts[1].life;
    session->number[index] = number;
    host_post(sim, index, 3 * sim->delay_ns, EVENT_CONTROL_UP)->event.session = number;
}

static void lanes_up(struct sim *sim, int index, struct session *session)
{
    if (session->lanes[index])
        return;
    session->lanes[index] = true;
    host_post(sim, index, sim_between(sim, 0, 4 * sim->delay_ns), EVENT_LANES_UP)->event.session =
        session->number[index];
}

void net_open_lanes(struct sim *sim, int index, uint64_t number)
{
    struct session *session = find(sim, index, number);
    if (!session)
        return;
    if (!session->open[other(index)] || sim->cut[0] || sim->cut[1]) {
        link_down(sim, index, number, CONNECT_TIMEOUT, "a data lane cannot connect");
        return;
    }
    lanes_up(sim, 0, session);
    lanes_up(sim, 1, session);
}

bool net_described(const struct sim *sim, int index, uint64_t number)
{
    const struct session *session = find((struct sim *)sim, index, number);
    return session && session->described;
}

void net_send(struct sim *sim, int index, const struct role_action *action)
{
    struct host *host = &sim->hosts[index];
    struct session *session = find(sim, index, action->session);
    if (!session)
        return;
    enum channel channel = index == session->primary ? CONTROL_TO_STANDBY : CONTROL_TO_PRIMARY;
    struct packet *packet = put(sim, session, channel);
    if (!packet)
        return;
    struct role_status status;
    host_get_status(sim, index, &status);
    packet->kind = PACKET_FRAME;
    packet->type = action->send;
    packet->generation = status.generation;
    packet->epoch = action->epoch;
    packet->round = action->round;
    packet->refusal = action->refusal;
    packet->reason = action->reason;
    packet->totals = action->totals;
    if (action->send == WIRE_COMMIT)
        packet->commit = action->commit;
    if (action->send == WIRE_WELCOME)
        packet->welcome = action->welcome;
    if (action->send == WIRE_HELLO) {
        packet->hello = (struct message_hello){.version_min = 1,
                                               .version_max = 1,
                                               .lanes = 1,
                                               .detect_ms = (uint32_t)(sim->config.detect_ns / MS),
                                               .optional = sim->config.optional,
                                               .acked_epoch = status.committed_epoch};
        packet->hello.host[0] = (char)('A' + index);
        memcpy(packet->hello.history, host->tracker.history, sizeof packet->hello.history);
        memcpy(packet->hello.vm_uuid, sim->config.vm_uuid, sizeof packet->hello.vm_uuid);
    }
    plan_pump(sim, session, channel);
}

void net_send_data(struct sim *sim, int index, uint64_t number, const struct packet *data)
{
    struct session *session = find(sim, index, number);
    struct packet *packet = session ? put(sim, session, DATA_TO_STANDBY) : NULL;
    if (!packet)
        return;
    uint64_t at_ns = packet->at_ns;
    *packet = *data;
    packet->at_ns = at_ns;
    packet->kind = PACKET_DATA;
    plan_pump(sim, session, DATA_TO_STANDBY);
}

static void deliver_frame(struct sim *sim, int index, struct session *session, struct packet *packet)
{
    static const enum role_event_type events[] = {
        [WIRE_HELLO] = EVENT_HELLO,
        [WIRE_WELCOME] = EVENT_WELCOME,
        [WIRE_REFUSE] = EVENT_REFUSE,
        [WIRE_ACCEPT] = EVENT_ACCEPT,
        [WIRE_HEARTBEAT] = EVENT_HEARTBEAT,
        [WIRE_ROUND] = EVENT_ROUND_END,
        [WIRE_COMMIT] = EVENT_ROUND_END,
        [WIRE_ROUND_DONE] = EVENT_ROUND_DONE,
        [WIRE_ACK] = EVENT_ACK,
        [WIRE_GOODBYE] = EVENT_GOODBYE,
        [WIRE_SWITCH] = EVENT_SWITCH,
        [WIRE_LOADED] = EVENT_LOADED,
        [WIRE_HANDOVER] = EVENT_HANDOVER,
        [WIRE_STARTED] = EVENT_STARTED,
    };
    if (packet->type == WIRE_DESCRIBE) {
        session->described = true;
        job_kick(sim, index);
        return;
    }
    if (packet->type == WIRE_HELLO)
        session->number[index] = ++sim->hosts[index].standby_sessions +
                                 (sim->hosts[index].role == ENGINE_PRIMARY ? DOOR_NUMBERS : 0);
    struct role_event event = {
        .type = events[packet->type],
        .session = session->number[index],
        .generation = packet->generation,
        .epoch = packet->epoch,
        .round = packet->round,
        .captured = packet->type == WIRE_COMMIT,
        .totals = packet->totals,
        .hello = &packet->hello,
        .welcome = &packet->welcome,
        .commit = &packet->commit,
        .refusal = packet->refusal,
        .reason = packet->reason,
        .text = packet->type == WIRE_REFUSE ? "as it said" : NULL,
    };
    sim_trace(sim, "host%d: receives %s session %llu generation %llu epoch %llu round %u", index,
              wire_type_name((uint8_t)packet->type), (unsigned long long)event.session,
              (unsigned long long)packet->generation, (unsigned long long)packet->epoch, packet->round);
    sim->hosts[index].heard_ns = sim->now_ns;
    sim->hosts[index].told_of_death =
        event.type == EVENT_GOODBYE && event.reason == WIRE_GOODBYE_GUEST_FAILED;
    if (event.type == EVENT_HANDOVER) {
        sim->hosts[index].told_to_run = true;
        sim->handovers++;
    }
    host_deliver(sim, index, &event);
}

void net_pump(struct sim *sim, unsigned number, enum channel channel)
{
    struct session *session = &sim->sessions[number];
    struct queue *queue = &session->queues[channel];
    int from = sender(session, channel), to = other(from);
    struct host *host = &sim->hosts[to];
    queue->pumping = false;
    bool listens = session->open[to] && host->life == session->life[to];
    if (!listens) {
        queue->count = 0;
        reap(sim, session);
        return;
    }
    if (sim->cut[from] || !queue->count)
        return;
    if (host->frozen_until_ns > sim->now_ns) {
        queue->items[queue->head].at_ns = host->frozen_until_ns;
        plan_pump(sim, session, channel);
        return;
    }
    if (queue->items[queue->head].at_ns > sim->now_ns) {
        plan_pump(sim, session, channel);
        return;
    }
    struct packet packet = queue->items[queue->head];
    queue->head = (queue->head + 1) % QUEUE_MAX;
    queue->count--;
    plan_pump(sim, session, channel);
    if (packet.kind == PACKET_FIN || packet.corrupt) {
        close_end(sim, session, to, false);
        if (session->number[to])
            link_down(sim, to, session->number[to], 0,
                      packet.corrupt ? "a frame's sum is wrong" : "the peer closed the connection");
        return;
    }
    if (packet.kind == PACKET_DATA)
        restorer_data(sim, to, &packet);
    else
        deliver_frame(sim, to, session, &packet);
}

void net_healed(struct sim *sim)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++)
        for (enum channel channel = 0; sim->sessions[i].used && channel < CHANNELS; channel++)
            plan_pump(sim, &sim->sessions[i], channel);
}

void net_reset(struct sim *sim)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++) {
        struct session *session = &sim->sessions[i];
        for (int index = 0; session->used && index < HOSTS; index++) {
            if (!session->open[index])
                continue;
            close_end(sim, session, index, true);
            if (session->number[index])
                link_down(sim, index, session->number[index], sim_between(sim, 0, 5 * MS),
                          "connection reset");
        }
    }
}

bool net_corrupt(struct sim *sim)
{
    for (unsigned i = 0; i < SESSIONS_MAX; i++)
        for (enum channel channel = 0; sim->sessions[i].used && channel < CHANNELS; channel++) {
            struct queue *queue = &sim->sessions[i].queues[channel];
            if (!queue->count)
                continue;
            queue->items[(queue->head + queue->count - 1) % QUEUE_MAX].corrupt = true;
            return true;
        }
    return false;
}
