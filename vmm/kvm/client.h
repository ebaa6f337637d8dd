/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_CLIENT_H
#define UNDERSTUDY_VMM_KVM_CLIENT_H

#include "vmm/kvm/control.h"
#include "vmm/vmm.h"

#include <sys/types.h>

/* The engine's end of the control socket. One thread makes all calls. */

#define CLIENT_EVENTS_MAX 16
#define CLIENT_CALL_MS    10000
#define CLIENT_GONE_MS    1000 /* from the end of a VMM's connections to its own */

struct client {
    int fd;
    pid_t pid;
    int process; /* pidfd */
    uint32_t sequence;
    enum vmm_event events[CLIENT_EVENTS_MAX];
    size_t event_count;
    bool over;                /* ENDED, FAILED or LOST was said */
    enum control_phase phase; /* as of the last answer */

    /* from client_greet() on */
    int memory_fd;
    uint8_t *memory, *shared;
    uint64_t memory_bytes;
    size_t shared_bytes, state_room;
    char *text; /* the description's */
};
#define CLIENT_NONE ((struct client){.fd = -1, .process = -1, .memory_fd = -1})

/* Connect. -ENOENT, -ECONNREFUSED: nobody is there. */
int client_open(struct client *client, const char *path);
/* Become the guest's engine and map what it gives us; `writable`: its memory, too. */
int client_greet(struct client *client, bool writable);
void client_close(struct client *client);

/* One request and its answer: the VMM's refusal is this call's, with its words. -ETIMEDOUT: what was asked
 * may still happen. */
int client_call(struct client *client, enum control_op op, uint64_t argument,
                struct control_message *ret_answer);
/* The same with a descriptor of ours that goes along, or with exactly `expected` of the VMM's that come, the
 * caller's to close. */
int client_give(struct client *client, enum control_op op, uint64_t argument, int fd);
int client_fetch(struct client *client, enum control_op op, unsigned expected, int *ret_fds);

/* RELEASE: the guest runs on, which nobody waits for. That it could not (the VMM is gone) is found by the
 * next call. */
int client_release(struct client *client);

/* The next event; VMM_EVENT_NONE when there is none. */
enum vmm_event client_event(struct client *client);

/* The description, of one block. */
void client_describe(const struct client *client, struct vmm_block *block, bool mapped,
                     struct vmm_description *ret_description);

/* Where the pages lie. */
static inline uint8_t *client_page(const struct client *client, const struct vmm_range *range)
{
    return client->memory + (range->first << VMM_PAGE_SHIFT);
}

#endif
