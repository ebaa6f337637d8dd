/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_DESCRIBE_H
#define UNDERSTUDY_VMM_QEMU_DESCRIBE_H

#include "vmm/qemu/disks.h"
#include "vmm/qemu/qmp.h"

/*
 * What must be equal in the QEMU that runs and in the one that waits, as "key value" lines (vmm_description's
 * text): driver, version, machine, cpu, smp, the CPU's feature words, and one "device"
 * line for each device. Nothing in it depends on
 * what the guest did, so that a QEMU that waits with -incoming defer and one that has run for a month give
 * the same text for the same command line. The caller frees it.
 */
int describe_guest(struct qmp *qmp, const struct qemu_disks *disks, char **ret_text);

/* The machine type's full name, "pc-q35-7.2"; the caller frees it. */
int describe_machine(struct qmp *qmp, char **ret_name);

#endif
