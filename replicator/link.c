/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/link.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/outbox.h"
#include "replicator/worker.h"

#include <assert.h>
#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/random.h>

/*
 * Theory of operation
 *
 * A connection is one lane. It belongs to a link from the start (primary), or from its HELLO on (standby: the
 * control lane's HELLO makes the link, the data lanes' HELLOs join it by the session number they carry). A
 * connection's thread may still run while the main thread tears things down, so:
 *   - notes name connections by id, never by pointer; a note about a connection that is gone is dropped;
 *   - a connection is freed only after lane_free() has joined its thread;
 *   - `mutex` guards what lanes' threads read of the tables (joining a link); it is never held while
 * lane_free() waits. Frames that a peer sends faster than the main thread takes them are bounded by
 * FRAMES_MAX; beyond, the lane is ended.
 */

#define CONNECTIONS_MAX (2 * (WIRE_LANES_MAX + 1))
#define FRAMES_MAX      256
#define UNNAMED_MAX     (WIRE_LANES_MAX + 8) /* connections that have not said HELLO */
#define HELLO_WITHIN    (5 * NS_PER_S)
#define DRAIN_MS        100

struct connection {
    uint64_t id;
    struct links *links;
    struct lane *lane;
    unsigned index; /* 0 control; set by HELLO on the standby */
    bool ended;     /* its DOWN was delivered */
    bool greeted;   /* lane's thread: HELLO was sent or received */
    uint64_t accepted_ns;
    struct link *_Atomic link;
};

struct link {
    uint64_t number, session, generation;
    struct message_hello hello;
    char address[128];
    uint32_t timeout_ms;
    unsigned lanes, lanes_up;
    bool down_told;
    atomic_uint_fast64_t heard_ns; /* latest frame on any of its lanes */
    struct outbox outbox;
    struct connection *lane[WIRE_LANES_MAX + 1];
};

struct links {
    const struct links_ops *ops;
    void *ctx;
    struct mailbox *notes;
    struct tls_context *tls;
    enum wire_side side;
    uint64_t detect_ns;
    uint64_t next_id, next_number; /* numbers of the standby's links */
    pthread_mutex_t mutex;
    struct connection *connections[CONNECTIONS_MAX];
    struct link *table[4]; /* current, candidates, one that is about to go */
    atomic_uint_fast64_t current;
    atomic_uint frames_waiting;
    atomic_uint_fast64_t last_frame_ns; /* of any link */
    struct links_stats past;            /* of closed connections */
};

struct link_note {
    struct note note;
    struct links *links;
    uint64_t connection;
    enum { LINK_NOTE_UP, LINK_NOTE_JOINED, LINK_NOTE_FRAME, LINK_NOTE_DOWN } kind;
    int code;
    struct wire_frame frame;
    char text[ERROR_TEXT_MAX];
    uint8_t payload[];
};

static void deliver(struct note *base, void *daemon);

static struct link_note *note_new(const struct connection *connection, int kind, size_t payload)
{
    struct link_note *note = calloc(1, sizeof *note + payload);
    if (!note)
        return NULL;
    note->note.deliver = deliver;
    note->connection = connection->id;
    note->kind = (typeof(note->kind))kind;
    note->links = connection->links;
    return note;
}

/* --- lanes' threads --- */

static void on_up(void *ctx, struct lane *lane)
{
    struct connection *connection = ctx;
    (void)lane;
    struct link_note *note = note_new(connection, LINK_NOTE_UP, 0);
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
    struct link_note *note = note_new(connection, LINK_NOTE_FRAME, frame->length);
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
        struct link_note *note = note_new(connection, LINK_NOTE_JOINED, 0);
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
    struct link_note *note = note_new(connection, LINK_NOTE_DOWN, 0);
    if (!note)
        return;
    note->code = code ? code : -ECONNRESET;
    snprintf(note->text, sizeof note->text, "%s", reason ? reason : "closed");
    note_post(connection->links->notes, note);
}

static const struct lane_ops lane_ops = {
    .up = on_up, .produce = on_produce, .frame = on_frame, .down = on_down};

/* --- main thread --- */

