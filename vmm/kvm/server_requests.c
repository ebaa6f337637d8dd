/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/server_internal.h"

#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* What comes and goes with one request besides its numbers. */
struct call {
    int came; /* a descriptor of the engine's, ours to close; -1: none */
    int give[CONTROL_FDS_MAX];
    unsigned give_count;
};
static_assert(IMAGES_MAX <= CONTROL_FDS_MAX, "all disks go with one answer");

static uint8_t *state_area(const struct server *server)
{
    return server->shared + control_state_offset(machine_memory_bytes(server->machine));
}

static struct gate_stats *figures(const struct server *server)
{
    uint64_t memory_bytes = machine_memory_bytes(server->machine);
    return (struct gate_stats *)(server->shared + control_figures_offset(memory_bytes, server->state_room));
}

static int do_hello(struct server *server, struct visitor *visitor, const struct control_message *request,
                    struct control_message *answer, struct call *call)
{
    char *text cleanup_free = NULL;
    if (server->engine)
        return error_set(-EBUSY, "another engine has this guest");
    if (request->value != CONTROL_VERSION)
        return error_set(-EPROTO, "the engine speaks version %llu of the control protocol, this VMM %u",
                         (unsigned long long)request->value, CONTROL_VERSION);
    int r = machine_describe(server->machine, &text);
    if (r < 0)
        return r;
    answer->value = strlen(text);
    if (answer->value > server->state_room)
        return error_set(-ENOBUFS, "the description has %llu bytes", (unsigned long long)answer->value);
    memcpy(state_area(server), text, answer->value);
    answer->memory_bytes = machine_memory_bytes(server->machine);
    answer->state_room = server->state_room;
    call->give[call->give_count++] = machine_memory_fd(server->machine);
    call->give[call->give_count++] = server->shared_fd;
    server->engine = visitor;
    return 0;
}

/* What was written since the last time, and the state; of a machine that stands still. */
static int capture(struct server *server, struct control_message *answer)
{
    size_t bytes = 0;
    int r = 0;
    if (machine_tracked(server->machine))
        r = machine_dirty(server->machine, true, (uint64_t *)server->shared);
    else
        memset(server->shared, 0, control_dirty_bytes(machine_memory_bytes(server->machine)));
    if (r == 0)
        r = machine_save(server->machine, state_area(server), server->state_room, &bytes);
    answer->value = bytes;
    return r;
}

static int stop(struct server *server)
{
    server_count_stood(server);
    int r = machine_pause(server->machine);
    if (r == 0 && machine_wants_restart(server->machine))
        server_reboot(server);
    if (r == 0 && server_is_over(server))
        r = error_set(-ESRCH, "the guest is over: %s", server->end_text);
    return r;
}

static int do_pause(struct server *server, struct control_message *answer)
{
    int r = server->phase == CONTROL_RUNNING ? stop(server) : 0;
    if (r == 0)
        r = capture(server, answer);
    if (r == 0)
        answer->line = gatekeeper_draw(&server->gate);
    if (r == 0 && server->phase == CONTROL_RUNNING)
        server->phase = CONTROL_PAUSED;
    if (r < 0 && server->phase == CONTROL_RUNNING && !server_is_over(server)) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        machine_resume(server->machine);
        error_set(r, "%s", text);
    }
    return r;
}

void server_resume(struct server *server)
{
    machine_resume(server->machine);
    server->released = server->phase == CONTROL_PAUSED;
    server->phase = CONTROL_RUNNING;
}

static int do_hold(struct server *server)
{
    int r = server->phase == CONTROL_RUNNING ? stop(server) : 0;
    if (r == 0)
        server->phase = CONTROL_HELD;
    return r;
}

/* The engine's memory is not ours: what was checked must be what is loaded. */
static int do_load(struct server *server, uint64_t bytes)
{
    if (bytes > server->state_room)
        return error_set(-EMSGSIZE, "a state of %llu bytes, at most %zu are possible",
                         (unsigned long long)bytes, server->state_room);
    void *state cleanup_free = malloc(bytes + 1);
    if (!state)
        return error_set(-ENOMEM, "state: no memory");
    memcpy(state, state_area(server), bytes);
    int r = machine_load(server->machine, state, bytes);
    if (r == 0)
        server->phase = CONTROL_LOADED;
    return r;
}

