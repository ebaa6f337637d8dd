/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_LIBVIRT_H
#define UNDERSTUDY_VMM_QEMU_LIBVIRT_H

#include "vmm/qemu/qemu.h"
#include "vmm/qemu/qmp.h"

/*
 * The monitor of a domain of libvirt's. libvirtd holds it, so commands go through libvirtd, by a process that
 * speaks QMP to us and libvirt's protocol to it (vmm/libvirt/bridge.h has the theory). What is different from
 * a socket of one's own: a command costs several times as much, qmp_prime() gains nothing, QEMU's monitor
 * is not ours alone, and libvirtd may go away for a while without QEMU doing so.
 *
 * `start`: create the domain from its persistent definition in this libvirtd, paused, waiting for an incoming
 * migration; it is destroyed with the monitor's end unless "cont" was said by then. Otherwise the domain
 * runs.
 *
 * -ENOENT: no such domain, or understudy-libvirt is not installed; -ESRCH: it does not run; -EBUSY: it does
 * (start); -ECONNREFUSED: no libvirtd there; -ECHILD: libvirt cannot start it.
 */
int libvirt_open(struct qmp **ret_qmp, const struct qemu_domain *domain, bool start, uint32_t timeout_ms);

#endif
