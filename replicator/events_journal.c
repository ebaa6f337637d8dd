/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/events_tell.h"

#include "base/log.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <systemd/sd-journal.h>
#include <unistd.h>

bool journal_is_stderr(void)
{
    const char *stream = getenv("JOURNAL_STREAM");
    unsigned long long device, inode;
    struct stat status;
    /* The variable is inherited by children whose standard error is something else: compare, as the manual
     * says. */
    return stream && sscanf(stream, "%llu:%llu", &device, &inode) == 2 &&
           fstat(STDERR_FILENO, &status) == 0 && status.st_dev == device && status.st_ino == inode;
}

void journal_send(const struct config *config, const struct events_entry *entry)
{
    const char *role = news_role(entry->state);
    char uuid[37];
    config_uuid_print(config->uuid, uuid);
    int r = sd_journal_send(
        "MESSAGE=%s: %s (%s, generation %llu, checkpoint %llu)%s%s", config->name, news_name(entry->kind),
        role, (unsigned long long)entry->generation, (unsigned long long)entry->committed_epoch,
        entry->reason[0] ? ": " : "", entry->reason, "MESSAGE_ID=%s", news_message_id(entry->kind),
        "PRIORITY=%d", news_level(entry->kind), "UNDERSTUDY_EVENT=%s", news_name(entry->kind),
        "UNDERSTUDY_VM=%s", config->name, "UNDERSTUDY_UUID=%s", uuid, "UNDERSTUDY_HOST=%s", config->self.name,
        "UNDERSTUDY_PEER=%s", config->peer.name, "UNDERSTUDY_ROLE=%s", role, "UNDERSTUDY_STATE=%s",
        role_state_name(entry->state), "UNDERSTUDY_GENERATION=%llu", (unsigned long long)entry->generation,
        "UNDERSTUDY_EPOCH=%llu", (unsigned long long)entry->epoch, "UNDERSTUDY_COMMITTED_EPOCH=%llu",
        (unsigned long long)entry->committed_epoch, "UNDERSTUDY_SEQUENCE=%llu",
        (unsigned long long)entry->sequence, "UNDERSTUDY_MONOTONIC_USEC=%llu",
        (unsigned long long)(entry->monotonic_ns / 1000), "UNDERSTUDY_REASON=%s", entry->reason, NULL);
    if (r < 0)
        log_warning("event %llu did not get into the journal: %s", (unsigned long long)entry->sequence,
                    strerror(-r));
}
