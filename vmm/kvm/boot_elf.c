/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/boot_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/acpi.h"

#include <elf.h>
#include <errno.h>
#include <string.h>

/*
 * An ELF kernel by its PVH entry: Xen's "x86/HVM direct boot ABI" (docs/misc/pvh.pandoc and
 * public/arch-x86/hvm/start_info.h there). The entry is in a note; it is reached in 32-bit protected mode,
 * flat, without paging, with the address of a start info in EBX.
 */

#define MODULES    (BOOT_START_INFO + 0x80u)
#define MEMORY_MAP (BOOT_START_INFO + 0x100u)

#define START_MAGIC       0x336ec578u
#define NOTE_PHYS32_ENTRY 18
#define NOTES_MAX         65536
#define SEGMENTS_MAX      64

struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

struct module {
    uint64_t address, bytes, command_line, reserved;
};

struct memory_map_entry {
    uint64_t address, bytes;
    uint32_t type, reserved;
};

static int load_segment(struct guest_memory *memory, const struct boot_image *image,
                        const Elf64_Phdr *segment, struct boot_kernel *kernel)
{
    uint64_t begin = segment->p_paddr;
    int r = boot_check_area(memory, image, begin, segment->p_memsz);
    if (r == 0 && segment->p_filesz > segment->p_memsz)
        r = error_set(-ENOEXEC, "kernel %s: a segment of %llu bytes with %llu in the file", image->path,
                      (unsigned long long)segment->p_memsz, (unsigned long long)segment->p_filesz);
    if (r < 0)
        return r;
    r = boot_read(image, guest_memory_pointer(memory, begin, segment->p_filesz), segment->p_filesz,
                  segment->p_offset);
    guest_memory_mark(memory, begin, segment->p_filesz);
    if (begin + segment->p_memsz > kernel->end)
        kernel->end = begin + segment->p_memsz;
    return r;
}

static uint64_t up_to_4(uint64_t bytes)
{
    return (bytes + 3) & ~3ull;
}

/* 1: found. */
static int find_entry(const struct boot_image *image, const Elf64_Phdr *segment, uint64_t *ret_entry)
{
    uint64_t bytes = segment->p_filesz < NOTES_MAX ? segment->p_filesz : NOTES_MAX;
    uint8_t *notes cleanup_free = malloc(bytes + 1);
    if (!notes)
        return error_set(-ENOMEM, "kernel %s: no memory", image->path);
    int r = boot_read(image, notes, bytes, segment->p_offset);
    if (r < 0)
        return r;
    for (uint64_t at = 0; bytes - at >= sizeof(Elf64_Nhdr);) {
        Elf64_Nhdr note;
        memcpy(&note, notes + at, sizeof note);
        at += sizeof note;
        uint64_t name = up_to_4(note.n_namesz), value = up_to_4(note.n_descsz);
        if (name > bytes - at || value > bytes - at - name)
            break;
        if (note.n_type == NOTE_PHYS32_ENTRY && note.n_namesz == 4 && memcmp(notes + at, "Xen", 4) == 0 &&
            note.n_descsz >= 4) {
            uint32_t entry;
            memcpy(&entry, notes + at + name, sizeof entry);
            *ret_entry = entry;
            return 1;
        }
        at += name + value;
    }
    return 0;
}

int boot_elf_load(struct guest_memory *memory, const struct boot_image *image, struct boot_kernel *ret_kernel)
{
    struct boot_kernel kernel = {
        .entry.protocol = BOOT_PVH, .initrd_end_max = UINT32_MAX, .command_line_max = BOOT_COMMAND_LINE_MAX};
    Elf64_Ehdr elf;
    int r = boot_read(image, &elf, sizeof elf, 0);
    if (r < 0)
        return r;
    if (elf.e_ident[EI_CLASS] != ELFCLASS64 || elf.e_machine != EM_X86_64 ||
        elf.e_phentsize != sizeof(Elf64_Phdr) || elf.e_phnum > SEGMENTS_MAX)
        return error_set(-ENOEXEC, "kernel %s: not an ELF file for x86-64", image->path);
    bool entry = false;
    for (unsigned i = 0; r >= 0 && i < elf.e_phnum; i++) {
        Elf64_Phdr segment;
        r = boot_read(image, &segment, sizeof segment, elf.e_phoff + i * sizeof segment);
        if (r == 0 && segment.p_type == PT_LOAD && segment.p_memsz)
            r = load_segment(memory, image, &segment, &kernel);
        else if (r == 0 && segment.p_type == PT_NOTE && !entry) {
            r = find_entry(image, &segment, &kernel.entry.address);
            entry = r > 0;
        }
    }
    if (r >= 0 && !entry)
        r = error_set(-ENOEXEC, "kernel %s: it has no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)",
                      image->path);
    if (r < 0)
        return r;
    *ret_kernel = kernel;
    return 0;
}

void boot_elf_tell(struct guest_memory *memory, const struct boot_facts *facts)
{
    const struct module initrd = {.address = facts->initrd, .bytes = facts->initrd_bytes};
    const struct start_info info = {.magic = START_MAGIC,
                                    .version = 1,
                                    .module_count = facts->initrd_bytes ? 1 : 0,
                                    .modules = facts->initrd_bytes ? MODULES : 0,
                                    .command_line = facts->command_line,
                                    .rsdp = ACPI_ADDRESS,
                                    .memory_map = MEMORY_MAP,
                                    .memory_map_entries = facts->map_count};
    guest_memory_write(memory, BOOT_START_INFO, &info, sizeof info);
    guest_memory_write(memory, MODULES, &initrd, sizeof initrd);
    for (unsigned i = 0; i < facts->map_count; i++) {
        const struct memory_map_entry entry = {
            .address = facts->map[i].addr, .bytes = facts->map[i].size, .type = facts->map[i].type};
        guest_memory_write(memory, MEMORY_MAP + i * sizeof entry, &entry, sizeof entry);
    }
}
