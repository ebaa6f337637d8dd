/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/link_internal.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
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
 *   - `mutex` guards what lanes' threads read of the tables; it is never held while lane_free() waits.
 *
 * A link may be called before a session wants it: it has the number 0 until links_connect() gives it one.
 *
 * Frames that a peer sends faster than the main thread takes them are bounded by FRAMES_MAX; beyond, the lane
 * is ended. Connections that never say HELLO are bounded by UNNAMED_MAX and closed after HELLO_WITHIN.
 */

#define UNNAMED_MAX   (WIRE_LANES_MAX + 8) /* connections that have not said HELLO */
#define HELLO_WITHIN  (5 * NS_PER_S)
#define CALL_GOOD     (3 * NS_PER_S) /* well before the peer gives up waiting for our HELLO */
#define CALLED        0
#define SWEEP_EVERY   NS_PER_S
#define REASON_WITHIN (50 * NS_PER_MS)
#define DRAIN_MS      100

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
        .ops = &link_lane_ops,
        .ctx = connection,
        .side = links->side,
        .control = index == 0,
        .index = index,
        .session_known = true,
        .session = link->session,
        .handshake_ms = link->timeout_ms,
        .buffer_bytes = index == 0 ? WIRE_PAYLOAD_MAX + sizeof(struct wire_header) : 0,
        .pacer = index == 0 ? NULL : links->pacer,
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

void links_set_pacer(struct links *links, struct pacer *pacer)
{
    links->pacer = pacer;
}

static int connect_link(struct links *links, uint64_t number, const char *address, uint32_t timeout_ms)
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
    link->called_ns = clock_now_ns();
    int r = open_lane(links, link, 0);
    if (r < 0)
        link_free(links, link);
    return r;
}

void links_call(struct links *links, const char *address, uint32_t timeout_ms)
{
    if (connect_link(links, CALLED, address, timeout_ms) < 0)
        log_debug("call the standby: %s", error_text());
}

/* That its lane is up may be known already, and is told as if it were only now. */
static bool take_called(struct links *links, uint64_t number, const char *address)
{
    struct link *link = find(links, CALLED);
    if (!link)
        return false;
    struct link_note *note = link->up ? link_note_new(link->lane[0], LINK_NOTE_UP, 0) : NULL;
    if (clock_now_ns() > link->called_ns + CALL_GOOD || strcmp(address, link->address) ||
        (link->up && !note)) {
        free(note);
        links_disconnect(links, CALLED);
        return false;
    }
    atomic_store(&link->heard_ns, clock_now_ns());
    {
        scope_lock(&links->mutex);
        link->number = number;
    }
    if (note)
        note_post(links->notes, note);
    return true;
}

int links_connect(struct links *links, uint64_t number, const char *address, uint32_t timeout_ms)
{
    return take_called(links, number, address) ? 0 : connect_link(links, number, address, timeout_ms);
}

int links_send_hello(struct links *links, uint64_t number, uint64_t generation, uint64_t claimed,
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
    return links_send(links, number, WIRE_HELLO, generation, claimed, &wire, sizeof wire);
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
    struct lane_config config = {
        .tls = links->tls, .ops = &link_lane_ops, .ctx = connection, .side = links->side};
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

static void tell_down(struct links *links, struct link *link, int code, const char *text)
{
    if (link->down_told)
        return;
    uint64_t number = link->number;
    link->down_told = true;
    links->ops->down(links->ctx, number, code, text);
    links_disconnect(links, number); /* if the machine has not done so */
}

uint64_t links_due(const struct links *links)
{
    uint64_t due = links->swept_ns + SWEEP_EVERY;
    for (unsigned i = 0; i < array_length(links->table); i++)
        if (links->table[i] && links->table[i]->down_at_ns && links->table[i]->down_at_ns < due)
            due = links->table[i]->down_at_ns;
    return due;
}

void links_sweep(struct links *links, uint64_t now_ns)
{
    links->swept_ns = now_ns;
    for (unsigned i = 0; i < CONNECTIONS_MAX; i++) {
        struct connection *connection = links->connections[i];
        if (connection && !atomic_load(&connection->link) && now_ns > connection->accepted_ns + HELLO_WITHIN)
            connection_free(links, connection);
    }
    for (unsigned i = 0; i < array_length(links->table); i++) {
        struct link *link = links->table[i];
        if (link && link->down_at_ns && link->down_at_ns <= now_ns)
            tell_down(links, link, link->down_code, link->down_text);
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
            memcpy(links->past.congestion_control, lane.congestion_control, sizeof lane.congestion_control);
            links->past.ktls = lane.ktls_send;
        }
    }
    memcpy(stats.tls, links->past.tls, sizeof stats.tls);
    memcpy(stats.congestion_control, links->past.congestion_control, sizeof stats.congestion_control);
    stats.ktls = links->past.ktls;
    stats.aes = tls_context_aes(links->tls, &stats.aes_reason);
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

/* A peer that ends a session says why on the control lane (REFUSE, GOODBYE), and closes all lanes. They are
 * different connections: a data lane's end may be seen first. */
static void lane_down(struct link *link, int code, const char *text)
{
    if (link->down_at_ns)
        return;
    link->down_at_ns = clock_now_ns() + REASON_WITHIN;
    link->down_code = code;
    snprintf(link->down_text, sizeof link->down_text, "%s", text);
}

void link_deliver(struct note *base, void *daemon)
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
    if (link && link->number == CALLED) {
        link->up = note->kind == LINK_NOTE_UP;
        if (!link->up) {
            log_debug("called, the standby is gone again: %s",
                      note->kind == LINK_NOTE_FRAME ? wire_type_name(note->frame.type) : note->text);
            link_free(links, link);
        }
        return;
    }
    switch (note->kind) {
    case LINK_NOTE_UP:
        if (links->side == WIRE_SIDE_STANDBY && !link && links->ops->called)
            links->ops->called(links->ctx);
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
        if (connection->index == 0)
            tell_down(links, link, note->code, note->text);
        else
            lane_down(link, note->code, note->text);
        return;
    }
}
