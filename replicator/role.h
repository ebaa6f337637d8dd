/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ROLE_H
#define UNDERSTUDY_REPLICATOR_ROLE_H

#include "vmm/vmm.h"
#include "wire/message.h"

/*
 * The two roles as pure state machines: an event (with the time it happened) goes in, actions come out. No
 * I/O, no clock, no threads, no allocation after construction; the daemon and the seeded simulator drive the
 * same code.
 *
 * The caller performs the actions in order and reports results as later events. Actions marked [reply] are
 * answered by exactly one event named there, unless a LINK_DOWN or DISCONNECT of the same session comes
 * first, where noted (s). Events of a session carry its number (role_event.session); the machine ignores
 * events of a former session.
 */

enum role_takeover { ROLE_TAKEOVER_MANUAL, ROLE_TAKEOVER_AUTO };
enum role_loss { ROLE_LOSS_CONTINUE, ROLE_LOSS_STALL };
enum role_reprotect { ROLE_REPROTECT_MANUAL, ROLE_REPROTECT_AUTO };
/* What a planned switchover leaves behind: what the policy says, a standby, or a stopped guest. */
enum role_left { ROLE_LEFT_POLICY, ROLE_LEFT_SWAP, ROLE_LEFT_COLD };

struct role_config {
    uint64_t interval_ns; /* wanted time between captures */
    uint64_t detect_ns;   /* silence after which the peer is given up; heartbeats go every detect / 5 */
    uint64_t retry_ns;    /* first pause before connecting again; doubles up to retry_max_ns */
    uint64_t retry_max_ns;
    uint64_t setup_ns;    /* bound on each answer the peer owes: each step of session set-up (launching the
                             standby's guest included), ROUND_DONE, ACK */
    unsigned pause_share; /* percent of the time that captures may stop the guest; the interval stretches to
                             keep it */
    unsigned rounds_max;  /* live rounds before a capture is forced */
    enum role_takeover takeover;
    enum role_loss loss;
    enum role_reprotect reprotect; /* who changes an engine's role after the guest has changed hosts */
    bool eager;        /* output that waits for its checkpoint ends the epoch early, within pause_share */
    bool arbiter;      /* going alone needs a won compare-and-swap of the generation */
    bool fence;        /* standby: a takeover needs the primary's host fenced, after the arbiter is won */
    uint64_t optional; /* features offered, WIRE_FEATURE_... */
    uint64_t staging_bytes; /* standby: told to the primary */
    uint8_t vm_uuid[16];
    char host[64];
};

/* Refuses configurations that cannot be safe (takeover=auto with standby-loss=continue and no arbiter) or
 * make no sense; -EINVAL with the reason. */
int role_config_check(const struct role_config *config);

enum role_state {
    /* primary */
    PRIMARY_DISCONNECTED, /* guest runs, nobody listens; waiting to connect again */
    PRIMARY_CONNECTING,   /* control lane under way */
    PRIMARY_GREETING,     /* HELLO sent, WELCOME awaited */
    PRIMARY_DESCRIBING,   /* data lanes opening; DESCRIBE sent, ACCEPT awaited */
    PRIMARY_COPYING,      /* first epoch of the session: full copy or resynchronisation */
    PRIMARY_PROTECTED,    /* an epoch of this session is committed and the link is alive */
    PRIMARY_SWITCHING,    /* the guest is stopped for good unless this fails; the standby is to run it */
    PRIMARY_ARBITRATING,  /* standby lost; asking the arbiter whether to go on alone */
    PRIMARY_STALLED,      /* standby lost; guest held until the standby is back or the operator speaks */
    PRIMARY_YIELDED,      /* a newer generation exists: guest stopped for good */
    PRIMARY_MOVED,        /* switched over: the guest runs at the standby, the one here is stopped for good */
    PRIMARY_ENDED,        /* guest ended or operator stopped the engine */
    /* standby */
    STANDBY_WAITING,   /* no session */
    STANDBY_GREETED,   /* HELLO accepted; description and data lanes awaited, guest being prepared */
    STANDBY_RECEIVING, /* epochs arrive */
    STANDBY_SWITCHING, /* the last epoch is being loaded, or is, and waits for the primary's word to run */
    STANDBY_LOST,      /* primary silent or link down with a committed checkpoint; policy: operator decides */
    STANDBY_ARBITRATING, /* takeover decided; asking the arbiter */
    STANDBY_TAKING_OVER, /* loading and starting the guest */
    STANDBY_ACTIVE,      /* the guest runs here now, unprotected */
    STANDBY_FAILED,      /* takeover failed; operator needed */
    STANDBY_ENDED,
};
const char *role_state_name(enum role_state state); /* "protected", "taking-over" ... */

