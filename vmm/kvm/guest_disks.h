/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_GUEST_DISKS_H
#define UNDERSTUDY_VMM_KVM_GUEST_DISKS_H

#include "vmm/kvm/client.h"

/*
 * The guest's disks as the engine has them: the VMM hands over a descriptor of each image, which the VMM has
 * open itself, so both see the same through the kernel's cache. Of a guest that runs it is for reading only.
 */
struct guest_disks {
    struct vmm_disk list[CONTROL_FDS_MAX];
    int fds[CONTROL_FDS_MAX];
    unsigned count;
};

/* Which disks the description names, and their descriptors; after client_greet(). */
int guest_disks_open(struct guest_disks *disks, struct client *client);
/* The list stays. Zero-initialised ones, too. */
void guest_disks_close(struct guest_disks *disks);

/* As in vmm.h. */
int guest_disks_read(const struct guest_disks *disks, uint32_t disk, uint64_t offset, size_t bytes, void *to);
int guest_disks_write(const struct guest_disks *disks, uint32_t disk, uint64_t offset, size_t bytes,
                      const void *from);
int guest_disks_zero(const struct guest_disks *disks, uint32_t disk, uint64_t offset, uint64_t bytes);
int guest_disks_flush(const struct guest_disks *disks);

#endif
