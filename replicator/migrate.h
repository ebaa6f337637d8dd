/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_MIGRATE_H
#define UNDERSTUDY_REPLICATOR_MIGRATE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * When is a planned switchover short enough? Predicted from what was measured in the epochs before. Pure: no
 * clock, no lock. Times in nanoseconds, sizes in bytes.
 *
 *     pause      stop, marks, device state, copy of the dirty pages: capture costs as measured
 * (checkpoint/pace.h) send       what the lanes need for those pages and the changes of disks that wait
 *     commit     COMMIT sent to ACK received: a round trip and the standby's checking
 *     takeover   SWITCH sent to LOADED received, as measured, else MIGRATE_TAKEOVER_GUESS_NS
 *     handover   HANDOVER sent to the guest running: the arbiter, as it was when last asked here, else
 *                MIGRATE_ARBITER_GUESS_NS; and MIGRATE_HANDOVER_NS for the words and for storing the
 *                generation there
 */
#define MIGRATE_TAKEOVER_GUESS_NS                                                                            \
    15000000u /* nobody can know before the first load; QEMU 7.2 takes 4 to 10 ms */
#define MIGRATE_ARBITER_GUESS_NS 5000000u
#define MIGRATE_HANDOVER_NS      3000000u

struct migrate_costs {
    uint64_t pause_ns, send_ns, commit_ns;
    uint64_t takeover_ns;    /* 0: not measured yet */
    uint64_t arbiter_ns;     /* 0: there is none */
    uint64_t fixed_pause_ns; /* of a capture without dirty pages */
};

uint64_t migrate_downtime_ns(const struct migrate_costs *costs);
/* The part of it that comes after the ACK. */
uint64_t migrate_after_ns(const struct migrate_costs *costs);

enum migrate_step {
    MIGRATE_NOW,     /* the final capture */
    MIGRATE_ROUND,   /* a live round first: fewer dirty pages would make it fit */
    MIGRATE_CAPTURE, /* an ordinary epoch: rounds do not help, or there were enough */
};
/* What the next round should be so that the guest is down for at most `max_ns`. `anyway`: the operator's time
 * is up. `behind`: parts of the disks are not there yet, so that nothing but a live round is possible.
 * `more`: another live round may be made. */
enum migrate_step migrate_next(const struct migrate_costs *costs, uint64_t max_ns, bool anyway, bool behind,
                               bool more);

/*
 * A guest that is slowed is stopped for a share of each MIGRATE_SLICE_NS, in percent. It begins with
 * MIGRATE_SHARE_FIRST and grows every MIGRATE_SHARE_EVERY_NS as long as the downtime does not fit; never so
 * much that the guest stands still.
 */
#define MIGRATE_SLICE_NS       100000000u
#define MIGRATE_SHARE_EVERY_NS 1000000000u
#define MIGRATE_SHARE_FIRST    30u
#define MIGRATE_SHARE_MORE     15u
#define MIGRATE_SHARE_MAX      90u
unsigned migrate_share_next(unsigned share);
/* Of a slice: the guest stands still, then runs. Nanoseconds. */
uint64_t migrate_stopped_ns(unsigned share);
uint64_t migrate_running_ns(unsigned share);

/* Smooths: a quarter of each new sample. */
void migrate_learn(uint64_t *mean_ns, uint64_t sample_ns);

/* When `remaining` bytes will have been carried at `rate` bytes a second while the guest writes `dirty_rate`;
 * negative: never at this pace. Seconds. */
double migrate_eta_s(uint64_t remaining, double rate, double dirty_rate);

#endif
