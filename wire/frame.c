/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/frame.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#ifdef XXH3_DISPATCH
#include <xxh_x86dispatch.h>
#else
#include <xxhash.h>
#endif

#define HEADER_BYTES sizeof(struct wire_header)
/* What header_sum covers: all that stands before it. */
#define HEADER_SUMMED offsetof(struct wire_header, header_sum)

enum {
    FROM_PRIMARY = 1 << 0,
    FROM_STANDBY = 1 << 1,
    ON_CONTROL = 1 << 2,
    ON_DATA = 1 << 3,
};

/* Who may send a type, on which lanes, and how long its payload may be. A type without lanes is unknown. */
static const struct rule {
    uint8_t permitted;
    uint32_t min, max;
} rules[] = {
    [WIRE_HELLO] = {FROM_PRIMARY | ON_CONTROL | ON_DATA, sizeof(struct wire_hello),
                    sizeof(struct wire_hello)},
    [WIRE_WELCOME] = {FROM_STANDBY | ON_CONTROL, sizeof(struct wire_welcome), sizeof(struct wire_welcome)},
    [WIRE_REFUSE] = {FROM_PRIMARY | FROM_STANDBY | ON_CONTROL, sizeof(struct wire_refuse),
                     sizeof(struct wire_refuse)},
    [WIRE_DESCRIBE] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_describe) + sizeof(struct wire_block),
                       sizeof(struct wire_describe) + WIRE_BLOCKS_MAX * sizeof(struct wire_block) +
                           WIRE_DESCRIPTION_MAX},
    [WIRE_ACCEPT] = {FROM_STANDBY | ON_CONTROL, 0, 0},
    [WIRE_HEARTBEAT] = {FROM_PRIMARY | FROM_STANDBY | ON_CONTROL, sizeof(struct wire_heartbeat),
                        sizeof(struct wire_heartbeat)},
    [WIRE_ROUND] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_round), sizeof(struct wire_round)},
    [WIRE_ROUND_DONE] = {FROM_STANDBY | ON_CONTROL, sizeof(struct wire_round_done),
                         sizeof(struct wire_round_done)},
    [WIRE_COMMIT] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_commit), sizeof(struct wire_commit)},
    [WIRE_ACK] = {FROM_STANDBY | ON_CONTROL, 0, 0},
    [WIRE_VERIFY] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_verify) + sizeof(le64),
                     sizeof(struct wire_verify) + WIRE_VERIFY_MAX * sizeof(le64)},
    [WIRE_VERIFIED] = {FROM_STANDBY | ON_CONTROL, sizeof(struct wire_verified),
                       sizeof(struct wire_verified) + WIRE_VERIFIED_MAX * sizeof(le64)},
    [WIRE_GOODBYE] = {FROM_PRIMARY | FROM_STANDBY | ON_CONTROL, sizeof(struct wire_goodbye),
                      sizeof(struct wire_goodbye)},
    [WIRE_SWITCH] = {FROM_PRIMARY | ON_CONTROL, 0, 0},
    [WIRE_LOADED] = {FROM_STANDBY | ON_CONTROL, 0, 0},
    [WIRE_HANDOVER] = {FROM_PRIMARY | ON_CONTROL, 0, 0},
    [WIRE_STARTED] = {FROM_STANDBY | ON_CONTROL, 0, 0},
    [WIRE_SUMS_WANTED] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_sums), sizeof(struct wire_sums)},
    [WIRE_SUMS] = {FROM_STANDBY | ON_CONTROL, sizeof(struct wire_sums) + WIRE_DIGEST_BYTES,
                   sizeof(struct wire_sums) + WIRE_SUMS_MAX *WIRE_DIGEST_BYTES},
    [WIRE_PAGE_SUMS_WANTED] = {FROM_PRIMARY | ON_CONTROL, sizeof(struct wire_page_sums),
                               sizeof(struct wire_page_sums)},
    [WIRE_PAGE_SUMS] = {FROM_STANDBY | ON_CONTROL, sizeof(struct wire_page_sums),
                        sizeof(struct wire_page_sums) + WIRE_PAGE_SUMS_MAX *WIRE_DIGEST_BYTES},
    [WIRE_PAGES] = {FROM_PRIMARY | ON_DATA, sizeof(struct wire_pages) + sizeof(struct wire_run),
                    WIRE_PAYLOAD_MAX},
    [WIRE_STATE] = {FROM_PRIMARY | ON_DATA, sizeof(struct wire_state) + 1, WIRE_PAYLOAD_MAX},
    [WIRE_DELTA] = {FROM_PRIMARY | ON_DATA, sizeof(struct wire_delta) + 1, WIRE_PAYLOAD_MAX},
    [WIRE_DISK] = {FROM_PRIMARY | ON_DATA, sizeof(struct wire_disk) + sizeof(struct wire_disk_record),
                   WIRE_PAYLOAD_MAX},
    [WIRE_STATE_LZ4] = {FROM_PRIMARY | ON_DATA, sizeof(struct wire_state_lz4) + 1,
                        sizeof(struct wire_state_lz4) + WIRE_STATE_PIECE_MAX},
};
static_assert(sizeof(struct wire_describe) + WIRE_BLOCKS_MAX * sizeof(struct wire_block) +
                      WIRE_DESCRIPTION_MAX <=
                  WIRE_PAYLOAD_MAX,
              "DESCRIBE fits in a frame");