enum role_event_type {
    EVENT_TICK,      /* time passed (the machine's deadline, or earlier) */
    EVENT_LINK_DOWN, /* a lane of the session ended: code, text. The machine answers with DISCONNECT. */
    EVENT_LANES_UP,  /* all data lanes are up */
    EVENT_HEARTBEAT, /* epoch: committed_epoch of the sender */
    EVENT_REFUSE,    /* refuse + generation */
    EVENT_GOODBYE,   /* reason */
    EVENT_GUEST,     /* guest: what the driver said */
    EVENT_ARBITER,   /* arbiter: result, generation: the register's present value, ours when won */
    EVENT_STOP,      /* operator or signal: end in order */
    EVENT_REPROTECT, /* operator: change this engine's role now, where the guest has changed hosts */
    /* primary */
    EVENT_CONTROL_UP,
    EVENT_WELCOME, /* welcome + generation */
    EVENT_ACCEPT,
    EVENT_BEGUN,      /* reply to ACTION_BEGIN: code */
    EVENT_ROUND,      /* reply to ACTION_ROUND: epoch, round, captured, final, code, pause_ns, state_bytes,
                         state_sum,      pages. code -ETIME: nothing of it was sent, it is tried again; another
                         one:      frames may be      out, the session starts anew */
    EVENT_ROUND_SENT, /* all frames of it were produced: epoch, round, totals. May come before EVENT_ROUND. */
    EVENT_ROUND_DONE, /* frame: epoch, round */
    EVENT_ACK,        /* frame: epoch */
    EVENT_MIGRATE, /* operator: switch over when the guest would be down for at most downtime_ns. timeout_ns
                      (0: none): then give it up, or with `force` do it all the same, or with `throttle` slow
                      the guest (role_status.throttle) and give it up after 5 times as long */
    EVENT_MIGRATE_CANCEL, /* operator: do not */
    EVENT_LOADED,         /* frame: epoch */
    EVENT_KEPT,           /* reply to ACTION_KEEP: code */
    EVENT_STARTED,        /* frame: epoch */
    EVENT_OUTPUT,   /* output of the guest waits for the present epoch's checkpoint; urgent: soon there is no
                       room for more, so that even without `eager` the epoch ends early */
    EVENT_CONTINUE, /* operator: leave STALLED, run unprotected; force: without the arbiter */
    /* standby; and a primary at its door, where who thinks that he runs the guest hears better */
    EVENT_HELLO, /* a control lane's first frame: hello + generation; session: the NEW session's number (a
                    primary's door counts apart from its sessions) */
    /* standby */
    EVENT_PREPARED,       /* reply to ACTION_PREPARE: code, text, refusal */
    EVENT_ROUND_END,      /* frame ROUND or COMMIT: epoch, round, totals, captured = is a commit, commit */
    EVENT_ROUND_COMPLETE, /* restore says: epoch, round, captured, code, text */
    EVENT_APPLIED,        /* reply to ACTION_APPLY: epoch, code */
    EVENT_SWITCH,         /* frame: epoch */
    EVENT_LOAD_DONE,      /* reply to ACTION_LOAD: code */
    EVENT_HANDOVER,       /* frame: epoch */
    EVENT_TAKEOVER,       /* operator: take over now; force: without arbiter and fence */
    EVENT_RUNNING,        /* reply to ACTION_TAKEOVER: code */
};

