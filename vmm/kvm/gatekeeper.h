/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_GATEKEEPER_H
#define UNDERSTUDY_VMM_KVM_GATEKEEPER_H

#include "gate/gate.h"
#include "vmm/kvm/control.h"
#include "vmm/kvm/output.h"

#include <stdatomic.h>

/*
 * The gate's door in the VMM: what an engine asks of the guest's output (control.h), and what it is told.
 *
 * All is the server's thread's, but the events of the output, which come on whatever thread pushes: they are
 * remembered in `due`, and `wake` becomes readable.
 */
struct gatekeeper {
    struct output *output;
    int wake;
    atomic_uint due; /* enum hold_event */
    int fd;          /* the gate's connection, the server's; -1: none */
    uint64_t line;   /* the latest */
    bool fails_open;
};
#define GATEKEEPER_NONE ((struct gatekeeper){.wake = -1, .fd = -1})

int gatekeeper_open(struct gatekeeper *keeper);
void gatekeeper_close(struct gatekeeper *keeper);
/* For output_new(). */
struct output_events gatekeeper_events(struct gatekeeper *keeper);

/* Of requests from CONTROL_GATE on. `figures` lies in the memory shared with the engine. */
bool gatekeeper_knows(uint32_t op);
int gatekeeper_perform(struct gatekeeper *keeper, int fd, const struct control_message *request,
                       struct gate_stats *figures, struct control_message *answer);
/* Whoever was behind this connection is gone. */
void gatekeeper_left(struct gatekeeper *keeper, int fd);
/* `wake` is readable: tell the gate. An error is that of its connection. */
int gatekeeper_tell(struct gatekeeper *keeper, enum control_phase phase);

/* The guest stands still and its devices are quiet: draw a line. 0: output is not held. */
uint64_t gatekeeper_draw(struct gatekeeper *keeper);
/* A person lets everything out, and holds nothing any more, even where it was shut. -EBUSY: an engine
 * decides. */
int gatekeeper_let_out(struct gatekeeper *keeper);

#endif
