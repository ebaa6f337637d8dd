/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/disks.h"

#include "base/blockset.h"
#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <lz4.h>
#include <stdatomic.h>
#include <string.h>

/*
 * Theory of operation
 *
 * The records of an epoch are numbered, and frames bring them on any lane. A turnstile puts them in order:
 *
 *      lane 1 ── frame 0..4 ──► inside          next = 5
 *      lane 2 ── frame 9..11 ─► waits            (its number is ahead)
 *      lane 3 ── frame 5..8 ──► waits for the one inside, then it is its turn
 *
 * No lane waits for ever, since each brings ascending numbers: the frame that is next is the first of its
 * lane, and nothing that lane brought earlier waits here. If it never comes, the session ends, and
 * restore_abort() sends the others away.
 *
 * Where the one inside takes its records: straight to the images while nothing is committed here; else to the
 * journal. In a session's first epoch after a commit the primary may send whole disks that are here already:
 * then a record that says what the image says is left out, unless a block of its was journaled earlier in
 * this epoch (the image does not have that yet).
 *
 * Digests of what the images have (restore_disks_sums) are taken by the owner meanwhile, under a lock of
 * their own. Whether a block's is taken before or after a record of that block is written does not matter:
 * the primary believes it of no block that is in a record.
 *
 * Else the images are touched by the lane inside (direct, or to compare) and by the owner who applies; never
 * at once, since an epoch is received directly or compared only when no commit waits to be applied.
 */
#define BLOCK_BYTES 65536u
#define SUMS_BYTES  (16 * (size_t)WIRE_SUMS_BLOCK) /* read at a time */
#define COMPARE_BYTES                                                                                        \
    ((uint64_t)16 << 20) /* longer stretches of zeros are not compared: it takes too long                    \
                          */

struct restore_disks {
    struct vmm *target;
    const struct vmm_disk *list;
    uint32_t count;
    struct journal *journal;
    uint8_t *data, *image;                  /* of the lane inside: a record decoded; what the image has */
    struct blockset touched[VMM_DISKS_MAX]; /* journaled in this epoch, while comparing */
    atomic_bool direct;                     /* the images were written and not flushed */
    atomic_ullong applied_bytes;

    pthread_mutex_t images; /* the target's disk calls of a session: the lane inside, and who asks for sums */
    pthread_mutex_t lock;   /* what follows; leaf */
    pthread_cond_t changed;
    uint64_t next;
    bool inside, closed;
};

int restore_disks_new(struct restore_disks **ret_disks, struct vmm *target,
                      const struct vmm_description *description, const struct journal_config *journal,
                      journal_notice *notice, void *ctx)
{
    assert(description->disk_count && description->disk_count <= VMM_DISKS_MAX);
    if (!journal->path || !*journal->path)
        return error_set(-EINVAL, "the guest has disks of its own, and no journal is configured");
    struct restore_disks *disks = calloc(1, sizeof *disks);
    if (!disks)
        return error_set(-ENOMEM, "restore: out of memory");
    disks->target = target;
    disks->list = description->disks;
    disks->count = (uint32_t)description->disk_count;
    disks->closed = true;
    pthread_mutex_init(&disks->images, NULL);
    pthread_mutex_init(&disks->lock, NULL);
    pthread_cond_init(&disks->changed, NULL);
    disks->data = malloc(WIRE_DISK_BODY_MAX);
    disks->image = malloc(WIRE_DISK_BODY_MAX);
    int r = disks->data && disks->image ? 0 : error_set(-ENOMEM, "restore: out of memory");
    for (uint32_t i = 0; r == 0 && i < disks->count; i++)
        r = blockset_init(&disks->touched[i], (disks->list[i].bytes + BLOCK_BYTES - 1) / BLOCK_BYTES);
    if (r == 0)
        r = journal_open(&disks->journal, journal);
    if (r == 0)
        r = journal_recover(disks->journal, target, notice, ctx);
    if (r < 0) {
        restore_disks_free(disks);
        return r;
    }
    *ret_disks = disks;
    return 0;
}

