/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ARBITER_H
#define UNDERSTUDY_REPLICATOR_ARBITER_H

#include <stdint.h>

/*
 * The third party that says who may go on alone: a register that holds a generation and its owner, changed
 * only by compare-and-swap. Backends: "none" (there is no register; every attempt wins), "file:PATH" (one
 * file on storage that both engines reach with coherent locks: one host, or a shared file system), "etcd" (a
 * key of an etcd cluster; etcd.h).
 */
struct arbiter;
struct etcd_config;

/* `owner` is this host's name; no other host of the machine has it. `etcd`: read by "etcd" only, and kept; it
 * outlives the arbiter. -EINVAL when the specification is none of the above; for "etcd" also what reading its
 * files gave. Nothing is asked or written yet. */
int arbiter_open(struct arbiter **ret_arbiter, const char *specification, const struct etcd_config *etcd,
                 const uint8_t vm_uuid[16], const char *owner);
/* Takes NULL. */
void arbiter_close(struct arbiter *arbiter);

enum arbiter_result {
    ARBITER_RESULT_WON,  /* the register holds a generation that nobody ever had, and our name, durably */
    ARBITER_RESULT_LOST, /* somebody else took a generation newer than `from` */
};

/*
 * Move the register from `from` to at least `to` (> from) for us. A register that does not exist yet, or
 * holds a generation below `from`, counts as `from`: generations only grow, and a register may be set up
 * late. So does whatever it holds under our own name: an attempt of ours whose answer was lost, or that was
 * not made use of. It is not taken as won, but left behind, by a swap to the next generation: the other host
 * may have been told that we make no use of it.
 * Blocks for at most what the back end allows: 2 s for a file, etcd_config.timeout_ns for etcd. Returns an
 * enum arbiter_result and the register's present generation, or a negative errno when the register cannot be
 * reached (-ETIMEDOUT: no answer, or locked by somebody, for the whole time) or makes no sense (-EBADMSG).
 * After a negative errno the register may have changed, or may yet: nothing is won, and to ask again is
 * right.
 */
int arbiter_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation);

/*
 * Who holds which generation now; 0 and "" while there is no register. Changes nothing, and takes and fails
 * as arbiter_swap() does, so that a host that cannot reach its arbiter, or would not be let write there,
 * learns so before it has to. (That etcd's user may write is not seen.)
 */
#define ARBITER_OWNER_MAX 64 /* NUL included */
int arbiter_read(struct arbiter *arbiter, uint64_t *ret_generation, char ret_owner[ARBITER_OWNER_MAX]);

#endif
