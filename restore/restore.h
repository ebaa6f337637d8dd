/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_RESTORE_H
#define UNDERSTUDY_RESTORE_RESTORE_H

#include "vmm/vmm.h"
#include "wire/frame.h"
#include "wire/message.h"

/*
 * The standby's half of an epoch: stage, verify, commit, apply, resume.
 *
 *      lanes ──► staging (decoded pages, keyed by page; device state)      guest memory = last applied
 * checkpoint │ COMMIT: all frames there, sum right, state whole ▼ committed ──ack──► apply: copy the staged
 * pages into the guest's memory
 *
 * Until an epoch is complete the guest's memory and the committed device state are untouched, so whatever
 * happens to the session, the last committed checkpoint stays. Exception, by design: while there is no
 * committed checkpoint at all (the very first copy), pages go straight to the guest's memory ("direct"),
 * since there is nothing to keep. A full copy that follows a commit is staged, but a page that equals what
 * the guest already has takes no room.
 *
 * Changes of disks likewise: they wait in a journal (a file), and go straight to the images only while
 * nothing is committed. They are applied in the order of their numbers.
 *
 * Threads: lanes' threads call restore_frame() and what it calls; they block only because a committed epoch
 * is still being applied (while staging is full, and for changes, whose base it is), and a change of a disk
 * waits for those before it. restore_expect(), restore_abort() and restore_get_stats() may be called by any
 * thread, restore_commit() by any that knows the former apply to be over; the guest's owner thread calls the
 * rest.
 */
struct restore;

struct restore_config {
    /* Bound on staged pages, two epochs together, and on the device state. 0: the guest's memory size. */
    size_t staging_bytes;
    /* A round that restore_expect() announced is complete (code 0) or wrong (-EBADMSG: sums, counts or state;
     * -ENOSPC and others: the journal cannot take it; text says what). With `commit` and code 0 the disks'
     * half survives this process already. On whichever thread completes it; must not call back into restore.
     */
    void (*round_complete)(void *ctx, uint64_t epoch, uint32_t round, bool commit, int code,
                           const char *text);
    void *ctx;
    /* The guest's memory was filled with something that a primary may know (restore_page_sums()). */
    bool filled;
    /* For a guest with disks: changes wait in the files PATH.0 and PATH.1 until their epoch is committed. */
    const char *journal_path;
    uint64_t journal_bytes_max; /* bound on both together; 0: 4 GiB */
    bool journal_sync;          /* a commit's disks survive the host, too */
    uint8_t vm_uuid[16];
    /* What became of a journal that an earlier process left, in words, during restore_new(). May be NULL. */
    void (*notice)(void *ctx, const char *text);
};

/* Applies what an earlier process committed in the journal and did not apply. */
int restore_new(struct restore **ret_restore, struct vmm *target, const struct restore_config *config);
void restore_free(struct restore *restore);

/* A session begins: source block i is target block map[i]; the next epoch's round 0 follows. Drops anything
 * staged and not committed, after applying a commit that still waits for that (so it can fail as
 * restore_apply() does). Requires the lanes of the former session to be gone. */
int restore_session(struct restore *restore, const uint32_t *map, uint32_t map_count);

/* Frames of data lanes. Negative errno ends the session: -EPROTO (no such block, page out of bounds, wrong
 * epoch or round, changes where no checkpoint is; for disks the like), -EBADMSG (does not decode; changes of
 * a page that is not what the primary believes), -ENOSPC (staging or journal full), -ECANCELED (aborted). A
 * delta waits until the committed epoch is applied. */
int restore_frame(struct restore *restore, const struct wire_frame *frame); /* of any type: as below */
int restore_pages(struct restore *restore, const struct wire_frame *frame);
int restore_delta(struct restore *restore, const struct wire_frame *frame);
int restore_state(struct restore *restore, const struct wire_frame *frame); /* STATE and STATE_LZ4 */
int restore_disk(struct restore *restore, const struct wire_frame *frame);

