/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_SERVER_H
#define UNDERSTUDY_VMM_KVM_SERVER_H

#include "vmm/kvm/images.h"
#include "vmm/kvm/machine.h"
#include "vmm/kvm/output.h"

/*
 * The VMM's main thread: it owns the machine, and does what an engine asks (control.h), until the guest is
 * over.
 *
 * SIGTERM and SIGINT end the guest in order; SIGCONT lets a guest run that an engine held for good; SIGUSR1
 * lets output out that an engine which is gone left held.
 */
struct server;

/* `control_path`: where engines connect; NULL: nowhere. -EADDRINUSE: somebody serves it already. `config` is
 * completed with the server's own callback. Blocks the signals above in the calling thread: before threads
 * are started. */
int server_new(struct server **ret_server, const char *control_path, struct machine_config *config);
/* Takes NULL. The machine is the caller's. */
void server_free(struct server *server);

/* What the guest's output tells, for output_new(). */
struct output_events server_output_events(struct server *server);

/* A guest that resets itself boots again, by `boot(ctx)` into a machine that is as new; without this it is
 * over. Completes `config`, too. */
void server_reboots(struct server *server, struct machine_config *config, int (*boot)(void *ctx), void *ctx);

/* From here on `machine` may be asked for, and `output` held; `incoming`: it waits for a state.
 * `announce(ctx)` tells the network where the guest is. */
int server_attach(struct server *server, struct machine *machine, struct output *output, bool incoming,
                  void (*announce)(void *ctx), void *ctx);

/* The disks that the engine is told of. Before server_run(). */
void server_attach_images(struct server *server, struct images *images);

/* Serve until the guest is over. Returns how. */
enum machine_end server_run(struct server *server);

#endif
