/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_DRIVER_VM_H
#define UNDERSTUDY_TESTS_DRIVER_VM_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* A QEMU as somebody else would run it: the driver attaches to it from outside. */
struct vm {
    char directory[64];
    char qmp[96], second[96]; /* two monitors */
    char serial[96], log[96], disk[96];
    pid_t pid;
};

/* Where the test guest's image is; makes it first. Skips the test when it cannot be made. */
const char *vm_image(void);

/* Skips the test, saying why, where attaching cannot work at all. */
void vm_need_userfaultfd(void);

/* A directory for the VM; vm_free() removes it and ends the QEMU. */
void vm_init(struct vm *vm);

/* Write a disk image of the test guest's pattern to vm->disk. */
void vm_make_disk(struct vm *vm, const char *bytes);

/* Start QEMU with these arguments (separated by blanks, none has a blank inside) and, unless NULL, the test
 * guest with these kernel parameters. Waits for the monitor. With `unprivileged`, as nobody and with QEMU's
 * sandbox on. */
void vm_start(struct vm *vm, bool unprivileged, const char *arguments, const char *parameters);
void vm_free(struct vm *vm);

/* Wait until the guest prints a line that begins with `word` after its first `from` bytes of output. */
void vm_await(const struct vm *vm, const char *word, unsigned from);
unsigned vm_printed(const struct vm *vm);

/* A QMP command on the second monitor; fails the test if QEMU refuses it. */
void vm_command(const struct vm *vm, const char *command);
/* Have the balloon leave the guest so many bytes. */
void vm_balloon(const struct vm *vm, uint64_t bytes);
/* What a guest does that panics and has -device pvpanic. */
void vm_panic(const struct vm *vm);
/* The run state as the second monitor tells it. Valid until the next call. */
const char *vm_status(const struct vm *vm);

/* Bytes of QEMU's memory that are registered with a userfaultfd. */
uint64_t vm_registered_bytes(const struct vm *vm);
/* Descriptors of QEMU's that are a userfaultfd or /dev/userfaultfd. */
unsigned vm_userfaultfds(const struct vm *vm);

#endif
