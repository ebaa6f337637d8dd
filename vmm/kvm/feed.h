/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_FEED_H
#define UNDERSTUDY_VMM_KVM_FEED_H

#include "vmm/vmm.h"

/*
 * How the VMM tells its engine of the changes of a disk: over a stream socket for each disk, one end of which
 * the engine hands over (CONTROL_TELL).
 *
 *     VMM, the disk's teller                     engine, the disk's thread
 *       record │ data of a write ──────────────►  sink->change()
 *                                                   may wait
 *              ◄──────────────────────────────── one byte: it has returned
 *     the guest's request completes
 *
 * There is one change at a time, so nothing but the socket's own buffer lies between the two: whichever side
 * ends, whoever waits at the other is woken by the kernel, there is no memory that both write, and no index
 * that one would have to believe.
 */

#define FEED_PIECE     (1u << 20) /* data of a record; a longer write is told in pieces */
#define FEED_TEXT_MAX  200u
#define FEED_ANSWER_MS 10000 /* an engine that stands still for longer is given up */

enum feed_op {
    FEED_WRITE = VMM_DISK_WRITE,
    FEED_ZERO = VMM_DISK_ZERO,
    FEED_DISCARD = VMM_DISK_DISCARD,
    FEED_LOST, /* no change is told any more; `bytes` of text say why. Is not answered */
    FEED_OPS,
};

struct feed_record {
    uint32_t op, unused;
    uint64_t offset, bytes;
};

/* -EBADMSG: it is none of a disk of so many bytes. */
int feed_check(const struct feed_record *record, uint64_t disk_bytes);

/* The VMM's end: tell of a change, and wait for its answer. -ETIMEDOUT, -ECONNRESET, -EPIPE: nobody hears it
 * any more. */
int feed_tell(int fd, enum feed_op op, uint64_t offset, uint64_t bytes, const void *data);
int feed_tell_lost(int fd, const char *why);

/* The engine's end: wait for the next record. 1: it is here, with its data in `data`, which has FEED_PIECE
 * bytes, or its text, which ends with a NUL. 0: the VMM ended the feed. -EBADMSG. */
int feed_hear(int fd, uint64_t disk_bytes, struct feed_record *ret_record, void *data);
int feed_answer(int fd);

#endif
