/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_CHECKPOINT_H
#define UNDERSTUDY_CHECKPOINT_CHECKPOINT_H

#include "checkpoint/disks.h"
#include "vmm/vmm.h"
#include "wire/frame.h"
#include "wire/message.h"

/*
 * The primary's half of an epoch: what is dirty, the pause, staging, and the frames.
 *
 * An epoch is sent in rounds 0..n. Every round but the last is *live*: a short stop takes the written-marks
 * (the only place where that is exact), the guest goes on, and the pages are read and sent while it runs; a
 * page that is written meanwhile is marked again and comes once more in a later round. The last round is the
 * *capture*: stop, marks, device state, copy of what is still dirty into staging, resume. So the pause is
 * short however much was dirty when the epoch began, and nothing is guessed. Rounds do not overlap on the
 * wire: the caller starts round r+1 when the standby has answered ROUND_DONE for r, so a page's newest
 * content always arrives last.
 *
 * Page sets: `pending` must still be sent; `inflight` was sent in the present epoch and is not acknowledged.
 * checkpoint_committed() forgets inflight, checkpoint_abandoned() puts it back to pending, so that after any
 * failure the next epoch carries exactly what the standby lacks.
 *
 * Disks: from the first standby on, every change is logged and sent in the order it was made, and what the
 * standby does not have otherwise is read and sent in between. A capture cuts the log in the pause. So a live
 * round also carries changes of disks, and while blocks wait to be read there are only live rounds.
 *
 * Threads: the guest's owner thread calls everything except checkpoint_produce(), which lanes' threads call
 * at any time, and checkpoint_cancel()/checkpoint_stats(), which any thread may call.
 */
struct checkpoint;

enum checkpoint_compression { CHECKPOINT_COMPRESS_AUTO, CHECKPOINT_COMPRESS_NONE, CHECKPOINT_COMPRESS_LZ4 };

struct checkpoint_config {
    size_t staging_bytes; /* bound on staged pages */
    unsigned lanes;       /* data lanes that will call produce() with lane 1..lanes */
    enum checkpoint_compression compression;
    bool lz4_allowed;       /* negotiated */
    bool state_lz4_allowed; /* negotiated: pieces of the device state may be compressed */
    size_t delta_bytes;     /* for copies of pages as the standby has them, so that of a page that is written
                             * again only what changed goes; 0: whole pages always */
    bool delta_allowed;     /* negotiated */
    uint64_t pause_budget_ns; /* aim for the pause of a capture; 0: none */
    uint64_t pause_limit_ns;  /* a capture that would stop the guest longer is given up; 0: no limit */
    uint64_t disk_log_bytes;  /* bound on changes of disks that wait to be sent; 0: 64 MiB */
    uint64_t disk_stall_ns;   /* a write of the guest's waits so long for room in there; 0: 500 ms */
    /* Changes of a disk are not told any more: checkpoint_repair_disks() is wanted. On a thread of the
     * driver's or the checkpoint's; must not call back. May be NULL. */
    void (*disk_lost)(void *ctx, uint32_t disk, const char *why);
    /* The standby is to be asked what it has in these blocks of WIRE_SUMS_BLOCK bytes (SUMS_WANTED);
     * checkpoint_disk_sums() is the answer. As disk_lost; NULL: it cannot be. */
    void (*disk_sums_wanted)(void *ctx, uint32_t disk, uint64_t first, uint32_t count);
    /* The same for pages of memory (PAGE_SUMS_WANTED, checkpoint_page_sums()); NULL: it cannot be asked. */
    void (*page_sums_wanted)(void *ctx, uint32_t block, uint64_t first, uint32_t count);
    /* A round is complete: all its frames were produced. Called on a lane's thread (or the owner's, for an
     * empty round); must not call back into the checkpoint. */
    void (*round_sent)(void *ctx, uint64_t epoch, uint32_t round, const struct message_totals *totals);
    /* Inside the pause of a capture: draw the line behind the guest's output so far, which belongs to `epoch`
     * (or to an earlier one). The first does not wait, the second does; the device state is saved in between.
     * Owner's thread; a failure makes the capture fail. NULL: the output is nobody's business. */
    int (*mark_begin)(void *ctx, uint64_t epoch);
    int (*mark_end)(void *ctx);
    /* Frames are ready: kick the lanes. Owner's thread. */
    void (*ready)(void *ctx);
    void *ctx;
};

