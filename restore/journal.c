/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/journal.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"
#include "restore/journal_file.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <xxhash.h>

/*
 * Theory of operation
 *
 * Changes of disks come in any quantity, and the standby's images must not have them before their epoch is
 * committed; so they wait in a file. An epoch's file is worth nothing until its commit record stands in it,
 * which is written when the epoch is found complete ("sealed"), so before it is acknowledged; from then on
 * its changes survive this process, which may be killed at any instruction:
 *
 *      header, records ──► commit record ──► acknowledged ──► applied, flushed ──► header wiped
 *      └ killed: dropped ┘└ killed: applied anew by journal_recover(); as often as it takes     ┘
 *
 * A sealed epoch whose session ends before it is committed is wiped, too.
 *
 * To apply a journal twice does no harm, as long as nothing else was written in between; hence the wipe, and
 * two files used in turn, so that the next epoch never touches the one that may still be needed. Since the
 * kernel keeps what a killed process wrote, no sync is needed for that. With `sync` a commit survives the
 * host, too; without it a header names the host's boot, and no other boot believes it: the wipe might be what
 * was lost.
 *
 * Bodies stay as they came (raw or LZ4): less to write and to read.
 */
#define BUFFER_BYTES ((size_t)1 << 20)
#define KEPT_BYTES   (64ull << 20) /* a file that is larger is cut when it is empty */

struct journal_file {
    int fd;
    char path[PATH_MAX];
    atomic_ullong bytes; /* that count: up to the last record */
    uint64_t records;    /* of the epoch that it holds */
};

struct journal {
    struct journal_file files[2];
    unsigned filling;
    bool sync;
    bool sealed;         /* the file that is filled has its commit record */
    bool committed;      /* the other file is committed and not applied */
    atomic_bool cramped; /* the file system was full: keep nothing of it that is not needed */
    uint64_t bytes_max;
    atomic_ullong peak_bytes;
    const struct vmm_disk *disks;
    struct journal_header header; /* of all files of ours, but for nonce and sum */
    XXH3_state_t *sum;            /* of the file that is filled */
    uint8_t *buffer;              /* of BUFFER_BYTES, `used` of them not written yet */
    size_t used;
    uint8_t *window, *scratch; /* of the walk */
};

static struct journal_file *filling(struct journal *journal)
{
    return &journal->files[journal->filling];
}

static struct journal_file *committed(struct journal *journal)
{
    return &journal->files[!journal->filling];
}

static void read_boot(uint8_t boot[16])
{
    char text[64] = "";
    FILE *file cleanup_fclose = fopen("/proc/sys/kernel/random/boot_id", "re");
    if (!file || !fgets(text, sizeof text, file))
        return;
    unsigned n = 0, digit;
    for (const char *at = text; *at && n < 32; at++)
        if (sscanf(at, "%1x", &digit) == 1 && *at != '-') {
            boot[n / 2] = (uint8_t)(boot[n / 2] << 4 | digit);
            n++;
        }
}

