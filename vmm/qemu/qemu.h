/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_QEMU_H
#define UNDERSTUDY_VMM_QEMU_QEMU_H

#include "vmm/keep.h"
#include "vmm/vmm.h"

/*
 * The QEMU driver. Source: attach to a QEMU that already runs, unmodified, through its QMP socket or through
 * the libvirtd that manages it. Target: launch a QEMU that waits (-incoming defer -S), or let libvirt do so,
 * and fill it.
 */

/*
 * A QEMU that libvirt manages: the domain's name or UUID, and where its libvirtd is (NULL: qemu:///system),
 * which must be on this host. `machine` and `peer` (letters, digits, '.', '_', '-') are what the domain's
 * metadata shall say while an engine has it; machine NULL: nothing.
 */
struct qemu_domain {
    const char *uri, *name;
    const char *machine, *peer;
};

/*
 * Attach. `qmp_path` is the UNIX socket of a QMP monitor that nobody else is connected to. Needs root
 * (CAP_SYS_PTRACE and CAP_SYS_ADMIN). Runs the preflight and refuses, naming what stands in the way and what
 * mends it: -EOPNOTSUPP (VFIO, vhost-user, migration blocker, kernel without asynchronous write-protection,
 * hugetlb ...), -EBUSY (another engine is attached or the monitor is taken), -ECONNREFUSED/-ENOENT (no QEMU
 * there). The guest is not touched then. `shared_disks`: writable disks that both hosts reach, which are not
 * copied: ids or QOM paths of their devices, or "*" for all; NULL-terminated, NULL: none.
 */
int qemu_attach(struct vmm **ret_source, const char *qmp_path, const char *const *shared_disks);

/* The same with a domain that runs. Neither the domain nor its definition is changed. Besides the above:
 * -ENOENT: there is no such domain; -ESRCH: it does not run. libvirtd may be restarted at any time: calls
 * then take until it is back. */
int qemu_attach_domain(struct vmm **ret_source, const struct qemu_domain *domain,
                       const char *const *shared_disks);

/*
 * Launch `argv` (the standby's own command line, whose QMP socket must be at qmp_path), with "-incoming defer
 * -S" appended, wait until it is ready, and read its description. `pid_path` records the process; a waiting
 * process that an earlier engine left behind there is ended first (never one that runs a guest after a
 * takeover: -EBUSY). `log_path` takes QEMU's own output; NULL: it is dropped but for the first 64 KiB. A QEMU
 * that exits instead is an error that carries its last line of output. -EADDRINUSE: somebody serves qmp_path
 * already. `pid_path` NULL: no record.
 *
 * With `domain`, argv, qmp_path and log_path are not used: libvirt creates the domain from its persistent
 * definition on this host, with "-incoming defer", paused. Its definition stays as it is. -EBUSY: it runs
 * here already; -ENOENT: it is not defined here; -ECHILD: libvirt cannot start it, in its own words.
 */
struct qemu_launch {
    char *const *argv;
    const char *qmp_path, *pid_path, *log_path;
    uint32_t ready_ms;                /* bound on start-up; 0: 10000 */
    const char *const *shared_disks;  /* as qemu_attach() takes them */
    const struct qemu_domain *domain; /* NULL: argv */
};
int qemu_launch(struct vmm **ret_target, const struct qemu_launch *launch);

/* Is there a QEMU behind `qmp_path` (or is it this domain's, if `domain` is not NULL), and does its guest
 * run, or was it let run before and stands still? A QEMU that waits to be filled has no guest. Errors of the
 * monitor other than that nobody is there. */
enum qemu_guest_state { QEMU_GUEST_NONE, QEMU_GUEST_STOPPED, QEMU_GUEST_RUNS };
int qemu_guest_state(const char *qmp_path, const struct qemu_domain *domain,
                     enum qemu_guest_state *ret_state);

/*
 * End the QEMU behind `qmp_path`, or of the domain, whose guest an engine stopped for good (hold() or halt()
 * of a source), so that another can be launched in its place. Nobody there: 0 too, with `ended` false.
 * -EADDRINUSE: what is there runs, waits (not of a domain: that one can be replaced), or was not stopped by
 * an engine; it is not touched. -EBUSY: it does not end, or its monitor is taken.
 *
 * With `keep` its memory is copied first, which takes time, where the host has room for it.
 */
struct qemu_retired {
    bool ended;
    struct vmm_keep *keep; /* the caller's to free; NULL: nothing is kept */
    char why[256];         /* and why, if it was to be */
};
int qemu_retire(const char *qmp_path, const struct qemu_domain *domain, bool keep,
                struct qemu_retired *ret_retired);

/* One finding of the preflight: what was looked at, what was found, how to mend it. */
struct qemu_finding {
    enum { QEMU_FINDING_OK, QEMU_FINDING_WARNING, QEMU_FINDING_REFUSED } verdict;
    char subject[64];
    char text[384];
};

/* All findings for a running QEMU, without attaching. Caller frees the array. */
int qemu_preflight(const char *qmp_path, const char *const *shared_disks, struct qemu_finding **ret_findings,
                   size_t *ret_count);

int qemu_preflight_domain(const struct qemu_domain *domain, const char *const *shared_disks,
                          struct qemu_finding **ret_findings, size_t *ret_count);

/* Process id of the QEMU behind a guest of this driver. */
int qemu_pid(const struct vmm *vmm);

#endif
