/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_SOURCE_DISKS_H
#define UNDERSTUDY_VMM_KVM_SOURCE_DISKS_H

#include "vmm/kvm/guest_disks.h"

#include <pthread.h>
#include <stdatomic.h>

/*
 * The engine's ends of the feeds (feed.h) of a guest's disks, a thread for each. The guest's owner makes all
 * calls.
 */
struct source_feed {
    const struct vmm_disk_sink *sink;
    uint32_t disk;
    uint64_t disk_bytes;
    int fd;
    void *data; /* FEED_PIECE bytes */
    pthread_t thread;
    bool started;
    atomic_bool ended;   /* the thread hears nothing more */
    atomic_bool unheard; /* by our own wish */
};

/* Zero-initialised: none is open. */
struct source_disks {
    struct vmm_disk_sink sink;
    struct source_feed feeds[CONTROL_FDS_MAX];
    unsigned count;
};

/* disks_open() and disks_close() of vmm.h. */
int source_disks_open(struct source_disks *source, struct client *client, const struct guest_disks *disks,
                      const struct vmm_disk_sink *sink);
void source_disks_close(struct source_disks *source, struct client *client);

#endif
