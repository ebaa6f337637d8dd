/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_GATE_QUEUE_H
#define UNDERSTUDY_GATE_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

/* One queue of netfilter's (linux/netfilter/nfnetlink_queue.h), owned by a socket. Not locked: one user. */
struct mnl_socket;
struct queue {
    struct mnl_socket *socket;
    uint16_t number;
};

struct queue_packet {
    uint32_t id, bytes, interface; /* index of the bridge's port it came by; 0: none */
};
#define QUEUE_BATCH 32

void queue_init(struct queue *queue);
/* Finds a free number, from a place that `seed` decides. At most `packets_max` wait in the kernel. */
int queue_open(struct queue *queue, const char *seed, uint64_t packets_max);
void queue_close(struct queue *queue);
int queue_fd(const struct queue *queue);

/* Without waiting: how many packets came, 0 when none waits, or a failure. */
int queue_read(struct queue *queue, struct queue_packet ret_packets[QUEUE_BATCH]);
int queue_verdict(struct queue *queue, uint32_t id, uint32_t verdict);
int queue_verdict_up_to(struct queue *queue, uint32_t id, uint32_t verdict);
/* What the kernel dropped because the queue or its socket was full. */
uint64_t queue_dropped(const struct queue *queue);

#endif
