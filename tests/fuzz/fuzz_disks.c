/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "restore/disks.h"
#include "tests/samples/samples.h"
#include "vmm/memory/memory.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <lz4.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/*
 * Changes of disks at the standby, against a hostile primary and a damaged journal. The input is a program:
 * frames, right and wrong ones, commits, broken sessions, a process that is killed and started anew, and a
 * file system that changed the journal in between. A model keeps what the images must be. Properties: a frame
 * is accepted exactly when each of its records is right; the images are, to the byte, the last applied
 * checkpoint; of a damaged journal either all of an epoch is applied or nothing.
 *
 * One thread sends, so no frame is ahead of its turn.
 */
#define DISKS          2
#define RECORDS_MAX    3
#define OPERATIONS_MAX 48
#define SMALL_JOURNAL  4096

static const uint64_t sizes[DISKS] = {2 * 65536 + 512, 8 * 512};

struct images {
    uint8_t of[DISKS][2 * 65536 + 512];
};

enum operation {
    OP_PUT,
    OP_PUT_AGAIN,
    OP_RAW,
    OP_COMMIT,
    OP_APPLY,
    OP_SESSION,
    OP_KILL,
    OP_DAMAGE,
    OP_COUNT
};

/* How a frame goes wrong; other values mean that it does not. */
enum wrong { W_DISK = 10, W_BEYOND, W_AGAIN, W_BODY };

struct bench {
    struct fuzz_input *input;
    struct vmm *guest;
    struct restore_disks *disks;
    struct vmm_description description;
    struct journal_config journal;
    uint64_t next, epoch;
    bool has_commit; /* of this process */
    bool pending;    /* committed, not applied */
    bool closed;     /* the session met an error */
    bool compare;    /* the session's first epoch behind a commit */
};

static struct images now, committed, working; /* the images; the checkpoint that waits; what is coming */
static char folder[] = "/tmp/fuzz-disks.XXXXXX", path[PATH_MAX];

static void remove_files(void)
{
    for (unsigned i = 0; i < 2; i++) {
        char name[PATH_MAX + 8];
        snprintf(name, sizeof name, "%s.%u", path, i);
        unlink(name);
    }
}

static void remove_folder(void)
{
    remove_files();
    rmdir(folder);
}

static bool images_are(struct bench *bench, const struct images *images)
{
    for (uint32_t i = 0; i < DISKS; i++)
        if (memcmp(memory_guest_disk(bench->guest, i), images->of[i], sizes[i]) != 0)
            return false;
    return true;
}

static enum decode_way way_of(const struct bench *bench)
{
    return !bench->has_commit ? DECODE_DIRECT : bench->compare ? DECODE_COMPARE : DECODE_STAGE;
}

/* One record on the model; false: it is wrong. */
static bool change(struct images *images, const struct message_disk_record *record)
{
    uint8_t *to = images->of[record->disk] + record->offset;
    static uint8_t data[WIRE_DISK_BODY_MAX];
    switch (record->op) {
    case WIRE_DISK_RAW:
        memcpy(to, record->body, record->bytes);
        return true;
    case WIRE_DISK_LZ4:
        if (LZ4_decompress_safe((const char *)record->body, (char *)data, (int)record->body_bytes,
                                (int)record->bytes) != (int)record->bytes)
            return false;
        memcpy(to, data, record->bytes);
        return true;
    default:
        memset(to, 0, record->bytes);
        return true;
    }
}

/* What is expected of a frame; the model is changed by it. */
static bool foretell(struct bench *bench, struct message_disk message)
{
    struct message_disk_record record;
    struct message_disk places = message;
    while (message_disk_next(&places, &record))
        if (record.disk >= DISKS || record.bytes > sizes[record.disk] ||
            record.offset > sizes[record.disk] - record.bytes)
            return false; /* the session may go on: nobody had entered */
    if (bench->closed || message.first != bench->next)
        return false;
    bench->next += message.record_count;
    while (message_disk_next(&message, &record)) {
        if (!change(way_of(bench) == DECODE_DIRECT ? &now : &working, &record)) {
            bench->closed = true;
            return false;
        }
    }
    return true;
}

static void put(struct bench *bench, const uint8_t *payload, size_t length)
{
    /* Behind the payload stands nothing that may be read. */
    uint8_t *exact cleanup_free = malloc(length ? length : 1);
    memcpy(exact, payload, length);
    struct wire_frame frame = sample_frame(WIRE_DISK, exact, length);
    struct message_disk message;
    if (message_disk_parse(&frame, &message) < 0 || message.first > bench->next)
        return; /* the latter would wait for another lane */
    enum decode_way way = way_of(bench);
    bool right = foretell(bench, message);
    int r = restore_disks_put(bench->disks, &message, way);
    if (right && r == -ENOSPC && bench->journal.bytes_max == SMALL_JOURNAL) {
        bench->closed = true;
        return;
    }
    fuzz_require(right == (r == 0));
    if (way == DECODE_DIRECT)
        fuzz_require(images_are(bench, &now));
}

