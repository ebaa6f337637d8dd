/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H

#include "vmm/kvm/output.h"
#include "vmm/kvm/virtio.h"
#include "vmm/vmm.h"

/*
 * The devices. Each begins quiet and is handed to bus_add(). The end comes in this order: bus_quiesce(),
 * io_stop(), bus_free(), output_free(), io_free(). -ENOMEM and what is said besides.
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
/* What a device on this file will be: how large, and whether it discards, which must be the same on both
 * hosts. -EINVAL: it is no disk. */
int virtio_block_look(int fd, const char *name, uint64_t *ret_bytes, bool *ret_discards);
/* Tell `sink` (copied) of every change from now on, as of disk number `disk`; NULL: of none. No call into the
 * former sink is under way afterwards, which is waited for. By the guest's owner, whether the guest runs or
 * not. A change that fails is told as the loss of the disk, until the next virtio_block_tell(). */
void virtio_block_tell(struct device *device, const struct vmm_disk_sink *sink, uint32_t disk);

/* A network interface on `fd`, which gives and takes whole frames: virtio_net_open_tap(), or a datagram
 * socket. It is the device's from now on (on failure it stays the caller's), and must outlive `output`'s
 * writing: io ends before the bus. No offloads. */
int virtio_net_new(struct device **ret_device, const struct virtio_place *place, int fd, const uint8_t mac[6],
                   struct output *output);
/* A tap that exists, or a new one that lives as long as the descriptor. Returns the descriptor. -errno. */
int virtio_net_open_tap(const char *name);
/* Tell the network where this address is now: a reverse ARP request, sent as if the guest had (so it is held
 * when the guest's output is). Any thread. */
void virtio_net_announce(struct device *device);

/* A console of one port. Both descriptors stay the caller's, outlive the device and are made non-blocking,
 * and may be the same; in_fd may be -1: no input. */
int virtio_console_new(struct device **ret_device, const struct virtio_place *place, int in_fd, int out_fd,
                       struct output *output);

#endif
