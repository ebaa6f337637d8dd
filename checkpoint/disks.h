/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_DISKS_H
#define UNDERSTUDY_CHECKPOINT_DISKS_H

#include "vmm/vmm.h"
#include "wire/wire.h"

#include <sys/queue.h>

/*
 * What the standby lacks of the guest's disks: changes in order, and blocks that must be read. See disks.c.
 *
 * Threads: the driver's call the sink; the guest's owner calls the rest, except that disks_release() may come
 * from any lane and disks_cancel(), disks_get_stats() from anywhere.
 */
#define DISKS_BLOCK_BYTES (64u * 1024)

/* A change, or the content of blocks that were read. */
struct disk_record {
    TAILQ_ENTRY(disk_record) link;
    uint64_t offset, bytes;
    uint32_t disk;
    uint8_t op;     /* WIRE_DISK_RAW, _ZERO or _DISCARD */
    uint8_t data[]; /* `bytes` of them for WIRE_DISK_RAW */
};
TAILQ_HEAD(disk_records, disk_record);

static inline size_t disk_record_body(const struct disk_record *record)
{
    return record->op == WIRE_DISK_RAW ? (size_t)record->bytes : 0;
}

struct disks_config {
    uint64_t log_bytes; /* bound on what all records hold, twice that in a pause; at least DISKS_LOG_MIN */
    uint64_t stall_ns;  /* a change waits so long for room, not longer */
    /* Changes of this disk are not told any more, or it cannot be read: disks_repair() is wanted. Once for
     * each disks_open() or disks_repair(); on a thread of the driver's or the copier's; must not call back.
     */
    void (*lost)(void *ctx, uint32_t disk, const char *why);
    /* What does the standby have in these blocks? disks_sums() is the answer. On the copier's thread; must
     * not call back. NULL: nobody can say. */
    void (*sums_wanted)(void *ctx, uint32_t disk, uint64_t first, uint32_t count);
    void *ctx;
};
#define DISKS_LOG_MIN (1u << 20)

struct disks_stats {
    uint64_t disks, bytes;                /* of the guest */
    uint64_t pending_bytes;               /* must still be read */
    uint64_t records;                     /* logged, ever: changes and copies */
    uint64_t logged_bytes, copied_bytes;  /* of disk, by changes; by reading */
    uint64_t known_bytes;                 /* of copied_bytes: the standby has them, so nothing was sent */
    uint64_t log_bytes, log_peak_bytes;   /* held now; highest */
    uint64_t overflows, stalls, stall_ns; /* logs given up; changes that waited, and how long */
    uint64_t memory_bytes;                /* the log and the sets */
    uint32_t lost;                        /* disks that are not told of, or cannot be read */
};

struct disks;

int disks_new(struct disks **ret_disks, struct vmm *source, const struct vmm_description *guest,
              const struct disks_config *config);
/* Ends the copier, and the telling. Takes NULL. */
void disks_free(struct disks *disks);

/* From now on changes are told. Everything is pending. First call only; later ones do nothing. */
int disks_open(struct disks *disks);
/* Open anew what was lost. */
int disks_repair(struct disks *disks);

/* Everything is pending, and nobody asks; the log is dropped, as by disks_abandon(). */
void disks_all_pending(struct disks *disks);
/* Everything is pending, and the standby may have much of it: ask before sending, until all was read once or
 * disks_all_pending(). */
void disks_compare(struct disks *disks);
/* Its answer: WIRE_DIGEST_BYTES for each block. One that was not asked for is ignored. */
void disks_sums(struct disks *disks, uint32_t disk, uint64_t first, uint32_t count, const uint8_t *digests);
/* A standby takes rounds: changes are logged, and pending blocks read, until disks_abandon(). */
void disks_session(struct disks *disks);
/* The epoch will never be acknowledged: all that was logged or sent in it is pending again. */
void disks_abandon(struct disks *disks);
/* What was sent is at the standby. */
void disks_committed(struct disks *disks);
/* Nobody waits for room any more, until disks_session(). */
void disks_cancel(struct disks *disks);

/* Before pause(), after resume(): no change waits in between. */
void disks_pausing(struct disks *disks, bool pausing);

/* Blocks are pending or being read, so that no capture is possible. */
bool disks_behind(struct disks *disks);
/* A live round comes: wait, if blocks are being read, until it will be worth while, at most `limit_ns`. */
void disks_gather(struct disks *disks, uint64_t limit_ns);

/* Append to `to` what was logged so far. At a capture (between pause() and resume()) it must be everything:
 * -ETIME while disks are behind. */
int disks_cut(struct disks *disks, bool capture, struct disk_records *to);
/* Not sent after all: back to where it came from. */
void disks_uncut(struct disks *disks, struct disk_records *records);
/* They will be sent; returns the number of the first in its epoch. */
uint64_t disks_publish(struct disks *disks, const struct disk_records *records);
/* Sent or dropped: free them. */
void disks_release(struct disks *disks, struct disk_records *records);

void disks_get_stats(struct disks *disks, struct disks_stats *ret_stats);

#endif
