/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_MACHINE_H
#define UNDERSTUDY_VMM_KVM_MACHINE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "vmm/kvm/cpu_features.h"
#include "vmm/kvm/device.h"
#include "vmm/kvm/guest_memory.h"

/*
 * The virtual machine itself: memory, vCPUs, interrupt controllers, on one /dev/kvm.
 *
 * One owner thread makes all calls, but machine_end() and machine_ask_restart(), which
 * the vCPUs' threads make. Errors: negative errno
 * with error_text() set.
 */
struct machine;

#define MACHINE_CPUS_MAX   64
#define MACHINE_MEMORY_MIN (2ull << 20)
#define MACHINE_MEMORY_MAX (4ull << 40)
#define MACHINE_HOLE       0xc0000000ull /* RAM lies below it and, what is more, from 4 GiB on */
#define MACHINE_HIGH       0x100000000ull

enum machine_end {
    MACHINE_GOES_ON,
    MACHINE_ENDED,   /* the guest switched itself off, or reset itself for good, or was told to end */
    MACHINE_CRASHED, /* triple fault, or KVM cannot go on */
};

struct machine_config {
    uint64_t memory_bytes; /* multiple of 2 MiB */
    unsigned cpus;
    bool dirty_ring; /* KVM's dirty rings instead of its bitmap, as machine_prove_ring() found good */
    struct cpu_features features; /* hidden from the guest */
    const char *description;      /* further lines of machine_describe(); the caller's; NULL: none */
    /* The guest is over, for this reason; on a vCPU's thread, at most once. */
    void (*ended)(void *ctx, enum machine_end why, const char *text);
    /* The guest resets itself, and its vCPUs stop: whoever pauses the machine next finds
     * machine_wants_restart(). On a vCPU's thread. NULL: a guest that resets itself is over. */
    void (*restart)(void *ctx);
    void *ctx;
};

/* The machine with its vCPUs stopped and nothing in its memory. -EOPNOTSUPP: this kernel's KVM lacks
 * something, which is named. */
int machine_new(struct machine **ret_machine, const struct machine_config *config);
/* The vCPUs are stopped for good. Takes NULL. */
void machine_free(struct machine *machine);

/* Put a kernel (boot.h) into memory and vCPU 0 before its first instruction. */
struct boot_files;
int machine_boot(struct machine *machine, const struct boot_files *files, const char *command_line);

/* Let vCPUs and devices go on; not a guest that is over. Stop them: afterwards no vCPU is in the guest or
 * handles an exit, each has completed what it was doing for the guest, and the devices are quiet. Both are
 * idempotent; on failure of the latter (-ETIMEDOUT) the guest goes on. */
void machine_resume(struct machine *machine);
int machine_pause(struct machine *machine);

/* How long the guest stood still the last time: from the order to stop until each vCPU was about to enter the
 * guest again. 0: it has not run on yet, or was never stopped. */
uint64_t machine_stood_ns(struct machine *machine);
/*
 * A guest that resets itself. machine_ask_restart() is for devices, on a vCPU's thread: that vCPU executes
 * nothing more. machine_restart() makes a paused machine what it was after machine_new(), with the devices
 * reset; machine_boot() goes on from there. Of a guest's memory only what was there is marked as written.
 */
void machine_ask_restart(struct machine *machine);
bool machine_wants_restart(struct machine *machine);
int machine_restart(struct machine *machine);

/* Memory: one memfd, sealed at its size. Offset = address, less the hole for what lies above it. */
int machine_memory_fd(const struct machine *machine);
uint64_t machine_memory_bytes(const struct machine *machine);
struct guest_memory *machine_memory(struct machine *machine);

/* Where devices are added before the machine runs, and how they interrupt. */
struct bus *machine_bus(struct machine *machine);
struct interrupt machine_interrupt(struct machine *machine, unsigned gsi);

/* One "key value" line for each thing that must be equal on both hosts (vmm.h). The caller frees it. */
int machine_describe(struct machine *machine, char **ret_text);

/* The guest is over; the first reason counts. Any thread. */
void machine_end(struct machine *machine, enum machine_end why, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/*
 * Dirty log, one bit a page of the memfd. machine_track() begins it: from then on each write sets a bit.
 * machine_dirty() puts the bits into `bitmap` (machine_dirty_bytes() long). With `clear` it begins anew,
 * which is exact only while the machine is paused (asserted).
 */
size_t machine_dirty_bytes(const struct machine *machine);
int machine_track(struct machine *machine);
void machine_untrack(struct machine *machine);
bool machine_tracked(const struct machine *machine);
int machine_dirty(struct machine *machine, bool clear, uint64_t *bitmap);
/* May this kernel's dirty rings be trusted (dirty_ring.h)? -EOPNOTSUPP, with what is wrong. */
int machine_prove_ring(void);

/* The device state (state.h) of a paused machine, at most machine_state_bytes_max(). */
size_t machine_state_bytes_max(const struct machine *machine);
int machine_save(struct machine *machine, void *to, size_t room, size_t *ret_bytes);
int machine_load(struct machine *machine, const void *state, size_t bytes);

#endif
