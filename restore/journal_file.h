/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_JOURNAL_FILE_H
#define UNDERSTUDY_RESTORE_JOURNAL_FILE_H

#include "base/byteorder.h"
#include "vmm/vmm.h"

#include <assert.h>
#include <limits.h>
#include <stddef.h>

/*
 * One file of a journal: its layout, and reading it back.
 *
 *     | journal_header | record | body | record | body | ... | journal_commit |
 *
 * `sum` of the commit record is XXH3-64 of everything before that field. Behind the commit record, and where
 * there is none, lies whatever an earlier epoch left; the header's nonce is new for each epoch, so such a
 * rest never fits the sum.
 */
#define JOURNAL_MAGIC         "USTJRNL1"
#define JOURNAL_RECORD_MAGIC  0x43524a55u /* "UJRC" */
#define JOURNAL_COMMIT_MAGIC  0x4d434a55u /* "UJCM" */
#define JOURNAL_HEADER_SYNCED 1u          /* written by a process that made commits survive the host */

struct journal_header {
    uint8_t magic[8]; /* all zeros: the file is empty */
    le64 nonce;
    uint8_t vm_uuid[16];
    uint8_t boot[16]; /* of the host: what was never synced is believed only by the same boot */
    le32 flags;
    le32 disk_count;
    le64 disks_sum; /* of the disks' names and sizes */
    le64 sum;       /* of the bytes before */
};
static_assert(sizeof(struct journal_header) == 72, "journal_header");

struct journal_record {
    le32 magic;
    le32 body;
    le64 offset;
    le64 bytes;
    uint8_t disk;
    uint8_t op; /* enum wire_disk_op */
    uint8_t reserved[6];
};
static_assert(sizeof(struct journal_record) == 32, "journal_record");

struct journal_commit {
    le32 magic;
    le32 reserved;
    le64 epoch;
    le64 records;
    le64 sum;
};
static_assert(sizeof(struct journal_commit) == sizeof(struct journal_record), "journal_commit");

/* What a walk knows, and wants to know. */
struct journal_walk {
    int fd;
    const char *path;
    const struct journal_header *expected; /* the present one; nonce, sum and flags are not looked at */
    const struct vmm_disk *disks;
    struct vmm *target; /* NULL: look only */
    uint64_t half;      /* the record at which half is applied, for the fault point */
    uint8_t *buffer;    /* JOURNAL_WALK_BYTES */
    uint8_t *scratch;   /* WIRE_DISK_BODY_MAX */

    uint64_t epoch, records, bytes; /* found; of disk */
};
#define JOURNAL_WALK_BYTES ((size_t)512 * 1024)

/* Read the file from its beginning to its commit record, and apply it to `target` if there is one. 1: whole
 * and right. 0: empty. -EBADMSG with the reason: no journal of ours, not committed, damaged. Other errors:
 * reading, or what the target says. */
int journal_walk(struct journal_walk *walk);

#endif