int checkpoint_new(struct checkpoint **ret_checkpoint, struct vmm *source,
                   const struct checkpoint_config *config);
void checkpoint_free(struct checkpoint *checkpoint);

/* Negotiated per session, set while no round is under way: for pages and disks, and for the device state. */
void checkpoint_set_lz4(struct checkpoint *checkpoint, bool allowed);
void checkpoint_set_state_lz4(struct checkpoint *checkpoint, bool allowed);

/* A session begins; may it send changes of pages? From its first round on, what former sessions knew about
 * the standby's pages is forgotten, so that a session that ended over a wrong base is not followed by
 * another. */
void checkpoint_set_delta(struct checkpoint *checkpoint, bool allowed);

/* Start tracking (first call only) and take a baseline; afterwards everything is pending. */
int checkpoint_begin(struct checkpoint *checkpoint);

/* After disk_lost(): have the driver tell of all disks again; those that were lost are copied anew. */
int checkpoint_repair_disks(struct checkpoint *checkpoint);

/* Everything is pending again (the standby has nothing of use). No pause. */
void checkpoint_all_pending(struct checkpoint *checkpoint);

/* After checkpoint_begin() or checkpoint_all_pending(), if the standby can say what it has (negotiated): what
 * is on its disks already is not sent, until everything was read once. */
void checkpoint_compare_disks(struct checkpoint *checkpoint);
/* The same for memory. Before the session's first round; until all is compared there are only live rounds. */
void checkpoint_compare_memory(struct checkpoint *checkpoint);
/* The standby's answers. Any thread. */
void checkpoint_page_sums(struct checkpoint *checkpoint, const struct message_page_sums *sums);
void checkpoint_disk_sums(struct checkpoint *checkpoint, const struct message_sums *sums);

struct checkpoint_estimate {
    uint64_t dirty_pages;    /* pending + marked now (a live scan that clears nothing) + to be compared */
    uint64_t pause_ns;       /* predicted pause of a capture now, from measured costs */
    uint64_t fixed_pause_ns; /* the same without any dirty page */
    uint64_t send_ns;        /* predicted time in which the lanes carry it, changes of disks included */
    uint64_t disk_bytes;     /* changes of disks that wait to be sent */
    bool
        wants_round; /* a live round first would pay: over the pause budget or over staging, and converging */
    bool behind; /* parts of the disks must be read and sent first, or memory be compared (then wants_round
                    is set, too): a capture would fail with -ETIME */
};
int checkpoint_estimate(struct checkpoint *checkpoint, struct checkpoint_estimate *ret_estimate);

/* Send pending + marked pages as live round `round` of `epoch`. Returns when the frames can be produced. */
int checkpoint_round(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch, uint32_t round,
                     uint64_t *ret_pages);

/* Fingerprints of pages taken inside the pause of a capture, for `understudy verify`. */
struct checkpoint_verify {
    uint32_t block;
    uint64_t first;
    uint32_t count;         /* pages, at most WIRE_VERIFY_MAX */
    uint64_t *fingerprints; /* caller's array of `count`: XXH3-64 of each page */
};

struct checkpoint_capture {
    uint64_t pause_ns;                                       /* pause() called to resume() returned */
    uint64_t dirty_pages;                                    /* copied inside the pause */
    uint64_t stop_ns, scan_ns, copy_ns, state_ns, resume_ns; /* parts; state overlaps scan and copy */
    uint64_t state_bytes, state_sum;
    uint64_t probe; /* the 8 bytes at the probe address at this instant */
};