static int open_file(struct journal *journal, unsigned index, const char *path)
{
    struct journal_file *file = &journal->files[index];
    if ((size_t)snprintf(file->path, sizeof file->path, "%s.%u", path, index) >= sizeof file->path)
        return error_set(-ENAMETOOLONG, "journal '%.100s...'", path);
    file->fd = open(file->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
    if (file->fd < 0)
        return error_errno(-errno, "journal %s", file->path);
    if (flock(file->fd, LOCK_EX | LOCK_NB) < 0)
        return errno == EWOULDBLOCK ? error_set(-EBUSY, "journal %s: another process uses it", file->path)
                                    : error_errno(-errno, "journal %s", file->path);
    struct stat status;
    if (fstat(file->fd, &status) < 0)
        return error_errno(-errno, "journal %s", file->path);
    return S_ISREG(status.st_mode) ? 0 : error_set(-EINVAL, "journal %s: not a regular file", file->path);
}

/* So that the files are there when the host comes back. */
static int sync_folder(const char *path)
{
    const char *slash = strrchr(path, '/');
    char folder[PATH_MAX] = ".";
    if (slash)
        snprintf(folder, sizeof folder, "%.*s", slash == path ? 1 : (int)(slash - path), path);
    int fd cleanup_close = open(folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return error_errno(-errno, "the journal's folder %s", folder);
    return 0;
}

int journal_open(struct journal **ret_journal, const struct journal_config *config)
{
    struct journal *journal = calloc(1, sizeof *journal);
    if (!journal)
        return error_set(-ENOMEM, "journal: out of memory");
    journal->files[0].fd = journal->files[1].fd = -1;
    journal->sync = config->sync;
    journal->bytes_max = config->bytes_max ? config->bytes_max : JOURNAL_BYTES_DEFAULT;
    journal->disks = config->disks;
    journal->buffer = malloc(BUFFER_BYTES);
    journal->window = malloc(JOURNAL_WALK_BYTES);
    journal->scratch = malloc(WIRE_DISK_BODY_MAX);
    journal->sum = XXH3_createState();
    if (!journal->buffer || !journal->window || !journal->scratch || !journal->sum) {
        journal_close(journal);
        return error_set(-ENOMEM, "journal: out of memory");
    }
    struct journal_header *header = &journal->header;
    memcpy(header->magic, JOURNAL_MAGIC, sizeof header->magic);
    memcpy(header->vm_uuid, config->vm_uuid, sizeof header->vm_uuid);
    read_boot(header->boot);
    header->flags = to_le32(config->sync ? JOURNAL_HEADER_SYNCED : 0);
    header->disk_count = to_le32(config->disk_count);
    XXH3_64bits_reset(journal->sum);
    for (uint32_t i = 0; i < config->disk_count; i++) {
        le64 bytes = to_le64(config->disks[i].bytes);
        XXH3_64bits_update(journal->sum, config->disks[i].name, strlen(config->disks[i].name) + 1);
        XXH3_64bits_update(journal->sum, &bytes, sizeof bytes);
    }
    header->disks_sum = to_le64(XXH3_64bits_digest(journal->sum));

    int r = open_file(journal, 0, config->path);
    if (r == 0)
        r = open_file(journal, 1, config->path);
    if (r == 0 && config->sync)
        r = sync_folder(config->path);
    if (r < 0) {
        journal_close(journal);
        return r;
    }
    *ret_journal = journal;
    return 0;
}

void journal_close(struct journal *journal)
{
    if (!journal)
        return;
    for (unsigned i = 0; i < 2; i++)
        if (journal->files[i].fd >= 0)
            close(journal->files[i].fd);
    XXH3_freeState(journal->sum);
    free(journal->buffer);
    free(journal->window);
    free(journal->scratch);
    free(journal);
}

/* --- writing --- */

static int write_at(struct journal_file *file, const void *from, size_t bytes, uint64_t at)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t put =
            pwrite(file->fd, (const uint8_t *)from + done, bytes - done, (off_t)(at + (uint64_t)done));
        if (put < 0 && errno == EINTR)
            continue;
        if (put < 0 && (errno == ENOSPC || errno == EDQUOT || errno == EFBIG))
            return error_errno(-ENOSPC, "journal full: %s", file->path);
        if (put < 0)
            return error_errno(-errno, "writing journal %s", file->path);
        done += (size_t)put;
    }
    return 0;
}

static int sync_file(const struct journal *journal, const struct journal_file *file)
{
    if (journal->sync && fdatasync(file->fd) < 0)
        return error_errno(-errno, "syncing journal %s", file->path);
    return 0;
}

static int full(const struct journal *journal)
{
    return error_set(-ENOSPC, "journal full: the epoch's changes of disks are more than %" PRIu64 " MiB",
                     journal->bytes_max >> 20);
}

/* The buffer has room for all of one frame. */
static int put(struct journal *journal, const void *bytes, size_t length)
{
    if (length > BUFFER_BYTES - journal->used) {
        int r = journal_flush(journal);
        if (r < 0)
            return r;
    }
    memcpy(journal->buffer + journal->used, bytes, length);
    journal->used += length;
    XXH3_64bits_update(journal->sum, bytes, length);
    return 0;
}

static int begin(struct journal *journal)
{
    struct journal_header header = journal->header;
    uint64_t nonce;
    if (getrandom(&nonce, sizeof nonce, 0) != sizeof nonce)
        return error_errno(-errno, "journal");
    header.nonce = to_le64(nonce);
    header.sum = to_le64(wire_sum(&header, offsetof(struct journal_header, sum)));
    journal->used = 0;
    XXH3_64bits_reset(journal->sum);
    return put(journal, &header, sizeof header);
}

