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

/* --- digests of disks and of pages --- */

_Static_assert(WIRE_PAGE_SUMS_MAX == WIRE_SUMS_MAX, "one job has room for either");

static const struct {
    const char *name;
    uint64_t feature;
    unsigned waiting_max; /* questions that one session may have open */
} sums_of[STANDBYD_SUMS_KINDS] = {
    [STANDBYD_SUMS_DISK] = {"SUMS_WANTED", WIRE_FEATURE_DISK_SUMS, 4},
    [STANDBYD_SUMS_PAGES] = {"PAGE_SUMS_WANTED", WIRE_FEATURE_PAGE_SUMS, 16},
};

struct sums_job {
    struct job job;
    uint64_t link;
    enum standbyd_sums_kind kind;
    struct message_sums disk;
    struct message_page_sums pages; /* wanted; then said */
    int code;
    char text[ERROR_TEXT_MAX];
    uint8_t digests[WIRE_SUMS_MAX * WIRE_DIGEST_BYTES];
};

static void run_sums(struct job *base, void *daemon)
{
    struct sums_job *job = (struct sums_job *)base;
    struct standbyd *standbyd = daemon;
    if (__atomic_load_n(&standbyd->session, __ATOMIC_RELAXED) != job->link || !standbyd->restore)
        job->code = error_set(-ECANCELED, "%s: the session is over", sums_of[job->kind].name);
    else if (job->kind == STANDBYD_SUMS_DISK)
        job->code = restore_disk_sums(standbyd->restore, &job->disk, job->digests);
    else
        job->code = restore_page_sums(standbyd->restore, &job->pages, &job->pages.count, job->digests);
    if (job->code < 0)
        snprintf(job->text, sizeof job->text, "%s", error_text());
}

static size_t build_sums(const struct sums_job *job, uint8_t *payload)
{
    struct wire_sums disk;
    struct wire_page_sums pages;
    bool of_disk = job->kind == STANDBYD_SUMS_DISK;
    size_t head_bytes = of_disk ? sizeof disk : sizeof pages;
    size_t bytes = (size_t)(of_disk ? job->disk.count : job->pages.count) * WIRE_DIGEST_BYTES;
    if (of_disk)
        message_sums_build(&job->disk, &disk);
    else
        message_page_sums_build(&job->pages, &pages);
    memcpy(payload, of_disk ? (const void *)&disk : &pages, head_bytes);
    memcpy(payload + head_bytes, job->digests, bytes);
    return head_bytes + bytes;
}

static void deliver_sums(struct note *note, void *daemon)
{
    struct sums_job *job = (struct sums_job *)note;
    struct standbyd *standbyd = daemon;
    struct role_status status;
    uint8_t payload[sizeof(struct wire_sums) + sizeof(struct wire_page_sums) + sizeof job->digests];
    standbyd->sums_waiting[job->kind]--;
    standby_get_status(standbyd->machine, &status);
    if (job->code == -ECANCELED || status.session != job->link)
        return;
    if (job->code < 0) {
        cannot_answer(standbyd, job->link, job->text);
        return;
    }
    links_send(standbyd->hub.links, job->link, job->kind == STANDBYD_SUMS_DISK ? WIRE_SUMS : WIRE_PAGE_SUMS,
               status.generation, 0, payload, build_sums(job, payload));
}

int standbyd_sums(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame,
                  enum standbyd_sums_kind kind)
{
    struct role_status status;
    struct message_sums disk = {0};
    struct message_page_sums pages = {0};
    int r = kind == STANDBYD_SUMS_DISK ? message_sums_wanted_parse(frame, &disk)
                                       : message_page_sums_wanted_parse(frame, &pages);
    standby_get_status(standbyd->machine, &status);
    if (r == 0 && (status.session != link || !standbyd->restore_ours ||
                   (status.state != STANDBY_GREETED && status.state != STANDBY_RECEIVING) ||
                   !(status.optional & sums_of[kind].feature) ||
                   standbyd->sums_waiting[kind] >= sums_of[kind].waiting_max))
        r = error_set(-EPROTO, "%s while %s, with %u that wait", sums_of[kind].name,
                      role_state_name(status.state), standbyd->sums_waiting[kind]);
    if (r < 0)
        return r;
    struct sums_job *job = job_new(sizeof *job, run_sums, deliver_sums);
    job->link = link;
    job->kind = kind;
    job->disk = disk;
    job->pages = pages;
    standbyd->sums_waiting[kind]++;
    worker_submit(standbyd->hub.worker, &job->job);
    return 0;
}
