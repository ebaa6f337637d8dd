/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_PREFLIGHT_H
#define UNDERSTUDY_VMM_QEMU_PREFLIGHT_H

#include "vmm/qemu/blocks.h"
#include "vmm/qemu/qemu.h"

/* Findings in the making; zero-initialise. */
struct preflight {
    struct qemu_finding *items;
    size_t count;
    int refusal; /* 0, or the negative errno that goes with the first refusal */
};

/* Look at everything. Writes what was found of the RAM blocks too. Returns 0 also when the findings refuse;
 * negative errno when looking itself failed (the monitor hung up ...). */
int preflight_run(struct preflight *preflight, struct qmp *qmp, pid_t pid, const char *const *shared_disks,
                  struct qemu_blocks *ret_blocks);

/* Sets the error text from all refusals and returns the code of the first, 0 if there is none. */
int preflight_verdict(const struct preflight *preflight);

/* Add a finding. `code` is 0, or for a refusal what qemu_attach() shall return. */
int preflight_add(struct preflight *preflight, int code, int verdict, const char *subject, const char *format,
                  ...) __attribute__((format(printf, 5, 6)));

/* Does the kernel report ranges of registered memory as written that were discarded (madvise, a punched
 * hole)? In anonymous memory, and in memory that is mapped shared. */
struct preflight_discards {
    bool anonymous, shared;
};

/* The parts: what the host offers; what the guest consists of. `discards_seen`: in the guest's kind of
 * memory. */
int preflight_host(struct preflight *preflight, struct preflight_discards *ret_seen);
int preflight_guest(struct preflight *preflight, struct qmp *qmp, const char *const *shared_disks,
                    bool discards_seen);

#endif
