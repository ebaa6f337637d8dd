/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/output.h"
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/hold.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

struct output_port {
    struct output *output;
    struct output_port *next;
    enum output_kind kind;
    int fd;
    void (*room)(void *ctx);
    void *ctx;
    struct hold hold;
    bool wants_room;
    uint32_t sent; /* of the oldest frame: a stream may take a part */
    struct io_request poll;
    bool blocked; /* `poll` waits until fd takes more */
};

struct output {
    pthread_mutex_t lock; /* guards all below; nothing is taken after it */
    struct io *io;
    struct io_work work;
    struct output_port *ports;
    uint64_t held_bytes_max;
    struct output_events events;
    bool waiting_told, full_told;
    bool holding, shut;
};

static void drop_all(struct output_port *port)
{
    struct held_frame frame;
    while (hold_drop(&port->hold, &frame))
        free(frame.data);
    port->sent = 0;
}

/* Writes what may go as far as the descriptor takes it. With the lock. */
static void let_out(struct output_port *port)
{
    const struct held_frame *frame;
    while (!port->blocked && (frame = hold_ready(&port->hold))) {
        ssize_t put = write(port->fd, (const char *)frame->data + port->sent, frame->bytes - port->sent);
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && errno == EAGAIN) {
            port->blocked = true;
            io_poll(port->output->io, &port->poll, port->fd, POLLOUT);
            return;
        }
        if (put >= 0 && (uint32_t)put < frame->bytes - port->sent) {
            port->sent += (uint32_t)put;
            continue;
        }
        struct held_frame gone = *frame;
        port->sent = 0;
        if (put < 0) /* the tap is down, nobody reads the pipe any more, or it is no frame */
            hold_drop(&port->hold, &gone);
        else
            hold_pop(&port->hold, clock_now_ns());
        free(gone.data);
    }
}

static void run(struct io_work *work)
{
    struct output *output = (struct output *)((char *)work - offsetof(struct output, work));
    scope_lock(&output->lock);
    for (struct output_port *port = output->ports; port; port = port->next) {
        if (output->shut)
            drop_all(port);
        let_out(port);
        if (port->wants_room && port->room) {
            port->wants_room = false;
            port->room(port->ctx);
        }
    }
}

static void on_room(struct io_request *request, int result)
{
    struct output_port *port = (struct output_port *)((char *)request - offsetof(struct output_port, poll));
    (void)result; /* a failure shows at the next write */
    scope_lock(&port->output->lock);
    port->blocked = false;
    io_ask(&port->output->work);
}

int output_new(struct output **ret_output, struct io *io, uint64_t held_bytes_max,
               const struct output_events *events)
{
    if (held_bytes_max < OUTPUT_BYTES_MAX)
        return error_set(-EINVAL, "output: a bound of %llu bytes, at least %u are needed",
                         (unsigned long long)held_bytes_max, OUTPUT_BYTES_MAX);
    struct output *output = calloc(1, sizeof *output);
    if (!output)
        return error_set(-ENOMEM, "output: no memory");
    pthread_mutex_init(&output->lock, NULL);
    output->io = io;
    output->held_bytes_max = held_bytes_max;
    output->events = *events;
    output->work.run = run;
    io_work_add(io, &output->work);
    *ret_output = output;
    return 0;
}

void output_free(struct output *output)
{
    if (!output)
        return;
    while (output->ports) {
        struct output_port *port = output->ports;
        output->ports = port->next;
        drop_all(port);
        hold_free(&port->hold);
        free(port);
    }
    pthread_mutex_destroy(&output->lock);
    free(output);
}

int output_add(struct output *output, enum output_kind kind, int fd, void (*room)(void *ctx), void *ctx,
               struct output_port **ret_port)
{
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK))
        return error_errno(-errno, "output: make descriptor %d non-blocking", fd);
    struct output_port *port = calloc(1, sizeof *port);
    if (!port)
        return error_set(-ENOMEM, "output: no memory");
    port->output = output;
    port->kind = kind;
    port->fd = fd;
    port->room = room;
    port->ctx = ctx;
    port->poll.done = on_room;
    hold_init(&port->hold, output->held_bytes_max);
    port->next = output->ports;
    output->ports = port;
    *ret_port = port;
    return 0;
}

void output_set_bound(struct output *output, uint64_t held_bytes_max)
{
    assert(held_bytes_max >= OUTPUT_BYTES_MAX);
    scope_lock(&output->lock);
    output->held_bytes_max = held_bytes_max;
    for (struct output_port *port = output->ports; port; port = port->next)
        hold_set_bound(&port->hold, held_bytes_max);
}

bool output_has_room(struct output_port *port, uint32_t bytes)
{
    scope_lock(&port->output->lock);
    const struct hold *hold = &port->hold;
    bool has =
        port->output->shut || (hold_frames(hold) < hold->frames_max && hold->bytes <= hold->bytes_max &&
                               bytes <= hold->bytes_max - hold->bytes);
    port->wants_room |= !has;
    return has;
}

