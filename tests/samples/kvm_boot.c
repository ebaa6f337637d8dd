/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/samples/kvm_boot.h"

#include <string.h>

#define NOTE_AT 512

size_t kvm_sample_bzimage(uint8_t *to)
{
    const struct setup_header setup = {.setup_sects = 1,
                                       .syssize = KVM_SAMPLE_BYTES / 16,
                                       .boot_flag = 0xaa55,
                                       .jump = 0xeb | (0x268 - 0x202) << 8,
                                       .header = 0x53726448,
                                       .version = 0x20f,
                                       .loadflags = LOADED_HIGH,
                                       .initrd_addr_max = 0x7fffffff,
                                       .xloadflags = XLF_KERNEL_64,
                                       .cmdline_size = 255,
                                       .pref_address = KVM_SAMPLE_PLACE,
                                       .init_size = KVM_SAMPLE_CLAIMS};
    memset(to, 0, KVM_SAMPLE_KERNEL_ROOM);
    memcpy(to + KVM_SAMPLE_HEADER, &setup, sizeof setup);
    memset(to + KVM_SAMPLE_PAYLOAD, KVM_SAMPLE_CODE, KVM_SAMPLE_BYTES);
    return KVM_SAMPLE_PAYLOAD + KVM_SAMPLE_BYTES;
}

size_t kvm_sample_elf(uint8_t *to)
{
    const Elf64_Ehdr elf = {.e_ident = {ELFMAG0, ELFMAG1, ELFMAG2, ELFMAG3, ELFCLASS64},
                            .e_machine = EM_X86_64,
                            .e_phoff = sizeof elf,
                            .e_phentsize = sizeof(Elf64_Phdr),
                            .e_phnum = 2};
    const struct {
        Elf64_Nhdr header;
        char name[4];
        uint32_t entry;
    } note = {{.n_namesz = 4, .n_descsz = 4, .n_type = 18}, "Xen", KVM_SAMPLE_ENTRY};
    const Elf64_Phdr segments[] = {{.p_type = PT_LOAD,
                                    .p_offset = KVM_SAMPLE_PAYLOAD,
                                    .p_paddr = KVM_SAMPLE_PLACE,
                                    .p_filesz = KVM_SAMPLE_BYTES,
                                    .p_memsz = KVM_SAMPLE_CLAIMS},
                                   {.p_type = PT_NOTE, .p_offset = NOTE_AT, .p_filesz = sizeof note}};
    memset(to, 0, KVM_SAMPLE_KERNEL_ROOM);
    memcpy(to, &elf, sizeof elf);
    memcpy(to + sizeof elf, segments, sizeof segments);
    memcpy(to + NOTE_AT, &note, sizeof note);
    memset(to + KVM_SAMPLE_PAYLOAD, KVM_SAMPLE_CODE, KVM_SAMPLE_BYTES);
    return KVM_SAMPLE_PAYLOAD + KVM_SAMPLE_BYTES;
}
