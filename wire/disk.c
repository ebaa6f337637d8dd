/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include "wire/check.h"

/*
 * WIRE_DISK: a table of records, then their bodies.
 *
 *     | wire_disk | record 0 | record 1 | ... | record n-1 | body 0 | body 1 | ... | body n-1 |
 *
 * As with pages: parse() accepts the table whole or not at all, so next() needs no checks. Unlike the runs of
 * pages, records may overlap and stand in any order of place: their own order is what counts.
 */

static struct wire_disk_record record_at(const uint8_t *records, unsigned index)
{
    struct wire_disk_record record;
    memcpy(&record, records + index * sizeof record, sizeof record);
    return record;
}

static int check_record(const struct wire_frame *frame, const struct wire_disk_record *record)
{
    uint64_t offset = from_le64(record->offset), bytes = from_le64(record->bytes);
    uint32_t body = from_le32(record->body);
    bool with_body = record->op == WIRE_DISK_RAW || record->op == WIRE_DISK_LZ4;
    int r = 0;
    TRY(r, check_bounds(frame, "record's op", record->op, WIRE_DISK_RAW, WIRE_DISK_DISCARD));
    TRY(r, check_bounds(frame, "record's disk", record->disk, 0, WIRE_DISKS_MAX - 1));
    TRY(r, check_bounds(frame, "record's reserved", from_le16(record->reserved), 0, 0));
    TRY(r, check_bounds(frame, "record's bytes", bytes, WIRE_DISK_SECTOR,
                        with_body ? WIRE_DISK_BODY_MAX : WIRE_DISK_END_MAX));
    TRY(r, check_bounds(frame, "record's bytes beyond a whole sector", bytes % WIRE_DISK_SECTOR, 0, 0));
    TRY(r, check_bounds(frame, "record's offset beyond a whole sector", offset % WIRE_DISK_SECTOR, 0, 0));
    TRY(r, check_bounds(frame, "record's offset", offset, 0, WIRE_DISK_END_MAX - bytes));
    if (record->op == WIRE_DISK_RAW)
        TRY(r, check_bounds(frame, "raw record's body", body, bytes, bytes));
    else if (record->op == WIRE_DISK_LZ4)
        TRY(r, check_bounds(frame, "lz4 record's body", body, 1, bytes));
    else
        TRY(r, check_bounds(frame, "zero or discard record's body", body, 0, 0));
    return r;
}

int message_disk_parse(const struct wire_frame *frame, struct message_disk *ret_disk)
{
    struct wire_disk wire;
    int r = check_fixed(frame, WIRE_DISK, &wire, sizeof wire);
    if (r < 0)
        return r;
    uint32_t record_count = from_le32(wire.record_count);
    TRY(r, check_bounds(frame, "record_count", record_count, 1,
                        (WIRE_PAYLOAD_MAX - sizeof wire) / sizeof(struct wire_disk_record)));
    TRY(r, check_bounds(frame, "first", from_le64(wire.first), 0, WIRE_DISK_END_MAX));
    if (r < 0)
        return r;
    size_t table_end = sizeof wire + record_count * sizeof(struct wire_disk_record);
    if (table_end > frame->length)
        return error_set(-EMSGSIZE, "%s: payload is %u bytes, expected at least %zu for %u records",
                         wire_type_name(frame->type), frame->length, table_end, record_count);

    const uint8_t *records = frame->payload + sizeof wire;
    uint64_t bodies = 0; /* at most 2^15 of 2^18 bytes */
    for (uint32_t i = 0; i < record_count; i++) {
        struct wire_disk_record record = record_at(records, i);
        r = check_record(frame, &record);
        if (r < 0)
            return error_add(r, "record %u", i);
        bodies += from_le32(record.body);
    }
    r = check_length(frame, table_end + bodies);
    if (r < 0)
        return r;
    *ret_disk = (struct message_disk){
        .round = from_le32(wire.round),
        .record_count = record_count,
        .first = from_le64(wire.first),
        .records = records,
        .body = frame->payload + table_end,
    };
    return 0;
}

bool message_disk_next(struct message_disk *disk, struct message_disk_record *ret_record)
{
    if (disk->taken == disk->record_count)
        return false;
    struct wire_disk_record record = record_at(disk->records, disk->taken++);
    *ret_record = (struct message_disk_record){
        .offset = from_le64(record.offset),
        .bytes = from_le64(record.bytes),
        .disk = record.disk,
        .op = record.op,
        .body = disk->body,
        .body_bytes = from_le32(record.body),
    };
    disk->body += ret_record->body_bytes;
    return true;
}

size_t message_disk_build(uint32_t round, uint64_t first, const struct message_disk_record *records,
                          unsigned record_count, void *to)
{
    assert(record_count >= 1);
    struct wire_disk wire = {
        .round = to_le32(round),
        .record_count = to_le32(record_count),
        .first = to_le64(first),
    };
    uint8_t *at = mempcpy(to, &wire, sizeof wire);
    for (unsigned i = 0; i < record_count; i++) {
        struct wire_disk_record record = {
            .offset = to_le64(records[i].offset),
            .bytes = to_le64(records[i].bytes),
            .body = to_le32(records[i].body_bytes),
            .disk = records[i].disk,
            .op = records[i].op,
        };
        at = mempcpy(at, &record, sizeof record);
    }
    return (size_t)(at - (uint8_t *)to);
}
