/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/daemon.h"
#include "replicator/guest_driver.h"

#include <assert.h>
#include <errno.h>
#include <string.h>
#include <sys/random.h>

/*
 * Theory of operation
 *
 * Four kinds of threads. The main thread owns the role machine and performs its actions. The guest's thread
 * makes all calls on the guest: attach, rounds, captures. Each lane has its own thread: data lanes pull
 * frames from the checkpoint, the control lane from its link's outbox. Nobody waits for the main thread, and
 * it waits for nobody but the disk that holds the generation file; so heartbeats go out while the guest is
 * being captured and while lanes are busy.
 */

/* Guest's thread. Whatever the guest's driver says reaches the machine as an event of its own. */
static void on_guest_event(void *daemon, enum vmm_event event)
{
    struct protect *protect = daemon;
    struct role_event happened = {.type = EVENT_GUEST, .guest = event};
    hub_event_later(&protect->hub, &protect_ops, &happened);
}

/* --- lanes' threads --- */

static int on_produce(void *ctx, unsigned lane, struct wire_writer *writer)
{
    struct protect *protect = ctx;
    return checkpoint_produce(protect->checkpoint, lane, writer);
}

static void on_round_sent(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals)
{
    struct protect *protect = ctx;
    struct role_event event = {.type = EVENT_ROUND_SENT,
                               .session = atomic_load(&protect->session),
                               .epoch = epoch,
                               .round = round,
                               .totals = *totals};
    hub_event_later(&protect->hub, &protect_ops, &event);
}

static void on_ready(void *ctx)
{
    links_kick(((struct protect *)ctx)->hub.links);
}

/* --- main thread: links --- */

static void on_control_up(void *ctx, uint64_t link)
{
    struct role_event event = {.type = EVENT_CONTROL_UP, .session = link};
    protect_step(ctx, &event);
}

static void on_lanes_up(void *ctx, uint64_t link)
{
    struct role_event event = {.type = EVENT_LANES_UP, .session = link};
    protect_step(ctx, &event);
}

static void on_down(void *ctx, uint64_t link, int code, const char *reason)
{
    struct role_event event = {.type = EVENT_LINK_DOWN, .session = link, .code = code, .text = reason};
    protect_step(ctx, &event);
}

static void on_frame(void *ctx, uint64_t link, const struct wire_frame *frame)
{
    struct protect *protect = ctx;
    struct message_welcome welcome;
    struct message_refuse refuse;
    struct role_event event = {.session = link, .generation = frame->generation, .epoch = frame->epoch};
    if (protect_event_of_frame(protect, frame, &event, &welcome, &refuse) < 0) {
        on_down(ctx, link, -EPROTO, error_text());
        links_disconnect(protect->hub.links, link);
        return;
    }
    protect_migrate_heard(protect, event.type);
    protect_step(protect, &event);
}

static const struct links_ops links_ops = {.control_up = on_control_up,
                                           .lanes_up = on_lanes_up,
                                           .frame = on_frame,
                                           .down = on_down,
                                           .produce = on_produce};

/* --- main thread: actions --- */

static int send_hello(struct protect *protect, const struct role_action *action,
                      const struct role_status *status)
{
    const struct config *config = protect->hub.config;
    struct message_hello hello = {.version_min = WIRE_VERSION,
                                  .version_max = WIRE_VERSION,
                                  .lanes = (uint16_t)config->lanes,
                                  .detect_ms = (uint32_t)(config->role.detect_ns / NS_PER_MS),
                                  .optional = config->role.optional,
                                  .required = protect->description.disk_count ? WIRE_FEATURE_DISK : 0,
                                  .acked_epoch = status->committed_epoch};
    memcpy(hello.vm_uuid, config->uuid, sizeof hello.vm_uuid);
    memcpy(hello.history, protect->history, sizeof hello.history);
    snprintf(hello.host, sizeof hello.host, "%s", config->self.name);
    return links_send_hello(protect->hub.links, action->session, status->generation, action->epoch, &hello);
}

static int send_describe(struct protect *protect, const struct role_action *action, uint64_t generation)
{
    size_t room =
        sizeof(struct wire_describe) + WIRE_BLOCKS_MAX * sizeof(struct wire_block) + WIRE_DESCRIPTION_MAX;
    cleanup_free struct message_describe *describe = calloc(1, sizeof *describe);
    cleanup_free void *payload = malloc(room);
    if (!describe || !payload)
        return error_set(-ENOMEM, "DESCRIBE: out of memory");
    describe->block_count = (uint32_t)protect->description.block_count;
    for (uint32_t i = 0; i < describe->block_count; i++) {
        memcpy(describe->blocks[i].name, protect->description.blocks[i].name, WIRE_BLOCK_NAME);
        describe->blocks[i].bytes = protect->description.blocks[i].bytes;
    }
    describe->text = protect->description.text;
    describe->text_bytes = (uint32_t)strlen(describe->text);
    long length = message_describe_build(describe, payload, room);
    if (length < 0)
        return (int)length;
    return links_send(protect->hub.links, action->session, WIRE_DESCRIBE, generation, 0, payload,
                      (size_t)length);
}

