/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_LOOP_H
#define UNDERSTUDY_REPLICATOR_LOOP_H

#include <stdint.h>

/* The daemon's main loop: epoll over a handful of descriptors, with a deadline. One thread. */
struct loop;

typedef void loop_ready(void *ctx, int fd, uint32_t events);

int loop_new(struct loop **ret_loop);
void loop_free(struct loop *loop);

/* Call `ready` when `events` (EPOLLIN ...) happen on `fd`, which stays the caller's. At most 64 descriptors.
 */
int loop_add(struct loop *loop, int fd, uint32_t events, loop_ready *ready, void *ctx);
int loop_change(struct loop *loop, int fd, uint32_t events);
void loop_remove(struct loop *loop, int fd);

/* Wait until something is ready or CLOCK_MONOTONIC passes `deadline_ns` (UINT64_MAX: no deadline); call
 * handlers. */
int loop_once(struct loop *loop, uint64_t deadline_ns);

#endif
