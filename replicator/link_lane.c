/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/link_internal.h"

#include "base/clock.h"
#include "base/scope.h"

#include <errno.h>
#include <string.h>

/* What happens on lanes' threads: frames are built or taken in, and everything else becomes a note. */

struct link_note *link_note_new(const struct connection *connection, int kind, size_t payload)
{
    struct link_note *note = calloc(1, sizeof *note + payload);
    if (!note)
        return NULL;
    note->note.deliver = link_deliver;
    note->connection = connection->id;
    note->kind = (typeof(note->kind))kind;
    note->links = connection->links;
    return note;
}

static void on_up(void *ctx, struct lane *lane)
{
    struct connection *connection = ctx;
    (void)lane;
    struct link_note *note = link_note_new(connection, LINK_NOTE_UP, 0);
    if (note)
        note_post(connection->links->notes, note);
}

static int put_hello(struct connection *connection, struct link *link, struct wire_writer *writer)
{
    struct wire_hello wire;
    struct message_hello hello = link->hello;
    hello.lane = (uint16_t)connection->index;
    hello.lanes = (uint16_t)link->lanes;
    message_hello_build(&hello, &wire);
    return wire_writer_put(writer, WIRE_HELLO, link->generation, 0, &wire, sizeof wire);
}

static int on_produce(void *ctx, struct lane *lane, struct wire_writer *writer)
{
    struct connection *connection = ctx;
    struct link *link = atomic_load(&connection->link);
    (void)lane;
    if (!link)
        return 0;
    if (connection->index == 0)
        return outbox_produce(&link->outbox, writer);
    if (connection->links->side == WIRE_SIDE_STANDBY)
        return 0;
    if (!connection->greeted) {
        int r = put_hello(connection, link, writer);
        if (r < 0)
            return r;
        connection->greeted = true;
        return 1;
    }
    return connection->links->ops->produce(connection->links->ctx, connection->index, writer);
}

static int post_frame(struct connection *connection, const struct wire_frame *frame)
{
    struct links *links = connection->links;
    if (atomic_fetch_add(&links->frames_waiting, 1) >= FRAMES_MAX) {
        atomic_fetch_sub(&links->frames_waiting, 1);
        return error_set(-ENOBUFS, "peer sends control frames faster than they can be handled (%s)",
                         wire_type_name(frame->type));
    }
    struct link_note *note = link_note_new(connection, LINK_NOTE_FRAME, frame->length);
    if (!note) {
        atomic_fetch_sub(&links->frames_waiting, 1);
        return error_set(-ENOMEM, "%s frame: out of memory", wire_type_name(frame->type));
    }
    note->frame = *frame;
    if (frame->length)
        memcpy(note->payload, frame->payload, frame->length);
    note->frame.payload = note->payload;
    note_post(links->notes, note);
    return 0;
}

/* Standby: a data lane names the session it belongs to. */
static int join(struct connection *connection, const struct wire_frame *frame,
                const struct message_hello *hello)
{
    struct links *links = connection->links;
    scope_lock(&links->mutex);
    for (unsigned i = 0; i < array_length(links->table); i++) {
        struct link *link = links->table[i];
        if (!link || link->session != frame->session)
            continue;
        if (hello->lane > link->lanes || hello->lanes != link->lanes || link->lane[hello->lane])
            return error_set(-EPROTO,
                             "HELLO: lane %u of %u does not fit a session of %u lanes, or came twice",
                             hello->lane, hello->lanes, link->lanes);
        link->lane[hello->lane] = connection;
        connection->index = hello->lane;
        atomic_store(&connection->link, link);
        struct link_note *note = link_note_new(connection, LINK_NOTE_JOINED, 0);
        if (!note)
            return error_set(-ENOMEM, "lane %u: out of memory", hello->lane);
        note_post(links->notes, note);
        return 0;
    }
    return error_set(-EPROTO, "HELLO: lane %u of a session that is not open", hello->lane);
}

static int on_first_frame(struct connection *connection, struct lane *lane, const struct wire_frame *frame)
{
    struct message_hello hello;
    if (frame->type != WIRE_HELLO)
        return error_set(-EPROTO, "first frame is %s, expected HELLO", wire_type_name(frame->type));
    int r = message_hello_parse(frame, &hello);
    if (r < 0)
        return r;
    lane_set_kind(lane, hello.lane == 0, hello.lane);
    if (hello.lane == 0) {
        connection->greeted = true;
        return post_frame(connection, frame);
    }
    r = join(connection, frame, &hello);
    if (r == 0)
        connection->greeted = true;
    return r;
}

static int on_frame(void *ctx, struct lane *lane, const struct wire_frame *frame)
{
    struct connection *connection = ctx;
    struct links *links = connection->links;
    atomic_store_explicit(&links->last_frame_ns, clock_now_ns(), memory_order_relaxed);
    if (links->side == WIRE_SIDE_STANDBY && !connection->greeted)
        return on_first_frame(connection, lane, frame);
    if (frame->type == WIRE_HELLO)
        return error_set(-EPROTO, "HELLO: came twice on lane %u", connection->index);
    struct link *link = atomic_load(&connection->link);
    if (link)
        atomic_store_explicit(&link->heard_ns, clock_now_ns(), memory_order_relaxed);
    if (connection->index == 0)
        return post_frame(connection, frame);
    if (!link || link->number != atomic_load(&links->current))
        return error_set(-EPROTO, "%s on lane %u before the session was accepted",
                         wire_type_name(frame->type), connection->index);
    return links->ops->data(links->ctx, frame);
}

static void on_down(void *ctx, struct lane *lane, int code, const char *reason)
{
    struct connection *connection = ctx;
    (void)lane;
    struct link_note *note = link_note_new(connection, LINK_NOTE_DOWN, 0);
    if (!note)
        return;
    note->code = code ? code : -ECONNRESET;
    snprintf(note->text, sizeof note->text, "%s", reason ? reason : "closed");
    note_post(connection->links->notes, note);
}

const struct lane_ops link_lane_ops = {
    .up = on_up, .produce = on_produce, .frame = on_frame, .down = on_down};