static void put_built(struct bench *bench, unsigned wrong, uint8_t *payload)
{
    static uint8_t bodies[RECORDS_MAX * LZ4_COMPRESSBOUND(65536)], data[65536];
    struct message_disk_record records[RECORDS_MAX];
    unsigned count = 1 + (unsigned)fuzz_take(bench->input, 1) % RECORDS_MAX;
    uint8_t *at = bodies;
    for (unsigned i = 0; i < count; i++) {
        unsigned what = (unsigned)fuzz_take(bench->input, 1), where = (unsigned)fuzz_take(bench->input, 1),
                 value = (unsigned)fuzz_take(bench->input, 1);
        struct message_disk_record *record = &records[i];
        uint8_t disk = what >> 2 & 1;
        uint64_t sectors = sizes[disk] / 512, first = where % sectors,
                 bytes = 1 + (what >> 3) % (sectors - first);
        *record = (struct message_disk_record){
            .disk = disk, .op = what & 3, .offset = first * 512, .bytes = bytes * 512, .body = at};
        memset(data, (int)value, record->bytes);
        data[record->bytes - 1] = (uint8_t)i;
        if (record->op == WIRE_DISK_RAW) {
            record->body_bytes = (uint32_t)record->bytes;
            memcpy(at, data, record->bytes);
        } else if (record->op == WIRE_DISK_LZ4) {
            record->body_bytes = (uint32_t)LZ4_compress_default((const char *)data, (char *)at,
                                                                (int)record->bytes, LZ4_COMPRESSBOUND(65536));
            if (wrong == W_BODY)
                at[fuzz_take(bench->input, 2) % record->body_bytes] ^= (uint8_t)(1 + value);
        }
        at += record->body_bytes;
    }
    if (wrong == W_DISK)
        records[count - 1].disk = DISKS;
    if (wrong == W_BEYOND)
        records[count - 1].offset = sizes[records[count - 1].disk];
    uint64_t first = wrong == W_AGAIN && bench->next ? bench->next - 1 : bench->next;
    size_t table = message_disk_build(0, first, records, count, payload);
    memcpy(payload + table, bodies, (size_t)(at - bodies));
    put(bench, payload, table + (size_t)(at - bodies));
}

static void put_raw(struct bench *bench, uint8_t *payload)
{
    size_t length = (size_t)fuzz_take(bench->input, 2);
    length = length < bench->input->left ? length : bench->input->left;
    memcpy(payload, bench->input->bytes, length);
    bench->input->bytes += length;
    bench->input->left -= length;
    put(bench, payload, length);
}

static void apply(struct bench *bench)
{
    fuzz_require(restore_disks_apply(bench->disks) == 0);
    if (bench->pending)
        now = committed;
    bench->pending = false;
    fuzz_require(images_are(bench, &now));
}

static void begin(struct bench *bench)
{
    if (bench->pending)
        apply(bench);
    restore_disks_abort(bench->disks);
    restore_disks_leave(bench->disks);
    fuzz_require(restore_disks_session(bench->disks, !bench->has_commit) == 0);
    fuzz_require(images_are(bench, &now));
    working = now;
    bench->next = 0;
    bench->closed = false;
    bench->compare = bench->has_commit;
}

/* `then`: what happens behind the seal; 0: it is committed. */
static void commit(struct bench *bench, unsigned then)
{
    if (bench->pending)
        apply(bench);
    bool direct = way_of(bench) == DECODE_DIRECT;
    int r = restore_disks_seal(bench->disks, bench->epoch);
    if (r == -ENOSPC && bench->journal.bytes_max == SMALL_JOURNAL)
        bench->closed = true;
    else
        fuzz_require((r == 0) == !bench->closed);
    if (r < 0 || then) { /* whose session is lost behind it: the epoch is nothing */
        begin(bench);
        return;
    }
    bench->epoch++;
    restore_disks_commit(bench->disks);
    if (direct)
        working = now;
    committed = working;
    bench->next = 0;
    bench->pending = bench->has_commit = true;
    bench->compare = false;
}

static void start(struct bench *bench)
{
    fuzz_require(restore_disks_new(&bench->disks, bench->guest, &bench->description, &bench->journal, NULL,
                                   NULL) == 0);
}

