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
 *      the shared memfd:   one bit for each page of the memory │ state (HELLO: the description)
 *                          0                                     control_state_offset()
 *
 * A connection that ends between PAUSE and RELEASE lets the guest run again; HOLD keeps it stopped whatever
 * happens.
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
    CONTROL_RELEASE,  /* RESUME; answered only when it is refused, since the guest that it wakes would have
                         the processor before the answer */
    CONTROL_OPS,
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
    char text[ERROR_TEXT_MAX];         /* ends with its NUL; not sent when empty */
};

#define CONTROL_HEAD      offsetof(struct control_message, text)
#define CONTROL_HELLO_FDS 2 /* the memory; the shared memfd */

/* Check a packet of a request (`asks`) or an answer or event. -EBADMSG with what is wrong. */
int control_parse(const void *packet, size_t bytes, bool asks, struct control_message *ret_message);

/* How long the packet of this message is. */
size_t control_bytes(const struct control_message *message);

/* Of the shared memfd. */
uint64_t control_dirty_bytes(uint64_t memory_bytes);
uint64_t control_state_offset(uint64_t memory_bytes);

/* Send a packet with descriptors (count may be 0), receive one. `flags` as send(2) and recv(2) have them.
 * -EAGAIN; receiving: -ECONNRESET when the other side hung up. Descriptors that were not expected are closed.
 */
int control_send(int fd, const struct control_message *message, const int *fds, unsigned count, int flags);
int control_receive(int fd, bool asks, struct control_message *ret_message, int *ret_fds, unsigned room,
                    unsigned *ret_count, int flags);

#endif
