/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_GATE_H
#define UNDERSTUDY_GATE_GATE_H

#include "base/histogram.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The network gate: output commit for the guest's frames (Remus, NSDI 2008, section 3.4).
 *
 * A frame that the guest sends in an epoch may be seen outside only when the standby has acknowledged the
 * checkpoint that ends that epoch, since only then is there a machine that knows of it. So frames from the
 * guest are held, in their order; frames to the guest pass at once.
 *
 *     guest ──frames──► │ open epoch │ marked e+1, captured │ marked e, sent │ ──release(e)──► outside
 *                          mark(e+2) closes it                  waits for its ACK
 *
 * States: *passing* (nothing protects the guest: every frame goes through), *holding*, *shut* (the guest runs
 * elsewhere by right: everything is dropped). A gate opens passing unless told otherwise; mark() makes it
 * hold.
 *
 * Threads: any one thread at a time calls what is below; a gate has threads of its own, on which the events
 * come. Errors: negative errno with error_text() set.
 */
struct gate;

enum gate_kind {
    GATE_AUTO,    /* plug where the kernel has sch_plug, else nfqueue; none if the guest has no network */
    GATE_PLUG,    /* sch_plug on an ifb behind the guest's tap */
    GATE_NFQUEUE, /* netfilter's queue on the tap's bridge port */
    GATE_RELAY,   /* the engine carries the frames between QEMU's socket, or its tap, and a tap of its own */
    GATE_NONE,
    GATE_VMM, /* our own VMM, which owns the guest's devices: opened by its driver (vmm/kvm/kvm.h) */
};
const char *gate_kind_name(enum gate_kind kind);

/* What becomes of the guest's frames when the engine dies: dropped until an engine is back (held, as far as
 * there is room, by a VMM), or let through. */
enum gate_failure { GATE_FAIL_CLOSED, GATE_FAIL_OPEN };

#define GATE_PORTS_MAX 8

/* One network interface of the guest, as the host sees it. */
struct gate_port {
    char tap[16]; /* plug, nfqueue: the guest's tap; relay: the interface on the outside that frames go to */
    /* relay alone: where QEMU is. Either its tap, which is in no bridge ... */
    char guest_tap[16];
    /* ... or the two ends of `-netdev dgram`: QEMU's socket (local.path) and ours (remote.path). */
    char guest_socket[108], own_socket[108];
};

struct gate_config {
    enum gate_kind kind;
    enum gate_failure failure;
    /* The guest may have been protected before: hold from the first frame on, as after a mark of epoch 0,
     * which the caller makes all the same. (plug passes until that mark.) */
    bool opens_holding;
    /* events.full comes at half of it; beyond, frames are dropped, as by a full queue */
    uint64_t held_bytes_max;
    struct gate_port ports[GATE_PORTS_MAX];
    unsigned port_count;
};

struct gate_events {
    /* The first frame since the latest mark waits. */
    void (*waiting)(void *ctx);
    /* Half the bound on held bytes is used: a checkpoint is wanted soon. Once for each release. */
    void (*full)(void *ctx);
    /* The gate does not work any more (text says why); with GATE_FAIL_CLOSED nothing gets out. Once. */
    void (*failed)(void *ctx, const char *text);
    void *ctx;
};

/* The taps that a process has open (/proc/PID/fdinfo, "iff:"). Returns how many were written. */
int gate_find_taps(int pid, struct gate_port *ret_ports, unsigned room);

/*
 * -EOPNOTSUPP: this kernel or these interfaces cannot do it (the text says what is missing and what mends
 * it). GATE_AUTO without ports, and GATE_NONE, give a gate that does nothing. What an earlier engine left in
 * the kernel for the same ports is taken over or removed, without a frame getting out.
 */
int gate_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events);
/* What really holds frames: never GATE_AUTO. */
enum gate_kind gate_kind_of(const struct gate *gate);

/*
 * Between pause() and resume() of the guest: everything that it has sent belongs to `epoch`, or to an earlier
 * one. Epochs grow, but the same may be marked again (its capture failed and is repeated). mark_begin() does
 * not wait; mark_end() does, until the line is drawn.
 */
int gate_mark_begin(struct gate *gate, uint64_t epoch);
int gate_mark_end(struct gate *gate);
/* `epoch` was acknowledged: let out what belongs to it and to all before. */
int gate_release(struct gate *gate, uint64_t epoch);
/* Nothing protects the guest, by decision: let everything out, and pass from now on. */
int gate_pass(struct gate *gate);
/* Drop what is held and all that comes. */
int gate_shut(struct gate *gate);
/* A passing gate is removed from the kernel; a holding or shut one is left to do what `failure` says. NULL.
 */
void gate_close(struct gate *gate);

struct gate_stats {
    bool holding;
    uint64_t held_frames, held_bytes; /* now */
    uint64_t held_bytes_peak;
    uint64_t frames_out, bytes_out; /* from the guest, let out */
    uint64_t frames_in;             /* to the guest; 0 where the gate does not see them */
    uint64_t dropped;               /* over the bound, or shut */
    struct histogram delay_us;      /* of frames that were held, from arrival to release */
};
void gate_get_stats(struct gate *gate, struct gate_stats *ret_stats);

#endif
