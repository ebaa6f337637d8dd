/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_SPAWN_H
#define UNDERSTUDY_BASE_SPAWN_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/types.h>

/*
 * The start of another program, without a shell. It inherits nothing of ours but what is named here: it leads
 * a session and a process group of its own, so that neither a terminal's signals nor our end reach it and
 * kill(-pid) reaches all of it; every signal has its default action and none is blocked (the engine blocks
 * some and ignores SIGPIPE); descriptors from 3 on are closed.
 */
struct spawn {
    char *const *argv;        /* argv[0] is the program, too; NULL-terminated */
    char *const *environment; /* NULL-terminated; NULL: ours */
    int input;                /* its standard input; -1: /dev/null */
    int output, errors;       /* its standard output and standard error; may be the same */
    bool search;              /* look for argv[0] along PATH and in /usr/sbin, which not every PATH has; else
                               * it is a path */
};

/*
 * Start it (posix_spawn(3)). The descriptors stay the caller's; each is 3 or more, or the very one that it
 * becomes. The caller waits for the process. Errors, whose text names the program and the cause: what
 * execve(2) says (-ENOENT, -EACCES, ...), -ENOMEM, -EAGAIN.
 */
int spawn_start(pid_t *ret_pid, const struct spawn *spawn);

/* Where a program is that belongs to this one: beside it (a build directory), or where such are installed.
 * Errors: -ENOENT, -EACCES. */
int spawn_find_helper(const char *name, char *to, size_t room);

#endif
