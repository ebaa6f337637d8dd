/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_DIRTY_RING_H
#define UNDERSTUDY_VMM_KVM_DIRTY_RING_H

#include "vmm/kvm/guest_memory.h"

#include <linux/kvm.h>

/*
 * KVM's other dirty log (Documentation/virt/kvm/api.rst, 8.29): instead of a bit for each page there is, for
 * each vCPU, a ring of the pages that it wrote.
 *
 *      kernel: entry DIRTY ─► dirty_ring_empty(): its page is marked, entry RESET ─► KVM_RESET_DIRTY_RINGS:
 *                                                          entry free, page protected again
 *
 * What is taken out of it goes to the marks that the VMM's own writes have (guest_memory.h), so it may be
 * emptied at any time, and must be when it is full, since its vCPU does not run until then.
 */

#define DIRTY_RING_ENTRIES 4096u /* of each vCPU's; a power of two */

struct dirty_ring {
    struct kvm_dirty_gfn *entries; /* shared with the kernel */
    uint32_t count, next;
};

/* The capability to be enabled, with the number of entries asked for; 0: this kernel has none. */
unsigned dirty_ring_capability(int vm, uint32_t entries);
/* Of a vCPU of a VM with such rings; ends with dirty_ring_unmap(), which takes a zeroed one. */
int dirty_ring_map(struct dirty_ring *ring, int vcpu, uint32_t entries);
void dirty_ring_unmap(struct dirty_ring *ring);

/* Mark what it says; returns how many entries. A page that does not exist makes all marked: then what is
 * dirty is not known. The entries are free after KVM_RESET_DIRTY_RINGS, which is the caller's. One at a time.
 */
unsigned dirty_ring_empty(struct dirty_ring *ring, struct guest_memory *memory);

/*
 * Does this kernel's ring tell the truth? A machine of a few lines writes known pages, the same again, and
 * more than a ring holds; the ring must say just these, and when it is full. -EOPNOTSUPP: there is none, or
 * it does not, with what was wrong.
 */
int dirty_ring_prove(int kvm);

#endif
