/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_JOURNAL_H
#define UNDERSTUDY_RESTORE_JOURNAL_H

#include "vmm/vmm.h"
#include "wire/message.h"

/*
 * Changes of disks of two epochs, in two files: one is being filled, the other is committed and being
 * applied. See journal.c.
 *
 * Threads: append and flush by one at a time; apply and applied by the target's owner, also beside an append;
 * the rest while nobody appends.
 */
#define JOURNAL_BYTES_DEFAULT (4ull << 30)

struct journal;

struct journal_config {
    const char *path;   /* of the files, less ".0" and ".1" */
    uint64_t bytes_max; /* bound on both files together; 0: JOURNAL_BYTES_DEFAULT */
    bool sync;          /* a commit survives the host, not only this process */
    uint8_t vm_uuid[16];
    const struct vmm_disk *disks;
    uint32_t disk_count;
};

/* What became of a file that an earlier process left; `text` says it in words. */
typedef void journal_notice(void *ctx, const char *text);

/* Open or create the files. -EBUSY: another process has them. */
int journal_open(struct journal **ret_journal, const struct journal_config *config);
void journal_close(struct journal *journal);

/* Apply what an earlier process committed and did not apply, drop what it did not commit. A failure leaves
 * the file as it is, to be tried again. */
int journal_recover(struct journal *journal, struct vmm *target, journal_notice *notice, void *ctx);

/* Append the record; it is in the file after journal_flush(). -ENOSPC: "journal full", by our bound or by the
 * file system's. */
int journal_append(struct journal *journal, const struct message_disk_record *record);
int journal_flush(struct journal *journal);

/* The epoch is complete: write its commit record. A failure leaves nothing of it. The former one may still be
 * applied meanwhile. */
int journal_seal(struct journal *journal, uint64_t epoch);
/* What was sealed is the committed one, the former being applied; the next epoch may be filled. */
void journal_commit(struct journal *journal);

/* Apply the committed one, in order, and flush the disks. Nothing to do is success. */
int journal_apply(struct journal *journal, struct vmm *target, uint64_t *ret_bytes);
/* It is applied: forget it. */
int journal_applied(struct journal *journal);

/* Forget what was filled. */
int journal_drop(struct journal *journal);
/* Forget everything. */
int journal_clear(struct journal *journal);

/* As journal_clear(), by all means: the guest is about to write to the images itself, and no journal may ever
 * be applied to them again. */
void journal_retire(struct journal *journal);

uint64_t journal_bytes(struct journal *journal);
uint64_t journal_peak_bytes(struct journal *journal);
uint64_t journal_memory_bytes(const struct journal *journal);

#endif
