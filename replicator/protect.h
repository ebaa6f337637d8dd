/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_PROTECT_H
#define UNDERSTUDY_REPLICATOR_PROTECT_H

#include "base/histogram.h"
#include "checkpoint/checkpoint.h"
#include "replicator/hub.h"
#include "replicator/migrate.h"

#include <stdatomic.h>

/* The primary's daemon; internal to replicator/protect*.c. */

struct protect_verify {
    uint64_t client; /* 0: none under way */
    uint32_t block;
    uint64_t first; /* next page to compare */
    uint32_t slice_pages;
    bool awaited; /* a slice is with the standby */
    uint64_t awaited_by_ns;
    struct checkpoint_verify slice; /* of the capture that is under way */
    bool slice_taken;
    uint64_t pages, differing, slices, pause_max_ns;
    json_t *blocks; /* one object for each block finished */
    uint64_t block_differing;
    json_t *block_pages; /* numbers of differing pages, the first few */
};

#define MIGRATE_DOWNTIME_MS_MAX 600000u
#define MIGRATE_TIMEOUT_MS_MAX  (7u * 24 * 3600 * 1000)

struct protect_migrate {
    uint64_t commit_sent_ns, switch_sent_ns;
    uint64_t commit_ns, takeover_ns; /* measured; 0: not yet */
    uint64_t began_ns, bytes_before, payload_before;
    uint64_t round_ns, remaining_bytes, expected_ns, rounds;
    struct migrate_costs expected; /* what expected_ns is made of */
    double dirty_rate;             /* bytes a second */
    /* Of the final epoch, what its downtime was made of. */
    struct checkpoint_capture final;
    uint64_t captured_ns, acked_ns, loaded_ns, started_ns;
    /* The guest is slowed: stopped for `share` percent of the time; 0: it is not. */
    unsigned share, share_most;
    bool slowing;        /* the guest's thread has it stopped, or is about to */
    uint64_t slow_at_ns; /* when it is to be stopped again */
    uint64_t grow_at_ns; /* when for a larger share */
    atomic_bool slow;    /* cleared, the guest's thread lets it run at once */
};

struct protect {
    struct hub hub; /* first: the hub's callbacks cast */
    struct primary *machine;
    struct vmm *guest;
    struct vmm_description description;
    struct checkpoint *checkpoint;
    struct gate *gate;
    int door_fd; /* -1: nobody can call us */
    pthread_mutex_t
        gate_lock; /* leaf; the gate wants one caller at a time: marks come from the guest's thread */
    uint8_t history[16];
    int attach_code;
    bool attached;
    bool begun;                   /* guest's thread */
    uint64_t repair_at_ns;        /* guest's thread: repairing disks failed, and is tried again; 0: not */
    bool held;                    /* guest's thread: we stopped the guest (stall, yield, final capture) */
    bool kept;                    /* guest's thread: and our death would not let it run */
    atomic_uint_fast64_t session; /* whose rounds are being sent */
    atomic_uint_fast64_t live_session; /* that may send rounds; 0: none */
    struct role_action round;          /* the latest ACTION_ROUND */
    bool round_waits;                  /* it has not been started */
    uint64_t heartbeats;
    uint64_t sessions;
    uint64_t disks_lost; /* how often changes of a disk were not told any more */

    /* figures */
    struct histogram pause_us, dirty, part_us[5]; /* parts: stop, scan, copy, state, resume */
    uint64_t last_pause_us, last_dirty, checkpoints;
    uint64_t copy_began_ns, copy_ns, copy_bytes_before, copy_payload_before, copy_bytes, copy_compared_before,
        copy_known_before, copy_known, copy_rounds; /* the session's first epoch */
    bool copying, copied;
    uint64_t probe_captured, probe_acknowledged;
    uint64_t first_protected_ns;
    struct protect_verify verify;
    struct protect_migrate migrate;
    struct pacer pacer; /* of the data lanes */
};

/* One tenure as primary: from the attachment to the end, or until hub.turn. Everything behind `hub` is
 * zero. */
int protect_serve(struct protect *protect);

extern const struct hub_ops protect_ops;

/* protect.c: run an event through the role machine and perform what it says. */
void protect_step(void *daemon, struct role_event *event);

/* protect_door.c */
void protect_door_open(struct protect *protect);
void protect_door_close(struct protect *protect);
void protect_turn_away(struct protect *protect, const struct role_action *action);

/* protect_frame.c: what a frame of the standby's means; `welcome` and `refuse` are room for what the event
 * points to. -EPROTO, -EMSGSIZE. A VERIFIED is dealt with there and becomes a heartbeat. */
