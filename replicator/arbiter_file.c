/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/arbiter_backend.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
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
#define TIMEOUT_MS   2000 /* the holder of the lock writes one sector */

struct file_arbiter {
    struct arbiter arbiter;
    char path[];
};

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

static int record_read(const struct file_arbiter *file, int fd, struct arbiter_record *ret_record)
{
    char bytes[RECORD_BYTES + 1];
    ssize_t length = pread(fd, bytes, sizeof bytes, 0);
    if (length < 0)
        return error_errno(-errno, "arbiter %s: read", file->path);
    if (length == 0) { /* just created */
        *ret_record = (struct arbiter_record){0};
        return 0;
    }
    if (length != RECORD_BYTES)
        return error_set(-EBADMSG, "arbiter %s: %zd bytes, not %d: no register", file->path, length,
                         RECORD_BYTES);
    int r = arbiter_record_parse(&file->arbiter, bytes, RECORD_BYTES, ret_record);
    return r < 0 ? error_add(r, "arbiter %s", file->path) : 0;
}

static int record_write(const struct file_arbiter *file, int fd, uint64_t generation)
{
    char bytes[RECORD_BYTES], text[ARBITER_RECORD_MAX];
    size_t length = arbiter_record_print(&file->arbiter, generation, text);
    memset(bytes, ' ', sizeof bytes);
    memcpy(bytes, text, length);
    bytes[RECORD_BYTES - 1] = '\n';
    ssize_t written = pwrite(fd, bytes, RECORD_BYTES, 0);
    if (written != RECORD_BYTES)
        return error_errno(written < 0 ? -errno : -EIO, "arbiter %s: write", file->path);
    if (fdatasync(fd) < 0)
        return error_errno(-errno, "arbiter %s: sync", file->path);
    return 0;
}

static char *directory_of(const char *path)
{
    return strndup(path, (size_t)(strrchr(path, '/') - path) + 1);
}

/* A register that was just created must not vanish with a power cut. */
static int sync_directory(const char *path)
{
    cleanup_free char *directory = directory_of(path);
    if (!directory)
        return error_errno(-ENOMEM, "arbiter %s", path);
    cleanup_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fsync(fd) < 0)
        return error_errno(-errno, "arbiter %s: directory", path);
    return 0;
}

static int file_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    const struct file_arbiter *file = (struct file_arbiter *)arbiter;
    struct arbiter_record record;
    cleanup_close int fd = open(file->path, O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(-errno, "arbiter %s", file->path);
    int r = lock_within(fd, file->path, arbiter->timeout_ms);
    if (r == 0)
        r = record_read(file, fd, &record);
    if (r < 0)
        return r;
    if (!arbiter_is_free(arbiter, &record, from)) {
        *ret_generation = record.generation;
        return ARBITER_RESULT_LOST;
    }
    to = arbiter_next(&record, to);
    r = record_write(file, fd, to);
    if (r == 0 && !record.generation)
        r = sync_directory(file->path);
    if (r < 0)
        return r;
    *ret_generation = to;
    return ARBITER_RESULT_WON;
}

static int file_read(struct arbiter *arbiter, struct arbiter_record *ret_record)
{
    const struct file_arbiter *file = (struct file_arbiter *)arbiter;
    cleanup_close int fd = open(file->path, O_RDWR | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        cleanup_free char *directory = directory_of(file->path);
        if (!directory)
            return error_errno(-ENOMEM, "arbiter %s", file->path);
        if (access(directory, W_OK) < 0)
            return error_errno(-errno, "arbiter %s: directory", file->path);
        *ret_record = (struct arbiter_record){0};
        return 0;
    }
    if (fd < 0)
        return error_errno(-errno, "arbiter %s", file->path);
    int r = lock_within(fd, file->path, arbiter->timeout_ms);
    return r < 0 ? r : record_read(file, fd, ret_record);
}

static void file_close(struct arbiter *arbiter)
{
    free(arbiter);
}

int arbiter_file_open(struct arbiter **ret_arbiter, const char *path)
{
    static const struct arbiter_ops ops = {file_swap, file_read, file_close};
    struct file_arbiter *file = calloc(1, sizeof *file + strlen(path) + 1);
    if (!file)
        return error_errno(-ENOMEM, "arbiter");
    file->arbiter.ops = &ops;
    file->arbiter.timeout_ms = TIMEOUT_MS;
    strcpy(file->path, path);
    *ret_arbiter = &file->arbiter;
    return 0;
}
