/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_EVENTS_TELL_H
#define UNDERSTUDY_REPLICATOR_EVENTS_TELL_H

#include "replicator/events.h"

/* The thread that tells the journal and the hooks; internal to replicator/events*.c. */
struct teller;

/* `*ret_teller` is NULL when there is nobody to tell: no hooks, and standard error is not the journal. */
int teller_new(struct teller **ret_teller, const struct config *config);
/* Takes NULL. */
void teller_free(struct teller *teller);

/* Never waits. When the thread is too far behind the entry is dropped and counted. Takes NULL. */
void teller_tell(struct teller *teller, const struct events_entry *entry);

struct teller_count {
    uint64_t run, failed, timed_out, dropped;
};
void teller_get_count(const struct teller *teller, struct teller_count *ret_count);

/* CLOCK_REALTIME as RFC 3339 has it, UTC, with milliseconds. 32 bytes are enough. */
void events_format_time(uint64_t wall_ns, char *ret_text, size_t room);

/* Is standard error connected to the journal (JOURNAL_STREAM of systemd.exec(5))? */
bool journal_is_stderr(void);
/* One structured entry. May wait for the journal. */
void journal_send(const struct config *config, const struct events_entry *entry);

#endif
