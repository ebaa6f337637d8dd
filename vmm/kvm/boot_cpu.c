/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/machine_internal.h"

#include "vmm/kvm/boot.h"
#include "vmm/kvm/ioctl.h"

#include <string.h>

/* vCPU 0 before a kernel's first instruction, as the protocol by which it boots has it (boot.h). */

#define CR0_PE   0x1u
#define CR0_ET   0x10u
#define CR0_PG   0x80000000u
#define CR4_PAE  0x20u
#define EFER_LME 0x100u
#define EFER_LMA 0x400u
#define GDT_LAST 0x1fu

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

static void set_segments(struct kvm_sregs *special, bool long_mode)
{
    struct kvm_segment code = {
        .limit = 0xffffffff, .selector = BOOT_CODE, .type = 0xb, .present = 1, .s = 1, .g = 1};
    const struct kvm_segment data = {
        .limit = 0xffffffff, .selector = BOOT_DATA, .type = 0x3, .present = 1, .db = 1, .s = 1, .g = 1};
    const struct kvm_segment task = {.limit = 0x67, .type = 0xb, .present = 1};
    code.l = long_mode;
    code.db = !long_mode;
    special->cs = code;
    special->ds = special->es = special->fs = special->gs = special->ss = data;
    special->tr = task;
}

static int set_registers(struct vcpu *vcpu, const struct boot_entry *entry)
{
    bool long_mode = entry->protocol == BOOT_LINUX_64;
    struct kvm_regs registers = {.rflags = 2, .rip = entry->address};
    struct kvm_sregs special;
    int r = kvm_call(vcpu->fd, KVM_GET_SREGS, &special);
    if (r < 0)
        return r;
    set_segments(&special, long_mode);
    special.cr0 = CR0_PE | CR0_ET;
    special.cr4 = special.efer = 0;
    if (long_mode) {
        special.gdt = (struct kvm_dtable){.base = BOOT_GDT, .limit = GDT_LAST};
        special.cr3 = BOOT_PAGE_TABLES;
        special.cr4 = CR4_PAE;
        special.efer = EFER_LME | EFER_LMA;
        special.cr0 |= CR0_PG;
        registers.rsi = BOOT_PARAMS;
    } else {
        registers.rbx = BOOT_START_INFO;
    }
    r = kvm_call(vcpu->fd, KVM_SET_SREGS, &special);
    if (r >= 0)
        r = kvm_call(vcpu->fd, KVM_SET_REGS, &registers);
    return r < 0 ? r : connect_pic(vcpu);
}

int machine_boot(struct machine *machine, const struct boot_files *files, const char *command_line)
{
    struct boot_entry entry;
    int r = boot_load(&machine->memory, machine->config.cpus, files, command_line, &entry);
    return r < 0 ? r : set_registers(&machine->vcpus[0], &entry);
}
