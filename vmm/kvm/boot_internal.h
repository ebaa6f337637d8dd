/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_BOOT_INTERNAL_H
#define UNDERSTUDY_VMM_KVM_BOOT_INTERNAL_H

#include "vmm/kvm/boot.h"

#include <asm/bootparam.h>

/* What the files of the loader share. */

#define BOOT_LOW_KERNEL 0x100000u /* what lies below 1 MiB is ours and a BIOS's */
#define BOOT_E820_MAX   4u

struct boot_image {
    int fd;
    const char *what, *path; /* "kernel" */
    uint64_t bytes;
};

/* -ENOEXEC when the file ends before. */
int boot_read(const struct boot_image *image, void *to, size_t bytes, uint64_t offset);

/* A kernel that lies in memory. */
struct boot_kernel {
    struct boot_entry entry;
    uint64_t end;              /* of the memory that it claims before it has read the memory map */
    uint64_t initrd_end_max;   /* an initrd must end there or before */
    size_t command_line_max;   /* without its NUL */
    struct setup_header setup; /* of BOOT_LINUX_64 */
};

/* What kernels are told. */
struct boot_facts {
    uint64_t command_line, initrd, initrd_bytes;
    struct boot_e820_entry map[BOOT_E820_MAX];
    unsigned map_count;
};

/* All of it in RAM between 1 MiB and the hole? Says so if not (-EFBIG). */
int boot_check_area(const struct guest_memory *memory, const struct boot_image *image, uint64_t begin,
                    uint64_t bytes);

/* boot_elf.c, boot_linux.c: load a kernel; tell it what there is. */
int boot_elf_load(struct guest_memory *memory, const struct boot_image *image,
                  struct boot_kernel *ret_kernel);
void boot_elf_tell(struct guest_memory *memory, const struct boot_facts *facts);
int boot_linux_load(struct guest_memory *memory, const struct boot_image *image,
                    struct boot_kernel *ret_kernel);
void boot_linux_tell(struct guest_memory *memory, const struct boot_kernel *kernel,
                     const struct boot_facts *facts);

#endif
