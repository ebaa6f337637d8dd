/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_NBD_SERVER_H
#define UNDERSTUDY_VMM_QEMU_NBD_SERVER_H

#include "vmm/vmm.h"

/*
 * One connection of a QEMU that mirrors a disk to us: the server's side of the NBD protocol
 * (NetworkBlockDevice's doc/proto.md: fixed newstyle negotiation, simple replies). Every write, zeroing and
 * discard becomes a call, and is answered when that returns.
 */
struct nbd_server {
    int fd;         /* a connected stream socket; stays the caller's */
    uint64_t bytes; /* of the disk */
    void (*change)(void *ctx, enum vmm_disk_op op, uint64_t offset, uint64_t bytes, const void *data);
    void *ctx;
};

/* Serves until the client goes. Returns 0 after a farewell, -ECONNRESET when it hung up, -EPROTO with the
 * reason when what it said is no NBD, other errors of the socket. */
int nbd_serve(const struct nbd_server *server);

#endif
