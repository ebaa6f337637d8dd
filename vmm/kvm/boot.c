/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/ioctl.h"

#include <elf.h>
#include <errno.h>
#include <stddef.h>
#include <string.h>
#include <unistd.h>

/*
 * Direct boot of an ELF kernel by its PVH entry: Xen's "x86/HVM direct boot ABI" (docs/misc/pvh.pandoc and
 * public/arch-x86/hvm/start_info.h there). The entry is in a note; it is reached in 32-bit protected mode,
 * flat, without paging, with the address of a start info in EBX.
 *
 *     0x6000  start info, memory map        0x7000  command line        0x100000 ...  the kernel, mostly
 */

#define START_INFO   0x6000
#define MEMORY_MAP   0x6100
#define COMMAND_LINE 0x7000
#define LOW_END      0x9fc00 /* what is above, up to 1 MiB, was always the BIOS's */
#define LOW_KERNEL   0x100000

#define START_MAGIC       0x336ec578u
#define NOTE_PHYS32_ENTRY 18
#define NOTES_MAX         65536
#define SEGMENTS_MAX      64
#define E820_RAM          1
#define E820_RESERVED     2

#define CR0_PE 1u
#define CR0_ET 0x10u

struct start_info {
    uint32_t magic, version, flags, module_count;
    uint64_t modules, command_line, rsdp, memory_map;
    uint32_t memory_map_entries, reserved;
};

struct memory_map_entry {
    uint64_t address, bytes;
    uint32_t type, reserved;
};

static int read_at(int fd, const char *path, void *to, size_t bytes, uint64_t offset)
{
    for (size_t done = 0; done < bytes;) {
        ssize_t got = pread(fd, (char *)to + done, bytes - done, (off_t)(offset + done));
        if (got < 0 && errno == EINTR)
            continue;
        if (got < 0)
            return error_errno(-errno, "kernel %s", path);
        if (got == 0)
            return error_set(-ENOEXEC, "kernel %s: it ends before byte %llu", path,
                             (unsigned long long)(offset + bytes));
        done += (size_t)got;
    }
    return 0;
}

static int load_segment(struct machine *machine, int fd, const char *path, const Elf64_Phdr *segment)
{
    void *to = guest_memory_pointer(&machine->memory, segment->p_paddr, segment->p_memsz);
    if (!to || segment->p_filesz > segment->p_memsz || segment->p_paddr < LOW_KERNEL)
        return error_set(-ENOEXEC,
                         "kernel %s: %llu bytes at 0x%llx are not in the guest's memory above 1 MiB", path,
                         (unsigned long long)segment->p_memsz, (unsigned long long)segment->p_paddr);
    int r = read_at(fd, path, to, segment->p_filesz, segment->p_offset);
    guest_memory_mark(&machine->memory, segment->p_paddr, segment->p_filesz);
    return r;
}

static uint64_t up_to_4(uint64_t bytes)
{
    return (bytes + 3) & ~3ull;
}

/* 1: found. */
static int find_entry(int fd, const char *path, const Elf64_Phdr *segment, uint32_t *ret_entry)
{
    uint64_t bytes = segment->p_filesz < NOTES_MAX ? segment->p_filesz : NOTES_MAX;
    uint8_t *notes cleanup_free = malloc(bytes + 1);
    if (!notes)
        return error_set(-ENOMEM, "kernel %s: no memory", path);
    int r = read_at(fd, path, notes, bytes, segment->p_offset);
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
            memcpy(ret_entry, notes + at + name, sizeof *ret_entry);
            return 1;
        }
        at += name + value;
    }
    return 0;
}

