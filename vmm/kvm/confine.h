/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_CONFINE_H
#define UNDERSTUDY_VMM_KVM_CONFINE_H

/*
 * Give up what serving a guest does not need, since a guest may take this process over.
 *
 * First the capabilities, once all files are open: of the calling thread and of those that it starts later.
 * Then, once all threads are started, and for all of them: new privileges, and the system calls that are not
 * on the list, which fail with EPERM from here on.
 */
int confine_capabilities(void);
int confine_calls(void);

#endif
