/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_GUEST_H
#define UNDERSTUDY_VMM_QEMU_GUEST_H

#include "vmm/vmm.h"

#include <sys/types.h>

/* What every guest of this driver begins with, source and target alike. qemu_pid() relies on it. */
struct qemu_guest {
    struct vmm vmm;
    pid_t pid;
};

#endif
