/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_GUEST_H
#define UNDERSTUDY_VMM_KVM_GUEST_H

#include "gate/gate.h"
#include "vmm/kvm/client.h"
#include "vmm/kvm/guest_disks.h"

/* What sources and targets of this driver begin with, and the calls that are the same for both. */
struct kvm_guest {
    struct vmm vmm;
    struct client client;
    struct guest_disks disks;
};

/* The description, of one block and the disks. */
void kvm_guest_describe(const struct kvm_guest *guest, struct vmm_block *block, bool mapped,
                        struct vmm_description *ret_description);

int kvm_guest_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to);
int kvm_guest_event_fd(struct vmm *vmm);
enum vmm_event kvm_guest_event(struct vmm *vmm);
int kvm_guest_disk_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to);

/* Of a source: the line that was drawn behind the guest's output when it was paused (control.h). 0: it is not
 * paused, or its output is not held. By its owner. */
uint64_t kvm_guest_line(const struct vmm *source);
/* What the VMM wrote of its gate last. Any thread. */
void kvm_guest_figures(const struct vmm *source, struct gate_stats *ret_figures);

#endif
