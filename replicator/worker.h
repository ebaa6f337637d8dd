/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_WORKER_H
#define UNDERSTUDY_REPLICATOR_WORKER_H

#include "base/mailbox.h"
#include "vmm/vmm.h"

/*
 * A note is a message to the daemon's main thread: deliver() runs there, then the note is freed. A job is a
 * note that first does work on the guest's owner thread, so that a pause, a load or a launch never delays a
 * heartbeat.
 */
struct note {
    void (*deliver)(struct note *note, void *daemon);
};

struct job {
    struct note note; /* deliver may be NULL: nothing to report */
    void (*run)(struct job *job, void *daemon);
};

struct worker;

/* Start the guest's owner thread. Notes go to `notes`; `daemon` is handed to run(). guest_event() runs on the
 * worker's thread for every event of the watched guest. */
int worker_new(struct worker **ret_worker, struct mailbox *notes, void *daemon,
               void (*guest_event)(void *daemon, enum vmm_event event));

/* Finish the queued jobs, join, free. */
void worker_free(struct worker *worker);

/* Takes ownership of a heap job. Jobs run in order. */
void worker_submit(struct worker *worker, struct job *job);

/* Only from a job: from now on watch this guest (NULL: none). */
void worker_watch(struct worker *worker, struct vmm *guest);

/* Post a heap note to the main thread. The mailbox is sized so that this cannot fail (asserted). */
void note_post(struct mailbox *notes, void *note);

#endif
