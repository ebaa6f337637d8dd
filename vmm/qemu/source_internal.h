/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_SOURCE_INTERNAL_H
#define UNDERSTUDY_VMM_QEMU_SOURCE_INTERNAL_H

#include "vmm/qemu/blocks.h"
#include "vmm/qemu/disks.h"
#include "vmm/qemu/guest.h"
#include "vmm/qemu/qmp.h"

#include <sys/types.h>

/* What the parts of a source share: source.c does what the engine asks, source_events.c hears what happens.
 */

#define SOURCE_EVENTS_MAX 16

struct guard;
struct mirror;
struct state_saver;
struct tracker;

struct source {
    struct qemu_guest guest;
    struct qmp *qmp;
    int process; /* pidfd of QEMU */
    struct qemu_blocks blocks;
    struct vmm_block shown[VMM_BLOCKS_MAX];
    char *text;
    struct tracker *tracker;
    struct state_saver *saver;
    struct guard *guard;
    struct qemu_disks disks;
    struct mirror *mirror;

    enum { CALM, STOPPING, HELD, RESUMING } phase;
    bool our_stop; /* valid in HELD: "cont" is ours to say */
    bool io_error; /* a disk error stopped the guest during our own "stop" */
    bool panicked; /* the guest said so, and may still run */
    bool intruded; /* somebody else let the guest run while we held it */
    bool quiet;    /* between quiet_begin() and quiet_end(): it was running before */

    bool stopped;  /* somebody else stopped the guest, or our own stop is to outlive us */
    bool kept;     /* the latter: hold() or halt() */
    int64_t leave; /* the fdset that says so; -1: none */

    int epoll, wake; /* `wake` is readable while events wait here */
    enum vmm_event events[SOURCE_EVENTS_MAX];
    size_t event_count;
    bool over; /* ENDED, FAILED or LOST was said */
};

static inline struct source *source_of(struct vmm *vmm)
{
    return (struct source *)vmm;
}

/* source_events.c */
/* For qmp_on_event(); `ctx`: the source. */
void source_on_event(void *ctx, const char *event, const json_t *data);
/* Passes `code` through, noticing that QEMU or its monitor is gone. */
int source_checked(struct source *source, int code);
/* Keep what a later engine would find in step with source->stopped. */
int source_tell_later_engines(struct source *source);
enum vmm_event source_event(struct vmm *vmm);

/* source.c: held, and not even resume() lets it run. */
int source_halt(struct vmm *vmm);

#endif
