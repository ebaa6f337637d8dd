/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_OUTPUT_H
#define UNDERSTUDY_VMM_KVM_OUTPUT_H

#include "base/histogram.h"
#include "vmm/kvm/io.h"

#include <stdbool.h>
#include <stdint.h>

/*
 * Output commit inside the VMM: what the guest sends to the network and to its console is held until the
 * checkpoint of its epoch is acknowledged. Rules and words are those of gate/gate.h, the bookkeeping is
 * gate/hold.h's; as the VMM owns the devices, nothing in the kernel has to be arranged.
 *
 * A *port* is a file descriptor that output goes to, with an order and a bound of its own: a console that
 * nobody reads does not keep the network waiting. States: *passing* (as it begins), *holding* (from the first
 * mark on), *shut*.
 *
 * Threads: any. Writing is done by io's thread. A lock of its own guards it, and is taken after io's.
 */
struct output;
struct output_port;

/* Both must be there. They come on the thread that pushes, which may hold io's lock: they neither wait nor
 * call in here. */
struct output_events {
    /* The first output since the latest mark waits. */
    void (*waiting)(void *ctx);
    /* Half of the bound of a port is used: a checkpoint is wanted soon. Once for each release. */
    void (*full)(void *ctx);
    void *ctx;
};

/* The longest piece of output. */
#define OUTPUT_BYTES_MAX 65536u

/* Each port holds at most `held_bytes_max` (at least OUTPUT_BYTES_MAX). -ENOMEM, -EINVAL. */
int output_new(struct output **ret_output, struct io *io, uint64_t held_bytes_max,
               const struct output_events *events);
/* After io_stop(), and after the devices that push. What is held is lost. NULL. */
void output_free(struct output *output);

enum output_kind {
    OUTPUT_FRAMES, /* each push is one write */
    OUTPUT_STREAM, /* pieces may be joined and parted */
};

/* Before io_start(). `fd` stays the caller's and must outlive io; it is made non-blocking. `room(ctx)`, may
 * be NULL, is called after output_has_room() said no, when there may be some, with io's lock and ours: it may
 * io_ask(), no more.
 * -ENOMEM, -errno. */
int output_add(struct output *output, enum output_kind kind, int fd, void (*room)(void *ctx), void *ctx,
               struct output_port **ret_port);

/* Another bound for each port, of at least OUTPUT_BYTES_MAX. What is held beyond it stays. */
void output_set_bound(struct output *output, uint64_t held_bytes_max);

/* Whether so much can be held now. */
bool output_has_room(struct output_port *port, uint32_t bytes);
/* `data`, from malloc(), is taken, whatever happens. What there is no room for is dropped and counted, as by
 * any full queue; so is everything when it is shut. */
void output_push(struct output_port *port, void *data, uint32_t bytes);

/* While the guest stands still and its devices are quiet: what was pushed belongs to `epoch`, or to an
 * earlier one. -EINVAL: a later epoch was marked already; -ESHUTDOWN. */
int output_mark(struct output *output, uint64_t epoch);
/* `epoch` was acknowledged: let out what belongs to it and to all before. */
void output_release(struct output *output, uint64_t epoch);
/* Nothing protects the guest, by decision: let everything out, and pass from now on. */
void output_pass(struct output *output);
/* Drop what is held and all that comes. */
void output_shut(struct output *output);
/* Where it is shut: pass again, or hold from the first byte on, as after a mark of epoch 0. */
void output_reopen(struct output *output, bool holding);
bool output_holds(struct output *output);
/* After io_stop(): write what may go, as far as the descriptors take it at once. Returns the bytes that wait
 * for a release, which will not come. */
uint64_t output_finish(struct output *output);

/* Of all ports together. */
struct output_stats {
    bool holding;
    uint64_t held_frames, held_bytes; /* now */
    uint64_t held_bytes_peak;         /* of the port that had most */
    uint64_t frames_out, bytes_out;
    uint64_t dropped;          /* over the bound, shut, or not taken by the descriptor */
    struct histogram delay_us; /* of what was held, from push to write; of the port that held most often */
};
void output_get_stats(struct output *output, struct output_stats *ret_stats);

#endif
