/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_HOOKS_H
#define UNDERSTUDY_REPLICATOR_HOOKS_H

#include <stdint.h>

/*
 * A directory of executables that are run for each event, in the order of their names (bytes, as LC_ALL=C
 * sorts), one after the other, without a shell. Names consist of letters, digits, '.', '_' and '-' and do not
 * begin with a dot; other files, and files that are not executable, are passed over. A hook, and the
 * directory itself, must belong to root or to the engine's user and be writable by nobody else; a symbolic
 * link is no hook.
 */

#define HOOKS_MAX 32

/* Can this directory be used, and every hook in it? -EPERM (owner or mode), -E2BIG (too many), or what
 * opening it gave; the text names the file. */
int hooks_check(const char *directory);

/* What the caller does while a hook runs: `ready` is called when `fd` is readable. `deadline` says
 * (CLOCK_MONOTONIC) when a hook must have ended whatever its own limit is; UINT64_MAX: no such moment. */
struct hooks_meanwhile {
    int fd;
    void (*ready)(void *ctx);
    uint64_t (*deadline)(void *ctx);
    void *ctx;
};

struct hooks_count {
    uint64_t run, failed, timed_out; /* each that timed out has failed, too */
};

/*
 * Run the directory's hooks with exactly this environment. Each has `timeout_ns`; then its process group gets
 * SIGTERM and, a second later, SIGKILL. What they print, and how they failed, goes to the log. Adds to
 * `count`. Exit status 0: done; 77: the hook has nothing to do with this event; anything else: failed.
 */
void hooks_run(const char *directory, char *const environment[], uint64_t timeout_ns,
               const struct hooks_meanwhile *meanwhile, struct hooks_count *count);

#endif