/*
 * The final round: capture. Returns 0 when the guest runs again and the frames can be produced; the caller
 * sends COMMIT when round_sent() has come. -ETIME: the pause limit would have been passed, or disks or memory
 * are behind; the guest runs, everything is pending again and nothing of the round was sent: it may be tried
 * again. Any other negative errno likewise leaves the guest running and nothing lost, but frames of the round
 * may be out, so that the session must end; -ETIMEDOUT is such a failure: the lanes were too slow for pages
 * that did not fit in staging. `verify` may be NULL.
 */
int checkpoint_capture(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch, uint32_t round,
                       struct checkpoint_verify *verify, struct checkpoint_capture *ret_capture);

/*
 * The last capture of a guest that is to run elsewhere: as checkpoint_capture(), with a limit of its own on
 * the pause (0: none), but on success the guest is left stopped, as between pause() and resume(), and
 * pause_ns is the time until then. The caller ends that with the driver's resume() or halt(), before any
 * other round.
 */
int checkpoint_capture_final(struct checkpoint *checkpoint, uint64_t generation, uint64_t epoch,
                             uint32_t round, uint64_t limit_ns, struct checkpoint_capture *ret_capture);

/*
 * Slow the guest: stop it for `stop_ns`, and let it run again. Its marks stay. Between rounds, or while the
 * lanes carry one. `ended` is asked about every 10 ms whether that is enough; NULL: do not ask.
 */
int checkpoint_slow_guest(struct checkpoint *checkpoint, uint64_t stop_ns, bool (*ended)(void *ctx));

/* The epoch was acknowledged / will never be. abandoned() waits until no lane produces from it any more. */
void checkpoint_committed(struct checkpoint *checkpoint);
void checkpoint_abandoned(struct checkpoint *checkpoint);

/* The session broke: a capture that waits for lanes to drain staging gives up, produce() returns 0 from now
 * on until the next round. Any thread. */
void checkpoint_cancel(struct checkpoint *checkpoint);

/* A lane asks for frames. Returns 1 if something was written, 0 if nothing is ready, negative errno on
 * failure. */
int checkpoint_produce(struct checkpoint *checkpoint, unsigned lane, struct wire_writer *writer);

/* Report the guest's 8 bytes (little-endian) at this block and offset with every capture; bytes must not
 * cross a page. For tests and demonstrations: how far was the guest at the acknowledged checkpoint? */
int checkpoint_set_probe(struct checkpoint *checkpoint, const char *block, uint64_t offset);

struct checkpoint_stats {
    uint64_t pages_zero, pages_raw, pages_lz4; /* sent, by encoding */
    uint64_t pages_delta;                      /* sent as changes */
    uint64_t pages_same;                       /* marked as written, and not sent: the standby has them so */
    uint64_t pages_compared, pages_known; /* with what the standby says that it has; of those, not sent */
    uint64_t bytes_guest, bytes_payload;  /* of all those but the latter; as encoded */
    uint64_t bytes_lz4;                   /* of pages_lz4 as encoded */
    uint64_t bytes_delta;                 /* payload of the frames that carry changes */
    uint64_t bytes_delta_saved, bytes_same_saved; /* against whole pages, at the ratio measured then */
    uint64_t delta_hits, delta_misses;            /* pages of which the standby's copy was known; was not */
    uint64_t delta_memory_bytes;                  /* part of memory_bytes */
    uint64_t rounds_live, captures, captures_given_up;
    uint64_t staging_bytes, staging_peak_bytes; /* configured; highest use */
    uint64_t memory_bytes;                      /* all that the checkpoint holds: staging, sets, buffers */
    bool compressing;                           /* present decision */
    struct disks_stats disks;
    uint64_t disk_bytes_payload;               /* as encoded */
    uint64_t state_bytes, state_bytes_payload; /* device state that was sent: as saved; as encoded */
};
void checkpoint_get_stats(struct checkpoint *checkpoint, struct checkpoint_stats *ret_stats);

#endif
