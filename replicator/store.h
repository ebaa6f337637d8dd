/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_STORE_H
#define UNDERSTUDY_REPLICATOR_STORE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * The generation file: what an engine must remember over its own death so that it never runs a guest by an
 * old right. One JSON object. A new file is made as a whole (write beside, fsync, rename, fsync of the
 * directory) and then written over in one sector, so that after any crash either the old or the new object is
 * there.
 */
struct store_state {
    uint64_t generation; /* the newest known; 0: none */
    bool active;         /* the guest runs on this host by right of `generation` */
};

/* Reads `path`. No file: 0 with generation 0 and not active. -EBADMSG with the reason when the file is not
 * one that store_write() made for this machine: an engine must not guess then. */
int store_read(const char *path, const uint8_t vm_uuid[16], struct store_state *ret_state);

/* Durable when it returns 0. On failure the former content is there, or, if it is the disk that failed, the
 * new one without being durable. */
int store_write(const char *path, const uint8_t vm_uuid[16], const struct store_state *state);

#endif
