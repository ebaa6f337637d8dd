/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/session.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <string.h>

#define SESSION_NUMBER 1u
#define GENERATION     1u
#define PATIENCE_NS    (120 * NS_PER_S)

static void on_up(void *ctx, struct lane *lane)
{
    struct session_lane *slot = ctx;
    struct session *session = slot->session;
    {
        scope_lock(&session->lock);
        session->up++;
        if (session->worker->primary && slot->index == 0)
            session->control = lane;
        pthread_cond_broadcast(&session->changed);
    }
    lane_kick(lane);
}

static int put_hello(const struct session_lane *slot, struct wire_writer *writer)
{
    struct message_hello hello = {.version_min = WIRE_VERSION,
                                  .version_max = WIRE_VERSION,
                                  .lane = (uint16_t)slot->index,
                                  .lanes = (uint16_t)slot->session->worker->options->lanes,
                                  .detect_ms = 1000,
                                  .host = "bench"};
    struct wire_hello wire;
    message_hello_build(&hello, &wire);
    int r = wire_writer_put(writer, WIRE_HELLO, GENERATION, 0, &wire, sizeof wire);
    return r < 0 ? r : 1;
}

static int put_outgoing(struct session *session, struct wire_writer *writer)
{
    scope_lock(&session->lock);
    if (!session->outgoing.waiting)
        return 0;
    int r = wire_writer_put(writer, session->outgoing.type, GENERATION, session->outgoing.epoch,
                            session->outgoing.payload, session->outgoing.length);
    if (r < 0)
        return r;
    session->outgoing.waiting = false;
    return 1;
}

static int on_produce(void *ctx, struct lane *lane, struct wire_writer *writer)
{
    struct session_lane *slot = ctx;
    struct session *session = slot->session;
    (void)lane;
    if (session->worker->primary && !slot->greeted) {
        slot->greeted = true;
        return put_hello(slot, writer);
    }
    if (slot->index == 0)
        return put_outgoing(session, writer);
    return session->produce ? session->produce(session->ctx, slot->index, writer) : 0;
}

static int on_hello(struct session_lane *slot, struct lane *lane, const struct wire_frame *frame)
{
    struct session *session = slot->session;
    struct message_hello hello;
    int r = message_hello_parse(frame, &hello);
    if (r < 0)
        return r;
    slot->greeted = true;
    slot->index = hello.lane;
    lane_set_kind(lane, hello.lane == 0, hello.lane);
    if (hello.lane == 0) {
        scope_lock(&session->lock);
        session->control = lane;
    }
    return 0;
}

static int on_frame(void *ctx, struct lane *lane, const struct wire_frame *frame)
{
    struct session_lane *slot = ctx;
    if (!slot->session->worker->primary && !slot->greeted)
        return on_hello(slot, lane, frame);
    return slot->session->frame(slot->session->ctx, frame);
}

static void on_down(void *ctx, struct lane *lane, int code, const char *reason)
{
    struct session_lane *slot = ctx;
    struct session *session = slot->session;
    (void)lane;
    scope_lock(&session->lock);
    if (!session->failure) {
        session->failure = code < 0 ? code : -ECONNRESET;
        snprintf(session->text, sizeof session->text, "lane %u: %.200s", slot->index, reason);
    }
    pthread_cond_broadcast(&session->changed);
}

static const struct lane_ops ops = {.up = on_up, .produce = on_produce, .frame = on_frame, .down = on_down};

