/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_DISKS_H
#define UNDERSTUDY_VMM_QEMU_DISKS_H

#include "vmm/qemu/qmp.h"
#include "vmm/vmm.h"

#include <stdio.h>

/*
 * The guest's disks as QEMU's block layer has them, and reading and writing them over QEMU's own NBD server.
 */

#define DISK_NODE_MAX 64

struct qemu_disk {
    struct vmm_disk shown;
    char node[DISK_NODE_MAX]; /* what the guest's device writes to */
    enum {
        DISK_REPLICATED,
        DISK_READ_ONLY,
        DISK_SHARED,     /* as the administrator declared it */
        DISK_UNDECLARED, /* the device may be written to from several places, and nobody said so */
    } kind;
    bool busy; /* a block job of somebody else's works on it */
};

struct qemu_disks {
    struct qemu_disk all[VMM_DISKS_MAX]; /* in the order of their names; those with a medium */
    size_t all_count;
    struct vmm_disk shown[VMM_DISKS_MAX]; /* of these, the replicated ones */
    char nodes[VMM_DISKS_MAX][DISK_NODE_MAX];
    size_t count;
};

/* `shared`: declared names, NULL-terminated (NULL: none): a device's id, a QOM path, or "*" for all.
 * -EOPNOTSUPP when there are more than VMM_DISKS_MAX, or one whose size is no multiple of a sector. */
int disks_find(struct qmp *qmp, const char *const *shared, struct qemu_disks *ret_disks);

/* The lines of the description. */
void disks_describe(const struct qemu_disks *disks, FILE *to);

/* Connections to all replicated disks, through an NBD server inside QEMU. */
struct disk_access;

/* -EBUSY: somebody else uses QEMU's NBD server. */
int disk_access_open(struct disk_access **ret_access, struct qmp *qmp, const struct qemu_disks *disks,
                     bool writable);
/* Ends the server in QEMU too. Takes NULL. `qmp` NULL: QEMU is gone. */
void disk_access_close(struct disk_access *access, struct qmp *qmp);
/* What an engine that was killed has left. */
int disk_access_clean(struct qmp *qmp);
/* QEMU has ended a connection: nothing can be read or written any more. */
bool disk_access_dead(const struct disk_access *access);

int disk_access_read(struct disk_access *access, uint32_t disk, uint64_t offset, size_t bytes, void *to);
int disk_access_write(struct disk_access *access, uint32_t disk, uint64_t offset, size_t bytes,
                      const void *from);
int disk_access_zero(struct disk_access *access, uint32_t disk, enum vmm_disk_op op, uint64_t offset,
                     uint64_t bytes);
int disk_access_flush(struct disk_access *access);

#endif
