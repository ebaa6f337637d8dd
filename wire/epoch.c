/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include "wire/check.h"

/* The messages that end rounds and epochs, verification, and device state. */

/* What can be said of totals without having counted: they must be possible. */
static int take_totals(const struct wire_frame *frame, const struct wire_totals *wire,
                       struct message_totals *totals)
{
    /* The least that one data frame can carry, a piece of state of one byte. */
    const uint64_t least = sizeof(struct wire_state) + 1;
    *totals = (struct message_totals){
        .frames = from_le64(wire->frames),
        .pages = from_le64(wire->pages),
        .bytes = from_le64(wire->bytes),
        .sum = from_le64(wire->sum),
    };
    int r = 0;
    TRY(r, check_bounds(frame, "totals.frames", totals->frames, 0, UINT64_MAX / WIRE_PAYLOAD_MAX));
    TRY(r, check_bounds(frame, "totals.bytes", totals->bytes, totals->frames * least,
                        totals->frames * WIRE_PAYLOAD_MAX));
    TRY(r, check_bounds(frame, "totals.pages", totals->pages, 0,
                        totals->frames ? (uint64_t)WIRE_BLOCKS_MAX * (WIRE_BLOCK_BYTES_MAX / WIRE_PAGE_BYTES)
                                       : 0));
    if (totals->frames == 0)
        TRY(r, check_bounds(frame, "totals.sum", totals->sum, 0, 0));
    return r;
}

static void put_totals(const struct message_totals *totals, struct wire_totals *wire)
{
    *wire = (struct wire_totals){
        .frames = to_le64(totals->frames),
        .pages = to_le64(totals->pages),
        .bytes = to_le64(totals->bytes),
        .sum = to_le64(totals->sum),
    };
}

