/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standbyd.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/daemon.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/*
 * Theory of operation
 *
 * The main thread owns the role machine. Pages go from the lanes' threads into staging without touching it;
 * it learns only that a round is complete. The guest's thread launches the waiting guest, applies epochs and
 * takes over, one job after the other, so a takeover always finds the last acknowledged epoch applied.
 */

/* --- links --- */

static void on_hello(void *ctx, uint64_t link, const struct wire_frame *frame,
                     const struct message_hello *hello)
{
    struct standbyd *standbyd = ctx;
    struct role_event event = {.type = EVENT_HELLO,
                               .session = link,
                               .generation = frame->generation,
                               .epoch = frame->epoch,
                               .hello = hello};
    standbyd_step(standbyd, &event);
}

static void on_called(void *ctx)
{
    standbyd_launch(ctx);
}

static void on_lanes_up(void *ctx, uint64_t link)
{
    struct role_event event = {.type = EVENT_LANES_UP, .session = link};
    standbyd_step(ctx, &event);
}

static void on_down(void *ctx, uint64_t link, int code, const char *reason)
{
    struct role_event event = {.type = EVENT_LINK_DOWN, .session = link, .code = code, .text = reason};
    standbyd_step(ctx, &event);
}

/* Keep what the primary says of its guest; it was validated, and is bounded, by message_describe_parse(). */
static int keep_description(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct peer_guest *described = &standbyd->described;
    if (described->link == link)
        return error_set(-EPROTO, "DESCRIBE: came twice");
    cleanup_free struct message_describe *describe = malloc(sizeof *describe);
    if (!describe)
        return error_set(-ENOMEM, "DESCRIBE: out of memory");
    int r = message_describe_parse(frame, describe);
    if (r < 0)
        return r;
    char *text = strndup(describe->text, describe->text_bytes);
    if (!text)
        return error_set(-ENOMEM, "DESCRIBE: out of memory");
    free(described->text);
    described->text = text;
    described->link = link;
    described->block_count = describe->block_count;
    for (uint32_t i = 0; i < describe->block_count; i++) {
        memcpy(described->blocks[i].name, describe->blocks[i].name, VMM_BLOCK_NAME);
        described->blocks[i].bytes = describe->blocks[i].bytes;
    }
    standbyd_prepare(standbyd);
    return 0;
}

static int on_round_end(struct standbyd *standbyd, const struct wire_frame *frame, struct role_event *event)
{
    struct message_round round;
    struct message_commit commit = {0};
    int r;
    event->type = EVENT_ROUND_END;
    event->captured = frame->type == WIRE_COMMIT;
    if (event->captured) {
        r = message_commit_parse(frame, &commit);
        event->round = commit.round;
        event->totals = commit.totals;
        event->commit = &commit;
    } else {
        r = message_round_parse(frame, &round);
        event->round = round.round;
        event->totals = round.totals;
    }
    if (r == 0)
        standbyd_step(standbyd, event);
    return r;
}

/* Fingerprints are of the committed checkpoint, of this session, one message at a time. */
static int check_verify(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct role_status status;
    standby_get_status(standbyd->machine, &status);
    if (status.session != link || status.state != STANDBY_RECEIVING || !standbyd->restore_ours ||
        !(status.optional & WIRE_FEATURE_VERIFY) || !frame->epoch || frame->epoch != status.committed_epoch ||
        standbyd->verifying)
        return error_set(-EPROTO, "VERIFY of epoch %llu while %s; committed is epoch %llu",
                         (unsigned long long)frame->epoch, role_state_name(status.state),
                         (unsigned long long)status.committed_epoch);
    return 0;
}

