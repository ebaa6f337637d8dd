/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/worker.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdatomic.h>

struct worker {
    pthread_t thread;
    struct mailbox *jobs, *notes;
    void *daemon;
    void (*guest_event)(void *daemon, enum vmm_event event);
    struct vmm *watched; /* worker's thread only */
    bool ending;         /* worker's thread only */
};

void note_post(struct mailbox *notes, void *note)
{
    int r = mailbox_post(notes, note);
    assert(r == 0);
    (void)r;
}

static void look_at_guest(struct worker *worker)
{
    enum vmm_event event;
    /* Handling an event may end the watch. */
    while (worker->watched && (event = worker->watched->ops->event(worker->watched)) != VMM_EVENT_NONE)
        worker->guest_event(worker->daemon, event);
}

static void end(struct job *job, void *daemon)
{
    (void)job;
    (void)daemon;
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    pthread_setname_np(pthread_self(), "us-guest");
    while (!worker->ending) {
        struct pollfd fds[2] = {{.fd = mailbox_fd(worker->jobs), .events = POLLIN},
                                {.fd = -1, .events = POLLIN}};
        if (worker->watched)
            fds[1].fd = worker->watched->ops->event_fd(worker->watched);
        poll(fds, 2, -1);
        if (fds[1].revents)
            look_at_guest(worker);
        struct job *job = mailbox_take(worker->jobs);
        if (!job)
            continue;
        worker->ending = job->run == end;
        job->run(job, worker->daemon);
        /* What a job met on the monitor may have been queued in the driver, where no descriptor shows it. */
        look_at_guest(worker);
        if (job->note.deliver)
            note_post(worker->notes, job);
        else
            free(job);
    }
    return NULL;
}

int worker_new(struct worker **ret_worker, struct mailbox *notes, void *daemon,
               void (*guest_event)(void *daemon, enum vmm_event event))
{
    struct worker *worker = calloc(1, sizeof *worker);
    if (!worker)
        return error_set(-ENOMEM, "guest thread: out of memory");
    worker->notes = notes;
    worker->daemon = daemon;
    worker->guest_event = guest_event;
    int r = mailbox_new(&worker->jobs, 256);
    if (r < 0) {
        free(worker);
        return r;
    }
    r = -pthread_create(&worker->thread, NULL, work, worker);
    if (r < 0) {
        mailbox_free(worker->jobs);
        free(worker);
        return error_errno(r, "guest thread: create");
    }
    *ret_worker = worker;
    return 0;
}

void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    struct job *last = calloc(1, sizeof *last);
    assert(last);
    last->run = end;
    worker_submit(worker, last);
    pthread_join(worker->thread, NULL);
    mailbox_free(worker->jobs);
    free(worker);
}

void worker_submit(struct worker *worker, struct job *job)
{
    note_post(worker->jobs, job);
}

void worker_watch(struct worker *worker, struct vmm *guest)
{
    worker->watched = guest;
}