static struct link *find(struct links *links, uint64_t number)
{
    for (unsigned i = 0; i < array_length(links->table); i++)
        if (links->table[i] && links->table[i]->number == number)
            return links->table[i];
    return NULL;
}

static struct connection *connection_new(struct links *links)
{
    scope_lock(&links->mutex);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        if (links->connections[i])
            continue;
        struct connection *connection = calloc(1, sizeof *connection);
        if (!connection)
            break;
        connection->id = ++links->next_id;
        connection->links = links;
        connection->accepted_ns = clock_now_ns();
        return links->connections[i] = connection;
    }
    return NULL;
}

static void connection_free(struct links *links, struct connection *connection)
{
    struct lane *lane;
    {
        scope_lock(&links->mutex);
        lane = connection->lane;
        connection->lane = NULL; /* from here links_kick() passes it by */
    }
    if (lane) {
        struct lane_stats stats;
        lane_get_stats(lane, &stats);
        links->past.wire_bytes += stats.bytes_sent + stats.bytes_received;
        lane_free(lane); /* joins: after this no callback runs */
    }
    scope_lock(&links->mutex);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (links->connections[i] == connection)
            links->connections[i] = NULL;
    struct link *link = atomic_load(&connection->link);
    if (link && link->lane[connection->index] == connection)
        link->lane[connection->index] = NULL;
    free(connection);
}

static struct link *link_new(struct links *links, uint64_t number)
{
    scope_lock(&links->mutex);
    for (unsigned i = 0; i < array_length(links->table); i++) {
        if (links->table[i])
            continue;
        struct link *link = calloc(1, sizeof *link);
        if (!link)
            break;
        link->number = number;
        atomic_init(&link->heard_ns, clock_now_ns());
        outbox_init(&link->outbox);
        return links->table[i] = link;
    }
    return NULL;
}

static bool link_silent(const struct links *links, const struct link *link)
{
    return clock_now_ns() >= atomic_load(&link->heard_ns) + links->detect_ns;
}

static void link_free(struct links *links, struct link *link)
{
    struct connection *lanes[WIRE_LANES_MAX + 1];
    {
        /* Out of the table first: a data lane whose HELLO comes now must not join what is about to go. */
        scope_lock(&links->mutex);
        for (unsigned i = 0; i < array_length(links->table); i++)
            if (links->table[i] == link)
                links->table[i] = NULL;
        memcpy(lanes, link->lane, sizeof lanes);
    }
    bool silent = link_silent(links, link);
    for (unsigned i = 0; silent && i <= WIRE_LANES_MAX; i++)
        if (lanes[i] && lanes[i]->lane)
            lane_abort(lanes[i]->lane);
    /*
     * The control lane goes first and alone: its last frame (GOODBYE, REFUSE) says why the session ends, and
     * a peer that saw a data lane end before it would take that for the reason. The data lanes' waits
     * overlap.
     */
    if (lanes[0])
        connection_free(links, lanes[0]);
    for (unsigned i = 1; i <= WIRE_LANES_MAX; i++)
        if (lanes[i] && lanes[i]->lane)
            lane_stop(lanes[i]->lane);
    for (unsigned i = 1; i <= WIRE_LANES_MAX; i++)
        if (lanes[i])
            connection_free(links, lanes[i]);
    outbox_clear(&link->outbox);
    free(link);
}

int links_new(struct links **ret_links, const struct links_ops *ops, void *ctx, struct mailbox *notes,
              struct tls_context *tls, enum wire_side side, uint64_t detect_ns)
{
    struct links *links = calloc(1, sizeof *links);
    if (!links)
        return error_set(-ENOMEM, "links: out of memory");
    links->ops = ops;
    links->ctx = ctx;
    links->notes = notes;
    links->tls = tls;
    links->side = side;
    links->detect_ns = detect_ns;
    pthread_mutex_init(&links->mutex, NULL);
    *ret_links = links;
    return 0;
}

void links_close(struct links *links)
{
    if (!links)
        return;
    for (unsigned i = 0; i < array_length(links->table); i++)
        if (links->table[i])
            links_disconnect(links, links->table[i]->number);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (links->connections[i])
            connection_free(links, links->connections[i]);
}

