/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/guest_disks.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#define ZEROS_BYTES (256u << 10)

static bool is_sorted(const struct guest_disks *disks, unsigned index)
{
    return index == 0 || strcmp(disks->list[index - 1].name, disks->list[index].name) < 0;
}

/* The lines "disk NAME BYTES", which vmm.h promises. */
static int parse_list(const char *text, struct guest_disks *ret_disks)
{
    struct guest_disks disks = {0};
    for (const char *line = text; line; line = strchr(line, '\n')) {
        line += *line == '\n';
        if (strncmp(line, "disk ", 5) != 0)
            continue;
        if (disks.count == CONTROL_FDS_MAX)
            return error_set(-EBADMSG, "description of the guest: more than %d disks", CONTROL_FDS_MAX);
        struct vmm_disk *disk = &disks.list[disks.count];
        if (sscanf(line, "disk %127s %" SCNu64 "\n", disk->name, &disk->bytes) != 2 || disk->bytes == 0 ||
            disk->bytes > INT64_MAX || disk->bytes % VMM_DISK_SECTOR || !is_sorted(&disks, disks.count))
            return error_set(-EBADMSG, "description of the guest: no disk: %.60s", line);
        disks.count++;
    }
    *ret_disks = disks;
    return 0;
}

int guest_disks_open(struct guest_disks *disks, struct client *client)
{
    struct guest_disks found;
    int r = parse_list(client->text, &found);
    if (r == 0 && found.count)
        r = client_fetch(client, CONTROL_DISKS, found.count, found.fds);
    if (r < 0)
        return error_add(r, "VMM %d", client->pid);
    *disks = found;
    return 0;
}

void guest_disks_close(struct guest_disks *disks)
{
    for (unsigned i = 0; i < disks->count; i++)
        if (disks->fds[i] >= 0)
            close(take_fd(&disks->fds[i]));
}

static int failed(const struct guest_disks *disks, uint32_t disk, int code, const char *what, uint64_t offset,
                  uint64_t bytes)
{
    return error_errno(code, "disk '%s': %s %" PRIu64 " bytes at %" PRIu64, disks->list[disk].name, what,
                       bytes, offset);
}

int guest_disks_read(const struct guest_disks *disks, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    assert(disk < disks->count);
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(disks->fds[disk], (char *)to + done, bytes - done, (off_t)(offset + done));
        if (got == 0)
            return error_set(-EIO, "disk '%s': its image ends at %" PRIu64 " of %" PRIu64 " bytes",
                             disks->list[disk].name, offset + done, disks->list[disk].bytes);
        if (got < 0 && errno != EINTR)
            return failed(disks, disk, -errno, "read", offset + done, bytes - done);
        done += got > 0 ? (size_t)got : 0;
    }
    return 0;
}

int guest_disks_write(const struct guest_disks *disks, uint32_t disk, uint64_t offset, size_t bytes,
                      const void *from)
{
    assert(disk < disks->count);
    for (size_t done = 0; done < bytes;) {
        ssize_t put =
            pwrite(disks->fds[disk], (const char *)from + done, bytes - done, (off_t)(offset + done));
        if (put < 0 && errno != EINTR)
            return failed(disks, disk, -errno, "write", offset + done, bytes - done);
        done += put > 0 ? (size_t)put : 0;
    }
    return 0;
}

/* Both kinds of zeros are holes, as they are on the primary; where the file system makes none, they are
 * written. */
int guest_disks_zero(const struct guest_disks *disks, uint32_t disk, uint64_t offset, uint64_t bytes)
{
    static const char zeros[ZEROS_BYTES];
    assert(disk < disks->count);
    int r;
    while ((r = fallocate(disks->fds[disk], FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                          (off_t)bytes)) < 0 &&
           errno == EINTR)
        ;
    if (r == 0)
        return 0;
    if (errno != EOPNOTSUPP)
        return failed(disks, disk, -errno, "zero", offset, bytes);
    for (uint64_t done = 0, piece; done < bytes; done += piece) {
        piece = bytes - done < sizeof zeros ? bytes - done : sizeof zeros;
        r = guest_disks_write(disks, disk, offset + done, (size_t)piece, zeros);
        if (r < 0)
            return r;
    }
    return 0;
}

int guest_disks_flush(const struct guest_disks *disks)
{
    for (unsigned i = 0; i < disks->count; i++)
        if (fdatasync(disks->fds[i]) < 0)
            return error_errno(-errno, "disk '%s': flush", disks->list[i].name);
    return 0;
}
