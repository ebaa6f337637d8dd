/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_STANDBYD_H
#define UNDERSTUDY_REPLICATOR_STANDBYD_H

#include "replicator/hub.h"
#include "restore/restore.h"

/* The standby's daemon; internal to replicator/standbyd*.c. */

/* The primary's guest as DESCRIBE told it. */
struct peer_guest {
    uint64_t link; /* 0: none came */
    struct vmm_block blocks[VMM_BLOCKS_MAX];
    uint32_t block_count;
    char *text;
};

enum standbyd_sums_kind { STANDBYD_SUMS_DISK, STANDBYD_SUMS_PAGES, STANDBYD_SUMS_KINDS };

struct standbyd {
    struct hub hub; /* first: the hub's callbacks cast */
    struct standby *machine;
    int listen_fd;
    char journal_path[256]; /* two files, PATH.0 and PATH.1 */

    /* guest's thread */
    struct vmm *guest;
    bool guest_failed;
    bool retires;            /* a QEMU that an engine stopped for good may be ended to make room */
    char *difference;        /* guest's thread: the last one shown, between the primary's machine and ours */
    struct gate *gate;       /* that carries the frames of a guest taken over; NULL: none is needed */
    struct restore *restore; /* written by the guest's thread while `restore_ours` is false */

    /* main thread */
    struct peer_guest described;
    bool prepare_wanted; /* ACTION_PREPARE came and is not under way yet */
    bool preparing;      /* one is under way on the guest's thread */
    bool called;         /* the guest was launched, or tried to be, before ACTION_PREPARE */
    bool restore_ours;   /* the main thread and the lanes may use `restore` */
    bool verifying;      /* a VERIFY is on the guest's thread */
    unsigned sums_waiting[STANDBYD_SUMS_KINDS]; /* and so many SUMS_WANTED, PAGE_SUMS_WANTED */
    struct role_action prepare;
    uint64_t session; /* newest */
    uint64_t heartbeats, sessions;
    int guest_pid;

    uint64_t takeover_client; /* 0: nobody waits */
    bool running;             /* the guest was taken over */
    uint64_t decided_ns, arbitrated_ns, running_ns, last_sign_ns;
    struct restore_timing timing;
    uint64_t probe;
    bool probe_known;
};

/* standbyd_guest.c: jobs on the guest's thread. */
/* Start the wanted preparation, if DESCRIBE has come and none is under way. */
void standbyd_prepare(struct standbyd *standbyd);
/* Launch the guest if none is here: who calls will soon want it. At most once, and nothing is lost if it
 * fails.
 */
void standbyd_launch(struct standbyd *standbyd);
void standbyd_apply(struct standbyd *standbyd, const struct role_action *action);
void standbyd_load(struct standbyd *standbyd);
void standbyd_takeover(struct standbyd *standbyd);
void standbyd_halt(struct standbyd *standbyd);
void standbyd_close_guest(struct standbyd *standbyd);

/* standbyd_ask.c */
void standbyd_verify(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame);
/* -EPROTO: not now, or not so. */
int standbyd_sums(struct standbyd *standbyd, uint64_t link, const struct wire_frame *frame,
                  enum standbyd_sums_kind kind);

/* standbyd.c */
/* One tenure as standby, until it ends or hub.turn. Everything behind `hub` is zero. */
int standbyd_serve(struct standbyd *standbyd);
extern const struct hub_ops standbyd_ops;
void standbyd_step(void *daemon, struct role_event *event);

/* standbyd_status.c */
json_t *standbyd_status(struct standbyd *standbyd);
void standbyd_progress(void *daemon, char *ret_line, size_t room);

#endif
