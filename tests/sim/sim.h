/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_SIM_H
#define UNDERSTUDY_TESTS_SIM_H

#include "replicator/role.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * The world that the two role machines live in, with everything in it that can go wrong; all of it follows
 * from one seed. sim.c has the theory of operation and the invariants.
 */

#define PAGES         8
#define HOSTS         2
#define SNAPSHOTS_MAX 512
#define SESSIONS_MAX  64
#define LINEAGES_MAX  64
#define MS            UINT64_C(1000000)

/* sim_event.c: time */

enum sim_kind {
    SIM_TICK,    /* the engine's deadline; a: stamp */
    SIM_ENGINE,  /* payload: an event for the engine */
    SIM_JOB,     /* the guest thread finished its job */
    SIM_PUMP,    /* a: session, b: channel */
    SIM_FAULT,   /* a: index */
    SIM_REPAIR,  /* a: what, see sim_fault.c */
    SIM_ARBITER, /* a: from, b: to, payload: 0 when the other host is to be fenced */
    SIM_SWAP,    /* an arbiter's transaction that was under way for long; a: the register's revision, b: to */
    SIM_OPERATOR, /* a: act */
    SIM_MIGRATE,  /* a: 0 start, 1 cancel */
};

struct sim_event {
    uint64_t at_ns, order;
    enum sim_kind kind;
    int host;
    uint32_t life; /* of the engine it is for */
    uint64_t a, b;
    int payload; /* index into role events, -1: none */
};

/* A role event on its way to an engine, with room for what it points to. */
struct parcel {
    struct role_event event;
    struct message_hello hello;
    struct message_welcome welcome;
    struct message_commit commit;
    int next_free;
};

/* the network */

enum channel { CONTROL_TO_STANDBY, CONTROL_TO_PRIMARY, DATA_TO_STANDBY, CHANNELS };

struct packet {
    uint64_t at_ns; /* not delivered before */
    enum { PACKET_FRAME, PACKET_DATA, PACKET_FIN } kind;
    enum wire_type type;
    uint64_t generation, epoch;
    uint32_t round, refusal, reason;
    bool corrupt;
    struct message_hello hello;
    struct message_welcome welcome;
    struct message_totals totals;
    struct message_commit commit;
    /* data */
    uint32_t mask;
    uint64_t pages[PAGES];
    uint64_t counter;
    uint32_t lineage;
};

#define QUEUE_MAX 64
struct queue {
    struct packet items[QUEUE_MAX];
    unsigned head, count;
    bool pumping;
    uint64_t last_ns;
};

struct session {
    bool used;
    int primary;                  /* host of the primary's end */
    uint32_t life[HOSTS];         /* of the engines at both ends */
    bool open[HOSTS];             /* the end was not closed yet */
    uint64_t number[HOSTS];       /* as the engine at that end calls it; 0: unknown there */
    bool described, lanes[HOSTS]; /* DESCRIBE arrived; LANES_UP was said */
    struct queue queues[CHANNELS];
};

/* guests */

struct snapshot {
    uint8_t history[16];
    uint64_t epoch, counter;
    uint32_t lineage;
    uint64_t pages[PAGES];
    bool verified; /* some standby made it its commit */
};

enum guest_state { GUEST_NONE, GUEST_WAITING, GUEST_ALIVE, GUEST_YIELDED };

struct guest {
    enum guest_state state;
    bool held, paused;
    uint64_t pages[PAGES];
    uint64_t counter, advanced_at_ns;
    uint32_t marks;
    uint32_t lineage;
    uint64_t generation; /* by whose right it runs */
    bool by_right;
};

/* Outputs of one unbroken run of the guest. */
struct lineage {
    uint64_t released; /* counter of the latest output that the world has seen by commit */
    uint64_t alone;    /* and by running alone, by right */
    bool is_open;      /* runs alone by an arbiter's leave: output leaves at once */
    bool left;         /* its engine was stopped by an operator: it runs without one */
    bool forked;       /* somebody resumed it elsewhere */
    bool by_hand;      /* because a person said so */
    uint64_t forked_at;
};

/* hosts */

