/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_FDSET_H
#define UNDERSTUDY_VMM_QEMU_FDSET_H

#include "vmm/qemu/qmp.h"

/*
 * File descriptors that QEMU keeps for us, each under a word of ours. QEMU drops them by itself when the
 * monitor's client goes, but not while the guest is stopped. So what is found there at an attachment tells of
 * an engine that died while the guest stood still:
 */
#define FDSET_STATE "understudy-state" /* an engine was attached */
#define FDSET_LEAVE                                                                                          \
    "understudy-leave" /* and did not want to let the guest run: somebody else had stopped it */

int fdset_add(struct qmp *qmp, int fd, const char *word, int64_t *ret_id);

/* While the guest is stopped it only counts as removed, and is still found. */
int fdset_remove(struct qmp *qmp, int64_t id);

int fdset_find(struct qmp *qmp, const char *word, bool *ret_found);
int fdset_remove_all(struct qmp *qmp, const char *word);

#endif