int journal_append(struct journal *journal, const struct message_disk_record *record)
{
    struct journal_file *file = filling(journal);
    int r = file->records == 0 ? begin(journal) : 0;
    if (r < 0)
        return r;
    struct journal_record wire = {.magic = to_le32(JOURNAL_RECORD_MAGIC),
                                  .body = to_le32(record->body_bytes),
                                  .offset = to_le64(record->offset),
                                  .bytes = to_le64(record->bytes),
                                  .disk = record->disk,
                                  .op = record->op};
    uint64_t bytes = journal_bytes(journal) + journal->used + sizeof wire + record->body_bytes +
                     sizeof(struct journal_commit);
    if (bytes > journal->bytes_max)
        return full(journal);
    if (bytes > atomic_load(&journal->peak_bytes))
        atomic_store(&journal->peak_bytes, bytes);
    r = put(journal, &wire, sizeof wire);
    if (r == 0 && record->body_bytes)
        r = put(journal, record->body, record->body_bytes);
    if (r == 0)
        file->records++;
    return r;
}

int journal_flush(struct journal *journal)
{
    struct journal_file *file = filling(journal);
    if (!journal->used)
        return 0;
    int r = fault_point(FAULT_JOURNAL_WRITE);
    if (r == 0)
        r = write_at(file, journal->buffer, journal->used, atomic_load(&file->bytes));
    if (r == -ENOSPC) {
        /* The epoch is lost, and others need the room now: the generation that a takeover stores lies there.
         */
        atomic_store(&journal->cramped, true);
        if (ftruncate(file->fd, 0) < 0)
            error_add(r, "and the file cannot be cut (error %d)", errno);
    }
    if (r < 0)
        return r;
    atomic_fetch_add(&file->bytes, journal->used);
    journal->used = 0;
    return 0;
}

/* The file holds nothing any more. */
static int wipe(struct journal *journal, struct journal_file *file)
{
    static const struct journal_header nothing;
    uint64_t bytes = atomic_load(&file->bytes);
    int r = write_at(file, &nothing, sizeof nothing, 0);
    if ((r < 0 || bytes > KEPT_BYTES || atomic_load(&journal->cramped)) && ftruncate(file->fd, 0) == 0)
        r = 0;
    if (r == 0)
        r = sync_file(journal, file);
    if (r < 0)
        return error_add(r, "emptying the journal");
    atomic_store(&file->bytes, 0);
    file->records = 0;
    return 0;
}

static int write_commit(struct journal *journal, uint64_t epoch)
{
    struct journal_file *file = filling(journal);
    int r = journal_flush(journal);
    if (r == 0)
        r = fault_point(FAULT_JOURNAL_COMMIT);
    if (r < 0)
        return r;
    struct journal_commit commit = {
        .magic = to_le32(JOURNAL_COMMIT_MAGIC), .epoch = to_le64(epoch), .records = to_le64(file->records)};
    XXH3_64bits_update(journal->sum, &commit, offsetof(struct journal_commit, sum));
    commit.sum = to_le64(XXH3_64bits_digest(journal->sum));
    r = write_at(file, &commit, sizeof commit, atomic_load(&file->bytes));
    if (r == 0)
        r = sync_file(journal, file);
    return r < 0 ? r : fault_point(FAULT_JOURNAL_COMMITTED);
}

int journal_seal(struct journal *journal, uint64_t epoch)
{
    struct journal_file *file = filling(journal);
    if (file->records == 0)
        return 0;
    int r = write_commit(journal, epoch);
    if (r < 0) {
        /* Nobody is told of this epoch: it must not be found committed later. */
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        wipe(journal, file);
        return error_set(r, "the journal of epoch %" PRIu64 ": %s", epoch, text);
    }
    atomic_fetch_add(&file->bytes, sizeof(struct journal_commit));
    journal->sealed = true;
    return 0;
}

void journal_commit(struct journal *journal)
{
    assert(!journal->committed && journal->sealed == (filling(journal)->records > 0));
    if (!journal->sealed)
        return;
    journal->sealed = false;
    journal->committed = true;
    journal->filling = !journal->filling;
}