struct role_event {
    enum role_event_type type;
    uint64_t now_ns;
    uint64_t session;    /* 0 for events that belong to none */
    uint64_t generation; /* of the frame's sender, where a frame is behind the event */
    uint64_t epoch;
    uint32_t round;
    int code;         /* 0 or negative errno */
    const char *text; /* with a code; may be NULL */
    bool captured;
    bool final; /* captured, and the guest was not resumed */
    bool force;
    bool throttle;
    bool urgent;
    uint64_t pause_ns, pages, state_bytes, state_sum;
    uint64_t downtime_ns, timeout_ns;
    uint64_t after_ns;   /* EVENT_ROUND, final: what a switchover takes from the ACK on, as far as is known */
    enum role_left left; /* EVENT_MIGRATE */
    struct message_totals totals;
    const struct message_hello *hello;
    const struct message_welcome *welcome;
    const struct message_commit *commit;
    uint32_t refusal; /* enum wire_refusal */
    uint32_t reason;  /* enum wire_goodbye_reason */
    enum vmm_event guest;
    enum role_arbiter { ARBITER_WON, ARBITER_LOST, ARBITER_UNREACHABLE, ARBITER_UNFENCED } arbiter;
};

enum role_action_type {
    /* both */
    ACTION_SEND,       /* frame `type` on the control lane, with the fields below */
    ACTION_DISCONNECT, /* close all lanes of `session` (what was sent before still goes out); abandon what is
                          in flight there (primary: checkpoint_cancel + abandoned; standby: restore_abort). No
                          LINK_DOWN follows. */
    ACTION_ARBITRATE,  /* compare-and-swap generation `from` -> `to`; `fence`: and when that is won, fence the
                          peer's host. ARBITER_WON only if all of it succeeded. [EVENT_ARBITER] */
    ACTION_STORE,  /* persist generation `to` and `active` (does the guest run here by right?) durably, before
                      going  on */
    ACTION_REPORT, /* tell the operator: level, text */
    ACTION_EXIT,   /* the engine ends: code */
    ACTION_TURN,   /* this machine ends, and the engine goes on with one of the other role: a standby that
                      took over protects its guest (primary_set_right: taken), a primary whose guest runs
                      elsewhere stands by. The guest here is not touched by that. */
    /* primary */
    ACTION_TURN_AWAY, /* REFUSE, with the fields below, to who came to the door as `session`, and close */
    ACTION_CONNECT, /* open the control lane of new session `session` [EVENT_CONTROL_UP or EVENT_LINK_DOWN] */
    ACTION_OPEN_LANES, /* open the data lanes, HELLO first on each [EVENT_LANES_UP or EVENT_LINK_DOWN] */
    ACTION_BEGIN,      /* full: everything becomes pending (tracking starts if it has not). [EVENT_BEGUN] */
    ACTION_ROUND,      /* next round of `epoch`; `capture`: it must be the capture, else as the estimate says.
                          `downtime_ns` not 0: the last capture of this guest here, after which it is not
                          resumed, if it would then be down no longer; `final`: however long. [EVENT_ROUND] */
    ACTION_KEEP, /* the guest that a final capture left stopped must not run again should this process die.
                    [EVENT_KEPT (s)] */
    ACTION_COMMITTED, /* epoch acknowledged: forget what was in flight, release held output */
    ACTION_ADOPT,     /* the standby proved that it committed `epoch`, whose ACK was lost: forget what was in
                         flight */
    ACTION_HOLD,      /* stop the guest (stall) */
    ACTION_RELEASE,   /* let it run again */
    ACTION_PASS,  /* nothing protects the guest, by decision, or nobody could resume it: let out what output
                     is held, and hold none until the next capture */
    ACTION_YIELD, /* stop the guest for good, drop the output that is held; leave it to the operator. An
                     active standby does so too, when a takeover was forced against a primary that had won the
                     arbitration. */
    /* standby */
    ACTION_PREPARE, /* make sure that a fit, waiting guest exists, matching the peer's DESCRIBE (wait for it);
                       then restore_session. fresh: the present one is broken, launch another.
                       [EVENT_PREPARED] */
    ACTION_EXPECT,  /* restore_expect with the fields below. [EVENT_ROUND_COMPLETE (s)] */
    ACTION_COMMIT,  /* restore_commit(epoch); the caller does it at once, before the next action (SEND of ACK)
                     */
    ACTION_APPLY,   /* restore_apply [EVENT_APPLIED] */
    ACTION_LOAD,    /* restore_load: the guest holds the committed epoch, ready to run [EVENT_LOAD_DONE] */
    ACTION_TAKEOVER, /* restore_takeover [EVENT_RUNNING] */
};