static_assert(sizeof(struct wire_verify) + WIRE_VERIFY_MAX * sizeof(le64) <= WIRE_PAYLOAD_MAX,
              "VERIFY fits in a frame");

static const struct rule *rule_of(uint8_t type)
{
    return type < array_length(rules) && rules[type].permitted ? &rules[type] : NULL;
}

bool wire_type_bounds(uint8_t type, size_t *ret_min, size_t *ret_max)
{
    const struct rule *rule = rule_of(type);
    if (!rule)
        return false;
    *ret_min = rule->min;
    *ret_max = rule->max;
    return true;
}

uint64_t wire_sum(const void *bytes, size_t length)
{
    if (length == 0)
        return 0;
#ifdef XXH3_DISPATCH
    return XXH3_64bits_dispatch(bytes, length);
#else
    return XXH3_64bits(bytes, length);
#endif
}

void *wire_writer_payload(const struct wire_writer *writer, size_t *ret_room)
{
    size_t left = writer->room - writer->used;
    if (left < HEADER_BYTES) {
        *ret_room = 0;
        return NULL;
    }
    left -= HEADER_BYTES;
    *ret_room = left < WIRE_PAYLOAD_MAX ? left : WIRE_PAYLOAD_MAX;
    return writer->buffer + writer->used + HEADER_BYTES;
}

uint64_t wire_writer_finish(struct wire_writer *writer, enum wire_type type, uint64_t generation,
                            uint64_t epoch, size_t length)
{
    size_t room;
    const void *payload = wire_writer_payload(writer, &room);
    const struct rule *rule = rule_of((uint8_t)type);
    assert(payload && length <= room);
    assert(rule && length >= rule->min && length <= rule->max);

    struct wire_header header = {
        .magic = to_le32(WIRE_MAGIC),
        .version = WIRE_VERSION,
        .type = (uint8_t)type,
        .length = to_le32((uint32_t)length),
        .session = to_le64(writer->session),
        .sequence = to_le64(writer->sequence),
        .generation = to_le64(generation),
        .epoch = to_le64(epoch),
        .payload_sum = to_le64(wire_sum(payload, length)),
    };
    uint64_t sum = wire_sum(&header, HEADER_SUMMED);
    header.header_sum = to_le64(sum);
    /* Payloads have any length, so frames lie at any address. */
    memcpy(writer->buffer + writer->used, &header, sizeof header);
    writer->used += HEADER_BYTES + length;
    writer->sequence++;
    return sum;
}

int wire_writer_put(struct wire_writer *writer, enum wire_type type, uint64_t generation, uint64_t epoch,
                    const void *payload, size_t length)
{
    size_t room;
    void *to = wire_writer_payload(writer, &room);
    if (!to || length > room)
        return error_set(-ENOBUFS, "%s frame of %zu bytes: the lane's buffer has room for %zu",
                         wire_type_name((uint8_t)type), length, room);
    if (length)
        memcpy(to, payload, length);
    wire_writer_finish(writer, type, generation, epoch, length);
    return 0;
}

static int refuse_field(const char *field, uint64_t found, uint64_t expected)
{
    return error_set(-EPROTO, "frame header: %s is 0x%" PRIx64 ", expected 0x%" PRIx64, field, found,
                     expected);
}

