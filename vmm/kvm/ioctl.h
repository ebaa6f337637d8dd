/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_IOCTL_H
#define UNDERSTUDY_VMM_KVM_IOCTL_H

#include <stdint.h>

/* A request to KVM (Documentation/virt/kvm/api.rst). Returns what it returned, or an error that names it. */
#define kvm_call(fd, request, argument) kvm_call_named(fd, request, (uintptr_t)(argument), #request)
int kvm_call_named(int fd, unsigned long request, uintptr_t argument, const char *name);

#endif
