/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_FENCE_H
#define UNDERSTUDY_REPLICATOR_FENCE_H

#include <stdatomic.h>
#include <stdint.h>

/*
 * Fencing: a program that switches the other host off and knows that it did, before the guest is resumed
 * here. It is called as fence agents are (fence-agents' FenceAgentAPI): no arguments; options on standard
 * input as name=value lines, ours is "action=off"; exit status 0 means that the host is off.
 */

/* `words`: the program's absolute path, then options NAME=VALUE without "action"; NULL-terminated. -EINVAL
 * with the reason. Looks at no file. */
int fence_check(char *const *words);

/* The program is there, is a file that may be executed, and only its owner may write it. */
int fence_check_file(char *const *words);

/*
 * Run it without a shell, with a small environment and no descriptor of ours, and wait; blocks for at most
 * `timeout_ms`, or until *cancelled, and then kills it with what it started in its process group. Returns 0
 * when the host is off; a negative errno with the reason (the program's last line of output included):
 * -ETIMEDOUT, -ECANCELED, -EIO: another exit status or a signal, or what starting it gave.
 */
int fence_run(char *const *words, unsigned timeout_ms, const atomic_bool *cancelled);

#endif
