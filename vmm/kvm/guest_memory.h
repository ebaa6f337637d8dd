/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_GUEST_MEMORY_H
#define UNDERSTUDY_VMM_KVM_GUEST_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The guest's RAM as the VMM and its devices reach it.
 *
 * Guest-physical addresses come from the guest, so every access is checked: it lies within one slot or it is
 * refused, and a refused access touches nothing. KVM logs only what virtual CPUs write; what the VMM writes
 * itself is kept in a bitmap of its own here, which is merged with KVM's at the pause. So nothing writes to
 * guest RAM but by guest_memory_write(), or by a pointer followed by guest_memory_mark().
 *
 * The order matters for the marks: write first, mark second. Marks are taken while the guest stands still and
 * the devices are quiet, when every write that has begun has its mark.
 *
 * Threads: slots are added before anybody else knows of the memory; reading, writing and marking may then be
 * done by any thread, guest_memory_take_dirty() by one at a time. The guest may change RAM at any moment:
 * read a value once, check the copy, use the copy.
 */

#define GUEST_SLOTS_MAX        8
#define GUEST_MEMORY_SHIFT     12
#define GUEST_MEMORY_PAGE      4096u
#define GUEST_SLOT_WORDS(size) (((size) / GUEST_MEMORY_PAGE + 63) / 64)

struct guest_slot {
    uint64_t gpa, bytes;
    uint8_t *host;
    uint64_t *dirty; /* a bit for each page, as KVM_GET_DIRTY_LOG lays them; GUEST_SLOT_WORDS(bytes) words */
};

struct guest_memory {
    struct guest_slot slots[GUEST_SLOTS_MAX];
    unsigned slot_count;
};

/* Zero-initialise; free with guest_memory_free(). `host` stays the caller's, and must outlive the memory. gpa
 * and bytes are whole pages, bytes > 0. -EINVAL, -ENOSPC, -ENOMEM, -EEXIST: overlaps another slot. */
int guest_memory_add(struct guest_memory *memory, uint64_t gpa, uint64_t bytes, void *host);
void guest_memory_free(struct guest_memory *memory);

/* Where `bytes` (may be 0) at `gpa` lie in our address space; NULL when they are not all in one slot. */
void *guest_memory_pointer(const struct guest_memory *memory, uint64_t gpa, uint64_t bytes);
/* -EFAULT, without words (what the guest does wrong is its device's to tell): not all in one slot. */
int guest_memory_read(const struct guest_memory *memory, uint64_t gpa, void *to, size_t bytes);
int guest_memory_write(struct guest_memory *memory, uint64_t gpa, const void *from, size_t bytes);
/* These bytes were written by way of a pointer. Parts outside RAM are ignored. */
void guest_memory_mark(struct guest_memory *memory, uint64_t gpa, uint64_t bytes);
/* Adds (by or) the marks of a slot to `to`, GUEST_SLOT_WORDS words, and clears them. */
void guest_memory_take_dirty(struct guest_memory *memory, unsigned slot, uint64_t *to);
/* Adds them and leaves them; while the guest runs, some come too late to be seen. */
void guest_memory_look_dirty(const struct guest_memory *memory, unsigned slot, uint64_t *to);

#endif