void restore_disks_free(struct restore_disks *disks)
{
    if (!disks)
        return;
    journal_close(disks->journal);
    for (uint32_t i = 0; i < disks->count; i++)
        blockset_fini(&disks->touched[i]);
    free(disks->data);
    free(disks->image);
    pthread_cond_destroy(&disks->changed);
    pthread_mutex_destroy(&disks->lock);
    pthread_mutex_destroy(&disks->images);
    free(disks);
}

static void forget_touched(struct restore_disks *disks)
{
    for (uint32_t i = 0; i < disks->count; i++)
        blockset_clear(&disks->touched[i]);
}

int restore_disks_session(struct restore_disks *disks, bool fresh)
{
    /* A journal that could not be applied is kept for the next process, until the images are written anew. */
    int r = fresh ? journal_clear(disks->journal) : journal_drop(disks->journal);
    if (r < 0)
        return r;
    forget_touched(disks);
    scope_lock(&disks->lock);
    assert(!disks->inside);
    disks->next = 0;
    disks->closed = false;
    return 0;
}

void restore_disks_abort(struct restore_disks *disks)
{
    scope_lock(&disks->lock);
    disks->closed = true;
    pthread_cond_broadcast(&disks->changed);
}

void restore_disks_leave(struct restore_disks *disks)
{
    scope_lock(&disks->lock);
    assert(disks->closed);
    while (disks->inside)
        pthread_cond_wait(&disks->changed, &disks->lock);
}

/* --- the turnstile --- */

static int enter(struct restore_disks *disks, const struct message_disk *message)
{
    scope_lock(&disks->lock);
    while (!disks->closed &&
           (message->first > disks->next || (message->first == disks->next && disks->inside)))
        pthread_cond_wait(&disks->changed, &disks->lock);
    if (disks->closed)
        return error_set(-ECANCELED, "DISK: the session is over");
    if (message->first < disks->next)
        return error_set(-EPROTO, "DISK: first is %" PRIu64 ", expected %" PRIu64, message->first,
                         disks->next);
    disks->inside = true;
    disks->next += message->record_count;
    return 0;
}

/* After a failure nothing may follow: what came after it would lack something. */
static void leave(struct restore_disks *disks, int result)
{
    scope_lock(&disks->lock);
    disks->inside = false;
    disks->closed |= result < 0;
    pthread_cond_broadcast(&disks->changed);
}

/* --- inside --- */

static int check_places(const struct restore_disks *disks, struct message_disk message)
{
    struct message_disk_record record;
    while (message_disk_next(&message, &record)) {
        if (record.disk >= disks->count)
            return error_set(-EPROTO, "DISK: disk %u, the guest has %" PRIu32, record.disk, disks->count);
        const struct vmm_disk *disk = &disks->list[record.disk];
        if (record.bytes > disk->bytes || record.offset > disk->bytes - record.bytes)
            return error_set(-EPROTO,
                             "DISK: %" PRIu64 " bytes from %" PRIu64 ": disk '%s' has %" PRIu64 " bytes",
                             record.bytes, record.offset, disk->name, disk->bytes);
    }
    return 0;
}

/* The record's data, decoded if need be; NULL when it has none. */
static int decode(struct restore_disks *disks, const struct message_disk_record *record,
                  const uint8_t **ret_data)
{
    *ret_data = record->op == WIRE_DISK_RAW ? record->body : NULL;
    if (record->op != WIRE_DISK_LZ4)
        return 0;
    int got = LZ4_decompress_safe((const char *)record->body, (char *)disks->data, (int)record->body_bytes,
                                  (int)record->bytes);
    if (got < 0 || (uint64_t)got != record->bytes)
        return error_set(-EBADMSG, "DISK: %" PRIu32 " compressed bytes do not decode to %" PRIu64,
                         record->body_bytes, record->bytes);
    *ret_data = disks->data;
    return 0;
}

