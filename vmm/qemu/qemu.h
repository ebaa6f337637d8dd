/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_QEMU_H
#define UNDERSTUDY_VMM_QEMU_QEMU_H

#include "vmm/vmm.h"

/*
 * The QEMU driver. Source: attach to a QEMU that already runs, unmodified, through its QMP socket. Target:
 * launch a QEMU that waits (-incoming defer -S) and fill it.
 */

/*
 * Attach. `qmp_path` is the UNIX socket of a QMP monitor that nobody else is connected to. Needs root
 * (CAP_SYS_PTRACE and CAP_SYS_ADMIN). Runs the preflight and refuses, naming what stands in the way and what
 * mends it: -EOPNOTSUPP (VFIO, vhost-user, migration blocker, kernel without asynchronous write-protection,
 * hugetlb ...), -EBUSY (another engine is attached or the monitor is taken), -ECONNREFUSED/-ENOENT (no QEMU
 * there). The guest is not touched then.
 */
int qemu_attach(struct vmm **ret_source, const char *qmp_path);

/*
 * Launch `argv` (the standby's own command line, whose QMP socket must be at qmp_path), with "-incoming defer
 * -S" appended, wait until it is ready, and read its description. `pid_path` records the process; a waiting
 * process that an earlier engine left behind there is ended first (never one that runs a guest after a
 * takeover: -EBUSY). `log_path` takes QEMU's own output; NULL: it is dropped but for the first 64 KiB. A QEMU
 * that exits instead is an error that carries its last line of output. -EADDRINUSE: somebody serves qmp_path
 * already. `pid_path` NULL: no record.
 */
struct qemu_launch {
    char *const *argv;
    const char *qmp_path, *pid_path, *log_path;
    uint32_t ready_ms; /* bound on start-up; 0: 10000 */
};
int qemu_launch(struct vmm **ret_target, const struct qemu_launch *launch);

/* One finding of the preflight: what was looked at, what was found, how to mend it. */
struct qemu_finding {
    enum { QEMU_FINDING_OK, QEMU_FINDING_WARNING, QEMU_FINDING_REFUSED } verdict;
    char subject[64];
    char text[384];
};

/* All findings for a running QEMU, without attaching. Caller frees the array. */
int qemu_preflight(const char *qmp_path, struct qemu_finding **ret_findings, size_t *ret_count);

/* Process id of the QEMU behind a guest of this driver. */
int qemu_pid(const struct vmm *vmm);

#endif
