/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_PACER_H
#define UNDERSTUDY_TRANSPORT_PACER_H

#include <pthread.h>
#include <stdint.h>

/*
 * How fast may lanes send, all together? A pacer is asked before something is produced, takes a guess in
 * advance, so that not all lanes begin at once, and is told afterwards how much it was. What was produced is
 * paid for by waiting. So over any time t at most rate * (t + PACER_CREDIT_NS) bytes go out, and once more
 * what one lane produces at a time. Times are handed in.
 *
 * All calls from any thread. The bytes are plaintext; TLS and TCP add about 0.5 %.
 */
#define PACER_CREDIT_NS   5000000u /* of idle time that may be caught up with */
#define PACER_GUESS_BYTES 262144u

struct pacer {
    pthread_mutex_t lock;
    uint64_t bytes_per_s; /* 0: no bound */
    uint64_t due_ns;      /* when all that was produced will be paid for */
};

void pacer_init(struct pacer *pacer, uint64_t bytes_per_s);
void pacer_fini(struct pacer *pacer);

/* 0: no bound. What is owed at the former rate is forgotten. */
void pacer_set(struct pacer *pacer, uint64_t bytes_per_s);

/* May something be produced now? Returns 0 if so, and then pacer_end() must follow; else when to ask again.
 */
uint64_t pacer_begin(struct pacer *pacer, uint64_t now_ns);

/* So much was produced, perhaps nothing. */
void pacer_end(struct pacer *pacer, uint64_t bytes);

/* What `bytes` take at this rate; 0: no bound. */
uint64_t pacer_cost_ns(struct pacer *pacer, uint64_t bytes);

#endif
