/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_PLUG_NET_H
#define UNDERSTUDY_GATE_PLUG_NET_H

#include <stdint.h>

struct gate_config;

/* What the plug gate puts into the kernel, for all of its interfaces at once. Not locked: one user at a time.
 */
struct plug_net;

struct plug_figures {
    uint64_t held_frames, held_bytes, frames_in, frames_out, bytes_out, dropped;
};

/* What an earlier engine left is dropped with all that it holds. Passing. -EOPNOTSUPP. */
int plug_net_open(struct plug_net **ret_net, const struct gate_config *config);
/* Frames go straight on from now. */
int plug_net_remove(struct plug_net *net);
/* What is held, and all that comes, is dropped. */
int plug_net_cut(struct plug_net *net);
/* Leaves the kernel as it is. Takes NULL. */
void plug_net_free(struct plug_net *net);

int plug_net_buffer(struct plug_net *net);
int plug_net_release_one(struct plug_net *net);
int plug_net_release_all(struct plug_net *net);
int plug_net_figures(struct plug_net *net, struct plug_figures *ret_figures);

#endif
