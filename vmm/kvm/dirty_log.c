/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>

/*
 * The dirty log of a machine: KVM's, of what vCPUs wrote, and guest_memory.h's, of what we wrote ourselves.
 *
 * The bitmap is KVM's; fetching it and protecting the pages again are two requests. Rings are emptied into
 * our own marks: at the pause, when somebody looks, and when one is full. Pages are protected again at the
 * pause and for a full ring; between two pauses that loses nothing, since the marks stay until a pause takes
 * them.
 */

#define CLEAR_PAGES (1u << 20) /* of the bitmap, at once */

size_t machine_dirty_bytes(const struct machine *machine)
{
    size_t words = 0;
    for (unsigned i = 0; i < machine->memory.slot_count; i++)
        words += GUEST_SLOT_WORDS(machine->memory.slots[i].bytes);
    return words * sizeof(uint64_t);
}

bool machine_tracked(const struct machine *machine)
{
    return machine->tracked;
}

void machine_untrack(struct machine *machine)
{
    for (unsigned i = 0; machine->tracked && i < machine->memory.slot_count; i++)
        machine_set_slot(machine, i, 0); /* what fails costs speed, nothing else */
    machine->tracked = false;
}

/* Protect the pages whose bits are set, in pieces: KVM holds its lock while it works at one. */
static int clear_log(struct machine *machine, unsigned index, uint64_t *bitmap)
{
    uint64_t pages = machine->memory.slots[index].bytes / GUEST_MEMORY_PAGE;
    for (uint64_t first = 0; first < pages; first += CLEAR_PAGES) {
        uint64_t count = pages - first < CLEAR_PAGES ? pages - first : CLEAR_PAGES;
        struct kvm_clear_dirty_log clear = {.slot = index,
                                            .first_page = first,
                                            .num_pages = (uint32_t)count,
                                            .dirty_bitmap = bitmap + first / 64};
        int r = kvm_call(machine->vm, KVM_CLEAR_DIRTY_LOG, &clear);
        if (r < 0)
            return r;
    }
    return 0;
}

static int clear_all(struct machine *machine)
{
    uint64_t *all cleanup_free = malloc(machine_dirty_bytes(machine));
    if (!all)
        return error_set(-ENOMEM, "dirty log: no memory");
    memset(all, 0xff, machine_dirty_bytes(machine));
    int r = 0;
    for (unsigned i = 0; r >= 0 && i < machine->memory.slot_count; i++)
        r = clear_log(machine, i, all);
    return r;
}

int machine_empty_rings(struct machine *machine, bool protect)
{
    scope_lock(&machine->ring_lock);
    for (unsigned i = 0; i < machine->config.cpus; i++)
        dirty_ring_empty(&machine->vcpus[i].ring, &machine->memory);
    return protect ? kvm_call(machine->vm, KVM_RESET_DIRTY_RINGS, 0) : 0;
}

int machine_track(struct machine *machine)
{
    int r = 0;
    for (unsigned i = 0; !machine->tracked && r >= 0 && i < machine->memory.slot_count; i++)
        r = machine_set_slot(machine, i, KVM_MEM_LOG_DIRTY_PAGES);
    if (r >= 0)
        r = machine->config.dirty_ring ? machine_empty_rings(machine, true) : clear_all(machine);
    machine->tracked |= r >= 0;
    return r < 0 ? r : 0;
}

static int fetch_bitmap(struct machine *machine, unsigned index, bool clear, uint64_t *bitmap)
{
    struct kvm_dirty_log log = {.slot = index, .dirty_bitmap = bitmap};
    int r = kvm_call(machine->vm, KVM_GET_DIRTY_LOG, &log);
    return r >= 0 && clear ? clear_log(machine, index, bitmap) : r;
}

int machine_dirty(struct machine *machine, bool clear, uint64_t *bitmap)
{
    bool ring = machine->config.dirty_ring;
    assert(machine->tracked && (!clear || machine->quiet));
    int r = ring ? machine_empty_rings(machine, clear) : 0;
    if (ring)
        memset(bitmap, 0, machine_dirty_bytes(machine));
    for (unsigned i = 0; r >= 0 && i < machine->memory.slot_count; i++) {
        if (!ring)
            r = fetch_bitmap(machine, i, clear, bitmap);
        if (r >= 0 && clear)
            guest_memory_take_dirty(&machine->memory, i, bitmap);
        else if (r >= 0)
            guest_memory_look_dirty(&machine->memory, i, bitmap);
        bitmap += GUEST_SLOT_WORDS(machine->memory.slots[i].bytes);
    }
    return r < 0 ? r : 0;
}

int machine_prove_ring(void)
{
    int kvm cleanup_close = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    return kvm < 0 ? error_errno(-errno, "/dev/kvm") : dirty_ring_prove(kvm);
}