static int write_image(struct restore_disks *disks, const struct message_disk_record *record,
                       const uint8_t *data)
{
    const struct vmm_ops *ops = disks->target->ops;
    enum vmm_disk_op op = record->op == WIRE_DISK_DISCARD ? VMM_DISK_DISCARD : VMM_DISK_ZERO;
    atomic_store(&disks->direct, true);
    scope_lock(&disks->images);
    int r = data ? ops->disk_write(disks->target, record->disk, record->offset, (size_t)record->bytes, data)
                 : ops->disk_zero(disks->target, record->disk, op, record->offset, record->bytes);
    if (r < 0)
        return error_add(r, "disk '%s'", disks->list[record->disk].name);
    atomic_fetch_add_explicit(&disks->applied_bytes, record->bytes, memory_order_relaxed);
    return 0;
}

static bool all_zero(const uint8_t *bytes, size_t length)
{
    return bytes[0] == 0 && memcmp(bytes, bytes + 1, length - 1) == 0;
}

/* 1: the image says the same. 0: it does not. Negative errno: it cannot be read. */
static int is_known(struct restore_disks *disks, const struct message_disk_record *record,
                    const uint8_t *data)
{
    const struct vmm_ops *ops = disks->target->ops;
    if (!data && record->bytes > COMPARE_BYTES)
        return 0;
    scope_lock(&disks->images);
    for (uint64_t at = 0; at < record->bytes;) {
        uint64_t left = record->bytes - at;
        size_t piece = left < WIRE_DISK_BODY_MAX ? (size_t)left : WIRE_DISK_BODY_MAX;
        int r = ops->disk_read(disks->target, record->disk, record->offset + at, piece, disks->image);
        if (r < 0)
            return error_add(r, "disk '%s'", disks->list[record->disk].name);
        if (data ? memcmp(disks->image, data + at, piece) != 0 : !all_zero(disks->image, piece))
            return 0;
        at += piece;
    }
    return 1;
}

static int compare_and_append(struct restore_disks *disks, const struct message_disk_record *record,
                              const uint8_t *data)
{
    struct blockset *touched = &disks->touched[record->disk];
    uint64_t first = record->offset / BLOCK_BYTES;
    uint64_t blocks = (record->offset + record->bytes - 1) / BLOCK_BYTES + 1 - first;
    if (!blockset_has_any(touched, first, blocks)) {
        int r = is_known(disks, record, data);
        if (r)
            return r < 0 ? r : 0;
    }
    blockset_add(touched, first, blocks);
    return journal_append(disks->journal, record);
}

static int take(struct restore_disks *disks, struct message_disk *message, enum decode_way way)
{
    struct message_disk_record record;
    while (message_disk_next(message, &record)) {
        const uint8_t *data;
        int r = decode(disks, &record, &data);
        if (r == 0)
            r = way == DECODE_DIRECT    ? write_image(disks, &record, data)
                : way == DECODE_COMPARE ? compare_and_append(disks, &record, data)
                                        : journal_append(disks->journal, &record);
        if (r < 0)
            return r;
    }
    return journal_flush(disks->journal);
}

int restore_disks_put(struct restore_disks *disks, struct message_disk *message, enum decode_way way)
{
    int r = check_places(disks, *message);
    if (r == 0)
        r = enter(disks, message);
    if (r < 0)
        return r;
    r = take(disks, message, way);
    leave(disks, r);
    return r;
}

/* --- the owner --- */

static bool is_closed(struct restore_disks *disks)
{
    scope_lock(&disks->lock);
    return disks->closed;
}