static int take_frame(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct role_event event = {
        .type = EVENT_HEARTBEAT, .session = link, .generation = frame->generation, .epoch = frame->epoch};
    struct message_refuse refuse;
    uint64_t ignored;
    int r = 0;
    switch (frame->type) {
    case WIRE_DESCRIBE:
        event.epoch = 0;
        r = keep_description(standbyd, link, frame);
        break;
    case WIRE_HEARTBEAT:
        r = message_heartbeat_parse(frame, &ignored, &event.epoch);
        break;
    case WIRE_ROUND:
    case WIRE_COMMIT:
        return on_round_end(standbyd, frame, &event);
    case WIRE_VERIFY:
        event.epoch = 0;
        r = check_verify(standbyd, link, frame);
        if (r == 0)
            standbyd_verify(standbyd, link, frame);
        break;
    case WIRE_SUMS_WANTED:
        event.epoch = 0;
        r = standbyd_sums(standbyd, link, frame, STANDBYD_SUMS_DISK);
        break;
    case WIRE_PAGE_SUMS_WANTED:
        event.epoch = 0;
        r = standbyd_sums(standbyd, link, frame, STANDBYD_SUMS_PAGES);
        break;
    case WIRE_SWITCH:
        event.type = EVENT_SWITCH;
        break;
    case WIRE_HANDOVER:
        event.type = EVENT_HANDOVER;
        r = fault_point(FAULT_HANDOVER_RECEIVED);
        break;
    case WIRE_GOODBYE:
        event.type = EVENT_GOODBYE;
        r = message_goodbye_parse(frame, &event.reason);
        break;
    case WIRE_REFUSE:
        event.type = EVENT_REFUSE;
        r = message_refuse_parse(frame, &refuse);
        event.refusal = refuse.code;
        event.text = refuse.text;
        break;
    default:
        r = error_set(-EPROTO, "%s: not expected by a standby", wire_type_name(frame->type));
    }
    if (r == 0)
        standbyd_step(standbyd, &event);
    return r;
}

static void on_frame(void *ctx, uint64_t link, const struct wire_frame *frame)
{
    struct standbyd *standbyd = ctx;
    if (take_frame(standbyd, link, frame) < 0) {
        on_down(ctx, link, -EPROTO, error_text());
        links_disconnect(standbyd->hub.links, link);
    }
}

/* Lane's thread. A failure ends the lane; the machine is told first, with the words for the peer. */
static int on_data(void *ctx, const struct wire_frame *frame)
{
    struct standbyd *standbyd = ctx;
    int r = restore_frame(standbyd->restore, frame);
    if (r < 0 && r != -ECANCELED) {
        struct role_event event = {.type = EVENT_ROUND_COMPLETE,
                                   .session = __atomic_load_n(&standbyd->session, __ATOMIC_RELAXED),
                                   .epoch = frame->epoch,
                                   .code = r,
                                   .text = error_text()};
        hub_event_later(&standbyd->hub, &standbyd_ops, &event);
    }
    return r;
}

static const struct links_ops links_ops = {.hello = on_hello,
                                           .called = on_called,
                                           .lanes_up = on_lanes_up,
                                           .frame = on_frame,
                                           .down = on_down,
                                           .data = on_data};

/* --- actions --- */

static int send_frame(struct standbyd *standbyd, const struct role_action *action)
{
    union {
        struct wire_welcome welcome;
        struct wire_refuse refuse;
        struct wire_heartbeat heartbeat;
        struct wire_round_done round_done;
        struct wire_goodbye goodbye;
    } body;
    struct role_status status;
    size_t length = 0;
    int r = 0;
    standby_get_status(standbyd->machine, &status);
    switch (action->send) {
    case WIRE_WELCOME:
        message_welcome_build(&action->welcome, &body.welcome);
        length = sizeof body.welcome;
        break;
    case WIRE_REFUSE:
        message_refuse_build(action->refusal, action->text, &body.refuse);
        length = sizeof body.refuse;
        break;
    case WIRE_HEARTBEAT:
        message_heartbeat_build(standbyd->heartbeats++, status.committed_epoch, &body.heartbeat);
        length = sizeof body.heartbeat;
        break;
    case WIRE_ROUND_DONE:
        message_round_done_build(action->round, &body.round_done);
        length = sizeof body.round_done;
        break;
    case WIRE_GOODBYE:
        message_goodbye_build(action->reason, &body.goodbye);
        length = sizeof body.goodbye;
        break;
    case WIRE_ACK:
        r = fault_point(FAULT_ACK_SEND);
        break;
    case WIRE_STARTED:
        r = fault_point(FAULT_STARTED_SEND);
        break;
    case WIRE_LOADED:
    case WIRE_ACCEPT:
        break;
    default:
        assert(!"a standby does not send this");
    }
    if (r < 0)
        return r;
    return links_send(standbyd->hub.links, action->session, action->send, status.generation, action->epoch,
                      &body, length);
}