void links_free(struct links *links)
{
    if (!links)
        return;
    links_close(links);
    pthread_mutex_destroy(&links->mutex);
    free(links);
}

static int open_lane(struct links *links, struct link *link, unsigned index)
{
    struct sockaddr_storage address;
    socklen_t length;
    int r = lane_resolve(link->address, &address, &length);
    if (r < 0)
        return r;
    struct connection *connection = connection_new(links);
    if (!connection)
        return error_set(-ENOBUFS, "lane %u: too many connections", index);
    connection->index = index;
    atomic_store(&connection->link, link);
    link->lane[index] = connection;
    struct lane_config config = {
        .tls = links->tls,
        .ops = &lane_ops,
        .ctx = connection,
        .side = links->side,
        .control = index == 0,
        .index = index,
        .session_known = true,
        .session = link->session,
        .handshake_ms = link->timeout_ms,
        .buffer_bytes = index == 0 ? WIRE_PAYLOAD_MAX + sizeof(struct wire_header) : 0,
    };
    struct lane *lane;
    r = lane_connect(&lane, &config, (struct sockaddr *)&address, length);
    if (r < 0) {
        connection_free(links, connection);
        return r;
    }
    scope_lock(&links->mutex);
    connection->lane = lane;
    return 0;
}

int links_connect(struct links *links, uint64_t number, const char *address, uint32_t timeout_ms)
{
    struct link *link = link_new(links, number);
    if (!link)
        return error_set(-ENOBUFS, "session %llu: too many sessions", (unsigned long long)number);
    link->timeout_ms = timeout_ms;
    snprintf(link->address, sizeof link->address, "%s", address);
    if (getrandom(&link->session, sizeof link->session, 0) != sizeof link->session) {
        link_free(links, link);
        return error_set(-EIO, "session number: no random bytes");
    }
    int r = open_lane(links, link, 0);
    if (r < 0)
        link_free(links, link);
    return r;
}

int links_send_hello(struct links *links, uint64_t number, uint64_t generation,
                     const struct message_hello *hello)
{
    struct link *link = find(links, number);
    if (!link)
        return 0;
    link->hello = *hello;
    link->generation = generation;
    link->lanes = hello->lanes;
    struct wire_hello wire;
    message_hello_build(hello, &wire);
    return links_send(links, number, WIRE_HELLO, generation, 0, &wire, sizeof wire);
}

int links_open_lanes(struct links *links, uint64_t number)
{
    struct link *link = find(links, number);
    for (unsigned i = 1; link && i <= link->lanes; i++) {
        int r = open_lane(links, link, i);
        if (r < 0)
            return r;
    }
    return 0;
}

/* Strangers that never say HELLO must not fill the table: the oldest of too many makes room. */
static void make_room(struct links *links)
{
    struct connection *oldest = NULL;
    unsigned unnamed = 0;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = links->connections[i];
        if (!connection || atomic_load(&connection->link))
            continue;
        unnamed++;
        if (!oldest || connection->accepted_ns < oldest->accepted_ns)
            oldest = connection;
    }
    if (unnamed >= UNNAMED_MAX && oldest)
        connection_free(links, oldest);
}

void links_accept(struct links *links, int fd)
{
    make_room(links);
    struct connection *connection = connection_new(links);
    if (!connection) {
        log_warning("connection refused: %d connections are open already", CONNECTIONS_MAX);
        close(fd);
        return;
    }
    struct lane_config config = {.tls = links->tls, .ops = &lane_ops, .ctx = connection, .side = links->side};
    struct lane *lane;
    if (lane_accept(&lane, &config, fd) < 0) {
        log_warning("%s", error_text());
        connection_free(links, connection);
        return;
    }
    scope_lock(&links->mutex);
    connection->lane = lane;
}

void links_set_current(struct links *links, uint64_t link)
{
    atomic_store(&links->current, link);
}

int links_send(struct links *links, uint64_t number, enum wire_type type, uint64_t generation, uint64_t epoch,
               const void *payload, size_t length)
{
    struct link *link = find(links, number);
    if (!link || !link->lane[0] || !link->lane[0]->lane)
        return 0;
    int r = outbox_put(&link->outbox, type, generation, epoch, payload, length);
    if (r == 0)
        lane_kick(link->lane[0]->lane);
    return r;
}

