/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_MEMORY_MEMORY_H
#define UNDERSTUDY_VMM_MEMORY_MEMORY_H

#include "vmm/vmm.h"

/*
 * A guest that is nothing but memory: blocks over memfds, disks, marks that the "guest" sets itself, and a
 * device state of bytes that the caller chooses. Source and target in one. For unit tests, sanitizer runs and
 * `bench replicate`.
 */
struct memory_options {
    struct {
        const char *name;
        uint64_t bytes;
    } blocks[4];
    unsigned block_count;
    struct {
        const char *name; /* in the order of the names */
        uint64_t bytes;
    } disks[4]; /* in memory, too */
    unsigned disk_count;
    /* Size of the device state, 0: 64 KiB. Its 64-bit words are n, n + 1, n + 2 ... (a short last word is cut
     * off), where n is 2^32 times the number of pauses so far. */
    uint64_t state_bytes;
    bool unmapped; /* offer no map, so that read() and write() are used, as for anonymous RAM */
};
int memory_guest_new(struct vmm **ret_guest, const struct memory_options *options);

/* The block's memory, to be written by the caller playing the guest. */
void *memory_guest_block(struct vmm *guest, uint32_t block);

/* The guest writes: mark the pages. Thread-safe. Blocks while the guest is paused, as a vCPU would. */
void memory_guest_write(struct vmm *guest, uint32_t block, uint64_t offset, const void *bytes, size_t length);

/* Mark pages that the caller wrote through memory_guest_block() while it knew the guest to be running. */
void memory_guest_mark(struct vmm *guest, uint32_t block, uint64_t first, uint64_t pages);

/* The guest changes a disk; `bytes` is what a write writes, else NULL. Thread-safe. Blocks while the guest is
 * paused, and as long as the sink wants. */
void memory_guest_disk_change(struct vmm *guest, uint32_t disk, enum vmm_disk_op op, uint64_t offset,
                              uint64_t length, const void *bytes);

/* The disk's content, to be looked at while nobody changes it. */
const void *memory_guest_disk(struct vmm *guest, uint32_t disk);

/* From now on changes of the disk are not told, until disks_open(). Thread-safe. */
void memory_guest_disk_lose(struct vmm *guest, uint32_t disk);

/* A copy of what load() was last given, NULL if nothing; valid until the next load(). */
const void *memory_guest_loaded(struct vmm *guest, size_t *ret_bytes);

/* A guest runs from its first track(), pause() + resume() or run() on, except while it is paused. */
bool memory_guest_running(struct vmm *guest);

#endif
