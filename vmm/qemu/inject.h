/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_INJECT_H
#define UNDERSTUDY_VMM_QEMU_INJECT_H

#include <sys/types.h>

/*
 * Make process `pid` create a userfaultfd of its own address space through `device_fd`, its descriptor of
 * /dev/userfaultfd, and take that to us. Nothing stays behind in the process: its copy is closed before it
 * runs on. The process is stopped for a fraction of a millisecond.
 *
 * -EBUSY: something else traces it; -ETIMEDOUT: its main thread did not stop; -EPERM: not allowed;
 * -ENXIO: its main thread cannot make a system call for us; else what the kernel said to the ioctl.
 */
int inject_userfaultfd(pid_t pid, int device_fd, int *ret_fd);

#endif
