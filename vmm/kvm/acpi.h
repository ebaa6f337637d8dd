/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_ACPI_H
#define UNDERSTUDY_VMM_KVM_ACPI_H

#include <stddef.h>
#include <stdint.h>

/*
 * The tables from which a kernel learns of vCPUs and interrupt controllers, and how to switch off (ACPI 6.4,
 * chapter 5). What they say is there is in legacy.h and in the kernel's KVM.
 */

#define ACPI_ADDRESS   0xe0000u /* of the RSDP; all else follows, below 1 MiB */
#define ACPI_BYTES_MAX 4096u

#define ACPI_POWER_PORT 0x600 /* PM1 status, enable (16 bits each), control (16) */
#define ACPI_SLEEP_OFF  0     /* what \_S5 says: bits 10 to 12 of the control */

/* Write them to `to` (ACPI_BYTES_MAX) as they are to lie at ACPI_ADDRESS. Returns how many bytes. Pure. */
size_t acpi_tables(unsigned cpus, uint8_t *to);

#endif
