/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_DISKS_H
#define UNDERSTUDY_RESTORE_DISKS_H

#include "restore/decode.h"
#include "restore/journal.h"
#include "wire/message.h"

/*
 * Changes of disks, from lanes to the journal or to the target's images, in the order of their numbers. See
 * disks.c. Any number of lanes call put(); abort and use may come from anywhere; the rest while no lane is
 * inside, apply and forget beside one that fills the next epoch.
 */
struct restore_disks;

int restore_disks_new(struct restore_disks **ret_disks, struct vmm *target,
                      const struct vmm_description *description, const struct journal_config *journal,
                      journal_notice *notice, void *ctx);
void restore_disks_free(struct restore_disks *disks);

/* A session begins. `fresh`: nothing is committed here, the images are to be overwritten. */
int restore_disks_session(struct restore_disks *disks, bool fresh);
/* Lanes that wait are sent away. */
void restore_disks_abort(struct restore_disks *disks);
/* After an abort: wait for the lane that is inside, so that the images are the caller's. */
void restore_disks_leave(struct restore_disks *disks);

/* A frame that is accounted for. -EPROTO: no such disk, beyond its end, out of order. -EBADMSG: does not
 * decode. -ENOSPC: journal full. -ECANCELED. */
int restore_disks_put(struct restore_disks *disks, struct message_disk *message, enum decode_way way);

/* SHA-256 of each of `count` blocks of WIRE_SUMS_BLOCK bytes of a disk's image, to WIRE_DIGEST_BYTES each.
 * While a session is up. -EPROTO: no such blocks. -ECANCELED. */
int restore_disks_sums(struct restore_disks *disks, const struct message_sums *wanted, uint8_t *ret_digests);

/* The epoch is complete: from now on it survives this process. */
int restore_disks_seal(struct restore_disks *disks, uint64_t epoch);
/* And is the committed one. */
void restore_disks_commit(struct restore_disks *disks);
/* Bring the committed epoch to the images, and to their media; and forget its journal. */
int restore_disks_apply(struct restore_disks *disks);

/* Everything is applied, and the guest is about to run. */
void restore_disks_retire(struct restore_disks *disks);

struct restore_disks_use {
    uint64_t journal_bytes, journal_peak_bytes, applied_bytes, memory_bytes;
};
void restore_disks_get_use(struct restore_disks *disks, struct restore_disks_use *ret_use);

#endif
