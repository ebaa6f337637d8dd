/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_ACCOUNT_H
#define UNDERSTUDY_RESTORE_ACCOUNT_H

#include "wire/message.h"

#include <pthread.h>
#include <stdbool.h>

/*
 * What has arrived of the present round, against what the primary says it sent. See account.c.
 */
struct account {
    pthread_mutex_t lock; /* everything below; leaf */
    bool open;            /* false: no session, or given up */
    bool sealed;          /* the capture's round is complete; the owner has not committed it yet */
    uint64_t epoch;       /* 0: the next frame or announcement says */
    uint64_t committed;   /* latest of this session, 0: none */
    uint32_t round;
    uint64_t entered;           /* frames of this round that came in */
    struct message_totals seen; /* of those that are done with */
    bool expecting;
    struct message_totals expected;
    struct message_commit commit; /* for a capture; `capture` says whether */
    bool capture;
};

/* A round that is complete, as expected or not. */
struct account_verdict {
    uint64_t epoch;
    uint32_t round;
    bool capture;
    struct message_commit commit;
    int code; /* 0 or -EBADMSG with error_text() */
};

void account_init(struct account *account);
void account_fini(struct account *account);

/* A session begins. */
void account_open(struct account *account);
/* It is over: everything is refused until the next begins; only a sealed epoch may still be committed. Any
 * thread. */
void account_close(struct account *account);
/* As account_close(), and the sealed epoch is bad. */
void account_unseal(struct account *account);

/* A frame arrived: may it? `round` is NULL for one that does not say its round. -EPROTO, -ECANCELED. */
int account_enter(struct account *account, uint64_t epoch, const uint32_t *round);
/* And is done with. True if that made the round complete. */
bool account_leave(struct account *account, const struct wire_frame *frame, uint32_t pages,
                   struct account_verdict *ret_verdict);
/* What must come. 1 if it is all there already, 0 if not, -EPROTO, -ECANCELED. */
int account_expect(struct account *account, uint64_t epoch, uint32_t round,
                   const struct message_totals *totals, const struct message_commit *commit,
                   struct account_verdict *ret_verdict);

/* The sealed epoch is the committed one: the next may begin. */
void account_commit(struct account *account, uint64_t epoch);

#endif