/* The process is killed, behind a seal or not. */
static void end_process(struct bench *bench, bool sealed, bool damage)
{
    struct images before = now;
    bool whole = bench->pending;
    struct images after = whole ? committed : now;
    if (sealed && !bench->pending && way_of(bench) != DECODE_DIRECT &&
        restore_disks_seal(bench->disks, bench->epoch) == 0) {
        bench->epoch++;
        after = working;
    }
    restore_disks_free(bench->disks);
    for (unsigned n = damage ? 1 + (unsigned)fuzz_take(bench->input, 1) % 4 : 0; n; n--) {
        char name[PATH_MAX + 8];
        unsigned where = (unsigned)fuzz_take(bench->input, 2);
        snprintf(name, sizeof name, "%s.%u", path, where & 1);
        uint8_t value = (uint8_t)fuzz_take(bench->input, 1);
        int fd cleanup_close = open(name, O_WRONLY | O_CLOEXEC);
        if (fd >= 0)
            fuzz_require(where & 2 ? ftruncate(fd, where >> 2) == 0 : pwrite(fd, &value, 1, where >> 2) == 1);
    }
    start(bench);
    if (damage)
        fuzz_require(images_are(bench, &before) || images_are(bench, &after));
    else
        fuzz_require(images_are(bench, &after));
    now = images_are(bench, &after) ? after : before;
    bench->pending = bench->has_commit = false;
    begin(bench);
}

static void operate(struct bench *bench, uint8_t *payload)
{
    unsigned code = (unsigned)fuzz_take(bench->input, 1), wrong = code >> 4;
    switch ((enum operation)(code % 16 % OP_COUNT)) {
    case OP_PUT:
    case OP_PUT_AGAIN:
        put_built(bench, wrong, payload);
        break;
    case OP_RAW:
        put_raw(bench, payload);
        break;
    case OP_COMMIT:
        commit(bench, wrong > 12);
        break;
    case OP_APPLY:
        apply(bench);
        break;
    case OP_SESSION:
        begin(bench);
        break;
    case OP_KILL:
    case OP_DAMAGE:
        end_process(bench, wrong & 1, code % 16 % OP_COUNT == OP_DAMAGE);
        break;
    case OP_COUNT:
        break;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static uint8_t payload[WIRE_PAYLOAD_MAX];
    if (!*path) {
        fuzz_require(mkdtemp(folder));
        snprintf(path, sizeof path, "%s/journal", folder);
        atexit(remove_folder);
    }
    remove_files();
    struct fuzz_input input = {data, size};
    struct memory_options options = {.blocks = {{"ram", VMM_PAGE_BYTES}},
                                     .block_count = 1,
                                     .disks = {{"disk0", sizes[0]}, {"disk1", sizes[1]}},
                                     .disk_count = DISKS,
                                     .state_bytes = 8};
    struct bench bench = {.input = &input, .epoch = 1};
    memset(&now, 0, sizeof now);
    fuzz_require(memory_guest_new(&bench.guest, &options) == 0);
    bench.guest->ops->describe(bench.guest, &bench.description);
    bench.journal = (struct journal_config){.path = path,
                                            .bytes_max = fuzz_take(&input, 1) % 4 == 3 ? SMALL_JOURNAL : 0,
                                            .disks = bench.description.disks,
                                            .disk_count = DISKS};
    start(&bench);
    begin(&bench);
    for (unsigned i = 0; i < OPERATIONS_MAX && input.left; i++)
        operate(&bench, payload);
    restore_disks_free(bench.disks);
    vmm_close(bench.guest);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    /* A frame: records - 1, then (op, disk, sectors; first sector; value) of each. */
    static const uint8_t first[] = {OP_PUT, 1, 0x20, 3, 7, 0x41, 9, 8, OP_COMMIT};
    static const uint8_t second[] = {OP_PUT, 2, 0x11, 3, 9, 0x04, 2, 5, 0x02, 3, 0, OP_PUT, 0, 0x0f, 1, 0};
    static const uint8_t wrongs[] = {OP_PUT | W_BODY << 4,
                                     0,
                                     0x19,
                                     2,
                                     3,
                                     1,
                                     0,
                                     OP_SESSION,
                                     OP_PUT | W_DISK << 4,
                                     0,
                                     0x18,
                                     2,
                                     3,
                                     OP_PUT | W_BEYOND << 4,
                                     0,
                                     0x1c,
                                     2,
                                     3,
                                     OP_PUT | W_AGAIN << 4,
                                     0,
                                     0x1c,
                                     2,
                                     3,
                                     OP_SESSION};
    static const uint8_t kills[] = {OP_KILL | 1 << 4};
    static const uint8_t damages[] = {OP_DAMAGE | 1 << 4, 0, 0xc0, 1, 0x55};
    uint8_t *at = to;
    if (index >= 16)
        return 0;
    *at++ = (uint8_t)(index & 8 ? 3 : 0);
    at = mempcpy(at, first, sizeof first);
    if (index & 1)
        at = mempcpy(at, wrongs, sizeof wrongs);
    at = mempcpy(at, second, sizeof second);
    if (index & 2)
        *at++ = OP_COMMIT;
    if (index & 4)
        at = mempcpy(at, damages, sizeof damages);
    else
        at = mempcpy(at, kills, sizeof kills);
    at = mempcpy(at, second, sizeof second);
    *at++ = OP_COMMIT;
    *at++ = OP_APPLY;
    return (size_t)(at - to);
}