static const char *lane_name(const struct wire_reader *reader)
{
    return reader->control ? "control" : "data";
}

/* All that can be said of a frame before its payload is there. The sum comes right after magic and version,
 * which say whether there is a sum at all: what fails later was meant by the peer, not damaged on the way. */
static int judge_header(const struct wire_reader *reader, const struct wire_header *header)
{
    if (from_le32(header->magic) != WIRE_MAGIC)
        return refuse_field("magic", from_le32(header->magic), WIRE_MAGIC);
    if (header->version != WIRE_VERSION)
        return refuse_field("version", header->version, WIRE_VERSION);
    uint64_t sum = wire_sum(header, HEADER_SUMMED);
    if (from_le64(header->header_sum) != sum)
        return error_set(-EBADMSG, "frame header: header_sum is 0x%" PRIx64 ", expected 0x%" PRIx64,
                         from_le64(header->header_sum), sum);
    if (from_le16(header->flags) != 0)
        return refuse_field("flags", from_le16(header->flags), 0);
    if (from_le32(header->reserved) != 0)
        return refuse_field("reserved", from_le32(header->reserved), 0);

    const struct rule *rule = rule_of(header->type);
    if (!rule)
        return error_set(-EPROTO, "frame header: type is %u, expected one that version %d knows",
                         header->type, WIRE_VERSION);
    if (!(rule->permitted & (reader->control ? ON_CONTROL : ON_DATA)))
        return error_set(-EPROTO, "frame header: type is %s, expected one of the %s lane",
                         wire_type_name(header->type), lane_name(reader));
    if (!(rule->permitted & (reader->from == WIRE_SIDE_PRIMARY ? FROM_PRIMARY : FROM_STANDBY)))
        return error_set(-EPROTO, "frame header: type is %s, expected one that the %s sends",
                         wire_type_name(header->type),
                         reader->from == WIRE_SIDE_PRIMARY ? "primary" : "standby");
    uint32_t length = from_le32(header->length);
    if (length < rule->min || length > rule->max)
        return error_set(-EMSGSIZE, "%s frame: length is %u, expected %u to %u", wire_type_name(header->type),
                         length, rule->min, rule->max);

    /* 0 stands for "no session" everywhere else, so no peer may choose it. */
    if (!reader->session_known && from_le64(header->session) == 0)
        return error_set(-EPROTO, "%s frame: session is 0, expected another number",
                         wire_type_name(header->type));
    if (reader->session_known && from_le64(header->session) != reader->session)
        return refuse_field("session", from_le64(header->session), reader->session);
    if (from_le64(header->sequence) != reader->sequence)
        return refuse_field("sequence", from_le64(header->sequence), reader->sequence);
    if (from_le64(header->generation) > WIRE_GENERATION_MAX)
        return error_set(-EPROTO, "%s frame: generation is 0x%" PRIx64 ", expected 0x%llx at most",
                         wire_type_name(header->type), from_le64(header->generation), WIRE_GENERATION_MAX);
    return 0;
}

long wire_reader_next(struct wire_reader *reader, const void *bytes, size_t available,
                      struct wire_frame *ret_frame)
{
    struct wire_header header;
    if (available < HEADER_BYTES)
        return 0;
    memcpy(&header, bytes, sizeof header);
    int r = judge_header(reader, &header);
    if (r < 0)
        return r;
    uint32_t length = from_le32(header.length);
    if (available - HEADER_BYTES < length)
        return 0;

    const uint8_t *payload = (const uint8_t *)bytes + HEADER_BYTES;
    uint64_t sum = wire_sum(payload, length);
    if (from_le64(header.payload_sum) != sum)
        return error_set(-EBADMSG, "%s frame: payload_sum is 0x%" PRIx64 ", expected 0x%" PRIx64,
                         wire_type_name(header.type), from_le64(header.payload_sum), sum);

    reader->session = from_le64(header.session);
    reader->session_known = true;
    reader->sequence++;
    *ret_frame = (struct wire_frame){
        .type = header.type,
        .length = length,
        .session = from_le64(header.session),
        .sequence = from_le64(header.sequence),
        .generation = from_le64(header.generation),
        .epoch = from_le64(header.epoch),
        .header_sum = from_le64(header.header_sum),
        .payload = payload,
    };
    return (long)(HEADER_BYTES + length);
}
