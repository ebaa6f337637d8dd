/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_GUEST_DRIVER_H
#define UNDERSTUDY_REPLICATOR_GUEST_DRIVER_H

#include "replicator/config.h"
#include "vmm/keep.h"
#include "vmm/vmm.h"

/*
 * Which driver this host's guest wants, by its configuration: QEMU at a monitor's socket, QEMU of libvirt's,
 * or our own VMM. The one place that knows; errors are the driver's (vmm/qemu/qemu.h, vmm/kvm/kvm.h).
 */

/* Attach to the guest that runs here. */
int guest_attach(struct vmm **ret_source, const struct config *config);

/* Its gate, where the guest's own VMM holds what it says. 1: it was opened; 0: it is none of such a guest, or
 * another kind is wanted, and gate_open() is to be asked. */
int guest_gate_open(struct gate **ret_gate, struct vmm *guest, const struct config *config,
                    const struct gate_config *wanted, const struct gate_events *events);

/* Start one that waits; `pid_path` records its process. */
int guest_launch(struct vmm **ret_target, const struct config *config, const char *pid_path);

/* End the guest that an engine left behind here, stopped for good. With `keep` its memory is copied first,
 * where the host has room for it. */
struct guest_retired {
    bool ended;            /* there was one */
    struct vmm_keep *keep; /* the caller's to free; NULL: nothing is kept */
    char why[256];         /* and why, if it was to be */
};
int guest_retire(const struct config *config, bool keep, struct guest_retired *ret_retired);

/* Does the guest run here, or stand still having run? */
enum guest_state { GUEST_NONE, GUEST_STOPPED, GUEST_RUNS };
int guest_state(const struct config *config, enum guest_state *ret_state);

/* Process id of the guest's. */
int guest_pid(const struct vmm *guest);

/* What the log calls it: "QEMU", "VMM". */
const char *guest_kind(const struct vmm *guest);

/* One finding of `understudy check`; the caller frees the array. */
struct qemu_finding;
int guest_check(const struct config *config, struct qemu_finding **ret_findings, size_t *ret_count);

#endif
