/* SPDX-License-Identifier: Apache-2.0 */
/*
 * How a vCPU gets from its first instruction to C in long mode.
 *
 * The first one begins at pvh_entry, in 32-bit protected mode without paging, with the address of hvm_start_info in EBX
 * (Xen's "x86/HVM direct boot ABI"). The others begin in real mode at GUEST_TRAMPOLINE, where ap_start was copied,
 * and find their stack and number in ap_stack and ap_number.
 *
 * Memory is mapped one to one with pages of 2 MiB, because not every QEMU model has larger ones: 4 GiB here, more by
 * cpus_map(). What lies here beyond RAM is devices.
 */
#define TRAMPOLINE 0x8000 /* GUEST_TRAMPOLINE */
#define CODE32     0x08
#define DATA       0x10
#define CODE64     0x18

#define CR0_LONG   0x80010033 /* PG, WP, NE, ET, MP, PE */
#define CR4_LONG   0x620      /* OSXMMEXCPT, OSFXSR, PAE */
#define MSR_EFER   0xc0000080
#define EFER_LME   0x100
#define APIC_EOI   0xfee000b0
#define VIRTIO_INTERRUPT 0x60 /* over MMIO: InterruptStatus */
#define VIRTIO_ACK       0x64
#define CPU_TIMER  32 /* of timer in struct guest_cpu */

    .section .note.pvh, "a", @note
    .balign 4
    .long 4, 4, 18 /* name's and value's length, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long pvh_entry

    .text
    .code32
    .globl pvh_entry
pvh_entry:
    cld
    mov $boot_stack_end, %esp
    mov %ebx, %ebp

    movl $page_directories + 3, %eax
    movl $page_pointers, %edi
    movl $4, %ecx
1:  movl %eax, (%edi)
    addl $4096, %eax
    addl $8, %edi
    loop 1b
    movl $page_pointers + 3, page_root

    movl $0x83, %eax /* present, writable, 2 MiB */
    movl $page_directories, %edi
    movl $2048, %ecx
1:  movl %eax, (%edi)
    addl $0x200000, %eax
    addl $8, %edi
    loop 1b

    call enter_long
    lgdt gdt_pointer
    ljmp $CODE64, $boot64

/* Paging on, in 32-bit compatibility mode. Spoils eax, ecx, edx. */
enter_long:
    movl $CR4_LONG, %eax
    mov %eax, %cr4
    movl $page_root, %eax
    mov %eax, %cr3
    movl $MSR_EFER, %ecx
    rdmsr
    orl $EFER_LME, %eax
    wrmsr
    movl $CR0_LONG, %eax
    mov %eax, %cr0
    ret

    .code64
boot64:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %ebp, %edi
    xor %ebp, %ebp
    call guest_main
1:  hlt
    jmp 1b

    .code16
    .globl ap_start, ap_end
ap_start:
    cli
    cld
    xor %ax, %ax
    mov %ax, %ds
    lgdtl TRAMPOLINE + ap_gdt_pointer - ap_start
    movl $0x11, %eax
    mov %eax, %cr0
    ljmpl $CODE32, $(TRAMPOLINE + ap_protected - ap_start)
    .code32
ap_protected:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov ap_stack, %esp
    mov $enter_long, %eax
    call *%eax
    ljmp $CODE64, $ap64
    .balign 8
ap_gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt
ap_end:

    .code64
ap64:
    mov ap_stack, %rsp
    mov ap_number, %edi
    xor %ebp, %ebp
    call guest_ap_main
1:  hlt
    jmp 1b

/* Entry n of exceptions, 16 bytes long, reports exception n. Those that push no error code get a zero. */
    .balign 16
    .globl exceptions
exceptions:
    .set vector, 0
    .rept 32
    .balign 16
    .if !((vector == 8) || ((vector >= 10) && (vector <= 14)) || (vector == 17) || (vector == 21) || (vector == 29) || (vector == 30))
    push $0
    .endif
    push $vector
    jmp exception
    .set vector, vector + 1
    .endr
    .balign 16
exception:
    cli
    cld
    pop %rdi
    pop %rsi
    pop %rdx
    mov %cr2, %rcx
    and $-16, %rsp
    call cpus_exception

/* One more tick of this vCPU, whose struct guest_cpu lies where %gs:0 says. */
    .globl interrupt_timer, interrupt_spurious
interrupt_timer:
    push %rax
    mov %gs:0, %rax
    incq CPU_TIMER(%rax)
    mov $APIC_EOI, %eax
    movl $0, (%rax)
    pop %rax
interrupt_spurious:
    iretq

/* A virtio device has done something: take its reasons away from it, and count. */
    .macro interrupt_virtio name
    .globl interrupt_\name
interrupt_\name:
    push %rax
    push %rdx
    mov \name\()_device, %rdx
    mov VIRTIO_INTERRUPT(%rdx), %eax
    mov %eax, VIRTIO_ACK(%rdx)
    incq \name\()_interrupts
    mov $APIC_EOI, %eax
    movl $0, (%rax)
    pop %rdx
    pop %rax
    iretq
    .endm
    interrupt_virtio net
    interrupt_virtio disk

    .section .rodata
    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
    .quad 0x00af9b000000ffff
gdt_end:
gdt_pointer:
    .word gdt_end - gdt - 1
    .long gdt

    .bss
    .balign 4096
    .globl page_pointers, page_directories
page_root:
    .skip 4096
page_pointers:
    .skip 4096
page_directories:
    .skip 4096 * 64 /* MEMORY_GIB_MAX */
    .skip 8192
boot_stack_end:

    .section .note.GNU-stack, "", @progbits
