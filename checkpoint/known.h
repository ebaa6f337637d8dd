/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_KNOWN_H
#define UNDERSTUDY_CHECKPOINT_KNOWN_H

#include "checkpoint/pageset.h"
#include "wire/message.h"

/*
 * What a standby's guest has in its memory already, so that a full copy need not bring it; known.c has the
 * theory. While comparing is on, a page of the guest is at first *left*: not compared, not sent, nobody's.
 * From there it becomes pending (it differs, or the guest wrote it) or inflight (the standby has it).
 *
 * Threads: the checkpoint's owner calls everything but known_sums(), known_cancel() and known_get_stats(),
 * which any thread may call.
 */
struct known;

struct known_config {
    /* Ask the standby (PAGE_SUMS_WANTED); known_sums() is the answer. On a thread of our own. */
    void (*wanted)(void *ctx, uint32_t block, uint64_t first, uint32_t count);
    void *ctx;
};

/* `guest` outlives it. */
int known_new(struct known **ret_known, struct vmm *source, const struct vmm_description *guest,
              const struct known_config *config);
void known_free(struct known *known); /* takes NULL */

/* `pending`, all of the guest, is to be sent to a standby that can say what it has: becomes empty, and all is
 * left. Nothing was sent in the session so far. */
void known_begin(struct known *known, struct pageset *pending);

/* The standby's answer. */
void known_sums(struct known *known, const struct message_page_sums *sums);

/* A round begins, so the session is up and questions may be asked. Waits until a good round's worth was found
 * to differ, or nothing is left, or for so long; then all that was found since goes to the two sets. Returns
 * true if that is the last of it. */
bool known_take(struct known *known, uint64_t limit_ns, struct pageset *pending, struct pageset *inflight);

/* So many pages are sent in a live round, from now on. */
void known_sending(struct known *known, uint64_t pages);

/* The guest wrote these pages: they are sent, whatever the standby has. Before they are. */
void known_written(struct known *known, const struct vmm_range *ranges, size_t count);

/* The epoch is given up: nothing is left, and what was not taken is pending. */
void known_abandon(struct known *known, struct pageset *pending);

/* The session is over: nobody waits any more. */
void known_cancel(struct known *known);

struct known_stats {
    uint64_t waiting_pages;               /* not compared yet, or found to differ and not taken */
    uint64_t compared_pages, known_pages; /* since known_new(); of the former, the latter were not sent */
    uint64_t memory_bytes;
};
void known_get_stats(struct known *known, struct known_stats *ret_stats);

#endif