enum job_type {
    JOB_BEGIN,
    JOB_ROUND,
    JOB_ABANDON,
    JOB_COMMITTED,
    JOB_PREPARE,
    JOB_APPLY,
    JOB_TAKEOVER,
    JOB_LOAD,
};

struct job {
    enum job_type type;
    uint64_t session;
    uint64_t epoch;
    uint32_t round;
    bool full, capture, final, fresh, cancelled;
    uint64_t downtime_ns;
    /* while it runs */
    uint32_t mask;
    bool captured;
    int code;
    uint64_t pause_ns;
};

#define JOBS_MAX 16

/* The primary's page sets. */
struct tracker {
    bool tracking;
    uint32_t pending, inflight;
    uint8_t history[16];
};

/* The standby's memory of epochs. */
struct restorer {
    bool committed, applied, broken;
    bool loaded; /* can be resumed, and take no other epoch */
    uint8_t history[16];
    uint64_t epoch, counter, committed_ns;
    uint32_t lineage;
    uint32_t apply_mask; /* committed, not yet in memory */
    uint64_t apply_pages[PAGES];
    /* what arrives */
    uint8_t arriving[16]; /* history */
    uint32_t staged_mask;
    uint64_t staged[PAGES];
    uint64_t staged_counter;
    uint32_t staged_lineage;
    bool have_data, have_expect, expect_commit, verified;
    uint64_t data_epoch, expect_epoch;
    uint32_t data_round, expect_round;
};

enum engine_role { ENGINE_NONE, ENGINE_PRIMARY, ENGINE_STANDBY };

struct host {
    bool up;
    int64_t clock_offset_ns;
    enum engine_role role;
    struct primary *primary;
    struct standby *standby;
    uint32_t life;
    uint64_t born_ns;
    uint64_t frozen_until_ns;
    uint64_t tick_at_ns, tick_stamp;
    struct guest guest;
    struct tracker tracker;
    struct restorer restorer;
    struct job jobs[JOBS_MAX];
    unsigned job_head, job_count;
    bool job_running;
    uint64_t standby_sessions;
    uint64_t restore_session; /* whose frames the restorer stages */
    /* durable */
    uint64_t stored_generation;
    bool stored_active;
    bool arbiter_reachable;
    bool other_fenced;      /* so the fence says; the takeover that asked has not come yet */
    bool arbiter_unclear;   /* what is asked takes effect, now or later, and no answer comes */
    bool operator_takeover; /* the takeover under way is the operator's wish */
    int crash_after;        /* actions until the engine dies in the middle of them; 0: it does not */
    unsigned unreachable;   /* answers of the arbiter that did not come, since the last one that did */
    uint64_t heard_ns;      /* latest frame that reached the engine */
    bool told_of_death;     /* and one said that the guest failed */
    bool told_to_run;       /* and one said HANDOVER */
    bool handed;            /* it said HANDOVER */
    uint32_t held_by;       /* life of the engine that held the guest */
};

struct sim {
    uint64_t seed, random[2];
    uint64_t now_ns, steps, order;
    bool trace;
    struct role_config config;
    struct host hosts[HOSTS];
    bool cut[HOSTS]; /* what host i sends does not arrive */
    uint64_t delay_ns;
    struct snapshot snapshots[SNAPSHOTS_MAX];
    uint64_t snapshot_count;
    struct lineage lineages[LINEAGES_MAX];
    uint32_t lineage_count;
    uint64_t register_generation;
    uint64_t register_revision; /* grows with every change */
    int register_owner;
    /* faults, in acts: when all is well again, things may go wrong again */
    unsigned act, acts;
    uint64_t act_began_ns;
    unsigned faults, struck;
    bool healthy; /* no more faults: everything must come right again */
    bool flaky;   /* captures, applies and takeovers may fail */
    bool only_standby_froze;
    bool orderly; /* the one fault was an orderly end: nobody may take over by himself */
    bool forced;  /* the operator overruled the rules; what follows is his */
    bool ended;   /* the guest ended or was given up: nothing more to check */
    bool lost;
    uint64_t healthy_since_ns;
    unsigned takeovers, alone, yields, holds, releases, adopts, deltas, fulls, commits;
    unsigned handovers, moves, turns, taken_back;
    char violation[256];

