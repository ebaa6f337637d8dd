/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_QMP_INTERNAL_H
#define UNDERSTUDY_VMM_QEMU_QMP_INTERNAL_H

#include "vmm/qemu/qmp.h"

#include <stddef.h>

/* Shared by qmp.c and qmp_open.c. */

struct qmp {
    int fd;
    pid_t pid;
    pid_t child; /* serves the other end; 0: none of ours does */
    char *path;
    char version[64], package[128]; /* from the greeting */
    char *buffer;                   /* bytes received and not yet parsed */
    size_t used, room;
    size_t searched;         /* no newline in the first `searched` bytes */
    uint64_t sent, answered; /* ids: of the last command sent; of the last one waited for or given up */
    char *primed;            /* body of the command `sent`, of which QEMU has all but its end; NULL: none */
    bool negotiated;         /* replies are to our own commands */
    bool broken;             /* the stream cannot be trusted any more */
    qmp_event_fn *event_fn;
    void *event_ctx;
};

/* The next object that is not an event (events go to the event function). Returns 1, or 0 at the deadline. */
int qmp_next_reply(struct qmp *qmp, uint64_t deadline_ns, json_t **ret_object);

#endif
