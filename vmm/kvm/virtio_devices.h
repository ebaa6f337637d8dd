/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H

#include "vmm/kvm/virtio.h"
#include "vmm/vmm.h"

/*
 * The devices. Each begins quiet and is handed to bus_add(); the bus frees it, after io_free() has ended the
 * thread that works for it, or before io_start(). -ENOMEM and what is said besides.
 */

/* Entropy from getrandom(). */
int virtio_rng_new(struct device **ret_device, const struct virtio_place *place);

/* A disk on a raw file or a block device, which is the device's from now on (on failure it stays the
 * caller's). `name` is what the guest is told, cut to 20 characters. The file may not change its size. What
 * it offers depends on the file: DISCARD and WRITE_ZEROES need a file system that makes holes. -EINVAL: no
 * disk. */
int virtio_block_new(struct device **ret_device, const struct virtio_place *place, int fd, bool read_only,
                     const char *name);
uint64_t virtio_block_bytes(const struct device *device);
/* Tell `sink` (copied) of every change from now on, as of disk number `disk`; NULL: of none, and no call is
 * under way afterwards, which is waited for. By the guest's owner, whether the guest runs or not. A change
 * that fails is told as the loss of the disk, until the next virtio_block_tell(). -EAGAIN: no thread. */
int virtio_block_tell(struct device *device, const struct vmm_disk_sink *sink, uint32_t disk);

#endif