static int send_frame(struct protect *protect, const struct role_action *action)
{
    union {
        struct wire_heartbeat heartbeat;
        struct wire_round round;
        struct wire_commit commit;
        struct wire_goodbye goodbye;
        struct wire_refuse refuse;
    } body;
    struct role_status status;
    size_t length = 0;
    int r = 0;
    primary_get_status(protect->machine, &status);
    switch (action->send) {
    case WIRE_HELLO:
        return send_hello(protect, action, &status);
    case WIRE_DESCRIBE:
        return send_describe(protect, action, status.generation);
    case WIRE_HEARTBEAT:
        message_heartbeat_build(protect->heartbeats++, status.committed_epoch, &body.heartbeat);
        length = sizeof body.heartbeat;
        break;
    case WIRE_ROUND: {
        struct message_round round = {.round = action->round, .totals = action->totals};
        message_round_build(&round, &body.round);
        length = sizeof body.round;
        break;
    }
    case WIRE_COMMIT:
        r = fault_point(FAULT_COMMIT_SEND);
        message_commit_build(&action->commit, &body.commit);
        length = sizeof body.commit;
        break;
    case WIRE_GOODBYE:
        message_goodbye_build(action->reason, &body.goodbye);
        length = sizeof body.goodbye;
        break;
    case WIRE_REFUSE:
        message_refuse_build(action->refusal, action->text, &body.refuse);
        length = sizeof body.refuse;
        break;
    case WIRE_SWITCH:
        break;
    case WIRE_HANDOVER:
        r = fault_point(FAULT_HANDOVER_SEND);
        break;
    default:
        assert(!"a primary does not send this");
    }
    if (r == 0)
        r = links_send(protect->hub.links, action->session, action->send, status.generation, action->epoch,
                       &body, length);
    if (r == 0 && action->send == WIRE_COMMIT)
        r = fault_point(FAULT_COMMIT_SENT);
    if (r == 0 && action->send == WIRE_HANDOVER)
        r = fault_point(FAULT_HANDOVER_SENT);
    protect_migrate_sent(protect, action->send);
    return r;
}

static void begin(struct protect *protect, const struct role_action *action)
{
    struct role_status status;
    struct checkpoint_stats stats;
    primary_get_status(protect->machine, &status);
    checkpoint_get_stats(protect->checkpoint, &stats);
    checkpoint_set_lz4(protect->checkpoint, status.optional & WIRE_FEATURE_LZ4);
    checkpoint_set_state_lz4(protect->checkpoint, status.optional & WIRE_FEATURE_STATE_LZ4);
    checkpoint_set_delta(protect->checkpoint, status.optional & WIRE_FEATURE_DELTA);
    protect->sessions++;
    atomic_store(&protect->live_session, action->session);
    protect->copying = true;
    protect->copy_began_ns = clock_now_ns();
    protect->copy_bytes_before = stats.bytes_guest;
    protect->copy_payload_before = stats.bytes_payload + stats.disk_bytes_payload;
    protect->copy_compared_before = stats.pages_compared;
    protect->copy_known_before = stats.pages_known;
    protect->copy_rounds = 0;
    protect_begin(protect, action);
}

/* The session's first epoch is whole. */
static void copied(struct protect *protect)
{
    struct checkpoint_stats stats;
    checkpoint_get_stats(protect->checkpoint, &stats);
    protect->copying = false;
    protect->copy_ns = clock_now_ns() - protect->copy_began_ns;
    protect->copy_bytes = stats.bytes_guest - protect->copy_bytes_before;
    protect->copy_known = (stats.pages_known - protect->copy_known_before) * VMM_PAGE_BYTES;
    uint64_t compared = (stats.pages_compared - protect->copy_compared_before) * VMM_PAGE_BYTES;
    if (compared)
        log_notice("session with %s: full copy, %llu MiB of %llu MiB compared were known there",
                   protect->hub.config->peer.name, (unsigned long long)(protect->copy_known >> 20),
                   (unsigned long long)(compared >> 20));
    if (!protect->first_protected_ns)
        protect->first_protected_ns = clock_now_ns();
}

