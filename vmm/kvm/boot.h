/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_BOOT_H
#define UNDERSTUDY_VMM_KVM_BOOT_H

#include "vmm/kvm/guest_memory.h"

/*
 * A kernel without firmware: an ELF by its PVH entry, or a Linux bzImage by the 64-bit boot protocol. This
 * puts all that a kernel finds at its first instruction into memory; it knows no machine, so a fuzzer can
 * feed it. What the files say is not trusted.
 */

#define BOOT_COMMAND_LINE_MAX 2048 /* with its NUL */

/* Open for reading, the caller's; paths are for error texts. */
struct boot_files {
    int kernel, initrd; /* -1: there is no initrd */
    const char *kernel_path, *initrd_path;
};

enum boot_protocol { BOOT_PVH, BOOT_LINUX_64 };

struct boot_entry {
    enum boot_protocol protocol;
    uint64_t address; /* of the first instruction */
};

/* Where vCPU 0 finds what; all of it below 640 KiB. */
#define BOOT_GDT         0x5000u /* of BOOT_LINUX_64 */
#define BOOT_START_INFO  0x6000u /* of BOOT_PVH */
#define BOOT_PARAMS      0x8000u /* of BOOT_LINUX_64 */
#define BOOT_PAGE_TABLES 0x9000u /* likewise: the first 4 GiB at their own addresses */
#define BOOT_CODE        0x10u   /* selectors in BOOT_GDT */
#define BOOT_DATA        0x18u

/* -ENOEXEC: no kernel that this can boot, with what is wrong; -EFBIG: the guest's memory is too small for it;
 * -EINVAL: its command line is too long. RAM is zeros before; after a failure it is good for nothing. */
int boot_load(struct guest_memory *memory, unsigned cpus, const struct boot_files *files,
              const char *command_line, struct boot_entry *ret_entry);

#endif