int protect_event_of_frame(struct protect *protect, const struct wire_frame *frame, struct role_event *event,
                           struct message_welcome *welcome, struct message_refuse *refuse);

/* protect_guest.c */
int protect_attach(struct protect *protect);
void protect_begin(struct protect *protect, const struct role_action *action);
/* Start the round that waits, if nothing keeps it. */
void protect_start_round(struct protect *protect);
/* ACTION_KEEP */
void protect_keep(struct protect *protect, const struct role_action *action);
enum protect_deed {
    PROTECT_COMMITTED,
    PROTECT_ABANDONED,
    PROTECT_HOLD,
    PROTECT_RELEASE,
    PROTECT_HALT,
    PROTECT_PASS,
    PROTECT_REPAIR_DISKS,
    PROTECT_WATCH,
    PROTECT_DETACH,
};
void protect_guest_do(struct protect *protect, enum protect_deed deed);
/* As checkpoint_config.disk_lost. */
void protect_disk_lost(void *daemon, uint32_t disk, const char *why);

/* protect_gate.c: the guest's output. `was_here`: an engine ran this guest before, so that an older
 * checkpoint may exist; what the guest says is held until the machine knows better. */
int protect_gate_open(struct protect *protect, bool was_here);
void protect_gate_close(struct protect *protect);
int protect_gate_mark_begin(void *daemon, uint64_t epoch);
int protect_gate_mark_end(void *daemon);
bool protect_gate_holds(struct protect *protect);
void protect_gate_release(struct protect *protect, uint64_t epoch);
/* Guest's thread, so that it comes behind the marks of a capture that is given up. */
void protect_gate_pass(struct protect *protect);
void protect_gate_shut(struct protect *protect);

/* protect_request.c */
void protect_request(void *ctx, uint64_t client, const char *command, json_t *request);

/* protect_status.c */
json_t *protect_status(struct protect *protect);
void protect_progress(void *daemon, char *ret_line, size_t room);

/* protect_migrate.c */
void protect_migrate_request(struct protect *protect, uint64_t client, json_t *request);
void protect_migrate_cancel(struct protect *protect, uint64_t client);
void protect_migrate_sent(struct protect *protect, enum wire_type type);
void protect_migrate_heard(struct protect *protect, enum role_event_type type);
/* `max_ns`: the downtime that is wanted, 0: no migration is. */
void protect_migrate_round(struct protect *protect, const struct migrate_costs *costs, uint64_t dirty_bytes,
                           uint64_t max_ns);
/* For hub.migration: the next role tells it. */
void protect_migrate_keep(struct protect *protect);
/* The final capture was made, at `now_ns`. */
void protect_migrate_captured(struct protect *protect, const struct checkpoint_capture *captured,
                              uint64_t now_ns);
json_t *protect_migrate_status(struct protect *protect, const struct role_status *status,
                               const struct checkpoint_stats *stats, uint64_t now);

/* protect_slow.c: how much the lanes may carry, and a guest that writes more than that */
/* After each step of the machine. */
void protect_slow_stepped(struct protect *protect, const struct role_status *before,
                          const struct role_status *after);
/* When protect_slow_tick() is due; UINT64_MAX: not at all. */
uint64_t protect_slow_deadline(const struct protect *protect);
void protect_slow_tick(struct protect *protect, uint64_t now_ns);

/* protect_sums.c */
/* As checkpoint_config.disk_sums_wanted. */
void protect_sums_wanted(void *daemon, uint32_t disk, uint64_t first, uint32_t count);
int protect_sums_answer(struct protect *protect, const struct wire_frame *frame);
/* The same of pages. */
void protect_page_sums_wanted(void *daemon, uint32_t block, uint64_t first, uint32_t count);
int protect_page_sums_answer(struct protect *protect, const struct wire_frame *frame);

/* protect_verify.c */
void protect_verify_request(struct protect *protect, uint64_t client, json_t *request);
bool protect_verify_awaited(const struct protect *protect);
/* When an answer is overdue; UINT64_MAX: none is awaited. */
uint64_t protect_verify_deadline(const struct protect *protect);
/* The slice that the next capture should take, NULL for none. */
struct checkpoint_verify *protect_verify_slice(struct protect *protect);
/* The epoch with the slice was committed: send it. */
void protect_verify_committed(struct protect *protect, uint64_t session, uint64_t generation, uint64_t epoch);
void protect_verify_answer(struct protect *protect, const struct wire_frame *frame);
void protect_verify_broken(struct protect *protect, const char *why);

#endif
