/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_INTERNAL_H
#define UNDERSTUDY_GATE_INTERNAL_H

#include "gate/gate.h"

#include <stdatomic.h>

/* What a kind of gate does; the contracts are those of gate.h. close() frees the gate. */
struct gate_ops {
    int (*mark_begin)(struct gate *gate, uint64_t epoch);
    int (*mark_end)(struct gate *gate);
    int (*release)(struct gate *gate, uint64_t epoch);
    int (*pass)(struct gate *gate);
    int (*shut)(struct gate *gate);
    void (*get_stats)(struct gate *gate, struct gate_stats *ret_stats);
    void (*close)(struct gate *gate);
};

/* The head of each kind's own struct. */
struct gate {
    const struct gate_ops *ops;
    enum gate_kind kind;
    struct gate_config config;
    struct gate_events events;
    atomic_bool failed; /* events.failed was called */
};

int plug_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events);
int nfqueue_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events);
int relay_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events);

/* Calls events.failed with the thread's error text, if it was not called before. */
void gate_fail(struct gate *gate);
/* What a hold knows. */
struct hold;
void gate_hold_stats(const struct hold *hold, struct gate_stats *ret_stats);
/* Tells events of enum hold_event. No lock may be held. */
void gate_tell(struct gate *gate, unsigned hold_events);

#endif
