/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The bare guest as a bzImage, for loaders of Linux's 64-bit boot protocol (Documentation/arch/x86/boot.rst): the header
 * at 0x1f1 of the file, and an entry in long mode, which makes of boot_params the start info that pvh_entry wants,
 * leaves long mode and goes there.
 */
#define SETUP_SECTS 1

#define CODE32   0x08
#define DATA     0x10
#define MSR_EFER 0xc0000080

#define PARAMS_E820_COUNT   0x1e8
#define PARAMS_COMMAND_LINE 0x228
#define PARAMS_E820         0x2d0
#define E820_BYTES          20
#define MAP_BYTES           24
#define MAP_MAX             128

    .section .setup, "a"
    .skip 0x1f1
    .byte SETUP_SECTS
    .word 0
    .long bzimage_paragraphs
    .word 0, 0, 0
    .word 0xaa55
    .byte 0xeb, header_end - 1f
1:  .ascii "HdrS"
    .word 0x020f
    .long 0
    .word 0, 0
    .byte 0, 1 /* loader; LOADED_HIGH */
    .word 0
    .long 0, 0, 0, 0
    .word 0
    .byte 0, 0
    .long 0
    .long 0x7fffffff /* initrd_addr_max */
    .long 0x1000     /* alignment */
    .byte 0, 12      /* not relocatable */
    .word 1          /* XLF_KERNEL_64 */
    .long 2047       /* of the command line */
    .long 0
    .quad 0
    .long 0, 0
    .quad 0
    .quad bzimage_begin /* pref_address */
    .long bzimage_claims
    .long 0, 0
header_end:

    .section .head, "ax"
    .code64
    cld
    mov $start_info, %edi
    movl $0x336ec578, 0(%rdi)
    movl $1, 4(%rdi)
    mov PARAMS_COMMAND_LINE(%rsi), %eax
    mov %rax, 24(%rdi)
    movq $memory_map, 40(%rdi)
    movzbl PARAMS_E820_COUNT(%rsi), %edx
    mov %edx, 48(%rdi)

    add $PARAMS_E820, %rsi
    mov $memory_map, %edi
1:  test %edx, %edx
    jz 2f
    mov $E820_BYTES, %ecx
    rep movsb
    add $(MAP_BYTES - E820_BYTES), %rdi
    dec %edx
    jmp 1b

2:  mov $stack_end, %esp
    lgdt gdt_pointer
    push $CODE32
    push $leave_long
    lretq

    .code32
leave_long:
    mov $DATA, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %cr0, %eax
    and $0x7fffffff, %eax
    mov %eax, %cr0
    mov $MSR_EFER, %ecx
    xor %eax, %eax
    xor %edx, %edx
    wrmsr
    mov $start_info, %ebx
    jmp pvh_entry

    .balign 8
gdt:
    .quad 0
    .quad 0x00cf9b000000ffff
    .quad 0x00cf93000000ffff
gdt_pointer:
    .word gdt_pointer - gdt - 1
    .quad gdt

    .bss
    .balign 8
start_info:
    .skip 56
memory_map:
    .skip MAP_BYTES * MAP_MAX
    .skip 64
stack_end:

    .section .note.GNU-stack, "", @progbits
