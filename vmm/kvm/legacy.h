/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_LEGACY_H
#define UNDERSTUDY_VMM_KVM_LEGACY_H

#include "vmm/kvm/machine.h"
#include "vmm/kvm/output.h"

/*
 * The devices of a PC that a guest cannot do without. Each is added to the machine's bus, which
 * owns it.
 */

/* A 16550 at 0x3f8, IRQ 4. What it sends is a port of `output`, over whose bound the newest is lost; what it
 * receives comes from `in_fd`, -1: from nowhere. Both descriptors stay the caller's and are made
 * non-blocking. */
int serial_add(struct machine *machine, struct io *io, struct output *output, int in_fd, int out_fd);

/* The keyboard controller's reset line (0xfe to port 0x64), and a port (0x501) whose value is the guest's
 * last word. */
int reset_add(struct machine *machine);

/* The registers by which a guest that reads ACPI tables (acpi.h) switches itself off. */
int power_add(struct machine *machine);

#endif
