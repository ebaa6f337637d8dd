/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_GUEST_H
#define UNDERSTUDY_VMM_KVM_GUEST_H

#include "gate/gate.h"
#include "vmm/kvm/client.h"

/* What sources and targets of this driver begin with, and the calls that are the same for both. */
struct kvm_guest {
    struct vmm vmm;
    struct client client;
};

int kvm_guest_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to);
int kvm_guest_event_fd(struct vmm *vmm);
enum vmm_event kvm_guest_event(struct vmm *vmm);

/* Of a source: the line that was drawn behind the guest's output when it was paused (control.h). 0: it is not
 * paused, or its output is not held. By its owner. */
uint64_t kvm_guest_line(const struct vmm *source);
/* What the VMM wrote of its gate last. Any thread. */
void kvm_guest_figures(const struct vmm *source, struct gate_stats *ret_figures);

#endif