int restore_disks_sums(struct restore_disks *disks, const struct message_sums *wanted, uint8_t *ret_digests)
{
    if (wanted->disk >= disks->count)
        return error_set(-EPROTO, "SUMS_WANTED: disk %" PRIu32 ", the guest has %" PRIu32, wanted->disk,
                         disks->count);
    const struct vmm_disk *disk = &disks->list[wanted->disk];
    uint64_t blocks = (disk->bytes + WIRE_SUMS_BLOCK - 1) / WIRE_SUMS_BLOCK;
    if (wanted->first >= blocks || wanted->count > blocks - wanted->first)
        return error_set(-EPROTO, "SUMS_WANTED: %" PRIu32 " blocks from %" PRIu64 ": disk '%s' has %" PRIu64,
                         wanted->count, wanted->first, disk->name, blocks);
    uint8_t *piece cleanup_free = malloc(SUMS_BYTES);
    if (!piece)
        return error_set(-ENOMEM, "SUMS_WANTED: out of memory");
    uint64_t from = wanted->first * WIRE_SUMS_BLOCK, to = (wanted->first + wanted->count) * WIRE_SUMS_BLOCK;
    if (to > disk->bytes)
        to = disk->bytes;
    for (uint64_t at = from; at < to; at += SUMS_BYTES) {
        size_t bytes = to - at < SUMS_BYTES ? (size_t)(to - at) : SUMS_BYTES;
        if (is_closed(disks))
            return error_set(-ECANCELED, "SUMS_WANTED: the session is over");
        {
            scope_lock(&disks->images);
            int r = disks->target->ops->disk_read(disks->target, wanted->disk, at, bytes, piece);
            if (r < 0)
                return error_add(r, "disk '%s'", disk->name);
        }
        for (size_t i = 0; i < bytes; i += WIRE_SUMS_BLOCK) {
            size_t length = bytes - i < WIRE_SUMS_BLOCK ? bytes - i : WIRE_SUMS_BLOCK;
            int r = wire_digest(piece + i, length, ret_digests);
            if (r < 0)
                return r;
            ret_digests += WIRE_DIGEST_BYTES;
        }
    }
    return 0;
}

int restore_disks_seal(struct restore_disks *disks, uint64_t epoch)
{
    {
        scope_lock(&disks->lock);
        if (disks->closed)
            return error_set(-ECANCELED, "DISK: the session is over");
        assert(!disks->inside);
        disks->inside = true; /* so that a takeover waits, whose journal must stay empty */
    }
    int r = journal_seal(disks->journal, epoch);
    leave(disks, r);
    return r;
}

void restore_disks_commit(struct restore_disks *disks)
{
    journal_commit(disks->journal);
    forget_touched(disks);
    scope_lock(&disks->lock);
    disks->next = 0;
}

int restore_disks_apply(struct restore_disks *disks)
{
    uint64_t bytes;
    int r = atomic_exchange(&disks->direct, false) ? disks->target->ops->disk_flush(disks->target) : 0;
    if (r == 0)
        r = journal_apply(disks->journal, disks->target, &bytes);
    if (r == 0)
        r = journal_applied(disks->journal);
    if (r == 0)
        atomic_fetch_add_explicit(&disks->applied_bytes, bytes, memory_order_relaxed);
    return r;
}

void restore_disks_retire(struct restore_disks *disks)
{
    journal_retire(disks->journal);
}

void restore_disks_get_use(struct restore_disks *disks, struct restore_disks_use *ret_use)
{
    *ret_use = (struct restore_disks_use){
        .journal_bytes = journal_bytes(disks->journal),
        .journal_peak_bytes = journal_peak_bytes(disks->journal),
        .applied_bytes = atomic_load_explicit(&disks->applied_bytes, memory_order_relaxed),
        .memory_bytes = sizeof *disks + 2 * WIRE_DISK_BODY_MAX + journal_memory_bytes(disks->journal),
    };
    for (uint32_t i = 0; i < disks->count; i++)
        ret_use->memory_bytes += blockset_memory_bytes(&disks->touched[i]);
}