static void committed(struct protect *protect, const struct role_action *action)
{
    struct role_status status;
    primary_get_status(protect->machine, &status);
    /* First of all: somebody waits for it. */
    protect_gate_release(protect, action->epoch);
    protect->checkpoints++;
    protect->probe_acknowledged = protect->probe_captured;
    if (protect->copying)
        copied(protect);
    protect_guest_do(protect, PROTECT_COMMITTED);
    protect_verify_committed(protect, status.session, status.generation, action->epoch);
}

static void disconnect(struct protect *protect, const struct role_action *action)
{
    protect->round_waits = false;
    atomic_store(&protect->live_session, 0);
    checkpoint_cancel(protect->checkpoint);
    links_disconnect(protect->hub.links, action->session);
    protect_guest_do(protect, PROTECT_ABANDONED);
    protect_verify_broken(protect, "the session with the standby ended");
}

/* What could not even be started is a link that went down. */
static void link_failed(struct protect *protect, const struct role_action *action, int code)
{
    struct role_event event = {
        .type = EVENT_LINK_DOWN, .session = action->session, .code = code, .text = error_text()};
    hub_event_later(&protect->hub, &protect_ops, &event);
}

static uint32_t connect_ms(const struct config *config)
{
    return (uint32_t)(config->role.setup_ns / NS_PER_MS);
}

static void perform(struct protect *protect, const struct role_action *action)
{
    struct hub *hub = &protect->hub;
    int r = 0;
    switch (action->type) {
    case ACTION_SEND:
        r = send_frame(protect, action);
        break;
    case ACTION_CONNECT:
        r = links_connect(hub->links, action->session, hub->config->peer.address, connect_ms(hub->config));
        break;
    case ACTION_OPEN_LANES:
        r = links_open_lanes(hub->links, action->session);
        break;
    case ACTION_DISCONNECT:
        disconnect(protect, action);
        break;
    case ACTION_BEGIN:
        begin(protect, action);
        break;
    case ACTION_ROUND:
        protect->round = *action;
        protect->round_waits = true;
        protect_start_round(protect);
        break;
    case ACTION_COMMITTED:
        committed(protect, action);
        break;
    case ACTION_ADOPT:
        protect_gate_release(protect, action->epoch);
        protect_guest_do(protect, PROTECT_COMMITTED);
        protect->probe_acknowledged = protect->probe_captured;
        break;
    case ACTION_KEEP:
        protect_keep(protect, action);
        break;
    case ACTION_TURN_AWAY:
        protect_turn_away(protect, action);
        break;
    case ACTION_HOLD:
        protect_guest_do(protect, PROTECT_HOLD);
        break;
    case ACTION_PASS:
        protect_guest_do(protect, PROTECT_PASS);
        break;
    case ACTION_YIELD:
        protect_gate_shut(protect);
        protect_guest_do(protect, PROTECT_HALT);
        break;
    case ACTION_RELEASE:
        protect_guest_do(protect, PROTECT_RELEASE);
        break;
    default:
        assert(!"a primary does not do this");
    }
    if (r < 0)
        link_failed(protect, action, r);
}

void protect_step(void *daemon, struct role_event *event)
{
    struct protect *protect = daemon;
    struct role_status before, after;
    struct role_actions actions;
    event->now_ns = clock_now_ns();
    if (event->now_ns >= protect_slow_deadline(protect))
        protect_slow_tick(protect, event->now_ns);
    if (event->now_ns >= protect_verify_deadline(protect))
        protect_verify_broken(protect, "the standby gave no answer");
    primary_get_status(protect->machine, &before);
    primary_step(protect->machine, event, &actions);
    primary_get_status(protect->machine, &after);
    for (unsigned i = 0; i < actions.count && !protect->hub.ending; i++)
        if (!hub_perform(&protect->hub, &protect_ops, &actions.items[i]))
            perform(protect, &actions.items[i]);
    protect_slow_stepped(protect, &before, &after);
    events_observe(protect->hub.events,
                   &(struct news_step){&before, &after, event, &actions, .gated = protect->gate != NULL});
}

static void get_status(void *daemon, struct role_status *ret_status)
{
    primary_get_status(((struct protect *)daemon)->machine, ret_status);
}

static uint64_t deadline(void *daemon)
{
    const struct protect *protect = daemon;
    uint64_t at_ns = primary_deadline(protect->machine), verify_ns = protect_verify_deadline(protect),
             slow_ns = protect_slow_deadline(protect);
    at_ns = at_ns < verify_ns ? at_ns : verify_ns;
    return at_ns < slow_ns ? at_ns : slow_ns;
}