static int do_retire(struct server *server, const struct visitor *visitor)
{
    bool engaged = server->engine && server->engine != visitor;
    if (server->phase != CONTROL_HELD || engaged)
        return error_set(-EADDRINUSE, "the guest %s; if it is not meant to run here, end it",
                         engaged ? "has an engine" : "was not stopped for good by an engine");
    server->retired = true;
    return 0;
}

/* In which phases an engine may ask for it. */
static bool permitted(const struct server *server, uint32_t op)
{
    enum control_phase phase = server->phase;
    switch (op) {
    case CONTROL_LOAD:
        return phase == CONTROL_WAITING;
    case CONTROL_RUN:
        return phase == CONTROL_LOADED;
    case CONTROL_DISKS:
        return phase != CONTROL_LOADED;
    case CONTROL_TRACK:
    case CONTROL_TELL:
    case CONTROL_HOLD:
        return phase >= CONTROL_RUNNING;
    case CONTROL_SCAN:
        return phase >= CONTROL_RUNNING && machine_tracked(server->machine);
    case CONTROL_PAUSE:
        return phase == CONTROL_RUNNING || phase == CONTROL_HELD;
    case CONTROL_RESUME:
    case CONTROL_RELEASE:
        return phase == CONTROL_PAUSED || phase == CONTROL_HELD;
    case CONTROL_ANNOUNCE:
        return phase == CONTROL_RUNNING;
    default:
        return false;
    }
}

static int obey(struct server *server, const struct control_message *request, struct control_message *answer,
                struct call *call)
{
    switch (request->op) {
    case CONTROL_TRACK:
        return machine_track(server->machine);
    case CONTROL_SCAN:
        return machine_dirty(server->machine, false, (uint64_t *)server->shared);
    case CONTROL_PAUSE:
        return do_pause(server, answer);
    case CONTROL_RESUME:
    case CONTROL_RELEASE:
    case CONTROL_RUN:
        server_resume(server);
        return 0;
    case CONTROL_HOLD:
        return do_hold(server);
    case CONTROL_LOAD:
        return do_load(server, request->value);
    case CONTROL_DISKS:
        call->give_count = images_descriptors(server->images, server->phase == CONTROL_WAITING, call->give);
        return 0;
    case CONTROL_TELL:
        return images_tell(server->images, request->value, take_fd(&call->came));
    default:
        assert(request->op == CONTROL_ANNOUNCE); /* permitted() knows no other */
        server->announce(server->announce_ctx);
        return 0;
    }
}

static int perform(struct server *server, struct visitor *visitor, const struct control_message *request,
                   struct control_message *answer, struct call *call)
{
    if (request->op == CONTROL_LOOK)
        return 0;
    if (request->op == CONTROL_HELLO)
        return do_hello(server, visitor, request, answer, call);
    if (request->op == CONTROL_RETIRE)
        return do_retire(server, visitor);
    if (gatekeeper_knows(request->op))
        return gatekeeper_perform(&server->gate, visitor->fd, request, figures(server), answer);
    if (visitor != server->engine)
        return error_set(-EPERM, "operation %u without HELLO", request->op);
    if (!permitted(server, request->op))
        return error_set(-EINVAL, "operation %u in phase %d of the guest", request->op, server->phase);
    return obey(server, request, answer, call);
}

int server_handle(struct server *server, struct visitor *visitor, const struct control_message *request,
                  int came)
{
    struct control_message answer = {.op = request->op, .sequence = request->sequence};
    struct call call = {.came = came};
    answer.code = perform(server, visitor, request, &answer, &call);
    answer.phase = server->phase;
    if (answer.code < 0)
        snprintf(answer.text, sizeof answer.text, "%s", error_text());
    if (call.came >= 0)
        close(call.came);
    if (request->op == CONTROL_RELEASE && answer.code == 0)
        return 0;
    return control_send(visitor->fd, &answer, call.give, answer.code < 0 ? 0 : call.give_count, MSG_DONTWAIT);
}
