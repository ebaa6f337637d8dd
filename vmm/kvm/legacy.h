/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_LEGACY_H
#define UNDERSTUDY_VMM_KVM_LEGACY_H

#include "vmm/kvm/machine.h"

/*
 * The devices of a PC that a guest cannot do without. Each is added to the machine's bus, which
 * owns it.
 */

/* A 16550 at 0x3f8, IRQ 4, that can only send: its output goes to `fd` (the caller's; -1: nowhere), a line at
 * a time, and is not held until a checkpoint is acknowledged. What a full pipe or terminal does not take is
 * lost. */
int serial_add(struct machine *machine, int fd);

/* The keyboard controller's reset line (0xfe to port 0x64), and a port (0x501) whose value is the guest's
 * last word. */
int reset_add(struct machine *machine);

/* The registers by which a guest that reads ACPI tables (acpi.h) switches itself off. */
int power_add(struct machine *machine);

#endif
