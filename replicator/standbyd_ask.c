/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/standbyd.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>

/* What a primary asks, and the guest's thread finds out: VERIFY, SUMS_WANTED, PAGE_SUMS_WANTED. */

static void cannot_answer(struct standbyd *standbyd, uint64_t link, const char *text)
{
    struct role_event event = {.type = EVENT_LINK_DOWN, .session = link, .code = -EPROTO, .text = text};
    standbyd_step(standbyd, &event);
    links_disconnect(standbyd->hub.links, link);
}

/* --- verify --- */

struct verify_job {
    struct job job;
    uint64_t link;
    struct wire_frame frame;
    int code;
    uint32_t differing;
    uint64_t pages[WIRE_VERIFIED_MAX];
    uint8_t payload[];
};

static void run_verify(struct job *base, void *daemon)
{
    struct verify_job *job = (struct verify_job *)base;
    struct standbyd *standbyd = daemon;
    struct message_verify verify;
    job->code = message_verify_parse(&job->frame, &verify);
    if (job->code == 0 && !standbyd->restore)
        job->code = error_set(-ENODATA, "VERIFY: there is no checkpoint");
    if (job->code == 0)
        job->code = restore_verify(standbyd->restore, &verify, &job->differing, job->pages);
}

static void deliver_verified(struct note *note, void *daemon)
{
    struct verify_job *job = (struct verify_job *)note;
    struct standbyd *standbyd = daemon;
    struct message_verify verify;
    struct role_status status;
    uint8_t payload[sizeof(struct wire_verified) + WIRE_VERIFIED_MAX * sizeof(le64)];
    standbyd->verifying = false;
    if (job->code < 0 || message_verify_parse(&job->frame, &verify) < 0) {
        cannot_answer(standbyd, job->link, "VERIFY could not be answered");
        return;
    }
    long length = message_verified_build(&verify, job->differing, job->pages, payload, sizeof payload);
    standby_get_status(standbyd->machine, &status);
    if (length > 0)
        links_send(standbyd->hub.links, job->link, WIRE_VERIFIED, status.generation, job->frame.epoch,
                   payload, (size_t)length);
}

void standbyd_verify(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct verify_job *job = job_new(sizeof *job + frame->length, run_verify, deliver_verified);
    standbyd->verifying = true;
    job->link = link;
    job->frame = *frame;
    memcpy(job->payload, frame->payload, frame->length);
    job->frame.payload = job->payload;
    worker_submit(standbyd->hub.worker, &job->job);
}

/* --- sums --- */

#define SUMS_WAITING_MAX 4 /* questions that one session may have open */

struct sums_job {
    struct job job;
    uint64_t link;
    struct message_sums wanted;
    int code;
    char text[ERROR_TEXT_MAX];
    uint8_t digests[WIRE_SUMS_MAX * WIRE_DIGEST_BYTES];
};

static void run_sums(struct job *base, void *daemon)
{
    struct sums_job *job = (struct sums_job *)base;
    struct standbyd *standbyd = daemon;
    if (__atomic_load_n(&standbyd->session, __ATOMIC_RELAXED) != job->link || !standbyd->restore)
        job->code = error_set(-ECANCELED, "SUMS_WANTED: the session is over");
    else
        job->code = restore_disk_sums(standbyd->restore, &job->wanted, job->digests);
    if (job->code < 0)
        snprintf(job->text, sizeof job->text, "%s", error_text());
}

static void deliver_sums(struct note *note, void *daemon)
{
    struct sums_job *job = (struct sums_job *)note;
    struct standbyd *standbyd = daemon;
    struct role_status status;
    uint8_t payload[sizeof(struct wire_sums) + sizeof job->digests];
    standbyd->sums_waiting--;
    standby_get_status(standbyd->machine, &status);
    if (job->code == -ECANCELED || status.session != job->link)
        return;
    if (job->code < 0) {
        cannot_answer(standbyd, job->link, job->text);
        return;
    }
    struct wire_sums head;
    size_t bytes = (size_t)job->wanted.count * WIRE_DIGEST_BYTES;
    message_sums_build(&job->wanted, &head);
    memcpy(payload, &head, sizeof head);
    memcpy(payload + sizeof head, job->digests, bytes);
    links_send(standbyd->hub.links, job->link, WIRE_SUMS, status.generation, 0, payload, sizeof head + bytes);
}

