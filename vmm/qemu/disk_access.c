/* SPDX-License-Identifier: Apache-2.0 */
/*
 * QEMU's block layer knows every image format; so disks are read, and on the standby written, through the NBD
 * server that every QEMU has. It listens on a socket that we made and hand over, an unnamed one, so that
 * neither a path nor a right of QEMU's is needed, and nobody else can find it. The connections are libnbd's.
 *
 * On the standby an export that may be written to makes QEMU activate the image before the guest runs, as for
 * a migration of storage; it must be gone before the guest's own devices take it over.
 */
#include "vmm/qemu/disks.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <libnbd.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>

#define COMMAND_MS  10000
#define LISTEN_NAME "understudy-nbd"
#define EXPORT_NAME "understudy-export-%zu"

/* The largest request: NBD servers take 32 MiB, and no caller sends half as much. */
#define REQUEST_MAX (8u << 20)

struct disk_access {
    size_t count;
    size_t exported; /* so many of the disks */
    bool serving;
    struct vmm_disk shown[VMM_DISKS_MAX];
    struct nbd_handle *nbd[VMM_DISKS_MAX];
};

static int failed(const struct disk_access *access, uint32_t disk, const char *what)
{
    int code = nbd_get_errno();
    return error_set(code > 0 ? -code : -EIO, "%s of disk %s: %s", what, access->shown[disk].name,
                     nbd_get_error());
}

/* An unnamed listening socket: the kernel chooses an abstract address. */
static int listen_unnamed(struct sockaddr_un *ret_address, socklen_t *ret_length)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    socklen_t length = sizeof address;
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(sa_family_t)) < 0 ||
        listen(fd, VMM_DISKS_MAX) < 0 || getsockname(fd, (struct sockaddr *)&address, &length) < 0) {
        int r = error_errno(-errno, "socket for QEMU's NBD server");
        if (fd >= 0)
            close(fd);
        return r;
    }
    *ret_address = address;
    *ret_length = length;
    return fd;
}

static int connect_disk(struct disk_access *access, size_t i, const struct sockaddr_un *address,
                        socklen_t length)
{
    char name[48];
    snprintf(name, sizeof name, EXPORT_NAME, i);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, length) < 0) {
        int r = error_errno(-errno, "connect to QEMU's NBD server");
        if (fd >= 0)
            close(fd);
        return r;
    }
    struct nbd_handle *nbd = access->nbd[i] = nbd_create();
    if (!nbd) {
        close(fd);
        return failed(access, (uint32_t)i, "NBD handle");
    }
    /* The descriptor is libnbd's from here. */
    if (nbd_set_export_name(nbd, name) < 0 || nbd_connect_socket(nbd, fd) < 0)
        return failed(access, (uint32_t)i, "NBD connection");
    int64_t bytes = nbd_get_size(nbd);
    if (bytes < 0 || (uint64_t)bytes != access->shown[i].bytes)
        return error_set(-EPROTO, "disk %s: QEMU exports %lld bytes, the guest's device has %llu",
                         access->shown[i].name, (long long)bytes, (unsigned long long)access->shown[i].bytes);
    return 0;
}

static int serve(struct disk_access *access, struct qmp *qmp, const struct qemu_disks *disks, bool writable)
{
    struct sockaddr_un address = {0};
    socklen_t length = 0;
    int listener cleanup_close = listen_unnamed(&address, &length);
    if (listener < 0)
        return listener;
    int r = qmp_call_fd(qmp, COMMAND_MS, NULL, listener, "getfd", "{s:s}", "fdname", LISTEN_NAME);
    if (r == 0) {
        r = qmp_call(qmp, COMMAND_MS, NULL, "nbd-server-start", "{s:{s:s, s:{s:s}}}", "addr", "type", "fd",
                     "data", "str", LISTEN_NAME);
        if (r == -EREMOTEIO)
            r = error_add(-EBUSY, "QEMU's NBD server is needed for the disks");
    }
    access->serving = r == 0;
    for (size_t i = 0; i < disks->count && r == 0; i++) {
        char name[48];
        snprintf(name, sizeof name, EXPORT_NAME, i);
        r = qmp_call(qmp, COMMAND_MS, NULL, "block-export-add", "{s:s, s:s, s:s, s:s, s:b}", "type", "nbd",
                     "id", name, "node-name", disks->nodes[i], "name", name, "writable", writable);
        if (r == 0) {
            access->exported++;
            r = connect_disk(access, i, &address, length);
        }
        if (r < 0)
            error_add(r, "export of disk %s", disks->shown[i].name);
    }
    return r;
}

