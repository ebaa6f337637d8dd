/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/log.h"

#include <stdlib.h>

/* Asks the standby what its disks and its memory have already; checkpoint/disks_sums.c and checkpoint/known.c
 * make something of it. */

struct sums_note {
    struct note note;
    struct message_sums wanted;
};

static void deliver_wanted(struct note *note, void *daemon)
{
    struct protect *protect = daemon;
    struct role_status status;
    struct wire_sums body;
    primary_get_status(protect->machine, &status);
    message_sums_build(&((struct sums_note *)note)->wanted, &body);
    /* Who asked for an older session has been told of its end, and ignores the answer. */
    if (status.session && status.optional & WIRE_FEATURE_DISK_SUMS &&
        links_send(protect->hub.links, status.session, WIRE_SUMS_WANTED, status.generation, 0, &body,
                   sizeof body) < 0)
        log_debug("SUMS_WANTED could not be sent"); /* it is not waited for for ever */
}

void protect_sums_wanted(void *daemon, uint32_t disk, uint64_t first, uint32_t count)
{
    struct protect *protect = daemon;
    struct sums_note *note = calloc(1, sizeof *note);
    if (!note)
        abort();
    note->note.deliver = deliver_wanted;
    note->wanted = (struct message_sums){.disk = disk, .first = first, .count = count};
    note_post(protect->hub.notes, note);
}

int protect_sums_answer(struct protect *protect, const struct wire_frame *frame)
{
    struct message_sums sums;
    int r = message_sums_parse(frame, &sums);
    if (r == 0)
        checkpoint_disk_sums(protect->checkpoint, &sums);
    return r;
}

struct page_sums_note {
    struct note note;
    struct message_page_sums wanted;
};

static void deliver_page_sums_wanted(struct note *note, void *daemon)
{
    struct protect *protect = daemon;
    struct role_status status;
    struct wire_page_sums body;
    primary_get_status(protect->machine, &status);
    message_page_sums_build(&((struct page_sums_note *)note)->wanted, &body);
    if (status.session && status.optional & WIRE_FEATURE_PAGE_SUMS &&
        links_send(protect->hub.links, status.session, WIRE_PAGE_SUMS_WANTED, status.generation, 0, &body,
                   sizeof body) < 0)
        log_debug("PAGE_SUMS_WANTED could not be sent");
}

void protect_page_sums_wanted(void *daemon, uint32_t block, uint64_t first, uint32_t count)
{
    struct protect *protect = daemon;
    struct page_sums_note *note = calloc(1, sizeof *note);
    if (!note)
        abort();
    note->note.deliver = deliver_page_sums_wanted;
    note->wanted = (struct message_page_sums){.block = block, .first = first, .count = count};
    note_post(protect->hub.notes, note);
}

int protect_page_sums_answer(struct protect *protect, const struct wire_frame *frame)
{
    struct message_page_sums sums;
    int r = message_page_sums_parse(frame, &sums);
    if (r == 0)
        checkpoint_page_sums(protect->checkpoint, &sums);
    return r;
}
