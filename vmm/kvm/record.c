/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/record.h"
#include "base/byteorder.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <string.h>

void record_writer_init(struct record_writer *writer, void *to, size_t room)
{
    *writer = (struct record_writer){.to = to, .room = room};
}

int record_writer_end(const struct record_writer *writer, size_t *ret_bytes)
{
    assert(!writer->open);
    if (writer->full)
        return error_set(-ENOBUFS, "state: %zu bytes do not hold the guest's records", writer->room);
    *ret_bytes = writer->bytes;
    return 0;
}

void record_put(struct record_writer *writer, const void *from, size_t bytes)
{
    if (writer->full || bytes > writer->room - writer->bytes) {
        writer->full = true;
        return;
    }
    if (bytes)
        memcpy(writer->to + writer->bytes, from, bytes);
    writer->bytes += bytes;
}

void record_put_u8(struct record_writer *writer, uint8_t value)
{
    record_put(writer, &value, sizeof value);
}

void record_put_u16(struct record_writer *writer, uint16_t value)
{
    le16 raw = to_le16(value);
    record_put(writer, &raw, sizeof raw);
}

void record_put_u32(struct record_writer *writer, uint32_t value)
{
    le32 raw = to_le32(value);
    record_put(writer, &raw, sizeof raw);
}

void record_put_u64(struct record_writer *writer, uint64_t value)
{
    le64 raw = to_le64(value);
    record_put(writer, &raw, sizeof raw);
}

void record_begin(struct record_writer *writer, uint32_t type, uint32_t version, uint32_t instance)
{
    assert(!writer->open);
    writer->open = true;
    writer->begin = writer->bytes;
    record_put_u32(writer, type);
    record_put_u32(writer, version);
    record_put_u32(writer, 0); /* the length, at the end */
    record_put_u32(writer, instance);
}

void record_end(struct record_writer *writer)
{
    assert(writer->open);
    writer->open = false;
    if (writer->full)
        return;
    size_t bytes = writer->bytes - writer->begin - RECORD_HEADER_BYTES;
    assert(bytes <= RECORD_BYTES_MAX);
    le32 raw = to_le32((uint32_t)bytes);
    memcpy(writer->to + writer->begin + 8, &raw, sizeof raw);
}

void record_reader_init(struct record_reader *reader, const void *from, size_t bytes)
{
    *reader = (struct record_reader){.from = from, .left = bytes};
}

static uint32_t u32_at(const uint8_t *from)
{
    le32 raw;
    memcpy(&raw, from, sizeof raw);
    return from_le32(raw);
}

int record_next(struct record_reader *reader, struct record *ret_record)
{
    if (reader->left == 0)
        return 0;
    if (reader->left < RECORD_HEADER_BYTES)
        return error_set(-EBADMSG, "state: %zu bytes are left, too few for a record", reader->left);
    struct record record = {
        .type = u32_at(reader->from),
        .version = u32_at(reader->from + 4),
        .bytes = u32_at(reader->from + 8),
        .instance = u32_at(reader->from + 12),
        .payload = reader->from + RECORD_HEADER_BYTES,
    };
    size_t left = reader->left - RECORD_HEADER_BYTES;
    if (record.bytes > RECORD_BYTES_MAX || record.bytes > left)
        return error_set(-EBADMSG, "state: record 0x%x of %u bytes, but %zu are left", record.type,
                         record.bytes, left);
    reader->from = record.payload + record.bytes;
    reader->left = left - record.bytes;
    *ret_record = record;
    return 1;
}

const void *record_take_piece(struct record *record, size_t bytes)
{
    if (record->overrun || bytes > record_left(record)) {
        record->overrun = true;
        return NULL;
    }
    const uint8_t *piece = record->payload + record->at;
    record->at += (uint32_t)bytes;
    return piece;
}

void record_take(struct record *record, void *to, size_t bytes)
{
    const void *piece = record_take_piece(record, bytes);
    if (piece)
        memcpy(to, piece, bytes);
    else
        memset(to, 0, bytes);
}

uint8_t record_take_u8(struct record *record)
{
    uint8_t value;
    record_take(record, &value, sizeof value);
    return value;
}

uint16_t record_take_u16(struct record *record)
{
    le16 raw;
    record_take(record, &raw, sizeof raw);
    return from_le16(raw);
}

uint32_t record_take_u32(struct record *record)
{
    le32 raw;
    record_take(record, &raw, sizeof raw);
    return from_le32(raw);
}

uint64_t record_take_u64(struct record *record)
{
    le64 raw;
    record_take(record, &raw, sizeof raw);
    return from_le64(raw);
}

int record_check_end(const struct record *record, const char *what)
{
    if (record->overrun)
        return error_set(-EBADMSG, "state of %s %u: %u bytes are too few", what, record->instance,
                         record->bytes);
    if (record->at != record->bytes)
        return error_set(-EBADMSG, "state of %s %u: %zu of %u bytes are left over", what, record->instance,
                         record_left(record), record->bytes);
    return 0;
}

int record_check_version(const struct record *record, const char *what, uint32_t version)
{
    if (record->version != version)
        return error_set(-EBADMSG, "state of %s %u: version %u, this program knows %u", what,
                         record->instance, record->version, version);
    return 0;
}