struct role_action {
    enum role_action_type type;
    enum wire_type send;
    uint64_t session;
    uint64_t epoch;
    uint32_t round;
    uint64_t from, to; /* generations */
    bool full, capture, final, active, fresh, fence;
    uint64_t downtime_ns;
    int code;
    int level;      /* enum log_level */
    char text[200]; /* ACTION_REPORT, SEND of REFUSE */
    uint32_t refusal, reason;
    struct message_totals totals;
    struct message_commit commit;
    struct message_welcome welcome; /* SEND of WELCOME */
};

#define ROLE_ACTIONS_MAX 16
struct role_actions {
    struct role_action items[ROLE_ACTIONS_MAX];
    unsigned count;
};

/* What became of EVENT_MIGRATE. */
enum role_migration {
    MIGRATION_NONE,      /* none was wanted */
    MIGRATION_COPYING,   /* the guest runs here; it switches over when the downtime fits */
    MIGRATION_SWITCHING, /* the final capture was made */
    MIGRATION_MOVED,
    MIGRATION_FAILED, /* or cancelled; role_status.migration_text says why */
};

/* What the operator may know; the same for both roles. */
struct role_status {
    enum role_state state;
    uint64_t since_ns; /* of the state */
    uint64_t generation;
    uint64_t session;         /* 0: none */
    uint64_t epoch;           /* primary: being made; standby: latest seen */
    uint64_t committed_epoch; /* acknowledged / committed; 0: none */
    uint64_t committed_at_ns; /* when */
    uint64_t interval_ns;     /* effective */
    uint8_t history[16];      /* of the committed epoch */
    uint64_t optional;        /* features in use */
    bool guest_here;          /* the guest runs (or is held) on this host by right */
    bool protected_now;
    uint64_t unprotected_ns;                         /* since when not protected; 0: it is */
    char reason[200];                                /* why not protected, or why failed */
    char peer[64];                                   /* the peer's name as it gave it */
    enum role_migration migration;                   /* primary */
    uint64_t migration_since_ns, migration_until_ns; /* when it was wanted; when it was decided, 0: not yet */
    uint64_t downtime_ns; /* stopped here to known to run there, by this host's clock; MIGRATION_MOVED */
    uint64_t max_downtime_ns;
    unsigned migration_taken_back; /* final captures whose guest ran on here, since they took too long, and */
    uint64_t migration_lost_ns;    /* how long it stood still for them */
    bool throttle; /* the guest is to be slowed, since it writes faster than its pages are carried */
    char migration_text[200];
};

/* What a primary knows of its right to the guest when it starts. */
enum role_right {
    ROLE_RIGHT_STORED,   /* its own record, or none at all, says that the guest runs here */
    ROLE_RIGHT_TAKEN,    /* this very engine took the guest over by the generation that it starts with, so
                            nobody holds a checkpoint of that generation */
    ROLE_RIGHT_DOUBTFUL, /* its record says that the guest ended here or runs elsewhere; somebody started it
                            all the same. Yields to whoever has the same generation. */
};

struct primary;
/* The guest is attached and runs here at `generation` (at least 1). `history` is random, new for each
 * attachment. */
int primary_new(struct primary **ret_primary, const struct role_config *config, const uint8_t history[16],
                uint64_t generation, uint64_t now_ns);
void primary_free(struct primary *primary);
/* Before the first step; ROLE_RIGHT_STORED if never called. */
void primary_set_right(struct primary *primary, enum role_right right);
/* `ret_actions` is reset first. */
void primary_step(struct primary *primary, const struct role_event *event, struct role_actions *ret_actions);
/* When the machine wants its next EVENT_TICK; UINT64_MAX: not at all. */
uint64_t primary_deadline(const struct primary *primary);
void primary_get_status(const struct primary *primary, struct role_status *ret_status);

struct standby;
/* `generation`: as stored, 0 when unknown. */
int standby_new(struct standby **ret_standby, const struct role_config *config, uint64_t generation,
                uint64_t now_ns);
void standby_free(struct standby *standby);
void standby_step(struct standby *standby, const struct role_event *event, struct role_actions *ret_actions);
uint64_t standby_deadline(const struct standby *standby);
void standby_get_status(const struct standby *standby, struct role_status *ret_status);

#endif
