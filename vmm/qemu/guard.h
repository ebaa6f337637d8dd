/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_GUARD_H
#define UNDERSTUDY_VMM_QEMU_GUARD_H

/*
 * A second, tiny process that outlives an engine which is killed while it holds the guest stopped, and lets
 * the guest run again at once. It shares the monitor's connection and does nothing as long as the engine
 * lives.
 */
struct guard;

/* `qmp_fd`: the monitor's connection. To be called before the tracker is opened, since the guard must not
 * keep it. */
int guard_open(struct guard **ret_guard, int qmp_fd);

/* From now on / no longer: should this process die, tell QEMU to continue. Cheap; shared memory only. */
void guard_arm(struct guard *guard);
void guard_disarm(struct guard *guard);

/* Ends the process. Takes NULL. */
void guard_close(struct guard *guard);

#endif
