/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_MIRROR_H
#define UNDERSTUDY_VMM_QEMU_MIRROR_H

#include "vmm/qemu/disks.h"

/*
 * Being told of every change of a running guest's disks. See mirror.c.
 */
struct mirror;

/* begin() makes the guest stand still, its I/O drained, or finds it so; end() undoes what begin() did. Both
 * as vmm_ops.pause: 0 or a negative errno, with error.h's text. */
struct mirror_quiet {
    int (*begin)(void *ctx);
    int (*end)(void *ctx);
    void *ctx;
};

int mirror_new(struct mirror **ret_mirror, struct qmp *qmp, const struct qemu_disks *disks,
               const struct mirror_quiet *quiet);
/* As vmm_ops.disks_open: starts what does not run. */
int mirror_open(struct mirror *mirror, const struct vmm_disk_sink *sink);
/* As vmm_ops.disks_close. `gone`: QEMU does not answer any more. */
void mirror_close(struct mirror *mirror, bool gone);
void mirror_free(struct mirror *mirror);

int mirror_read(struct mirror *mirror, uint32_t disk, uint64_t offset, size_t bytes, void *to);

/* An event of QEMU's monitor: one of our jobs may have ended. */
void mirror_event(struct mirror *mirror, const char *event, const json_t *data);

/* Remove what an engine that was killed has left, before the guest's disks are looked at. */
int mirror_clean(struct qmp *qmp, const struct mirror_quiet *quiet);

#endif
