/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_SAMPLES_KVM_BOOT_H
#define UNDERSTUDY_TESTS_SAMPLES_KVM_BOOT_H

#include <asm/bootparam.h>
#include <elf.h>
#include <stddef.h>
#include <stdint.h>

/* Kernels of some bytes that go nowhere, and are what a loader wants to see. */

#define KVM_SAMPLE_KERNEL_ROOM 8192
#define KVM_SAMPLE_HEADER      0x1f1 /* struct setup_header of the bzImage */
#define KVM_SAMPLE_PAYLOAD     1024  /* where in the file its kernel begins; KVM_SAMPLE_CODE everywhere */
#define KVM_SAMPLE_BYTES       1024  /* of it */
#define KVM_SAMPLE_CODE        0xf4
#define KVM_SAMPLE_PLACE       0x100000 /* of either kernel */
#define KVM_SAMPLE_CLAIMS      0x10000  /* and what it wants of memory there */
#define KVM_SAMPLE_ENTRY       0x100010 /* of the ELF */

/* Write one to `to` (KVM_SAMPLE_KERNEL_ROOM bytes, all of which are set). Returns its length. */
size_t kvm_sample_bzimage(uint8_t *to);
/* Program headers: 0 loads, 1 has the note. */
size_t kvm_sample_elf(uint8_t *to);

#endif