    struct sim_event *heap;
    unsigned heap_count, heap_room;
    struct parcel *parcels;
    int parcel_free;
    unsigned parcel_room;
    uint64_t same_time_steps, last_step_ns;

    struct session sessions[SESSIONS_MAX]; /* megabytes, of which only what is used is ever read: the last */
};

/* sim_event.c */
uint64_t sim_random(struct sim *sim);
uint64_t sim_between(struct sim *sim, uint64_t low, uint64_t high);
bool sim_chance(struct sim *sim, unsigned percent);
struct sim_event *sim_push(struct sim *sim, enum sim_kind kind, uint64_t delay_ns, int host);
bool sim_pop(struct sim *sim, struct sim_event *ret_event);
struct parcel *sim_parcel(struct sim *sim, int *ret_index);
void sim_parcel_free(struct sim *sim, int index);
void sim_trace(const struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* sim_host.c: engines */
enum engine_start {
    START_FIRST, /* of the history */
    START_AGAIN,
    START_TURNED, /* the same engine goes on in its other role */
};
void host_start_engine(struct sim *sim, int index, enum engine_role role, enum engine_start start);
void host_kill_engine(struct sim *sim, int index, bool silent);
void host_crash(struct sim *sim, int index);
void host_deliver(struct sim *sim, int index, struct role_event *event);
/* Later, unless the engine dies before. Returns the parcel to fill in. */
struct parcel *host_post(struct sim *sim, int index, uint64_t delay_ns, enum role_event_type type);
void host_get_status(const struct sim *sim, int index, struct role_status *ret_status);

/* sim_net.c */
void net_connect(struct sim *sim, int index, uint64_t number);
void net_open_lanes(struct sim *sim, int index, uint64_t number);
void net_disconnect(struct sim *sim, int index, uint64_t number);
void net_send(struct sim *sim, int index, const struct role_action *action);
void net_send_data(struct sim *sim, int index, uint64_t number, const struct packet *data);
void net_engine_died(struct sim *sim, int index, bool silent);
void net_pump(struct sim *sim, unsigned session, enum channel channel);
void net_healed(struct sim *sim);
/* Reset all connections (both ends notice), or break the next packet of one. */
void net_reset(struct sim *sim);
bool net_corrupt(struct sim *sim);
bool net_described(const struct sim *sim, int index, uint64_t number);

/* sim_guest.c */
void guest_advance(struct sim *sim, int index);
void guest_stop(struct sim *sim, int index, bool stop);
void job_add(struct sim *sim, int index, const struct job *job);
void job_finished(struct sim *sim, int index);
void job_cancel(struct sim *sim, int index, uint64_t session);
void job_kick(struct sim *sim, int index);
void restorer_data(struct sim *sim, int index, const struct packet *data);
void restorer_expect(struct sim *sim, int index, const struct role_action *action);
void restorer_commit(struct sim *sim, int index, uint64_t epoch);

/* sim_fault.c */
#define ACTS_MAX 3
void fault_plan(struct sim *sim);
void fault_strike(struct sim *sim, unsigned index);
/* Switch a host off from outside; it comes back later. */
void fault_fence(struct sim *sim, int host);
void fault_repair(struct sim *sim, int host, uint64_t what);
void operator_acts(struct sim *sim);
void operator_migrates(struct sim *sim, bool cancel);
/* Everything is as it should be: a guest runs, protected. */
bool world_is_well(const struct sim *sim);

/* sim_check.c */
void check_fail(struct sim *sim, const char *format, ...) __attribute__((format(printf, 2, 3)));
struct snapshot *check_snapshot(struct sim *sim, const uint8_t history[16], uint64_t epoch);
void check_committed(struct sim *sim, int index, uint64_t epoch);
void check_alone(struct sim *sim, int index);
void check_closed(struct sim *sim, int index);
bool check_is_open(struct sim *sim, int index);
void check_left(struct sim *sim, int index);
void check_stop(struct sim *sim, int index);
void check_takeover(struct sim *sim, int index);
void check_hold(struct sim *sim, int index);
void check_release(struct sim *sim, int index);
void check_fence(struct sim *sim, int index);
void check_decision(struct sim *sim, int index);
void check_world(struct sim *sim);

#endif