static int expect(struct standbyd *standbyd, const struct role_action *action)
{
    return restore_expect(standbyd->restore, action->epoch, action->round, &action->totals,
                          action->capture ? &action->commit : NULL);
}

static void perform(struct standbyd *standbyd, const struct role_action *action)
{
    int r = 0;
    switch (action->type) {
    case ACTION_SEND:
        r = send_frame(standbyd, action);
        break;
    case ACTION_DISCONNECT:
        if (standbyd->restore_ours && action->session == standbyd->session)
            restore_abort(standbyd->restore);
        links_disconnect(standbyd->hub.links, action->session);
        if (standbyd->prepare.session == action->session)
            standbyd->prepare_wanted = false;
        break;
    case ACTION_PREPARE:
        standbyd->prepare = *action;
        standbyd->prepare_wanted = true;
        __atomic_store_n(&standbyd->session, action->session, __ATOMIC_RELAXED);
        standbyd->sessions++;
        standbyd_prepare(standbyd);
        break;
    case ACTION_EXPECT:
        r = expect(standbyd, action);
        break;
    case ACTION_COMMIT:
        r = restore_commit(standbyd->restore, action->epoch);
        break;
    case ACTION_APPLY:
        standbyd_apply(standbyd, action);
        break;
    case ACTION_YIELD:
        standbyd_halt(standbyd);
        break;
    case ACTION_LOAD:
        standbyd_load(standbyd);
        break;
    case ACTION_TAKEOVER:
        standbyd_takeover(standbyd);
        break;
    default:
        assert(!"a standby does not do this");
    }
    if (r < 0) {
        struct role_event event = {
            .type = EVENT_LINK_DOWN, .session = action->session, .code = r, .text = error_text()};
        hub_event_later(&standbyd->hub, &standbyd_ops, &event);
    }
}

/* The decision to take over was made in this step: note when, and how long the primary had been silent. */
static void note_decision(struct standbyd *standbyd, enum role_state before, enum role_state after,
                          uint64_t now)
{
    bool was = before == STANDBY_ARBITRATING || before == STANDBY_TAKING_OVER;
    if (was || (after != STANDBY_ARBITRATING && after != STANDBY_TAKING_OVER))
        return;
    struct links_stats links;
    links_get_stats(standbyd->hub.links, &links);
    standbyd->decided_ns = now;
    standbyd->last_sign_ns = links.last_frame_ns;
    if (fault_point(FAULT_TAKEOVER_BEGIN) < 0)
        log_warning("%s", error_text());
}

static void answer_takeover(struct standbyd *standbyd, enum role_state state)
{
    struct role_status status;
    if (!standbyd->takeover_client || state == STANDBY_ARBITRATING || state == STANDBY_TAKING_OVER)
        return;
    standby_get_status(standbyd->machine, &status);
    if (standbyd->running)
        control_reply(standbyd->hub.control, standbyd->takeover_client, standbyd_status(standbyd));
    else
        control_refuse(standbyd->hub.control, standbyd->takeover_client, "takeover: %s", status.reason);
    standbyd->takeover_client = 0;
}

void standbyd_step(void *daemon, struct role_event *event)
{
    struct standbyd *standbyd = daemon;
    struct role_status before, after;
    struct role_actions actions;
    event->now_ns = clock_now_ns();
    standby_get_status(standbyd->machine, &before);
    standby_step(standbyd->machine, event, &actions);
    standby_get_status(standbyd->machine, &after);
    note_decision(standbyd, before.state, after.state, event->now_ns);
    for (unsigned i = 0; i < actions.count && !standbyd->hub.ending; i++)
        if (!hub_perform(&standbyd->hub, &standbyd_ops, &actions.items[i]))
            perform(standbyd, &actions.items[i]);
    answer_takeover(standbyd, after.state);
    events_observe(standbyd->hub.events,
                   &(struct news_step){&before, &after, event, &actions, .gated = false});
}

static void get_status(void *daemon, struct role_status *ret_status)
{
    standby_get_status(((struct standbyd *)daemon)->machine, ret_status);
}

static uint64_t deadline(void *daemon)
{
    return standby_deadline(((struct standbyd *)daemon)->machine);
}

