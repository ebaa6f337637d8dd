/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_INTERNAL_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_INTERNAL_H

#include "vmm/kvm/virtio.h"

/* What virtio.c and virtio_state.c share. All with io's lock, unless it says otherwise. */

enum { ACKNOWLEDGE = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8, NEEDS_RESET = 64, FAILED = 128 };
#define STATUS_OF_DRIVER ((uint32_t)(ACKNOWLEDGE | DRIVER | DRIVER_OK | FEATURES_OK | FAILED))

enum { INTERRUPT_USED = 1, INTERRUPT_CONFIG = 2 };

#define VIRTIO_STATE_VERSION 1

/* Set and clear bits of InterruptStatus; the line follows. Any thread, with io's lock or without. */
void virtio_interrupt(struct virtio *virtio, uint32_t set, uint32_t clear);
uint32_t virtio_interrupt_status(struct virtio *virtio);
/* Nothing is under way any more: forget the driver. */
void virtio_forget(struct virtio *virtio);
/* Whether the driver may have what it accepted. */
bool virtio_features_agree(const struct virtio *virtio);

/* Of struct device_ops; they take the lock. */
void virtio_save(struct device *device, struct record_writer *to);
int virtio_load(struct device *device, struct record *from);

#endif
