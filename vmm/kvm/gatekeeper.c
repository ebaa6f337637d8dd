/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/gatekeeper.h"

#include "base/error.h"
#include "base/log.h"
#include "gate/hold.h"

#include <errno.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

int gatekeeper_open(struct gatekeeper *keeper)
{
    keeper->wake = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    return keeper->wake < 0 ? error_errno(-errno, "gate") : 0;
}

void gatekeeper_close(struct gatekeeper *keeper)
{
    if (keeper->wake >= 0)
        close(keeper->wake);
    *keeper = GATEKEEPER_NONE;
}

/* --- events --- */

static void remember(struct gatekeeper *keeper, unsigned event)
{
    atomic_fetch_or(&keeper->due, event);
    eventfd_write(keeper->wake, 1);
}

static void on_waiting(void *ctx)
{
    remember(ctx, HOLD_WAITING);
}

static void on_full(void *ctx)
{
    remember(ctx, HOLD_FULL);
}

struct output_events gatekeeper_events(struct gatekeeper *keeper)
{
    return (struct output_events){.waiting = on_waiting, .full = on_full, .ctx = keeper};
}

int gatekeeper_tell(struct gatekeeper *keeper, enum control_phase phase)
{
    eventfd_t count;
    eventfd_read(keeper->wake, &count);
    struct control_message message = {
        .op = CONTROL_GATE_EVENT, .phase = phase, .value = atomic_exchange(&keeper->due, 0)};
    if (keeper->fd < 0 || !message.value)
        return 0;
    return control_send(keeper->fd, &message, NULL, 0, MSG_DONTWAIT);
}

/* --- lines --- */

static int hold(struct gatekeeper *keeper)
{
    int r = output_mark(keeper->output, keeper->line + 1);
    keeper->line += r == 0;
    return r;
}

uint64_t gatekeeper_draw(struct gatekeeper *keeper)
{
    return output_holds(keeper->output) && hold(keeper) == 0 ? keeper->line : 0;
}

/* --- requests --- */

bool gatekeeper_knows(uint32_t op)
{
    return op >= CONTROL_GATE && op <= CONTROL_GATE_FIGURES;
}

/* What an engine left behind that died is the guest's word all the same, and the guest is here: it is kept,
 * and goes out with the first epoch that the new engine's standby acknowledges. */
static int open_gate(struct gatekeeper *keeper, int fd, const struct control_message *request,
                     struct control_message *answer)
{
    if (keeper->fd >= 0)
        return error_set(-EBUSY, "another engine holds this guest's output");
    if (request->held_bytes_max < OUTPUT_BYTES_MAX)
        return error_set(-EINVAL, "a bound of %llu bytes on held output, at least %u are needed",
                         (unsigned long long)request->held_bytes_max, OUTPUT_BYTES_MAX);
    output_set_bound(keeper->output, request->held_bytes_max);
    output_reopen(keeper->output, request->value & CONTROL_GATE_HOLDS);
    keeper->fails_open = request->value & CONTROL_GATE_FAILS_OPEN;
    keeper->fd = fd;
    answer->value = output_holds(keeper->output);
    return 0;
}

static void write_figures(struct gatekeeper *keeper, struct gate_stats *figures)
{
    struct output_stats stats;
    output_get_stats(keeper->output, &stats);
    *figures = (struct gate_stats){.holding = stats.holding,
                                   .held_frames = stats.held_frames,
                                   .held_bytes = stats.held_bytes,
                                   .held_bytes_peak = stats.held_bytes_peak,
                                   .frames_out = stats.frames_out,
                                   .bytes_out = stats.bytes_out,
                                   .dropped = stats.dropped,
                                   .delay_us = stats.delay_us};
}

int gatekeeper_perform(struct gatekeeper *keeper, int fd, const struct control_message *request,
                       struct gate_stats *figures, struct control_message *answer)
{
    int r = 0;
    if (request->op == CONTROL_GATE)
        return open_gate(keeper, fd, request, answer);
    if (fd != keeper->fd)
        return error_set(-EPERM, "operation %u without GATE", request->op);
    switch (request->op) {
    case CONTROL_GATE_HOLD:
        r = hold(keeper);
        answer->line = r == 0 ? keeper->line : 0;
        break;
    case CONTROL_GATE_RELEASE:
        output_release(keeper->output, request->value);
        break;
    case CONTROL_GATE_PASS:
        output_pass(keeper->output);
        break;
    case CONTROL_GATE_SHUT:
        output_shut(keeper->output);
        break;
    case CONTROL_GATE_FIGURES:
        write_figures(keeper, figures);
        break;
    }
    return r;
}

void gatekeeper_left(struct gatekeeper *keeper, int fd)
{
    if (fd != keeper->fd)
        return;
    keeper->fd = -1;
    if (!output_holds(keeper->output))
        return;
    if (keeper->fails_open)
        output_pass(keeper->output);
    log_warning("the engine is gone; the guest's output %s",
                keeper->fails_open ? "passes, as it is configured"
                                   : "is held until there is one, or until SIGUSR1");
}

int gatekeeper_let_out(struct gatekeeper *keeper)
{
    if (keeper->fd >= 0)
        return error_set(-EBUSY, "an engine holds the guest's output; 'understudy continue' asks it");
    output_reopen(keeper->output, false);
    output_pass(keeper->output);
    return 0;
}