static int load_kernel(struct machine *machine, int fd, const char *path, uint32_t *ret_entry)
{
    Elf64_Ehdr elf;
    int r = read_at(fd, path, &elf, sizeof elf, 0);
    if (r < 0)
        return r;
    if (memcmp(elf.e_ident, ELFMAG, SELFMAG) != 0 || elf.e_ident[EI_CLASS] != ELFCLASS64 ||
        elf.e_machine != EM_X86_64 || elf.e_phentsize != sizeof(Elf64_Phdr) || elf.e_phnum > SEGMENTS_MAX)
        return error_set(-ENOEXEC, "kernel %s: not an ELF file for x86-64", path);
    bool entry = false;
    for (unsigned i = 0; r >= 0 && i < elf.e_phnum; i++) {
        Elf64_Phdr segment;
        r = read_at(fd, path, &segment, sizeof segment, elf.e_phoff + i * sizeof segment);
        if (r == 0 && segment.p_type == PT_LOAD && segment.p_memsz)
            r = load_segment(machine, fd, path, &segment);
        else if (r == 0 && segment.p_type == PT_NOTE && !entry) {
            r = find_entry(fd, path, &segment, ret_entry);
            entry = r > 0;
        }
    }
    if (r >= 0 && !entry)
        r = error_set(-ENOEXEC, "kernel %s: it has no PVH entry (note XEN_ELFNOTE_PHYS32_ENTRY)", path);
    return r < 0 ? r : 0;
}

/* All of it lies below 1 MiB, which every machine has. */
static void put(struct machine *machine, uint64_t address, const void *from, size_t bytes)
{
    guest_memory_write(&machine->memory, address, from, bytes);
}

static int write_start_info(struct machine *machine, const char *command_line)
{
    size_t length = strlen(command_line);
    if (length >= MACHINE_COMMAND_LINE_MAX)
        return error_set(-EINVAL, "the kernel's command line is longer than %d characters",
                         MACHINE_COMMAND_LINE_MAX - 1);
    uint64_t bytes = machine->config.memory_bytes, low = bytes < MACHINE_HOLE ? bytes : MACHINE_HOLE;
    const struct memory_map_entry map[] = {{0, LOW_END, E820_RAM, 0},
                                           {LOW_END, LOW_KERNEL - LOW_END, E820_RESERVED, 0},
                                           {LOW_KERNEL, low - LOW_KERNEL, E820_RAM, 0},
                                           {MACHINE_HIGH, bytes - low, E820_RAM, 0}};
    const struct start_info info = {.magic = START_MAGIC,
                                    .version = 1,
                                    .command_line = COMMAND_LINE,
                                    .memory_map = MEMORY_MAP,
                                    .memory_map_entries = bytes > low ? 4 : 3};
    put(machine, START_INFO, &info, sizeof info);
    put(machine, MEMORY_MAP, map, sizeof map);
    put(machine, COMMAND_LINE, command_line, length + 1);
    return 0;
}

/* As after a BIOS: the PIC's interrupts reach vCPU 0, and NMI is where it always was. */
static int connect_pic(struct vcpu *vcpu)
{
    struct kvm_lapic_state lapic;
    int r = kvm_call(vcpu->fd, KVM_GET_LAPIC, &lapic);
    if (r < 0)
        return r;
    const uint32_t external = 0x700, nmi = 0x400;
    memcpy(lapic.regs + 0x350, &external, sizeof external);
    memcpy(lapic.regs + 0x360, &nmi, sizeof nmi);
    return kvm_call(vcpu->fd, KVM_SET_LAPIC, &lapic);
}

static int set_registers(struct vcpu *vcpu, uint32_t entry)
{
    const struct kvm_segment code = {
        .limit = 0xffffffff, .selector = 0x08, .type = 0xb, .present = 1, .db = 1, .s = 1, .g = 1};
    const struct kvm_segment data = {
        .limit = 0xffffffff, .selector = 0x10, .type = 0x3, .present = 1, .db = 1, .s = 1, .g = 1};
    const struct kvm_segment task = {.limit = 0x67, .type = 0xb, .present = 1};
    const struct kvm_regs registers = {.rflags = 2, .rip = entry, .rbx = START_INFO};
    struct kvm_sregs special;
    int r = kvm_call(vcpu->fd, KVM_GET_SREGS, &special);
    if (r < 0)
        return r;
    special.cs = code;
    special.ds = special.es = special.fs = special.gs = special.ss = data;
    special.tr = task;
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = special.efer = 0;
    r = kvm_call(vcpu->fd, KVM_SET_SREGS, &special);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_REGS, &registers);
    return r < 0 ? r : connect_pic(vcpu);
}

int machine_boot(struct machine *machine, int fd, const char *path, const char *command_line)
{
    uint32_t entry = 0;
    int r = load_kernel(machine, fd, path, &entry);
    if (r == 0)
        r = write_start_info(machine, command_line);
    return r < 0 ? r : set_registers(&machine->vcpus[0], entry);
}
