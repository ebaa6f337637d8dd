/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/journal_file.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"
#include "wire/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>

/* A window on the file. */
struct window {
    const struct journal_walk *walk;
    uint64_t at; /* of the file: where the window ends */
    size_t used, have;
};

/* The next `bytes`, which are taken. 0 at the end of the file, negative errno. */
static int next_bytes(struct window *window, size_t bytes, const uint8_t **ret_bytes)
{
    uint8_t *buffer = window->walk->buffer;
    assert(bytes <= JOURNAL_WALK_BYTES);
    if (window->have - window->used < bytes) {
        memmove(buffer, buffer + window->used, window->have - window->used);
        window->have -= window->used;
        window->used = 0;
    }
    while (window->have < bytes) {
        ssize_t got = pread(window->walk->fd, buffer + window->have, JOURNAL_WALK_BYTES - window->have,
                            (off_t)window->at);
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(-errno, "reading journal %s", window->walk->path);
        if (got == 0)
            return 0;
        window->have += (size_t)got;
        window->at += (uint64_t)got;
    }
    *ret_bytes = buffer + window->used;
    window->used += bytes;
    return 1;
}

static int check_header(const struct journal_walk *walk, const struct journal_header *header)
{
    const struct journal_header *expected = walk->expected;
    if (memcmp(header->magic, JOURNAL_MAGIC, sizeof header->magic))
        return error_set(-EBADMSG, "it is no journal");
    if (wire_sum(header, offsetof(struct journal_header, sum)) != from_le64(header->sum))
        return error_set(-EBADMSG, "its header is damaged");
    if (memcmp(header->vm_uuid, expected->vm_uuid, sizeof header->vm_uuid))
        return error_set(-EBADMSG, "it is another machine's");
    if (from_le32(header->disk_count) != from_le32(expected->disk_count) ||
        from_le64(header->disks_sum) != from_le64(expected->disks_sum))
        return error_set(-EBADMSG, "it was written for other disks");
    if (!(from_le32(header->flags) & JOURNAL_HEADER_SYNCED) &&
        memcmp(header->boot, expected->boot, sizeof header->boot))
        return error_set(-EBADMSG, "the host was started anew since, and it was not made to survive that");
    return 0;
}

static int check_record(const struct journal_walk *walk, const struct journal_record *record)
{
    uint64_t offset = from_le64(record->offset), bytes = from_le64(record->bytes);
    uint32_t body = from_le32(record->body);
    bool with_body = record->op == WIRE_DISK_RAW || record->op == WIRE_DISK_LZ4;
    bool right = record->op <= WIRE_DISK_DISCARD && record->disk < from_le32(walk->expected->disk_count);
    if (right) {
        uint64_t disk_bytes = walk->disks[record->disk].bytes;
        right = bytes > 0 && offset < disk_bytes && bytes <= disk_bytes - offset;
    }
    if (right && with_body)
        right = bytes <= WIRE_DISK_BODY_MAX && body > 0 && body <= bytes;
    if (right && (!with_body || record->op == WIRE_DISK_RAW))
        right = body == (with_body ? bytes : 0);
    return right ? 0 : error_set(-EBADMSG, "record %" PRIu64 " is damaged", walk->records);
}

static int apply_record(struct journal_walk *walk, const struct journal_record *record, const uint8_t *body)
{
    const struct vmm_ops *ops = walk->target->ops;
    uint64_t offset = from_le64(record->offset), bytes = from_le64(record->bytes);
    if (record->op == WIRE_DISK_ZERO || record->op == WIRE_DISK_DISCARD)
        return ops->disk_zero(walk->target, record->disk,
                              record->op == WIRE_DISK_ZERO ? VMM_DISK_ZERO : VMM_DISK_DISCARD, offset, bytes);
    if (record->op == WIRE_DISK_LZ4) {
        int got = LZ4_decompress_safe((const char *)body, (char *)walk->scratch, (int)from_le32(record->body),
                                      WIRE_DISK_BODY_MAX);
        if (got < 0 || (uint64_t)got != bytes)
            return error_set(-EBADMSG, "record %" PRIu64 " does not decode", walk->records);
        body = walk->scratch;
    }
    return ops->disk_write(walk->target, record->disk, offset, (size_t)bytes, body);
}

