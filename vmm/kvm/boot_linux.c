/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/boot_internal.h"

#include "base/error.h"
#include "vmm/kvm/acpi.h"

#include <assert.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>

/*
 * A bzImage by the 64-bit boot protocol (Linux, Documentation/arch/x86/boot.rst):
 *
 *     file     setup, (setup_sects + 1) * 512 bytes: 16-bit code, not run, with the header at 0x1f1
 *              the kernel: code that unpacks the rest, to where it stands, and for that claims init_size
 *     entry    0x200 behind its beginning, in long mode, with RSI at boot_params: the header as it was in the
 *              file, completed, and what else a BIOS would have been asked
 *
 * It is put where it prefers to be (pref_address), which saves it moving itself.
 */

#define HEADER          0x1f1u
#define HEADER_END_BASE 0x202u /* the header ends at this and the byte before */
#define BOOT_FLAG       0xaa55u
#define MAGIC           0x53726448u /* "HdrS" */
#define VERSION_MIN     0x020cu     /* with xloadflags */
#define SECTOR          512u
#define SECTORS_DEFAULT 4u
#define PARAGRAPH       16u
#define ENTRY_64        0x200u
#define LOADER_UNKNOWN  0xffu

#define PAGE_PRESENT  0x1u
#define PAGE_WRITABLE 0x2u
#define PAGE_LARGE    0x80u
#define TABLE_BYTES   4096u
#define TABLE_ENTRIES 512u
#define LARGE_BYTES   (2ull << 20)
#define DIRECTORIES   4u /* of 1 GiB each */

static_assert(sizeof(struct boot_params) == 4096, "the kernel's");
static_assert(BOOT_PARAMS + sizeof(struct boot_params) <= BOOT_PAGE_TABLES, "they do not overlap");

static int refuse(const struct boot_image *image, const char *what)
{
    return error_set(-ENOEXEC, "kernel %s: a bzImage %s", image->path, what);
}

static int read_header(const struct boot_image *image, struct setup_header *ret_setup)
{
    struct setup_header setup = {0};
    uint8_t head[HEADER_END_BASE];
    int r = boot_read(image, head, sizeof head, 0);
    if (r < 0)
        return r;
    /* What is behind the end that it names is code. */
    size_t bytes = HEADER_END_BASE + head[HEADER_END_BASE - 1] - HEADER;
    if (bytes > sizeof setup)
        bytes = sizeof setup;
    r = boot_read(image, &setup, bytes, HEADER);
    if (r < 0)
        return r;
    if (setup.boot_flag != BOOT_FLAG || setup.header != MAGIC)
        return refuse(image, "without its signature");
    if (setup.version < VERSION_MIN || bytes < offsetof(struct setup_header, handover_offset))
        return refuse(image, "of a boot protocol before 2.12");
    if (!(setup.loadflags & LOADED_HIGH) || !(setup.xloadflags & XLF_KERNEL_64))
        return refuse(image, "without a 64-bit entry");
    *ret_setup = setup;
    return 0;
}

int boot_linux_load(struct guest_memory *memory, const struct boot_image *image,
                    struct boot_kernel *ret_kernel)
{
    struct setup_header setup;
    int r = read_header(image, &setup);
    if (r < 0)
        return r;
    unsigned sectors = setup.setup_sects ? setup.setup_sects : SECTORS_DEFAULT;
    uint64_t bytes = (uint64_t)setup.syssize * PARAGRAPH, offset = (sectors + 1) * SECTOR;
    if (bytes <= ENTRY_64)
        return refuse(image, "without a kernel");
    uint64_t begin = setup.pref_address, claimed = bytes > setup.init_size ? bytes : setup.init_size;
    r = boot_check_area(memory, image, begin, claimed);
    if (r == 0)
        r = boot_read(image, guest_memory_pointer(memory, begin, bytes), bytes, offset);
    if (r < 0)
        return r;
    guest_memory_mark(memory, begin, bytes);
    *ret_kernel = (struct boot_kernel){.entry = {.protocol = BOOT_LINUX_64, .address = begin + ENTRY_64},
                                       .end = begin + claimed,
                                       .initrd_end_max = setup.initrd_addr_max + 1ull,
                                       .command_line_max = setup.cmdline_size,
                                       .setup = setup};
    return 0;
}

static void put_entry(struct guest_memory *memory, unsigned table, unsigned index, uint64_t entry)
{
    guest_memory_write(memory, BOOT_PAGE_TABLES + table * TABLE_BYTES + index * sizeof entry, &entry,
                       sizeof entry);
}

/* Table 0 of level 4, 1 of level 3, the rest of level 2. */
static void write_page_tables(struct guest_memory *memory)
{
    const uint64_t flags = PAGE_PRESENT | PAGE_WRITABLE;
    put_entry(memory, 0, 0, (BOOT_PAGE_TABLES + TABLE_BYTES) | flags);
    for (unsigned i = 0; i < DIRECTORIES; i++) {
        put_entry(memory, 1, i, (BOOT_PAGE_TABLES + (2 + i) * TABLE_BYTES) | flags);
        for (unsigned k = 0; k < TABLE_ENTRIES; k++)
            put_entry(memory, 2 + i, k, (i * TABLE_ENTRIES + k) * LARGE_BYTES | flags | PAGE_LARGE);
    }
}

static void write_gdt(struct guest_memory *memory)
{
    static const uint64_t gdt[] = {0, 0, 0x00af9b000000ffffull, 0x00cf93000000ffffull};
    static_assert(BOOT_CODE == 2 * sizeof gdt[0] && BOOT_DATA == 3 * sizeof gdt[0], "as they lie here");
    guest_memory_write(memory, BOOT_GDT, gdt, sizeof gdt);
}

void boot_linux_tell(struct guest_memory *memory, const struct boot_kernel *kernel,
                     const struct boot_facts *facts)
{
    struct boot_params params = {.hdr = kernel->setup, .acpi_rsdp_addr = ACPI_ADDRESS};
    params.hdr.type_of_loader = LOADER_UNKNOWN;
    params.hdr.cmd_line_ptr = (uint32_t)facts->command_line;
    params.hdr.ramdisk_image = (uint32_t)facts->initrd;
    params.hdr.ramdisk_size = (uint32_t)facts->initrd_bytes;
    params.e820_entries = (uint8_t)facts->map_count;
    memcpy(params.e820_table, facts->map, sizeof facts->map);
    guest_memory_write(memory, BOOT_PARAMS, &params, sizeof params);
    write_gdt(memory);
    write_page_tables(memory);
}
