/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_DEVICES_H

#include "vmm/kvm/virtio.h"

/*
 * The devices. Each begins quiet and is handed to bus_add(); the bus frees it, after io_free() has ended the
 * thread that works for it, or before io_start(). -ENOMEM and what is said besides.
 */

/* Entropy from getrandom(). */
int virtio_rng_new(struct device **ret_device, const struct virtio_place *place);

#endif