/* What is due and was not told. With the lock; telling is done without it. */
static unsigned take_events(struct output_port *port)
{
    struct output *output = port->output;
    unsigned events = hold_take_events(&port->hold);
    if (output->waiting_told)
        events &= ~(unsigned)HOLD_WAITING;
    if (output->full_told)
        events &= ~(unsigned)HOLD_FULL;
    output->waiting_told |= events & HOLD_WAITING;
    output->full_told |= events & HOLD_FULL;
    return events;
}

/* A guest that speaks a byte at a time would otherwise fill the bound with the cost of pieces. With the lock.
 */
static bool join(struct output_port *port, const void *data, uint32_t bytes)
{
    struct held_frame *newest = port->kind == OUTPUT_STREAM ? hold_newest(&port->hold) : NULL;
    if (!newest || newest->bytes > OUTPUT_BYTES_MAX - bytes)
        return false;
    char *joined = realloc(newest->data, newest->bytes + bytes);
    if (!joined)
        return false;
    newest->data = joined;
    if (!hold_extend(&port->hold, bytes))
        return false;
    memcpy(joined + newest->bytes - bytes, data, bytes);
    return true;
}

void output_push(struct output_port *port, void *data, uint32_t bytes)
{
    struct output *output = port->output;
    struct held_frame frame = {.arrived_ns = clock_now_ns(), .data = data, .bytes = bytes};
    assert(bytes > 0 && bytes <= OUTPUT_BYTES_MAX);
    pthread_mutex_lock(&output->lock);
    bool joined = join(port, data, bytes), kept = !joined && hold_push(&port->hold, &frame) == 0;
    unsigned events = take_events(port);
    bool ready = hold_ready(&port->hold) && !port->blocked;
    pthread_mutex_unlock(&output->lock);
    if (!kept)
        free(data);
    if (ready)
        io_ask(&output->work);
    if (events & HOLD_WAITING)
        output->events.waiting(output->events.ctx);
    if (events & HOLD_FULL)
        output->events.full(output->events.ctx);
}

int output_mark(struct output *output, uint64_t epoch)
{
    scope_lock(&output->lock);
    if (output->shut)
        return error_set(-ESHUTDOWN, "output: mark of epoch %llu: it is shut", (unsigned long long)epoch);
    for (struct output_port *port = output->ports; port; port = port->next) {
        int rc = hold_mark(&port->hold, epoch);
        if (rc) /* all ports have the same epochs, so it is the first */
            return error_add(rc, "output");
    }
    output->holding = true;
    output->waiting_told = false;
    return 0;
}

void output_release(struct output *output, uint64_t epoch)
{
    pthread_mutex_lock(&output->lock);
    for (struct output_port *port = output->ports; port; port = port->next)
        hold_release(&port->hold, epoch);
    output->full_told = false;
    pthread_mutex_unlock(&output->lock);
    io_ask(&output->work);
}

void output_pass(struct output *output)
{
    pthread_mutex_lock(&output->lock);
    for (struct output_port *port = output->ports; port; port = port->next)
        hold_pass(&port->hold);
    output->holding = false;
    output->waiting_told = output->full_told = false;
    pthread_mutex_unlock(&output->lock);
    io_ask(&output->work);
}

void output_shut(struct output *output)
{
    pthread_mutex_lock(&output->lock);
    for (struct output_port *port = output->ports; port; port = port->next)
        hold_shut(&port->hold);
    output->holding = false;
    output->shut = true;
    pthread_mutex_unlock(&output->lock);
    io_ask(&output->work);
}

void output_reopen(struct output *output, bool holding)
{
    scope_lock(&output->lock);
    if (!output->shut)
        return;
    for (struct output_port *port = output->ports; port; port = port->next) {
        drop_all(port);
        hold_reopen(&port->hold);
        if (holding)
            hold_mark(&port->hold, 0);
    }
    output->shut = false;
    output->holding = holding;
    output->waiting_told = output->full_told = false;
}

bool output_holds(struct output *output)
{
    scope_lock(&output->lock);
    return output->holding;
}

uint64_t output_finish(struct output *output)
{
    uint64_t lost = 0;
    scope_lock(&output->lock);
    for (struct output_port *port = output->ports; port; port = port->next) {
        port->blocked = false;
        let_out(port);
        lost += output->holding ? port->hold.bytes : 0;
    }
    return lost;
}

void output_get_stats(struct output *output, struct output_stats *ret_stats)
{
    scope_lock(&output->lock);
    *ret_stats = (struct output_stats){.holding = output->holding};
    histogram_reset(&ret_stats->delay_us);
    for (const struct output_port *port = output->ports; port; port = port->next) {
        const struct hold *hold = &port->hold;
        ret_stats->held_frames += hold_frames(hold);
        ret_stats->held_bytes += hold->bytes;
        if (hold->bytes_peak > ret_stats->held_bytes_peak)
            ret_stats->held_bytes_peak = hold->bytes_peak;
        ret_stats->frames_out += hold->frames_out;
        ret_stats->bytes_out += hold->bytes_out;
        ret_stats->dropped += hold->dropped;
        if (hold->delay_us.count > ret_stats->delay_us.count)
            ret_stats->delay_us = hold->delay_us;
    }
}
