/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * Theory of operation
 *
 * KVM has no request that resets a machine. So the state of the vCPUs and the interrupt controllers is saved
 * once, before anything boots, and loaded again for each reset; devices reset themselves, and memory is given
 * back to the host, which makes it zeros. The guest's clocks begin anew with it, as after a power cycle.
 *
 *      vCPU    writes 0xfe to port 0x64 ─► door shut, the owner is told ─► parks like all others
 *      owner   machine_pause() ─► machine_restart() ─► machine_boot() ─► machine_resume()
 *
 * The door is shut by the vCPU itself: after the write that asks for a reset it must execute nothing. An
 * engine whose pause comes first finds the machine stopped with a restart wanted, and the owner makes it
 * before it saves: so no checkpoint has a guest in it that believes itself reset.
 */

void machine_ask_restart(struct machine *machine)
{
    if (!machine->config.restart) {
        machine_end(machine, MACHINE_ENDED, "the guest reset itself");
        return;
    }
    {
        scope_lock(&machine->lock);
        machine->restart_wanted = true;
        machine_shut_door(machine);
    }
    machine->config.restart(machine->config.ctx);
}

bool machine_wants_restart(struct machine *machine)
{
    scope_lock(&machine->lock);
    return machine->restart_wanted;
}

int machine_keep_power_on(struct machine *machine)
{
    size_t room = machine_state_bytes_max(machine);
    void *state cleanup_free = malloc(room);
    if (!state)
        return error_set(-ENOMEM, "state at power-on: no memory");
    int r = machine_save(machine, state, room, &machine->power_on_bytes);
    if (r < 0)
        return r;
    machine->power_on = malloc(machine->power_on_bytes);
    if (!machine->power_on)
        return error_set(-ENOMEM, "state at power-on: no memory");
    memcpy(machine->power_on, state, machine->power_on_bytes);
    return 0;
}

/* The memfd's offsets, as the guest's addresses. */
static void mark(struct machine *machine, uint64_t begin, uint64_t end)
{
    for (unsigned i = 0; i < machine->memory.slot_count; i++) {
        const struct guest_slot *slot = &machine->memory.slots[i];
        uint64_t offset = (uint64_t)(slot->host - machine->memory_map);
        uint64_t from = begin > offset ? begin : offset;
        uint64_t to = end < offset + slot->bytes ? end : offset + slot->bytes;
        if (from < to)
            guest_memory_mark(&machine->memory, slot->gpa + from - offset, to - from);
    }
}

/* What was never written is a hole of the memfd, and zeros already. Marks before the change are right here:
 * it is their taker's thread that makes both. */
static int clear_memory(struct machine *machine)
{
    off_t bytes = (off_t)machine->config.memory_bytes, end = 0;
    while (end < bytes) {
        off_t begin = lseek(machine->memory_fd, end, SEEK_DATA);
        if (begin < 0 && errno == ENXIO)
            break;
        if (begin < 0 || (end = lseek(machine->memory_fd, begin, SEEK_HOLE)) < 0)
            return error_errno(-errno, "guest memory: what lies in it");
        mark(machine, (uint64_t)begin, (uint64_t)end);
    }
    if (fallocate(machine->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, bytes) < 0)
        return error_errno(-errno, "guest memory: clearing it");
    return 0;
}

int machine_restart(struct machine *machine)
{
    assert(machine->quiet);
    {
        scope_lock(&machine->lock);
        machine->restart_wanted = false;
    }
    bus_reset(&machine->bus);
    int r = clear_memory(machine);
    return r < 0 ? r : machine_load_kernel_parts(machine, machine->power_on, machine->power_on_bytes);
}