int journal_drop(struct journal *journal)
{
    struct journal_file *file = filling(journal);
    bool sealed = journal->sealed;
    journal->sealed = false;
    journal->used = 0;
    /* Without a commit record it is nothing already; but a large file is to be given back. */
    if (sealed || atomic_load(&file->bytes) > KEPT_BYTES || atomic_load(&journal->cramped))
        return wipe(journal, file);
    atomic_store(&file->bytes, 0);
    file->records = 0;
    return 0;
}

int journal_clear(struct journal *journal)
{
    journal->used = 0;
    int r = wipe(journal, &journal->files[0]);
    if (r == 0)
        r = wipe(journal, &journal->files[1]);
    if (r == 0)
        journal->committed = journal->sealed = false;
    return r;
}

void journal_retire(struct journal *journal)
{
    for (unsigned i = 0; i < 2; i++)
        if (wipe(journal, &journal->files[i]) < 0)
            unlink(journal->files[i].path);
    journal->committed = journal->sealed = false;
}

/* --- applying --- */

static struct journal_walk walk_of(struct journal *journal, const struct journal_file *file)
{
    return (struct journal_walk){.fd = file->fd,
                                 .path = file->path,
                                 .expected = &journal->header,
                                 .disks = journal->disks,
                                 .buffer = journal->window,
                                 .scratch = journal->scratch};
}

static int apply_file(struct journal *journal, const struct journal_file *file, struct vmm *target,
                      uint64_t records, uint64_t *ret_bytes)
{
    struct journal_walk walk = walk_of(journal, file);
    walk.target = target;
    walk.half = records / 2;
    int r = journal_walk(&walk);
    if (r == 0)
        r = error_set(-EBADMSG, "it is empty");
    if (r > 0)
        r = target->ops->disk_flush(target);
    if (r < 0)
        return error_add(r, "applying journal %s", file->path);
    *ret_bytes = walk.bytes;
    return 0;
}

int journal_apply(struct journal *journal, struct vmm *target, uint64_t *ret_bytes)
{
    *ret_bytes = 0;
    struct journal_file *file = committed(journal);
    return journal->committed ? apply_file(journal, file, target, file->records, ret_bytes) : 0;
}

int journal_applied(struct journal *journal)
{
    if (!journal->committed)
        return 0;
    int r = wipe(journal, committed(journal));
    if (r == 0)
        journal->committed = false;
    return r;
}

static void tell(journal_notice *notice, void *ctx, const char *format, ...)
    __attribute__((format(printf, 3, 4)));
static void tell(journal_notice *notice, void *ctx, const char *format, ...)
{
    char text[ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    if (notice)
        notice(ctx, text);
}

int journal_recover(struct journal *journal, struct vmm *target, journal_notice *notice, void *ctx)
{
    struct journal_walk walks[2];
    bool whole[2];
    for (unsigned i = 0; i < 2; i++) {
        walks[i] = walk_of(journal, &journal->files[i]);
        int r = journal_walk(&walks[i]);
        if (r < 0 && r != -EBADMSG)
            return r;
        whole[i] = r > 0;
        if (r < 0)
            tell(notice, ctx, "journal %s is dropped: %s", journal->files[i].path, error_text());
    }
    /* Both only if the host died between two syncs: the later one was committed when the former was applied.
     */
    unsigned first = whole[0] && whole[1] && walks[1].epoch < walks[0].epoch;
    for (unsigned n = 0; n < 2; n++) {
        unsigned i = n ? !first : first;
        uint64_t bytes;
        int r = whole[i] ? apply_file(journal, &journal->files[i], target, walks[i].records, &bytes) : 0;
        if (r < 0)
            return r;
        if (whole[i])
            tell(notice, ctx,
                 "journal %s: epoch %" PRIu64 " was committed and not applied: %" PRIu64
                 " changes of disks are applied now",
                 journal->files[i].path, walks[i].epoch, walks[i].records);
    }
    return journal_clear(journal);
}

uint64_t journal_bytes(struct journal *journal)
{
    return atomic_load(&journal->files[0].bytes) + atomic_load(&journal->files[1].bytes);
}

uint64_t journal_peak_bytes(struct journal *journal)
{
    return atomic_load(&journal->peak_bytes);
}

uint64_t journal_memory_bytes(const struct journal *journal)
{
    return sizeof *journal + BUFFER_BYTES + JOURNAL_WALK_BYTES + WIRE_DISK_BODY_MAX;
}
