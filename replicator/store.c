/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/store.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"
#include "replicator/config.h"
#include "replicator/scope_json.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define STORE_BYTES_MAX 4096
#define STORE_BYTES     256 /* within a sector */
/* JSON integers are signed in jansson. */
#define GENERATION_MAX ((uint64_t)INT64_MAX)

static int read_whole(const char *path, char *to, size_t room, size_t *ret_length)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? -ENOENT : error_errno(-errno, "generation file %s", path);
    size_t length = 0;
    while (length < room) {
        ssize_t n = read(fd, to + length, room - length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_errno(-errno, "generation file %s: read", path);
        if (n == 0)
            break;
        length += (size_t)n;
    }
    if (length == room)
        return error_set(-EBADMSG, "generation file %s: longer than %zu bytes", path, room - 1);
    *ret_length = length;
    return 0;
}

int store_read(const char *path, const uint8_t vm_uuid[16], struct store_state *ret_state)
{
    char bytes[STORE_BYTES_MAX], own[37];
    size_t length = 0;
    int r = read_whole(path, bytes, sizeof bytes, &length);
    if (r == -ENOENT) {
        *ret_state = (struct store_state){0};
        return 0;
    }
    if (r < 0)
        return r;

    json_error_t error;
    json_t *root cleanup_json = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        return error_set(-EBADMSG, "generation file %s: damaged: %s", path, error.text);
    const char *uuid;
    json_int_t generation;
    int active;
    if (json_unpack_ex(root, &error, JSON_STRICT, "{s:s, s:I, s:b}", "uuid", &uuid, "generation", &generation,
                       "active", &active) < 0)
        return error_set(-EBADMSG, "generation file %s: damaged: %s", path, error.text);
    if (generation < 0 || (active && generation == 0))
        return error_set(-EBADMSG, "generation file %s: damaged: generation %lld%s", path,
                         (long long)generation, active ? " that is active" : "");
    config_uuid_print(vm_uuid, own);
    if (strcmp(uuid, own) != 0)
        return error_set(-EBADMSG, "generation file %s: of machine %.40s, not of %s", path, uuid, own);
    *ret_state = (struct store_state){.generation = (uint64_t)generation, .active = active};
    return 0;
}

static int write_whole(int fd, const char *bytes, size_t length)
{
    while (length > 0) {
        ssize_t n = write(fd, bytes, length);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        bytes += n;
        length -= (size_t)n;
    }
    return 0;
}

/*
 * A file of ours is STORE_BYTES long, filled up with blanks, and is written over where it lies: one sector,
 * which a disk writes whole or not at all, and no name or length changes that would want the file system's
 * journal, for which others may have to be written first. Somebody waits for this with his guest stopped.
 * 1: there is no such file.
 */
static int overwrite(const char *path, const char bytes[STORE_BYTES])
{
    struct stat status;
    cleanup_close int fd = open(path, O_WRONLY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0 || !S_ISREG(status.st_mode) || status.st_size != STORE_BYTES)
        return 1;
    int r = fault_point(FAULT_GENERATION_STORE);
    if (r < 0)
        return error_add(r, "generation file %s", path);
    ssize_t n = pwrite(fd, bytes, STORE_BYTES, 0);
    if (n != STORE_BYTES)
        return error_errno(n < 0 ? -errno : -EIO, "generation file %s: write", path);
    if (fdatasync(fd) < 0)
        return error_errno(-errno, "generation file %s: write", path);
    return 0;
}

int store_write(const char *path, const uint8_t vm_uuid[16], const struct store_state *state)
{
    char uuid[37], bytes[STORE_BYTES + 1], fresh[PATH_MAX], directory[PATH_MAX];
    if (state->generation > GENERATION_MAX)
        return error_set(-ERANGE, "generation file %s: generation %llu is out of bounds", path,
                         (unsigned long long)state->generation);
    config_uuid_print(vm_uuid, uuid);
    int length = snprintf(bytes, sizeof bytes, "{\"uuid\": \"%s\", \"generation\": %llu, \"active\": %s}\n",
                          uuid, (unsigned long long)state->generation, state->active ? "true" : "false");
    memset(bytes + length, ' ', (size_t)(STORE_BYTES - length));
    bytes[STORE_BYTES - 1] = '\n';
    int r = overwrite(path, bytes);
    if (r <= 0)
        return r;
    const char *slash = strrchr(path, '/');
    snprintf(directory, sizeof directory, "%.*s", slash ? (int)(slash - path) + 1 : 1, slash ? path : ".");
    if (snprintf(fresh, sizeof fresh, "%s.new", path) >= (int)sizeof fresh)
        return error_set(-ENAMETOOLONG, "generation file %s: the path is too long", path);

    cleanup_close int at = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (at < 0)
        return error_errno(-errno, "generation file %s: directory", path);
    /* Left behind by a crash, or by one of us: same content or none of use. */
    cleanup_close int fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_errno(-errno, "generation file %s: create", fresh);
    r = write_whole(fd, bytes, STORE_BYTES);
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r < 0)
        return error_errno(r, "generation file %s: write", fresh);
    r = fault_point(FAULT_GENERATION_STORE);
    if (r < 0)
        return error_add(r, "generation file %s", path);
    if (rename(fresh, path) < 0)
        return error_errno(-errno, "generation file %s: replace", path);
    /* Without this a power cut may bring the old name back, and with it an old right to run the guest. */
    if (fsync(at) < 0)
        return error_errno(-errno, "generation file %s: directory", path);
    return 0;
}
