/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_FAULT_H
#define UNDERSTUDY_BASE_FAULT_H

/*
 * Numbered fault points. Tests arm one through the environment variable UNDERSTUDY_FAULT:
 *
 *     NAME[@N]=ACTION      the N-th pass (default 1) of point NAME does ACTION; several, separated by commas
 *
 *     kill      SIGKILL to the own process
 *     stop      SIGSTOP to the own process
 *     error     fault_point() returns -EIO, with an error text that names the point
 *     delay:MS  sleep
 *
 * Every name is listed once, in order, in FAULT_POINTS: the suite asks the program for the list
 * (understudy fault-points) and runs every one. A name that is unknown in the variable ends the program.
 */
#define FAULT_POINTS(POINT)                                                                                  \
    POINT(ATTACH, "attach")                       /* QEMU attached, nothing tracked yet */                   \
    POINT(BASELINE, "baseline")                   /* everything protected, guest stopped for the baseline */ \
    POINT(COPY_ROUND, "copy-round")               /* a round of live copy is about to be sent */             \
    POINT(CAPTURE_PAUSED, "capture-paused")       /* guest stopped, nothing read yet */                      \
    POINT(CAPTURE_SCANNED, "capture-scanned")     /* marks cleared, nothing copied yet */                    \
    POINT(CAPTURE_COPIED, "capture-copied")       /* pages staged, guest still stopped */                    \
    POINT(CAPTURE_RESUMED, "capture-resumed")     /* guest running again, nothing sent yet */                \
    POINT(DISK_CHANGE, "disk-change")             /* the guest changed a disk, not logged yet */             \
    POINT(ENCODE, "encode")                       /* a chunk of pages is about to be encoded */              \
    POINT(COMMIT_SEND, "commit-send")             /* all pages sent, commit frame not yet */                 \
    POINT(COMMIT_SENT, "commit-sent")             /* commit frame handed to the lane */                      \
    POINT(ACK_RECEIVED, "ack-received")           /* acknowledgement arrived, not yet acted upon */          \
    POINT(GENERATION_STORE, "generation-store")   /* state file about to be replaced */                      \
    POINT(THROTTLE_STOPPED, "throttle-stopped")   /* the guest stands still for a moment, to be slowed */    \
    POINT(SWITCH_CAPTURED, "switch-captured")     /* final capture made, guest stopped, nothing sent yet */  \
    POINT(HANDOVER_SEND, "handover-send")         /* standby has loaded, guest kept, not handed over yet */  \
    POINT(HANDOVER_SENT, "handover-sent")         /* standby told to run the guest */                        \
    POINT(STARTED_RECEIVED, "started-received")   /* the guest runs there, not yet acted upon */             \
    POINT(PREPARE, "prepare")                     /* standby's guest about to be launched */                 \
    POINT(KEEP_MEMORY, "keep-memory")             /* memory of a guest left behind about to be kept */       \
    POINT(KEEP_FILL, "keep-fill")                 /* and to be put into the waiting one, the old is gone */  \
    POINT(STAGE_PAGES, "stage-pages")             /* pages arrived, about to be staged */                    \
    POINT(STAGE_STATE, "stage-state")             /* device state arrived, about to be staged */             \
    POINT(JOURNAL_WRITE, "journal-write")         /* changes of disks arrived, about to be journaled */      \
    POINT(VERIFY_EPOCH, "verify-epoch")           /* commit frame arrived, epoch about to be verified */     \
    POINT(JOURNAL_COMMIT, "journal-commit")       /* the journal's commit record is about to be written */   \
    POINT(JOURNAL_COMMITTED, "journal-committed") /* and is written */                                       \
    POINT(ACK_SEND, "ack-send")                   /* epoch verified, acknowledgement about to be sent */     \
    POINT(APPLY_BEGIN, "apply-begin")             /* acknowledged epoch about to be applied */               \
    POINT(APPLY_HALF, "apply-half")               /* acknowledged epoch half applied */                      \
    POINT(JOURNAL_APPLY, "journal-apply")         /* acknowledged epoch's journal half applied */            \
    POINT(APPLY_END, "apply-end")                 /* acknowledged epoch applied whole */                     \
    POINT(SWITCH_LOAD, "switch-load")             /* told to load the last epoch, nothing done */            \
    POINT(HANDOVER_RECEIVED, "handover-received") /* told to run it, nothing done */                         \
    POINT(STARTED_SEND, "started-send")           /* it runs, the primary does not know yet */               \
    POINT(TAKEOVER_BEGIN, "takeover-begin")       /* takeover decided, nothing done */                       \
    POINT(TAKEOVER_ARBITRATED, "takeover-arbitrated") /* arbitration won */                                  \
    POINT(TAKEOVER_LOAD, "takeover-load")             /* device state about to be loaded */                  \
    POINT(TAKEOVER_RUN, "takeover-run")               /* device state loaded, guest about to run */          \
    POINT(TAKEOVER_ANNOUNCE, "takeover-announce")     /* guest runs, not yet announced */

enum fault_point {
#define FAULT_ENUM(id, name) FAULT_##id,
    FAULT_POINTS(FAULT_ENUM)
#undef FAULT_ENUM
        FAULT_COUNT
};

/* Returns 0, or a negative errno when an armed fault says so (with error_text set). Costs one load. */
int fault_point(enum fault_point point);

/* The name of a point, as the environment variable spells it. */
const char *fault_name(enum fault_point point);

/* Parse a specification as described above. Returns 0 or -EINVAL. fault_point() itself reads the variable
 * at its first call and aborts on nonsense; a program calls this at start to say so politely. */
int fault_arm(const char *specification);

#endif
