/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_CONTROL_H
#define UNDERSTUDY_VMM_KVM_CONTROL_H

#include "base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * What engine and VMM say to each other over a UNIX socket of type SEQPACKET, each message one packet. The
 * engine asks, the VMM answers each request once, in order; events come in between. Both are on one host and
 * of one version (which is checked), so integers are the machine's.
 *
 *      engine                                    VMM
 *        HELLO ───────────────────────────────►
 *              ◄─────────────────────────────── its memory, a shared memfd; it has an engine now
 *        PAUSE ───────────────────────────────►  vCPUs stopped, devices quiet
 *              ◄─────────────────────────────── in the shared memfd: what was written, the device state
 *                  the engine copies the pages out of the guest's memory
 *        RELEASE ─────────────────────────────►
 *
 *      the shared memfd:   one bit for each page of the memory │ state (HELLO: the description) │ figures
 *                          0                                     control_state_offset()           of the gate
 *
 * A connection that ends between PAUSE and RELEASE lets the guest run again; HOLD keeps it stopped whatever
 * happens.
 *
 * The guest's output is held and released over a second connection, so that no release waits for the answer
 * to a pause. A PAUSE draws a *line* behind all output of the epoch that it ends, if output is held, and its
 * answer has the line's number:
 *
 *      engine, gate's connection                 VMM
 *        GATE ────────────────────────────────►
 *        GATE_HOLD ───────────────────────────►  holds from now on
 *              ◄─────────────────────────────── GATE_EVENT: output waits
 *                  PAUSE, RESUME on the other connection; the checkpoint is sent and acknowledged
 *        GATE_RELEASE, the pause's line ──────►  lets out what came before it
 *
 * When this connection ends, output stays held, unless GATE said otherwise.
 */

#define CONTROL_VERSION 2u

enum control_op {
    CONTROL_LOOK = 1, /* only the phase; from anybody */
    CONTROL_HELLO,    /* argument: CONTROL_VERSION. -EBUSY: it has an engine */
    CONTROL_TRACK,    /* begin the dirty log */
    CONTROL_SCAN,     /* fetch it without clearing anything */
    CONTROL_PAUSE,    /* stop; fetch and clear the log; save */
    CONTROL_RESUME,   /* undo PAUSE or HOLD, and say so */
    CONTROL_HOLD,     /* stop for good */
    CONTROL_LOAD,     /* argument: bytes of state in the shared memfd */
    CONTROL_RUN,      /* what was loaded */
    CONTROL_ANNOUNCE, /* tell the network where the guest is */
    CONTROL_RETIRE,   /* end a guest that is held; from anybody, while there is no engine but who asks.
                         -EADDRINUSE: it is   not */
    CONTROL_EVENT,    /* from the VMM, with sequence 0; value: enum vmm_event */
    CONTROL_DISKS, /* a descriptor of each disk that the description lists, in its order: while the VMM waits
                      for a state, for filling the disk; of a guest that runs, for reading it */
    CONTROL_TELL,  /* argument: a disk's number; with a socket: tell of its changes there (feed.h); without
                      one: no more */
    CONTROL_GATE,  /* argument: enum control_gate. The visitor becomes the gate. -EBUSY: there is one. Answer:
                      1, output is held already, else 0 */
    CONTROL_GATE_HOLD,    /* hold from now on, and draw a line. -ESHUTDOWN */
    CONTROL_GATE_RELEASE, /* argument: a line */
    CONTROL_GATE_PASS,    /* hold nothing any more */
    CONTROL_GATE_SHUT,    /* let nothing out any more; the next GATE undoes it */
    CONTROL_GATE_FIGURES, /* write struct gate_stats behind the state */
    CONTROL_GATE_EVENT,   /* from the VMM to its gate, with sequence 0; value: enum hold_event */
    CONTROL_RELEASE, /* RESUME; answered only when it is refused, since the guest that it wakes would have
                        the processor before the answer */
    CONTROL_OPS,
};

enum control_gate {
    CONTROL_GATE_HOLDS = 1,      /* what was shut is held when it is opened again, and not let out */
    CONTROL_GATE_FAILS_OPEN = 2, /* when this connection ends everything is let out */
};

enum control_phase {
    CONTROL_WAITING, /* --incoming: for a state */
    CONTROL_LOADED,
    CONTROL_RUNNING,
    CONTROL_PAUSED, /* by its engine */
    CONTROL_HELD,
    CONTROL_PHASES,
};

struct control_message {
    uint32_t op;
    uint32_t sequence; /* an answer has its request's */
    int32_t code;      /* of an answer: 0 or a negative errno, with `text` */
    uint32_t phase;    /* of an answer */
    uint64_t
        value; /* of a request: its argument. Of an answer: PAUSE, bytes of state; HELLO, of description */
    uint64_t memory_bytes, state_room; /* HELLO */
    uint64_t line;                     /* of an answer to PAUSE or GATE_HOLD; 0: output is not held */
    uint64_t held_bytes_max;           /* GATE: the bound of each output */
    char text[ERROR_TEXT_MAX];         /* ends with its NUL; not sent when empty */
};

#define CONTROL_HEAD      offsetof(struct control_message, text)
#define CONTROL_HELLO_FDS 2 /* the memory; the shared memfd */
#define CONTROL_FDS_MAX   4 /* with any packet */

/* Check a packet of a request (`asks`) or an answer or event. -EBADMSG with what is wrong. */
int control_parse(const void *packet, size_t bytes, bool asks, struct control_message *ret_message);

/* How long the packet of this message is. */
size_t control_bytes(const struct control_message *message);

/* Of the shared memfd. */
uint64_t control_dirty_bytes(uint64_t memory_bytes);
uint64_t control_state_offset(uint64_t memory_bytes);
uint64_t control_figures_offset(uint64_t memory_bytes, uint64_t state_room);
uint64_t control_shared_bytes(uint64_t memory_bytes, uint64_t state_room);

/* Send a packet with descriptors (count may be 0), receive one. `flags` as send(2) and recv(2) have them.
 * -EAGAIN; receiving: -ECONNRESET when the other side hung up. Descriptors that were not expected are closed.
 */
int control_send(int fd, const struct control_message *message, const int *fds, unsigned count, int flags);
int control_receive(int fd, bool asks, struct control_message *ret_message, int *ret_fds, unsigned room,
                    unsigned *ret_count, int flags);

#endif