const struct hub_ops protect_ops = {.links = &links_ops,
                                    .request = protect_request,
                                    .guest_event = on_guest_event,
                                    .step = protect_step,
                                    .status = get_status,
                                    .deadline = deadline,
                                    .progress = protect_progress,
                                    .side = WIRE_SIDE_PRIMARY};

/* --- start and end --- */

static int make_checkpoint(struct protect *protect)
{
    const struct config *config = protect->hub.config;
    struct checkpoint_config wanted = {
        .staging_bytes = config->staging_bytes,
        .delta_bytes = config->delta_bytes,
        .lanes = config->lanes,
        .compression = config->compression == CONFIG_COMPRESSION_NONE  ? CHECKPOINT_COMPRESS_NONE
                       : config->compression == CONFIG_COMPRESSION_LZ4 ? CHECKPOINT_COMPRESS_LZ4
                                                                       : CHECKPOINT_COMPRESS_AUTO,
        .pause_budget_ns = config->pause_budget_ns,
        .pause_limit_ns = config->pause_limit_ns,
        .round_sent = on_round_sent,
        .ready = on_ready,
        .disk_log_bytes = config->disk_log_bytes,
        .disk_lost = protect_disk_lost,
        .disk_sums_wanted = protect_sums_wanted,
        .page_sums_wanted = protect_page_sums_wanted,
        .mark_begin = protect_gate_mark_begin,
        .mark_end = protect_gate_mark_end,
        .ctx = protect,
    };
    int r = checkpoint_new(&protect->checkpoint, protect->guest, &wanted);
    if (r == 0 && config->probe_block)
        r = checkpoint_set_probe(protect->checkpoint, config->probe_block, config->probe_offset);
    return r;
}

static int open_machine(struct protect *protect)
{
    struct store_state stored;
    int r = store_read(protect->hub.store_path, protect->hub.config->uuid, &stored);
    if (r < 0)
        return r;
    uint64_t generation = stored.generation ? stored.generation : 1;
    /* Who has just taken the guest over knows that nobody holds a checkpoint of this generation. */
    bool taken = protect->hub.turned && stored.active;
    r = protect_gate_open(protect, stored.generation != 0 && !taken);
    if (r < 0)
        return r;
    if (getrandom(protect->history, sizeof protect->history, 0) != sizeof protect->history)
        return error_set(-EIO, "history: no random bytes");
    r = primary_new(&protect->machine, &protect->hub.config->role, protect->history, generation,
                    clock_now_ns());
    if (r == 0 && taken)
        primary_set_right(protect->machine, ROLE_RIGHT_TAKEN);
    else if (r == 0 && stored.generation && !stored.active)
        primary_set_right(protect->machine, ROLE_RIGHT_DOUBTFUL);
    return r;
}

static void end(struct protect *protect)
{
    struct hub *hub = &protect->hub;
    protect_door_close(protect);
    protect_verify_broken(protect, "this host's engine changes its role");
    if (protect->checkpoint) {
        /* Lanes stop before what they produce from goes. */
        checkpoint_cancel(protect->checkpoint);
        links_close(hub->links);
    }
    if (hub->turn)
        protect_migrate_keep(protect);
    if (protect->guest && hub->worker)
        protect_guest_do(protect, PROTECT_DETACH);
    hub_role_close(hub);
    protect_gate_close(protect);
    primary_free(protect->machine);
    pthread_mutex_destroy(&protect->gate_lock);
    pacer_fini(&protect->pacer);
    json_decref(protect->verify.blocks);
    json_decref(protect->verify.block_pages);
    free(protect->verify.slice.fingerprints);
}

int protect_serve(struct protect *protect)
{
    struct hub *hub = &protect->hub;
    const struct config *config = hub->config;
    pthread_mutex_init(&protect->gate_lock, NULL);
    protect->door_fd = -1;
    pacer_init(&protect->pacer, config->bandwidth);
    int r = hub_role_open(hub, &protect_ops);
    if (r == 0) {
        links_set_pacer(hub->links, &protect->pacer);
        /* The standby starts its guest while we attach to ours. */
        links_call(hub->links, config->peer.address, connect_ms(config));
        r = protect_attach(protect);
    }
    if (r == 0)
        r = make_checkpoint(protect);
    if (r == 0)
        r = open_machine(protect);
    if (r == 0) {
        log_notice("%s: attached to %s %d; standby is %s at %s", config->name, guest_kind(protect->guest),
                   guest_pid(protect->guest), config->peer.name, config->peer.address);
        hub_started(hub, &protect_ops);
        protect_guest_do(protect, PROTECT_WATCH);
        struct role_event start = {.type = EVENT_TICK};
        protect_step(protect, &start);
        protect_door_open(protect);
        r = hub_run(hub, &protect_ops);
    }
    end(protect);
    return r;
}