int message_round_parse(const struct wire_frame *frame, struct message_round *ret_round)
{
    struct wire_round wire;
    int r = check_fixed(frame, WIRE_ROUND, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    struct message_round round = {.round = from_le32(wire.round)};
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    TRY(r, take_totals(frame, &wire.totals, &round.totals));
    if (r < 0)
        return r;
    *ret_round = round;
    return 0;
}

void message_round_build(const struct message_round *round, struct wire_round *ret_wire)
{
    *ret_wire = (struct wire_round){.round = to_le32(round->round)};
    put_totals(&round->totals, &ret_wire->totals);
}

int message_round_done_parse(const struct wire_frame *frame, uint32_t *ret_round)
{
    struct wire_round_done wire;
    int r = check_fixed(frame, WIRE_ROUND_DONE, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    if (r < 0)
        return r;
    *ret_round = from_le32(wire.round);
    return 0;
}

void message_round_done_build(uint32_t round, struct wire_round_done *ret_wire)
{
    *ret_wire = (struct wire_round_done){.round = to_le32(round)};
}

int message_commit_parse(const struct wire_frame *frame, struct message_commit *ret_commit)
{
    struct wire_commit wire;
    int r = check_fixed(frame, WIRE_COMMIT, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    struct message_commit commit = {
        .round = from_le32(wire.round),
        .state_bytes = from_le64(wire.state_bytes),
        .state_sum = from_le64(wire.state_sum),
    };
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    TRY(r, take_totals(frame, &wire.totals, &commit.totals));
    TRY(r, check_bounds(frame, "state_bytes", commit.state_bytes, 1, WIRE_STATE_MAX));
    /* The state came in frames of the final round, compressed at best. */
    TRY(r, check_bounds(frame, "totals.bytes", commit.totals.bytes,
                        (commit.state_bytes + WIRE_LZ4_RATIO_MAX - 1) / WIRE_LZ4_RATIO_MAX +
                            sizeof(struct wire_state),
                        UINT64_MAX));
    if (r < 0)
        return r;
    *ret_commit = commit;
    return 0;
}

void message_commit_build(const struct message_commit *commit, struct wire_commit *ret_wire)
{
    *ret_wire = (struct wire_commit){
        .round = to_le32(commit->round),
        .state_bytes = to_le64(commit->state_bytes),
        .state_sum = to_le64(commit->state_sum),
    };
    put_totals(&commit->totals, &ret_wire->totals);
}

int message_verify_parse(const struct wire_frame *frame, struct message_verify *ret_verify)
{
    struct wire_verify wire;
    int r = check_fixed(frame, WIRE_VERIFY, &wire, sizeof wire);
    if (r < 0)
        return r;
    struct message_verify verify = {
        .block = from_le32(wire.block),
        .count = from_le32(wire.count),
        .first = from_le64(wire.first),
        .fingerprints = (const le64 *)(frame->payload + sizeof wire),
    };
    TRY(r, check_bounds(frame, "block", verify.block, 0, WIRE_BLOCKS_MAX - 1));
    TRY(r, check_bounds(frame, "count", verify.count, 1, WIRE_VERIFY_MAX));
    TRY(r, check_length(frame, sizeof wire + (uint64_t)verify.count * sizeof(le64)));
    TRY(r, check_pages(frame, verify.first, verify.count));
    if (r < 0)
        return r;
    *ret_verify = verify;
    return 0;
}

long message_verify_build(uint32_t block, uint64_t first, uint32_t count, const uint64_t *fingerprints,
                          void *to, size_t room)
{
    assert(count >= 1 && count <= WIRE_VERIFY_MAX);
    struct wire_verify wire = {to_le32(block), to_le32(count), to_le64(first)};
    size_t length = sizeof wire + count * sizeof(le64);
    if (length > room)
        return error_set(-EMSGSIZE, "%u fingerprints: room for %zu bytes, %zu wanted", count, room, length);
    uint8_t *at = mempcpy(to, &wire, sizeof wire);
    for (uint32_t i = 0; i < count; i++) {
        le64 fingerprint = to_le64(fingerprints[i]);
        at = mempcpy(at, &fingerprint, sizeof fingerprint);
    }
    return (long)length;
}

int message_verified_parse(const struct wire_frame *frame, struct message_verified *ret_verified)
{
    struct wire_verified wire;
    int r = check_fixed(frame, WIRE_VERIFIED, &wire, sizeof wire);
    if (r < 0)
        return r;
    struct message_verified verified = {
        .block = from_le32(wire.block),
        .count = from_le32(wire.count),
        .differing = from_le32(wire.differing),
        .listed = from_le32(wire.listed),
        .first = from_le64(wire.first),
        .pages = frame->payload + sizeof wire,
    };
    uint32_t listed = verified.differing < WIRE_VERIFIED_MAX ? verified.differing : WIRE_VERIFIED_MAX;
    TRY(r, check_bounds(frame, "block", verified.block, 0, WIRE_BLOCKS_MAX - 1));
    TRY(r, check_bounds(frame, "count", verified.count, 1, WIRE_VERIFY_MAX));
    TRY(r, check_pages(frame, verified.first, verified.count));
    TRY(r, check_bounds(frame, "differing", verified.differing, 0, verified.count));
    TRY(r, check_bounds(frame, "listed", verified.listed, listed, listed));
    TRY(r, check_length(frame, sizeof wire + (uint64_t)verified.listed * sizeof(le64)));
    if (r < 0)
        return r;
    uint64_t next = verified.first;
    for (uint32_t i = 0; i < verified.listed; i++) {
        le64 page;
        memcpy(&page, verified.pages + i * sizeof page, sizeof page);
        r = check_bounds(frame, "listed page", from_le64(page), next, verified.first + verified.count - 1);
        if (r < 0)
            return r;
        next = from_le64(page) + 1;
    }
    *ret_verified = verified;
    return 0;
}

long message_verified_build(const struct message_verify *verify, uint32_t differing, const uint64_t *pages,
                            void *to, size_t room)
{
    uint32_t listed = differing < WIRE_VERIFIED_MAX ? differing : WIRE_VERIFIED_MAX;
    struct wire_verified wire = {
        .block = to_le32(verify->block),
        .count = to_le32(verify->count),
        .first = to_le64(verify->first),
        .differing = to_le32(differing),
        .listed = to_le32(listed),
    };
    size_t length = sizeof wire + listed * sizeof(le64);
    if (length > room)
        return error_set(-EMSGSIZE, "%u differing pages: room for %zu bytes, %zu wanted", listed, room,
                         length);
    uint8_t *at = mempcpy(to, &wire, sizeof wire);
    for (uint32_t i = 0; i < listed; i++) {
        le64 page = to_le64(pages[i]);
        at = mempcpy(at, &page, sizeof page);
    }
    return (long)length;
}

static int take_plain_state(const struct wire_frame *frame, struct message_state *state)
{
    struct wire_state wire;
    int r = check_fixed(frame, WIRE_STATE, &wire, sizeof wire);
    if (r < 0)
        return r;
    uint32_t length = frame->length - (uint32_t)sizeof wire;
    *state = (struct message_state){
        .offset = from_le64(wire.offset),
        .total = from_le64(wire.total),
        .length = length,
        .bytes = frame->payload + sizeof wire,
        .body_bytes = length,
    };
    return 0;
}

static int take_lz4_state(const struct wire_frame *frame, struct message_state *state)
{
    struct wire_state_lz4 wire;
    int r = check_fixed(frame, WIRE_STATE_LZ4, &wire, sizeof wire);
    if (r < 0)
        return r;
    *state = (struct message_state){
        .offset = from_le64(wire.offset),
        .total = from_le64(wire.total),
        .length = from_le32(wire.raw_bytes),
        .lz4 = true,
        .bytes = frame->payload + sizeof wire,
        .body_bytes = frame->length - (uint32_t)sizeof wire,
    };
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    TRY(r, check_bounds(frame, "raw_bytes", state->length, 1, WIRE_STATE_PIECE_MAX));
    TRY(r, check_bounds(frame, "lz4 block", state->body_bytes, 1, state->length));
    return r;
}

int message_state_parse(const struct wire_frame *frame, struct message_state *ret_state)
{
    struct message_state state;
    int r = frame->type == WIRE_STATE_LZ4 ? take_lz4_state(frame, &state) : take_plain_state(frame, &state);
    if (r < 0)
        return r;
    TRY(r, check_bounds(frame, "total", state.total, 1, WIRE_STATE_MAX));
    TRY(r, check_bounds(frame, "length of the piece", state.length, 1, state.total));
    TRY(r, check_bounds(frame, "offset", state.offset, 0, state.total - state.length));
    if (r < 0)
        return r;
    *ret_state = state;
    return 0;
}

size_t message_state_build(uint64_t offset, uint64_t total, void *to)
{
    struct wire_state wire = {to_le64(offset), to_le64(total)};
    memcpy(to, &wire, sizeof wire);
    return sizeof wire;
}

size_t message_state_lz4_build(uint64_t offset, uint64_t total, uint32_t raw_bytes, void *to)
{
    struct wire_state_lz4 wire = {to_le64(offset), to_le64(total), to_le32(raw_bytes), to_le32(0)};
    memcpy(to, &wire, sizeof wire);
    return sizeof wire;
}