int disk_access_open(struct disk_access **ret_access, struct qmp *qmp, const struct qemu_disks *disks,
                     bool writable)
{
    struct disk_access *access = calloc(1, sizeof *access);
    if (!access)
        return error_set(-ENOMEM, "disks: no memory");
    access->count = disks->count;
    memcpy(access->shown, disks->shown, disks->count * sizeof disks->shown[0]);
    int r = disks->count ? serve(access, qmp, disks, writable) : 0;
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        disk_access_close(access, qmp);
        return error_set(r, "%s", text);
    }
    *ret_access = access;
    return 0;
}

/* Our exports, and the server unless it is somebody else's too. Without any export of ours, and `fresh`: it
 * is one that we have only just started. */
static int end_exports(struct qmp *qmp, bool fresh)
{
    json_t *exports = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &exports, "query-block-exports", NULL);
    if (r < 0)
        return r == -ENOSYS ? 0 : r;
    size_t ours = 0, i;
    json_t *export;
    json_array_foreach (exports, i, export) {
        const char *id = json_string_value(json_object_get(export, "id"));
        ours += id && !strncmp(id, "understudy-", 11);
    }
    if (ours == json_array_size(exports) && (ours || fresh)) {
        r = qmp_call(qmp, COMMAND_MS, NULL, "nbd-server-stop", NULL);
        json_decref(exports);
        return r;
    }
    json_array_foreach (exports, i, export) {
        const char *id = json_string_value(json_object_get(export, "id"));
        if (r == 0 && id && !strncmp(id, "understudy-", 11))
            r = qmp_call(qmp, COMMAND_MS, NULL, "block-export-del", "{s:s, s:s}", "id", id, "mode", "hard");
    }
    json_decref(exports);
    return r;
}

void disk_access_close(struct disk_access *access, struct qmp *qmp)
{
    if (!access)
        return;
    for (size_t i = 0; i < access->count; i++)
        nbd_close(access->nbd[i]);
    if (access->serving && qmp)
        end_exports(qmp, access->exported == 0);
    free(access);
}

int disk_access_clean(struct qmp *qmp)
{
    return end_exports(qmp, false);
}

bool disk_access_dead(const struct disk_access *access)
{
    for (size_t i = 0; i < access->count; i++)
        if (!access->nbd[i] || nbd_aio_is_dead(access->nbd[i]) == 1 || nbd_aio_is_closed(access->nbd[i]) == 1)
            return true;
    return false;
}

int disk_access_read(struct disk_access *access, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < REQUEST_MAX ? bytes - done : REQUEST_MAX;
        if (nbd_pread(access->nbd[disk], (uint8_t *)to + done, part, offset + done, 0) < 0)
            return failed(access, disk, "read");
        done += part;
    }
    return 0;
}

int disk_access_write(struct disk_access *access, uint32_t disk, uint64_t offset, size_t bytes,
                      const void *from)
{
    for (size_t done = 0; done < bytes;) {
        size_t part = bytes - done < REQUEST_MAX ? bytes - done : REQUEST_MAX;
        if (nbd_pwrite(access->nbd[disk], (const uint8_t *)from + done, part, offset + done, 0) < 0)
            return failed(access, disk, "write");
        done += part;
    }
    return 0;
}

/* A discard is carried out as zeroing that may punch holes: what a discarded sector reads as is anybody's
 * guess, but both hosts have to guess the same. */
int disk_access_zero(struct disk_access *access, uint32_t disk, enum vmm_disk_op op, uint64_t offset,
                     uint64_t bytes)
{
    uint32_t flags = op == VMM_DISK_DISCARD ? 0 : LIBNBD_CMD_FLAG_NO_HOLE;
    for (uint64_t done = 0; done < bytes;) {
        uint64_t part = bytes - done < (1u << 30) ? bytes - done : 1u << 30;
        if (nbd_zero(access->nbd[disk], part, offset + done, flags) < 0)
            return failed(access, disk, "zeroing");
        done += part;
    }
    return 0;
}

int disk_access_flush(struct disk_access *access)
{
    for (size_t i = 0; i < access->count; i++)
        if (nbd_flush(access->nbd[i], 0) < 0)
            return failed(access, (uint32_t)i, "flush");
    return 0;
}
