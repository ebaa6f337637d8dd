/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_SERVER_INTERNAL_H
#define UNDERSTUDY_VMM_KVM_SERVER_INTERNAL_H

#include "base/error.h"
#include "base/histogram.h"
#include "vmm/kvm/control.h"
#include "vmm/kvm/gatekeeper.h"
#include "vmm/kvm/server.h"

/* What the parts of the server share: server.c has who comes and goes, server_requests.c what an engine asks.
 */

#define VISITORS_MAX 8

struct visitor {
    int fd; /* -1: free */
};

struct server {
    struct machine *machine;
    void (*announce)(void *ctx);
    void *announce_ctx;
    struct images *images;
    int (*boot)(void *ctx);
    void *boot_ctx;
    int listener, signals, wake, epoll;
    struct visitor visitors[VISITORS_MAX];
    struct visitor *engine;
    struct gatekeeper gate;
    enum control_phase phase;
    bool released;          /* the engine's last pause is over, and not counted yet */
    struct histogram stood; /* how long the guest stood still for its engine, ns */

    int shared_fd;
    uint8_t *shared;
    size_t shared_bytes, state_room;

    enum machine_end end; /* set before `wake` is written */
    char end_text[ERROR_TEXT_MAX];
    bool retired;
};

/* server.c */
bool server_is_over(const struct server *server);
/* Boot a guest again that reset itself; it stands still, before and afterwards. */
void server_reboot(struct server *server);
/* The last pause, as soon as its end is known: before the next, or before its engine leaves. */
void server_count_stood(struct server *server);

/* server_requests.c */
/* Do what a visitor asks, and answer. `came`: a descriptor that came with it, ours from now on; -1: none.
 * -errno: nobody is there any more, has lost its way, or does not take the answer. */
int server_handle(struct server *server, struct visitor *visitor, const struct control_message *request,
                  int came);
void server_resume(struct server *server);

#endif
