/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_KVM_H
#define UNDERSTUDY_VMM_KVM_KVM_H

#include "gate/gate.h"
#include "vmm/keep.h"
#include "vmm/vmm.h"

#include <sys/types.h>

/*
 * The driver of guests that run in our own VMM (docs/kvm.md). Source: attach to one that runs. Target: launch
 * one that waits (--incoming) and fill it. `socket_path` is the VMM's --control. Both need to be root, or the
 * VMM's own user.
 */

/* -ENOENT, -ECONNREFUSED: no VMM is there; -EBUSY: it has an engine; -EINVAL: its guest has not been loaded
 * yet. */
int kvm_attach(struct vmm **ret_source, const char *socket_path);

/* The gate of kvm_attach()'s guest, GATE_VMM: what the guest says at its networks, consoles and its serial
 * port is held by the VMM. `config` as for gate_open(), but ports are not asked for. What an engine left held
 * that died stays held, and its guest's. Close it before the guest. -EBUSY: another engine has it. */
int kvm_gate_open(struct gate **ret_gate, struct vmm *source, const char *socket_path,
                  const struct gate_config *config, const struct gate_events *events);

/*
 * Launch `argv` (the standby's own command line, with --control socket_path), with "--incoming" appended, and
 * wait until it is ready. `pid_path` and `log_path` as in qemu.h. -EADDRINUSE: a VMM serves the socket
 * already; -EBUSY: an earlier engine's guest runs; a VMM that ends instead is an error that carries its last
 * line of output.
 */
struct kvm_launch {
    char *const *argv;
    const char *socket_path, *pid_path, *log_path;
    uint32_t ready_ms; /* bound on start-up; 0: 10000 */
};
int kvm_launch(struct vmm **ret_target, const struct kvm_launch *launch);

/* Is there a VMM behind the socket, and what does its guest do? */
enum kvm_guest_state { KVM_GUEST_NONE, KVM_GUEST_WAITS, KVM_GUEST_STOPPED, KVM_GUEST_RUNS };
struct kvm_look {
    enum kvm_guest_state state;
    pid_t pid; /* of the VMM; 0: none */
};
int kvm_look(const char *socket_path, struct kvm_look *ret_look);

/* End the VMM whose guest an engine stopped for good. Nobody there: 0 too, with *ret_ended false.
 * -EADDRINUSE: what is there was not stopped so, or has an engine; it is not touched. -EBUSY: it does not
 * end. `ret_keep`, if not NULL: a copy of its memory, the caller's to free, where the host has room for it;
 * else NULL, and `why`. */
int kvm_retire(const char *socket_path, bool *ret_ended, struct vmm_keep **ret_keep, char *why,
               size_t why_room);

/* Process id of the VMM behind a guest of this driver. */
pid_t kvm_pid(const struct vmm *vmm);

#endif