static void on_guest_event(void *daemon, enum vmm_event event)
{
    struct standbyd *standbyd = daemon;
    struct role_event happened = {.type = EVENT_GUEST, .guest = event};
    if (event == VMM_EVENT_ENDED || event == VMM_EVENT_FAILED || event == VMM_EVENT_LOST) {
        standbyd->guest_failed = true;
        worker_watch(standbyd->hub.worker, NULL);
    }
    hub_event_later(&standbyd->hub, &standbyd_ops, &happened);
}

static void reprotect(struct standbyd *standbyd, uint64_t client)
{
    struct role_event event = {.type = EVENT_REPROTECT};
    struct role_status status;
    standby_get_status(standbyd->machine, &status);
    if (status.state != STANDBY_ACTIVE) {
        control_refuse(standbyd->hub.control, client, "reprotect: the guest was not taken over here: %s",
                       status.reason);
        return;
    }
    control_reply(standbyd->hub.control, client, json_pack("{s:s}", "becomes", "primary"));
    standbyd_step(standbyd, &event);
}

static void on_request(void *ctx, uint64_t client, const char *command, json_t *request)
{
    struct standbyd *standbyd = ctx;
    struct role_event event = {0};
    if (!strcmp(command, "status")) {
        control_reply(standbyd->hub.control, client, standbyd_status(standbyd));
    } else if (!strcmp(command, "events")) {
        events_request(standbyd->hub.events, client, request);
    } else if (!strcmp(command, "takeover")) {
        if (standbyd->takeover_client) {
            control_refuse(standbyd->hub.control, client, "takeover: one is under way already");
            return;
        }
        standbyd->takeover_client = client;
        event.type = EVENT_TAKEOVER;
        event.force = json_is_true(json_object_get(request, "force"));
        standbyd_step(standbyd, &event);
    } else if (!strcmp(command, "stop")) {
        event.type = EVENT_STOP;
        control_reply(standbyd->hub.control, client, json_pack("{s:b}", "stopping", 1));
        standbyd_step(standbyd, &event);
    } else if (!strcmp(command, "reprotect")) {
        reprotect(standbyd, client);
    } else if (!strcmp(command, "migrate")) {
        control_refuse(standbyd->hub.control, client, "the guest runs on %s; say it there",
                       standbyd->hub.config->peer.name);
    } else {
        control_refuse(standbyd->hub.control, client, "command '%s' is not one of a standby's", command);
    }
}

const struct hub_ops standbyd_ops = {.links = &links_ops,
                                     .request = on_request,
                                     .guest_event = on_guest_event,
                                     .step = standbyd_step,
                                     .status = get_status,
                                     .deadline = deadline,
                                     .progress = standbyd_progress,
                                     .side = WIRE_SIDE_STANDBY};

/* --- start and end --- */

static int open_machine(struct standbyd *standbyd)
{
    struct hub *hub = &standbyd->hub;
    struct store_state stored;
    int r = config_file(hub->config, hub->config->self.state_dir, "journal", standbyd->journal_path,
                        sizeof standbyd->journal_path);
    if (r == 0)
        r = store_read(hub->store_path, hub->config->uuid, &stored);
    if (r == 0)
        r = standby_new(&standbyd->machine, &hub->config->role, stored.generation, clock_now_ns());
    if (r == 0)
        r = hub_listen(hub, &hub->links, &standbyd->listen_fd);
    if (r < 0)
        return r;
    /* What an engine stopped for good may be in the way of the guest that waits here. */
    standbyd->retires = stored.generation && !stored.active &&
                        (hub->turned || hub->config->role.reprotect == ROLE_REPROTECT_AUTO);
    return 0;
}

int standbyd_serve(struct standbyd *standbyd)
{
    struct hub *hub = &standbyd->hub;
    const struct config *config = hub->config;
    standbyd->listen_fd = -1;
    int r = hub_role_open(hub, &standbyd_ops);
    if (r == 0)
        r = open_machine(standbyd);
    if (r == 0) {
        log_notice("%s: standby listens on %s for %s", config->name, config->self.address,
                   config->peer.tls_name);
        hub_started(hub, &standbyd_ops);
        r = hub_run(hub, &standbyd_ops);
    }
    hub_unlisten(hub, standbyd->listen_fd);
    if (standbyd->restore_ours)
        restore_abort(standbyd->restore);
    links_close(hub->links);
    if (hub->worker)
        standbyd_close_guest(standbyd);
    hub_role_close(hub);
    standby_free(standbyd->machine);
    free(standbyd->described.text);
    free(standbyd->difference);
    return r;
}