/* Not at the end of the file and no record: nothing was committed, or this is no journal any more. */
static int not_committed(const struct journal_walk *walk)
{
    return error_set(-EBADMSG, "it ends after %" PRIu64 " records without being committed", walk->records);
}

static int finish(struct journal_walk *walk, XXH3_state_t *sum, const struct journal_commit *commit)
{
    XXH3_64bits_update(sum, commit, offsetof(struct journal_commit, sum));
    if (XXH3_64bits_digest(sum) != from_le64(commit->sum))
        return error_set(-EBADMSG, "it was not committed, or it is damaged: its sum is wrong");
    if (from_le64(commit->records) != walk->records)
        return error_set(-EBADMSG, "it has %" PRIu64 " records, its commit says %" PRIu64, walk->records,
                         from_le64(commit->records));
    walk->epoch = from_le64(commit->epoch);
    return 1;
}

static int walk_records(struct journal_walk *walk, struct window *window, XXH3_state_t *sum)
{
    for (;;) {
        const uint8_t *bytes;
        struct journal_record record;
        struct journal_commit commit;
        int r = next_bytes(window, sizeof record, &bytes);
        if (r <= 0)
            return r < 0 ? r : not_committed(walk);
        memcpy(&record, bytes, sizeof record);
        memcpy(&commit, bytes, sizeof commit);
        if (from_le32(record.magic) == JOURNAL_COMMIT_MAGIC)
            return finish(walk, sum, &commit);
        if (from_le32(record.magic) != JOURNAL_RECORD_MAGIC)
            return not_committed(walk);
        r = check_record(walk, &record);
        if (r < 0)
            return r;
        XXH3_64bits_update(sum, &record, sizeof record);
        r = next_bytes(window, from_le32(record.body), &bytes);
        if (r <= 0)
            return r < 0 ? r : not_committed(walk);
        XXH3_64bits_update(sum, bytes, from_le32(record.body));
        if (walk->target) {
            r = walk->records == walk->half ? fault_point(FAULT_JOURNAL_APPLY) : 0;
            if (r == 0)
                r = apply_record(walk, &record, bytes);
            if (r < 0)
                return error_add(r, "disk '%s'", walk->disks[record.disk].name);
        }
        walk->records++;
        walk->bytes += from_le64(record.bytes);
    }
}

static void free_state(XXH3_state_t **state)
{
    XXH3_freeState(*state);
}

int journal_walk(struct journal_walk *walk)
{
    struct window window = {.walk = walk};
    static const uint8_t nothing[sizeof(((struct journal_header *)0)->magic)];
    struct journal_header header;
    const uint8_t *bytes;
    walk->epoch = walk->records = walk->bytes = 0;
    int r = next_bytes(&window, sizeof header, &bytes);
    if (r <= 0) {
        off_t size = r < 0 ? 0 : lseek(walk->fd, 0, SEEK_END);
        return r < 0 || size == 0 ? r : error_set(-EBADMSG, "its header is cut short");
    }
    memcpy(&header, bytes, sizeof header);
    if (memcmp(header.magic, nothing, sizeof nothing) == 0)
        return 0;
    r = check_header(walk, &header);
    if (r < 0)
        return r;
    XXH3_state_t *sum cleanup(free_state) = XXH3_createState();
    if (!sum)
        return error_set(-ENOMEM, "reading journal %s: out of memory", walk->path);
    XXH3_64bits_reset(sum);
    XXH3_64bits_update(sum, &header, sizeof header);
    return walk_records(walk, &window, sum);
}
