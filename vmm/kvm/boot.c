/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/boot_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/acpi.h"

#include <assert.h>
#include <elf.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/*
 * Theory of operation
 *
 *     0x5000   GDT │ PVH's start info │ command line │ boot_params │ page tables │ ... 0xe0000 ACPI tables
 *     1 MiB    the kernel, where it says; what it claims for unpacking itself, or for its variables
 *     ...
 *     the end  initrd: as high below the hole as the kernel allows, where no kernel puts anything so early
 *
 * What lies between is the kernel's: it learns from the memory map that it is RAM.
 */

#define COMMAND_LINE  0x7000u
#define LOW_END       0x9fc00u /* what is above, up to 1 MiB, was always the BIOS's */
#define MAGIC_BYTES   0x206u   /* as far as either magic is */
#define E820_RAM      1u
#define E820_RESERVED 2u

static_assert(COMMAND_LINE + BOOT_COMMAND_LINE_MAX <= BOOT_PARAMS, "they do not overlap");

int boot_read(const struct boot_image *image, void *to, size_t bytes, uint64_t offset)
{
    if (offset > image->bytes || bytes > image->bytes - offset)
        return error_set(-ENOEXEC, "%s %s: it ends before byte %llu", image->what, image->path,
                         (unsigned long long)offset + bytes);
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(image->fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(-errno, "%s %s", image->what, image->path);
        if (got == 0)
            return error_set(-ENOEXEC, "%s %s: it became shorter", image->what, image->path);
        done += (size_t)got;
    }
    return 0;
}

int boot_check_area(const struct guest_memory *memory, const struct boot_image *image, uint64_t begin,
                    uint64_t bytes)
{
    const struct guest_slot *low = &memory->slots[0];
    if (begin < BOOT_LOW_KERNEL || begin > low->bytes || bytes > low->bytes - begin)
        return error_set(-EFBIG, "%s %s: %llu bytes at 0x%llx are not in the guest's memory above 1 MiB",
                         image->what, image->path, (unsigned long long)bytes, (unsigned long long)begin);
    return 0;
}

static int open_image(struct boot_image *image)
{
    struct stat status;
    if (fstat(image->fd, &status) < 0)
        return error_errno(-errno, "%s %s", image->what, image->path);
    image->bytes = (uint64_t)status.st_size;
    return 0;
}

static int load_kernel(struct guest_memory *memory, const struct boot_image *image,
                       struct boot_kernel *ret_kernel)
{
    uint8_t magic[MAGIC_BYTES] = {0};
    int r = boot_read(image, magic, image->bytes < sizeof magic ? image->bytes : sizeof magic, 0);
    if (r < 0)
        return r;
    if (memcmp(magic, ELFMAG, SELFMAG) == 0)
        return boot_elf_load(memory, image, ret_kernel);
    if (memcmp(magic + 0x202, "HdrS", 4) == 0)
        return boot_linux_load(memory, image, ret_kernel);
    return error_set(-ENOEXEC, "kernel %s: neither an ELF file nor a Linux bzImage", image->path);
}

static int load_initrd(struct guest_memory *memory, const struct boot_image *image,
                       const struct boot_kernel *kernel, struct boot_facts *facts)
{
    uint64_t end = memory->slots[0].bytes;
    if (end > kernel->initrd_end_max)
        end = kernel->initrd_end_max;
    uint64_t begin = image->bytes <= end ? (end - image->bytes) & ~(GUEST_MEMORY_PAGE - 1ull) : 0;
    if (begin < kernel->end || begin < BOOT_LOW_KERNEL)
        return error_set(-EFBIG,
                         "initrd %s: %llu bytes do not fit in the guest's memory between 0x%llx, where the "
                         "kernel ends, and 0x%llx",
                         image->path, (unsigned long long)image->bytes, (unsigned long long)kernel->end,
                         (unsigned long long)end);
    int r = boot_read(image, guest_memory_pointer(memory, begin, image->bytes), image->bytes, 0);
    guest_memory_mark(memory, begin, image->bytes);
    facts->initrd = begin;
    facts->initrd_bytes = image->bytes;
    return r;
}

static void add_map(struct boot_facts *facts, uint64_t begin, uint64_t bytes, uint32_t type)
{
    facts->map[facts->map_count++] = (struct boot_e820_entry){.addr = begin, .size = bytes, .type = type};
}

static int tell(struct guest_memory *memory, unsigned cpus, const struct boot_kernel *kernel,
                const char *command_line, struct boot_facts *facts)
{
    uint8_t tables[ACPI_BYTES_MAX];
    size_t length = strlen(command_line);
    size_t most = BOOT_COMMAND_LINE_MAX - 1;
    if (most > kernel->command_line_max)
        most = kernel->command_line_max;
    if (length > most)
        return error_set(-EINVAL, "the kernel's command line is longer than %zu characters", most);
    facts->command_line = COMMAND_LINE;
    guest_memory_write(memory, COMMAND_LINE, command_line, length + 1);
    guest_memory_write(memory, ACPI_ADDRESS, tables, acpi_tables(cpus, tables));
    add_map(facts, 0, LOW_END, E820_RAM);
    add_map(facts, LOW_END, BOOT_LOW_KERNEL - LOW_END, E820_RESERVED);
    add_map(facts, BOOT_LOW_KERNEL, memory->slots[0].bytes - BOOT_LOW_KERNEL, E820_RAM);
    if (memory->slot_count > 1)
        add_map(facts, memory->slots[1].gpa, memory->slots[1].bytes, E820_RAM);
    if (kernel->entry.protocol == BOOT_PVH)
        boot_elf_tell(memory, facts);
    else
        boot_linux_tell(memory, kernel, facts);
    return 0;
}

int boot_load(struct guest_memory *memory, unsigned cpus, const struct boot_files *files,
              const char *command_line, struct boot_entry *ret_entry)
{
    struct boot_image image = {.fd = files->kernel, .what = "kernel", .path = files->kernel_path};
    struct boot_image initrd = {.fd = files->initrd, .what = "initrd", .path = files->initrd_path};
    struct boot_kernel kernel = {0};
    struct boot_facts facts = {0};
    int r = open_image(&image);
    if (r == 0)
        r = load_kernel(memory, &image, &kernel);
    if (r == 0 && initrd.fd >= 0)
        r = open_image(&initrd);
    if (r == 0 && initrd.fd >= 0)
        r = load_initrd(memory, &initrd, &kernel, &facts);
    if (r == 0)
        r = tell(memory, cpus, &kernel, command_line, &facts);
    if (r == 0)
        *ret_entry = kernel.entry;
    return r;
}