void links_kick(struct links *links)
{
    scope_lock(&links->mutex);
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++)
        if (links->connections[i] && links->connections[i]->index && links->connections[i]->lane)
            lane_kick(links->connections[i]->lane);
}

void links_disconnect(struct links *links, uint64_t number)
{
    struct link *link = find(links, number);
    if (!link)
        return;
    if (atomic_load(&links->current) == number)
        links_set_current(links, 0);
    if (link->lane[0] && !link->lane[0]->ended && !link_silent(links, link))
        outbox_drain(&link->outbox, DRAIN_MS);
    link_free(links, link);
}

void links_sweep(struct links *links, uint64_t now_ns)
{
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = links->connections[i];
        if (connection && !atomic_load(&connection->link) && now_ns > connection->accepted_ns + HELLO_WITHIN)
            connection_free(links, connection);
    }
}

void links_get_stats(struct links *links, struct links_stats *ret_stats)
{
    struct links_stats stats = links->past;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct lane_stats lane;
        if (!links->connections[i] || !links->connections[i]->lane)
            continue;
        lane_get_stats(links->connections[i]->lane, &lane);
        stats.wire_bytes += lane.bytes_sent + lane.bytes_received;
        stats.connections++;
        if (lane.version[0]) {
            snprintf(links->past.tls, sizeof links->past.tls, "%s %s", lane.version, lane.cipher);
            links->past.ktls = lane.ktls_send;
        }
    }
    memcpy(stats.tls, links->past.tls, sizeof stats.tls);
    stats.ktls = links->past.ktls;
    stats.last_frame_ns = atomic_load(&links->last_frame_ns);
    *ret_stats = stats;
}

static void deliver_frame(struct links *links, struct connection *connection, const struct wire_frame *frame)
{
    struct link *link = atomic_load(&connection->link);
    if (link) {
        links->ops->frame(links->ctx, link->number, frame);
        return;
    }
    /* The standby's new control lane: its HELLO was validated on the lane's thread. */
    struct message_hello hello;
    if (message_hello_parse(frame, &hello) < 0)
        return;
    link = link_new(links, ++links->next_number);
    if (!link) {
        log_warning("session refused: too many sessions");
        connection_free(links, connection);
        return;
    }
    link->hello = hello;
    link->lanes = hello.lanes;
    link->generation = frame->generation;
    link->session = frame->session;
    link->lane[0] = connection;
    atomic_store(&connection->link, link);
    links->ops->hello(links->ctx, link->number, frame, &hello);
}

static void deliver(struct note *base, void *daemon)
{
    struct link_note *note = (struct link_note *)base;
    struct links *links = note->links;
    (void)daemon;
    if (note->kind == LINK_NOTE_FRAME)
        atomic_fetch_sub(&links->frames_waiting, 1);
    struct connection *connection = NULL;
    for (unsigned i = 0; i < CONNECTIONS_MAX && !connection; i++)
        if (links->connections[i] && links->connections[i]->id == note->connection)
            connection = links->connections[i];
    if (!connection)
        return;
    struct link *link = atomic_load(&connection->link);
    switch (note->kind) {
    case LINK_NOTE_UP:
        if (links->side == WIRE_SIDE_STANDBY || !link)
            return;
        if (connection->index == 0)
            links->ops->control_up(links->ctx, link->number);
        else if (++link->lanes_up == link->lanes)
            links->ops->lanes_up(links->ctx, link->number);
        return;
    case LINK_NOTE_JOINED:
        if (link && ++link->lanes_up == link->lanes)
            links->ops->lanes_up(links->ctx, link->number);
        return;
    case LINK_NOTE_FRAME:
        deliver_frame(links, connection, &note->frame);
        return;
    case LINK_NOTE_DOWN:
        connection->ended = true;
        if (!link) {
            log_debug("connection closed before HELLO: %s", note->text);
            connection_free(links, connection);
            return;
        }
        if (!link->down_told) {
            uint64_t number = link->number;
            link->down_told = true;
            links->ops->down(links->ctx, number, note->code, note->text);
            links_disconnect(links, number); /* if the machine has not done so */
        }
        return;
    }
}