static int open_lane(struct session *session, unsigned index)
{
    struct worker *worker = session->worker;
    struct session_lane *slot = &session->lanes[index];
    *slot = (struct session_lane){.session = session, .index = worker->primary ? index : UINT16_MAX};
    struct lane_config config = {.tls = worker->tls,
                                 .ops = &ops,
                                 .ctx = slot,
                                 .side = worker->primary ? WIRE_SIDE_PRIMARY : WIRE_SIDE_STANDBY,
                                 .control = worker->primary && index == 0,
                                 .index = index,
                                 .session_known = worker->primary,
                                 .session = worker->primary ? SESSION_NUMBER : 0};
    if (worker->primary)
        return lane_connect(&slot->lane, &config, (const struct sockaddr *)&worker->address,
                            worker->address_length);
    struct pollfd waiting = {.fd = worker->listen_fd, .events = POLLIN};
    if (poll(&waiting, 1, 10000) != 1)
        return error_set(-ETIMEDOUT, "nobody connects");
    int fd = accept4(worker->listen_fd, NULL, NULL, SOCK_CLOEXEC);
    if (fd < 0)
        return error_errno(-errno, "accept");
    return lane_accept(&slot->lane, &config, fd);
}

int session_open(struct session *session, struct worker *worker)
{
    pthread_condattr_t attributes;
    session->worker = worker;
    pthread_mutex_init(&session->lock, NULL);
    pthread_condattr_init(&attributes);
    pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC);
    pthread_cond_init(&session->changed, &attributes);
    pthread_condattr_destroy(&attributes);

    for (unsigned i = 0; i <= worker->options->lanes; i++) {
        int r = open_lane(session, i);
        if (r < 0)
            return error_add(r, "lane %u", i);
        session->lane_count++;
    }
    uint64_t give_up_ns = clock_now_ns() + 10 * NS_PER_S;
    struct timespec deadline = {.tv_sec = (time_t)(give_up_ns / NS_PER_S)};
    scope_lock(&session->lock);
    while (session->up < session->lane_count) {
        if (session->failure)
            return error_set(session->failure, "%.200s", session->text);
        if (pthread_cond_timedwait(&session->changed, &session->lock, &deadline) == ETIMEDOUT)
            return error_set(-ETIMEDOUT, "the lanes do not come up");
    }
    return 0;
}

void session_close(struct session *session)
{
    if (!session->worker)
        return;
    for (unsigned i = 0; i < session->lane_count; i++)
        lane_stop(session->lanes[i].lane);
    for (unsigned i = 0; i < session->lane_count; i++)
        lane_free(session->lanes[i].lane);
    pthread_cond_destroy(&session->changed);
    pthread_mutex_destroy(&session->lock);
}

void session_send(struct session *session, enum wire_type type, uint64_t epoch, const void *payload,
                  size_t length)
{
    struct lane *control;
    {
        scope_lock(&session->lock);
        assert(!session->outgoing.waiting && length <= sizeof session->outgoing.payload);
        session->outgoing.waiting = true;
        session->outgoing.type = type;
        session->outgoing.epoch = epoch;
        session->outgoing.length = length;
        if (length)
            memcpy(session->outgoing.payload, payload, length);
        control = session->control;
    }
    lane_kick(control);
}

int session_wait(struct session *session, bool *flag, const char *what)
{
    uint64_t give_up_ns = clock_now_ns() + PATIENCE_NS;
    struct timespec deadline = {.tv_sec = (time_t)(give_up_ns / NS_PER_S)};
    scope_lock(&session->lock);
    while (!*flag) {
        if (session->failure)
            return error_set(session->failure, "waiting for %s: %.200s", what, session->text);
        if (pthread_cond_timedwait(&session->changed, &session->lock, &deadline) == ETIMEDOUT)
            return error_set(-ETIMEDOUT, "%s does not come", what);
    }
    *flag = false;
    return 0;
}

void session_signal(struct session *session, bool *flag)
{
    scope_lock(&session->lock);
    *flag = true;
    pthread_cond_broadcast(&session->changed);
}

uint64_t session_bytes_sent(const struct session *session)
{
    uint64_t bytes = 0;
    for (unsigned i = 0; i < session->lane_count; i++) {
        struct lane_stats stats;
        lane_get_stats(session->lanes[i].lane, &stats);
        bytes += stats.bytes_sent;
    }
    return bytes;
}
