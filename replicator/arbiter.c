/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/arbiter.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/config.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>

/*
 * Theory of operation of "file:"
 *
 * One fixed-size record, written in place under an exclusive flock, with fdatasync before the lock is
 * dropped: whoever wins has it on disk before anybody is told. In place, and not by rename, because the lock
 * lives on the inode: a renamed file would give two engines two different locks. The record is one 512-byte
 * sector, so a crash leaves the old or the new one; a record that does not parse is refused rather than taken
 * for empty.
 */

#define RECORD_BYTES 512
#define POLL_NS      (2 * NS_PER_MS)

struct arbiter_ops {
    int (*swap)(struct arbiter *arbiter, uint64_t from, uint64_t to, unsigned timeout_ms,
                uint64_t *ret_generation);
};

struct arbiter {
    const struct arbiter_ops *ops;
    char *path;
    char uuid[37];
    char owner[64];
};

struct record {
    uint64_t generation; /* 0: none yet */
    char owner[64];
};

static inline void scope_json(json_t **json)
{
    json_decref(*json);
}

static int none_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, unsigned timeout_ms,
                     uint64_t *ret_generation)
{
    (void)arbiter;
    (void)from;
    (void)timeout_ms;
    *ret_generation = to;
    return ARBITER_RESULT_WON;
}

/* flock has no timeout; the holder is another engine in the middle of one sector's write. */
static int lock_within(int fd, const char *path, unsigned timeout_ms)
{
    uint64_t by_ns = clock_now_ns() + timeout_ms * NS_PER_MS;
    while (flock(fd, LOCK_EX | LOCK_NB) < 0) {
        if (errno != EWOULDBLOCK && errno != EINTR)
            return error_errno(-errno, "arbiter %s: lock", path);
        if (clock_now_ns() >= by_ns)
            return error_set(-ETIMEDOUT, "arbiter %s: locked by another process for %u ms", path, timeout_ms);
        nanosleep(&(struct timespec){.tv_nsec = POLL_NS}, NULL);
    }
    return 0;
}

static int record_read(const struct arbiter *arbiter, int fd, struct record *ret_record)
{
    char bytes[RECORD_BYTES + 1];
    ssize_t length = pread(fd, bytes, sizeof bytes, 0);
    if (length < 0)
        return error_errno(-errno, "arbiter %s: read", arbiter->path);
    *ret_record = (struct record){0};
    if (length == 0)
        return 0; /* just created */
    if (length != RECORD_BYTES)
        return error_set(-EBADMSG, "arbiter %s: %zd bytes, not %d: no register", arbiter->path, length,
                         RECORD_BYTES);
    json_error_t error;
    const char *uuid, *owner;
    json_int_t generation;
    json_t *root cleanup(scope_json) = json_loadb(bytes, RECORD_BYTES, JSON_REJECT_DUPLICATES, &error);
    if (!root || json_unpack_ex(root, &error, JSON_STRICT, "{s:s, s:I, s:s}", "uuid", &uuid, "generation",
                                &generation, "owner", &owner) < 0)
        return error_set(-EBADMSG, "arbiter %s: damaged: %s", arbiter->path, error.text);
    if (generation < 1 || strlen(owner) >= sizeof ret_record->owner)
        return error_set(-EBADMSG, "arbiter %s: damaged: generation %lld", arbiter->path,
                         (long long)generation);
    if (strcmp(uuid, arbiter->uuid) != 0)
        return error_set(-EBADMSG, "arbiter %s: the register of machine %.40s, not of %s", arbiter->path,
                         uuid, arbiter->uuid);
    ret_record->generation = (uint64_t)generation;
    strcpy(ret_record->owner, owner);
    return 0;
}

static int record_write(const struct arbiter *arbiter, int fd, uint64_t generation)
{
    char bytes[RECORD_BYTES + 1];
    int length = snprintf(bytes, sizeof bytes, "{\"uuid\": \"%s\", \"generation\": %llu, \"owner\": \"%s\"}",
                          arbiter->uuid, (unsigned long long)generation, arbiter->owner);
    memset(bytes + length, ' ', sizeof bytes - (size_t)length);
    bytes[RECORD_BYTES - 1] = '\n';
    ssize_t written = pwrite(fd, bytes, RECORD_BYTES, 0);
    if (written != RECORD_BYTES)
        return error_errno(written < 0 ? -errno : -EIO, "arbiter %s: write", arbiter->path);
    if (fdatasync(fd) < 0)
        return error_errno(-errno, "arbiter %s: sync", arbiter->path);
    return 0;
}

/* A register that was just created must not vanish with a power cut. */
static int sync_directory(const char *path)
{
    cleanup_free char *directory = strndup(path, (size_t)(strrchr(path, '/') - path) + 1);
    if (!directory)
        return error_errno(-ENOMEM, "arbiter %s", path);
    cleanup_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return error_errno(-errno, "arbiter %s: directory", path);
    return 0;
}

static int file_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, unsigned timeout_ms,
                     uint64_t *ret_generation)
{
    struct record record;
    cleanup_close int fd = open(arbiter->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(-errno, "arbiter %s", arbiter->path);
    int r = lock_within(fd, arbiter->path, timeout_ms);
    if (r == 0)
        r = record_read(arbiter, fd, &record);
    if (r < 0)
        return r;
    bool ours = record.generation == to && !strcmp(record.owner, arbiter->owner);
    if (record.generation > from && !ours) {
        *ret_generation = record.generation;
        return ARBITER_RESULT_LOST;
    }
    /* Ours already: the answer to an earlier attempt was lost, perhaps before its sync. */
    r = record_write(arbiter, fd, to);
    if (r == 0 && !record.generation)
        r = sync_directory(arbiter->path);
    if (r < 0)
        return r;
    *ret_generation = to;
    return ARBITER_RESULT_WON;
}

int arbiter_open(struct arbiter **ret_arbiter, const char *specification, const uint8_t vm_uuid[16],
                 const char *owner)
{
    static const struct arbiter_ops none = {none_swap}, file = {file_swap};
    bool is_file = !strncmp(specification, "file:/", 6);
    if (!is_file && strcmp(specification, "none") != 0)
        return error_set(-EINVAL, "arbiter '%.100s' is neither none nor file:/PATH", specification);
    if (!owner[0] || strlen(owner) >= sizeof((struct arbiter *)0)->owner || strpbrk(owner, "\"\\"))
        return error_set(-EINVAL, "arbiter: '%.80s' cannot be an owner's name", owner);
    struct arbiter *arbiter = calloc(1, sizeof *arbiter);
    if (!arbiter)
        return error_errno(-ENOMEM, "arbiter");
    arbiter->ops = is_file ? &file : &none;
    arbiter->path = strdup(is_file ? specification + 5 : "none");
    if (!arbiter->path) {
        free(arbiter);
        return error_errno(-ENOMEM, "arbiter");
    }
    config_uuid_print(vm_uuid, arbiter->uuid);
    strcpy(arbiter->owner, owner);
    *ret_arbiter = arbiter;
    return 0;
}

void arbiter_close(struct arbiter *arbiter)
{
    if (!arbiter)
        return;
    free(arbiter->path);
    free(arbiter);
}

int arbiter_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, unsigned timeout_ms,
                 uint64_t *ret_generation)
{
    if (to <= from || to > INT64_MAX)
        return error_set(-EINVAL, "arbiter: from generation %llu to %llu", (unsigned long long)from,
                         (unsigned long long)to);
    return arbiter->ops->swap(arbiter, from, to, timeout_ms, ret_generation);
}