/* ROUND or COMMIT arrived on the control lane: announce what the round must contain; round_complete()
 * follows, perhaps from within this call. `commit` is NULL for a live round. -EPROTO when out of order or
 * when more has come than is announced, -ECANCELED when aborted. */
int restore_expect(struct restore *restore, uint64_t epoch, uint32_t round,
                   const struct message_totals *totals, const struct message_commit *commit);

/* The verified epoch becomes the committed one; from here it survives the primary. Call before acknowledging.
 * The former commit must have been applied, and round_complete() have said that this one is whole (asserted).
 * An abort in between does not matter: what is verified may be committed until restore_session(). */
int restore_commit(struct restore *restore, uint64_t epoch);

/* Copy the committed epoch into the guest's memory; nothing to do is success. After a failure the standby's
 * guest is broken and no checkpoint is committed: nothing can be resumed until a full copy. */
int restore_apply(struct restore *restore);

/* The session broke: wake and refuse blocked lanes, drop what is not committed at the next restore_session().
 */
void restore_abort(struct restore *restore);

/* Abort the session, apply if need be, load the committed device state, let the guest run, announce it.
 * -ENODATA when nothing was ever committed, or the guest is broken since. From the moment the guest runs this
 * is a success, even if announcing it fails: then announce_failed is set and error_text() says why.
 * ret_timing may be NULL. */
struct restore_timing {
    uint64_t apply_ns, load_ns, run_ns, announce_ns;
    bool announce_failed;
};
int restore_takeover(struct restore *restore, struct restore_timing *ret_timing);

/* The first half of it: the guest is left ready to run, by restore_takeover(), and can take no other
 * checkpoint. Errors as there. */
int restore_load(struct restore *restore, struct restore_timing *ret_timing);

/* Compare the guest's pages with fingerprints taken on the primary at the committed epoch (which is applied
 * first, if need be). Writes up to WIRE_VERIFIED_MAX differing page numbers to ret_pages. -EPROTO: no such
 * block or pages. -ENODATA: nothing is committed. */
int restore_verify(struct restore *restore, const struct message_verify *verify, uint32_t *ret_differing,
                   uint64_t *ret_pages);

/* What the guest's disks have, for a primary that would rather not send it: a digest of WIRE_DIGEST_BYTES for
 * each block that is wanted. While a session is up. -EPROTO: no such blocks. -ECANCELED: it is over. */
int restore_disk_sums(struct restore *restore, const struct message_sums *wanted, uint8_t *ret_digests);

/* The same for pages of its memory, of a block as the source counts them. *ret_count is 0 when nothing was
 * ever written there, so that no digest is worth its time, else as wanted. Owner's thread; as long as no
 * epoch was committed lanes may write to the guest meanwhile, and what is said of such a page is worth
 * nothing. */
int restore_page_sums(struct restore *restore, const struct message_page_sums *wanted, uint32_t *ret_count,
                      uint8_t *ret_digests);

/* The 8 bytes (little-endian) at a block and offset of the committed checkpoint (which is applied first, if
 * need be); they must not cross a page. -ENOENT: no such block. -ERANGE: not within it. -ENODATA. */
int restore_probe(struct restore *restore, const char *block, uint64_t offset, uint64_t *ret_value);

struct restore_stats {
    uint64_t committed_epoch;      /* 0: none */
    uint64_t epochs, pages, bytes; /* applied */
    uint64_t staged_bytes, staged_peak_bytes, staging_bytes;
    uint64_t journal_bytes, journal_peak_bytes; /* changes of disks that wait, in files */
    uint64_t disk_bytes_applied;
    uint64_t memory_bytes; /* all that restore holds: staging that has memory, indexes, states, buffers */
};
void restore_get_stats(struct restore *restore, struct restore_stats *ret_stats);

#endif
