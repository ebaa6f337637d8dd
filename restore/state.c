/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/state.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <string.h>

/* A buffer this large or smaller is kept for the next state, however small that is. */
#define ROOM_KEPT (1u << 20)

void state_init(struct state *state, uint64_t bound)
{
    *state = (struct state){.bound = bound < WIRE_STATE_MAX ? bound : WIRE_STATE_MAX};
    pthread_mutex_init(&state->lock, NULL);
}

void state_fini(struct state *state)
{
    free(state->arriving.bytes);
    free(state->committed.bytes);
    free(state->claimed);
    pthread_mutex_destroy(&state->lock);
}

/* Make `*memory` at least `wanted` bytes; its content is lost. */
static int make_room(void **memory, uint64_t *room, uint64_t wanted)
{
    if (*room >= wanted && (*room <= ROOM_KEPT || *room / 4 <= wanted))
        return 0;
    free(*memory);
    *memory = malloc(wanted);
    *room = *memory ? wanted : 0;
    return *memory ? 0 : error_set(-ENOMEM, "%" PRIu64 " bytes for a device state: out of memory", wanted);
}

/* The first piece of an epoch says how large the state is. */
static int begin(struct state *state, uint64_t total)
{
    struct state_buffer *buffer = &state->arriving;
    if (total > state->bound)
        return error_set(-ENOSPC, "the device state of %" PRIu64 " bytes is over the bound of %" PRIu64,
                         total, state->bound);
    uint64_t map_bytes = (total + 63) / 64 * sizeof *state->claimed;
    int r = make_room((void **)&buffer->bytes, &buffer->room, total);
    if (r == 0)
        r = make_room((void **)&state->claimed, &state->claimed_room, map_bytes);
    if (r < 0)
        return r;
    memset(state->claimed, 0, map_bytes);
    state->claimed_bytes = 0;
    buffer->total = total;
    return 0;
}

/* Set the bits of the bytes; false, with nothing promised about the bits, if one was set before. */
static bool claim(struct state *state, uint64_t offset, uint64_t length)
{
    uint64_t taken = 0;
    for (uint64_t at = offset, end = offset + length; at < end;) {
        uint64_t shift = at % 64, count = end - at < 64 - shift ? end - at : 64 - shift;
        uint64_t bits = (count == 64 ? ~0ull : (1ull << count) - 1) << shift;
        taken |= state->claimed[at / 64] & bits;
        state->claimed[at / 64] |= bits;
        at += count;
    }
    state->claimed_bytes += length;
    return taken == 0;
}

static int place(const struct message_state *piece, uint8_t *to)
{
    if (!piece->lz4) {
        memcpy(to, piece->bytes, piece->length);
        return 0;
    }
    int got = LZ4_decompress_safe((const char *)piece->bytes, (char *)to, (int)piece->body_bytes,
                                  (int)piece->length);
    if (got != (int)piece->length)
        return error_set(-EBADMSG, "STATE_LZ4: %" PRIu32 " compressed bytes do not decode to %" PRIu32,
                         piece->body_bytes, piece->length);
    return 0;
}

int state_put(struct state *state, const struct message_state *piece)
{
    struct state_buffer *buffer = &state->arriving;
    assert(piece->length && piece->offset < piece->total && piece->length <= piece->total - piece->offset);
    pthread_mutex_lock(&state->lock);
    int r = 0;
    if (buffer->total == 0)
        r = begin(state, piece->total);
    else if (buffer->total != piece->total)
        r = error_set(-EPROTO, "STATE: total is %" PRIu64 ", other pieces say %" PRIu64, piece->total,
                      buffer->total);
    if (r == 0 && !claim(state, piece->offset, piece->length))
        r = error_set(-EPROTO, "STATE: bytes %" PRIu64 " to %" PRIu64 " were sent before", piece->offset,
                      piece->offset + piece->length - 1);
    pthread_mutex_unlock(&state->lock);
    /* Claimed bytes are this caller's alone, and nobody looks at them before the epoch is complete. */
    return r < 0 ? r : place(piece, buffer->bytes + piece->offset);
}

bool state_any(struct state *state)
{
    scope_lock(&state->lock);
    return state->arriving.total > 0;
}

int state_check(struct state *state, uint64_t bytes, uint64_t sum)
{
    scope_lock(&state->lock);
    const struct state_buffer *buffer = &state->arriving;
    if (buffer->total != bytes)
        return error_set(-EBADMSG, "the device state has %" PRIu64 " bytes, the commit says %" PRIu64,
                         buffer->total, bytes);
    if (bytes == 0)
        return error_set(-EBADMSG, "the commit comes without a device state");
    if (state->claimed_bytes != bytes)
        return error_set(-EBADMSG, "%" PRIu64 " of %" PRIu64 " bytes of the device state did not arrive",
                         bytes - state->claimed_bytes, bytes);
    uint64_t found = wire_sum(buffer->bytes, bytes);
    if (found != sum)
        return error_set(-EBADMSG, "the device state's sum is %016" PRIx64 ", the commit says %016" PRIx64,
                         found, sum);
    return 0;
}

void state_turn(struct state *state)
{
    scope_lock(&state->lock);
    struct state_buffer former = state->committed;
    state->committed = state->arriving;
    state->arriving = former;
    state->arriving.total = 0;
}

void state_drop(struct state *state)
{
    scope_lock(&state->lock);
    state->arriving.total = 0;
}

void state_drop_committed(struct state *state)
{
    scope_lock(&state->lock);
    state->committed.total = 0;
}

uint64_t state_memory_bytes(struct state *state)
{
    scope_lock(&state->lock);
    return state->arriving.room + state->committed.room + state->claimed_room;
}
