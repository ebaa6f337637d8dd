/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/guest_memory.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

int guest_memory_add(struct guest_memory *memory, uint64_t gpa, uint64_t bytes, void *host)
{
    if (bytes == 0 || gpa % GUEST_MEMORY_PAGE || bytes % GUEST_MEMORY_PAGE || gpa > UINT64_MAX - bytes)
        return error_set(-EINVAL,
                         "guest memory: a slot of %" PRIu64 " bytes at 0x%" PRIx64 " is no range of pages",
                         bytes, gpa);
    for (unsigned i = 0; i < memory->slot_count; i++) {
        const struct guest_slot *slot = &memory->slots[i];
        if (gpa < slot->gpa + slot->bytes && slot->gpa < gpa + bytes)
            return error_set(-EEXIST,
                             "guest memory: the slot at 0x%" PRIx64 " overlaps the one at 0x%" PRIx64, gpa,
                             slot->gpa);
    }
    if (memory->slot_count == GUEST_SLOTS_MAX)
        return error_set(-ENOSPC, "guest memory: more than %d slots", GUEST_SLOTS_MAX);
    uint64_t *dirty = calloc(GUEST_SLOT_WORDS(bytes), sizeof *dirty);
    if (!dirty)
        return error_set(-ENOMEM, "guest memory: no memory for the marks of %" PRIu64 " bytes", bytes);
    memory->slots[memory->slot_count++] =
        (struct guest_slot){.gpa = gpa, .bytes = bytes, .host = host, .dirty = dirty};
    return 0;
}

void guest_memory_free(struct guest_memory *memory)
{
    for (unsigned i = 0; i < memory->slot_count; i++)
        free(memory->slots[i].dirty);
    memory->slot_count = 0;
}

static const struct guest_slot *find(const struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    for (unsigned i = 0; i < memory->slot_count; i++) {
        const struct guest_slot *slot = &memory->slots[i];
        if (gpa >= slot->gpa && gpa - slot->gpa < slot->bytes)
            return bytes <= slot->bytes - (gpa - slot->gpa) ? slot : NULL;
    }
    return NULL;
}

void *guest_memory_pointer(const struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    const struct guest_slot *slot = find(memory, gpa, bytes);
    return slot ? slot->host + (gpa - slot->gpa) : NULL;
}

int guest_memory_read(const struct guest_memory *memory, uint64_t gpa, void *to, size_t bytes)
{
    const void *from = guest_memory_pointer(memory, gpa, bytes);
    if (!from)
        return -EFAULT;
    memcpy(to, from, bytes);
    return 0;
}

int guest_memory_write(struct guest_memory *memory, uint64_t gpa, const void *from, size_t bytes)
{
    void *to = guest_memory_pointer(memory, gpa, bytes);
    if (!to)
        return -EFAULT;
    memcpy(to, from, bytes);
    guest_memory_mark(memory, gpa, bytes);
    return 0;
}

void guest_memory_mark(struct guest_memory *memory, uint64_t gpa, uint64_t bytes)
{
    const struct guest_slot *slot = find(memory, gpa, bytes);
    if (!slot || bytes == 0)
        return;
    uint64_t first = (gpa - slot->gpa) >> GUEST_MEMORY_SHIFT;
    uint64_t last = (gpa - slot->gpa + bytes - 1) >> GUEST_MEMORY_SHIFT;
    for (uint64_t page = first; page <= last; page++) {
        uint64_t bit = 1ull << (page % 64);
        /* A page that is written again and again costs no locked instruction after the first time. */
        if (!(__atomic_load_n(&slot->dirty[page / 64], __ATOMIC_RELAXED) & bit))
            __atomic_fetch_or(&slot->dirty[page / 64], bit, __ATOMIC_RELAXED);
    }
}

void guest_memory_take_dirty(struct guest_memory *memory, unsigned slot, uint64_t *to)
{
    assert(slot < memory->slot_count);
    uint64_t *dirty = memory->slots[slot].dirty;
    for (size_t i = 0; i < GUEST_SLOT_WORDS(memory->slots[slot].bytes); i++)
        if (__atomic_load_n(&dirty[i], __ATOMIC_RELAXED))
            to[i] |= __atomic_exchange_n(&dirty[i], 0, __ATOMIC_RELAXED);
}

void guest_memory_look_dirty(const struct guest_memory *memory, unsigned slot, uint64_t *to)
{
    assert(slot < memory->slot_count);
    for (size_t i = 0; i < GUEST_SLOT_WORDS(memory->slots[slot].bytes); i++)
        to[i] |= __atomic_load_n(&memory->slots[slot].dirty[i], __ATOMIC_RELAXED);
}
