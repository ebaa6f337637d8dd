/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/dirty_ring.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"

#include <errno.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

unsigned dirty_ring_capability(int vm, uint32_t entries)
{
    /* The older one promises an order that only x86 has; both are the same there. */
    static const unsigned capabilities[] = {KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING};
    for (size_t i = 0; i < array_length(capabilities); i++) {
        int most = ioctl(vm, KVM_CHECK_EXTENSION, capabilities[i]);
        if (most > 0 && (size_t)most >= entries * sizeof(struct kvm_dirty_gfn))
            return capabilities[i];
    }
    return 0;
}

int dirty_ring_map(struct dirty_ring *ring, int vcpu, uint32_t entries)
{
    void *map = mmap(NULL, entries * sizeof(struct kvm_dirty_gfn), PROT_READ | PROT_WRITE, MAP_SHARED, vcpu,
                     KVM_DIRTY_LOG_PAGE_OFFSET * sysconf(_SC_PAGESIZE));
    if (map == MAP_FAILED)
        return error_errno(-errno, "dirty ring of %u entries", entries);
    *ring = (struct dirty_ring){.entries = map, .count = entries};
    return 0;
}

void dirty_ring_unmap(struct dirty_ring *ring)
{
    if (ring->entries)
        munmap(ring->entries, ring->count * sizeof *ring->entries);
    *ring = (struct dirty_ring){0};
}

static void mark(struct guest_memory *memory, uint32_t slot, uint64_t page)
{
    if (slot < memory->slot_count && page < memory->slots[slot].bytes / GUEST_MEMORY_PAGE) {
        guest_memory_mark(memory, memory->slots[slot].gpa + page * GUEST_MEMORY_PAGE, 1);
        return;
    }
    for (unsigned i = 0; i < memory->slot_count; i++)
        guest_memory_mark(memory, memory->slots[i].gpa, memory->slots[i].bytes);
}

unsigned dirty_ring_empty(struct dirty_ring *ring, struct guest_memory *memory)
{
    unsigned taken = 0;
    for (; taken < ring->count; taken++) {
        struct kvm_dirty_gfn *entry = &ring->entries[ring->next % ring->count];
        if (!(__atomic_load_n(&entry->flags, __ATOMIC_ACQUIRE) & KVM_DIRTY_GFN_F_DIRTY))
            break;
        mark(memory, entry->slot, entry->offset);
        __atomic_store_n(&entry->flags, KVM_DIRTY_GFN_F_RESET, __ATOMIC_RELEASE);
        ring->next++;
    }
    return taken;
}