int standbyd_sums(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct role_status status;
    struct message_sums wanted;
    int r = message_sums_wanted_parse(frame, &wanted);
    standby_get_status(standbyd->machine, &status);
    if (r == 0 && (status.session != link || !standbyd->restore_ours ||
                   (status.state != STANDBY_GREETED && status.state != STANDBY_RECEIVING) ||
                   !(status.optional & WIRE_FEATURE_DISK_SUMS) || standbyd->sums_waiting >= SUMS_WAITING_MAX))
        r = error_set(-EPROTO, "SUMS_WANTED while %s, with %u that wait", role_state_name(status.state),
                      standbyd->sums_waiting);
    if (r < 0)
        return r;
    struct sums_job *job = job_new(sizeof *job, run_sums, deliver_sums);
    job->link = link;
    job->wanted = wanted;
    standbyd->sums_waiting++;
    worker_submit(standbyd->hub.worker, &job->job);
    return 0;
}

/* --- page sums --- */

#define PAGE_SUMS_WAITING_MAX 16

struct page_sums_job {
    struct job job;
    uint64_t link;
    struct message_page_sums sums; /* wanted; then said */
    int code;
    char text[ERROR_TEXT_MAX];
    uint8_t digests[WIRE_PAGE_SUMS_MAX * WIRE_DIGEST_BYTES];
};

static void run_page_sums(struct job *base, void *daemon)
{
    struct page_sums_job *job = (struct page_sums_job *)base;
    struct standbyd *standbyd = daemon;
    if (__atomic_load_n(&standbyd->session, __ATOMIC_RELAXED) != job->link || !standbyd->restore)
        job->code = error_set(-ECANCELED, "PAGE_SUMS_WANTED: the session is over");
    else
        job->code = restore_page_sums(standbyd->restore, &job->sums, &job->sums.count, job->digests);
    if (job->code < 0)
        snprintf(job->text, sizeof job->text, "%s", error_text());
}

static void deliver_page_sums(struct note *note, void *daemon)
{
    struct page_sums_job *job = (struct page_sums_job *)note;
    struct standbyd *standbyd = daemon;
    struct role_status status;
    uint8_t payload[sizeof(struct wire_page_sums) + sizeof job->digests];
    standbyd->page_sums_waiting--;
    standby_get_status(standbyd->machine, &status);
    if (job->code == -ECANCELED || status.session != job->link)
        return;
    if (job->code < 0) {
        cannot_answer(standbyd, job->link, job->text);
        return;
    }
    struct wire_page_sums head;
    size_t bytes = (size_t)job->sums.count * WIRE_DIGEST_BYTES;
    message_page_sums_build(&job->sums, &head);
    memcpy(payload, &head, sizeof head);
    memcpy(payload + sizeof head, job->digests, bytes);
    links_send(standbyd->hub.links, job->link, WIRE_PAGE_SUMS, status.generation, 0, payload,
               sizeof head + bytes);
}

int standbyd_page_sums(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame)
{
    struct role_status status;
    struct message_page_sums wanted;
    int r = message_page_sums_wanted_parse(frame, &wanted);
    standby_get_status(standbyd->machine, &status);
    if (r == 0 &&
        (status.session != link || !standbyd->restore_ours ||
         (status.state != STANDBY_GREETED && status.state != STANDBY_RECEIVING) ||
         !(status.optional & WIRE_FEATURE_PAGE_SUMS) || standbyd->page_sums_waiting >= PAGE_SUMS_WAITING_MAX))
        r = error_set(-EPROTO, "PAGE_SUMS_WANTED while %s, with %u that wait", role_state_name(status.state),
                      standbyd->page_sums_waiting);
    if (r < 0)
        return r;
    struct page_sums_job *job = job_new(sizeof *job, run_page_sums, deliver_page_sums);
    job->link = link;
    job->sums = wanted;
    standbyd->page_sums_waiting++;
    worker_submit(standbyd->hub.worker, &job->job);
    return 0;
}
