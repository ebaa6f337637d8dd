/* SPDX-License-Identifier: Apache-2.0 */
#include "base/spawn.h"

#include "base/error.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int describe_files(posix_spawn_file_actions_t *actions, const struct spawn *spawn)
{
    int r = spawn->input < 0
                ? posix_spawn_file_actions_addopen(actions, STDIN_FILENO, "/dev/null", O_RDONLY, 0)
                : posix_spawn_file_actions_adddup2(actions, spawn->input, STDIN_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(actions, spawn->output, STDOUT_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_adddup2(actions, spawn->errors, STDERR_FILENO);
    if (r == 0)
        r = posix_spawn_file_actions_addclosefrom_np(actions, STDERR_FILENO + 1);
    return r;
}

static int describe_signals(posix_spawnattr_t *attributes)
{
    sigset_t none, all;
    sigemptyset(&none);
    sigfillset(&all);
    int r = posix_spawnattr_setflags(attributes,
                                     POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
    if (r == 0)
        r = posix_spawnattr_setsigmask(attributes, &none);
    if (r == 0)
        r = posix_spawnattr_setsigdefault(attributes, &all);
    return r;
}

static int search_and_start(pid_t *ret_pid, const posix_spawn_file_actions_t *actions,
                            const posix_spawnattr_t *attributes, char *const *argv, char *const *environment)
{
    char path[PATH_MAX];
    int r = posix_spawnp(ret_pid, argv[0], actions, attributes, argv, environment);
    if (r == ENOENT && !strchr(argv[0], '/') &&
        snprintf(path, sizeof path, "/usr/sbin/%s", argv[0]) < (int)sizeof path)
        r = posix_spawn(ret_pid, path, actions, attributes, argv, environment);
    return r;
}

int spawn_start(pid_t *ret_pid, const struct spawn *spawn)
{
    char *const *environment = spawn->environment ? spawn->environment : environ;
    posix_spawn_file_actions_t actions;
    posix_spawnattr_t attributes;
    posix_spawn_file_actions_init(&actions);
    posix_spawnattr_init(&attributes);
    int r = describe_files(&actions, spawn);
    if (r == 0)
        r = describe_signals(&attributes);
    if (r == 0 && spawn->search)
        r = search_and_start(ret_pid, &actions, &attributes, spawn->argv, environment);
    else if (r == 0)
        r = posix_spawn(ret_pid, spawn->argv[0], &actions, &attributes, spawn->argv, environment);
    posix_spawnattr_destroy(&attributes);
    posix_spawn_file_actions_destroy(&actions);
    return r ? error_errno(-r, "start %s", spawn->argv[0]) : 0;
}

int spawn_find_helper(const char *name, char *to, size_t room)
{
    ssize_t length = readlink("/proc/self/exe", to, room);
    if (length > 0 && (size_t)length < room) {
        size_t front = (size_t)length;
        while (front && to[front - 1] != '/')
            front--;
        if (snprintf(to + front, room - front, "%s", name) < (int)(room - front) && access(to, X_OK) == 0)
            return 0;
    }
    snprintf(to, room, "%s/%s", UNDERSTUDY_LIBEXEC, name);
    return access(to, X_OK) == 0 ? 0 : error_errno(-errno, "%s", to);
}
