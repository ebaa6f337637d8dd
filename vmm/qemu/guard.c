/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/guard.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>

/*
 * Theory of operation
 *
 *     engine ──pipe──► guard      the read end sees the end when the engine is gone, however it went
 *       │ armed (shared page) │
 *       └── QMP connection ───┘   stays open as long as either holds it, so QEMU's monitor still takes a
 * command
 *
 * The engine may have left half a command behind (qmp_prime()). The byte 0xff, which no JSON has, makes QEMU
 * throw that away, with an error for an answer. The guard ends after QEMU has answered, and only then does
 * QEMU see the connection close and its monitor become free. It is forked from a process with threads, so it
 * calls nothing but async-signal-safe functions (fork(2), signal-safety(7)).
 */

#define GUARD_FD_PIPE 3
#define GUARD_FD_QMP  4
#define ANSWER_MS     2000

struct guard {
    pid_t pid;
    int pipe; /* write end: closes when we die */
    atomic_bool *armed;
};

/* The guard's process. Everything else that the engine had open is closed: listening sockets, lanes, the
 * tracker. */
static _Noreturn void stand_by(int pipe_fd, int qmp_fd, const atomic_bool *armed)
{
    static const char command[] = "\xff\n{\"execute\":\"cont\",\"id\":\"guard\"}\n";
    char sink[4096];
    prctl(PR_SET_NAME, "us-guard");
    int high_pipe = fcntl(pipe_fd, F_DUPFD, 16), high_qmp = fcntl(qmp_fd, F_DUPFD, 16);
    if (high_pipe < 0 || high_qmp < 0 || dup2(high_pipe, GUARD_FD_PIPE) < 0 ||
        dup2(high_qmp, GUARD_FD_QMP) < 0)
        _exit(1);
    close_range(GUARD_FD_QMP + 1, ~0u, 0);
    while (read(GUARD_FD_PIPE, sink, sizeof sink) < 0 && errno == EINTR)
        ;
    if (!atomic_load(armed) || send(GUARD_FD_QMP, command, sizeof command - 1, 0) < 0)
        _exit(0);
    /* Its own answer is the last one; whatever comes before is thrown away. */
    for (;;) {
        struct pollfd readable = {.fd = GUARD_FD_QMP, .events = POLLIN};
        if (poll(&readable, 1, ANSWER_MS) <= 0)
            _exit(1);
        ssize_t got = recv(GUARD_FD_QMP, sink, sizeof sink, 0);
        if (got <= 0 || memmem(sink, (size_t)got, "\"guard\"", 7))
            _exit(0);
    }
}

int guard_open(struct guard **ret_guard, int qmp_fd)
{
    struct guard *guard = calloc(1, sizeof *guard);
    if (!guard)
        return error_set(-ENOMEM, "guard: no memory");
    int ends[2];
    guard->armed =
        mmap(NULL, sizeof *guard->armed, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (guard->armed == MAP_FAILED || pipe2(ends, O_CLOEXEC) < 0) {
        int code = -errno;
        if (guard->armed != MAP_FAILED)
            munmap(guard->armed, sizeof *guard->armed);
        free(guard);
        return error_errno(code, "guard");
    }
    /* The guard keeps all signals blocked: a terminal's or a service manager's are for the engine. */
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    guard->pid = fork();
    int code = -errno;
    if (guard->pid == 0)
        stand_by(ends[0], qmp_fd, guard->armed);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    close(ends[0]);
    guard->pipe = ends[1];
    if (guard->pid < 0) {
        close(guard->pipe);
        munmap(guard->armed, sizeof *guard->armed);
        free(guard);
        return error_errno(code, "guard: fork");
    }
    *ret_guard = guard;
    return 0;
}

void guard_arm(struct guard *guard)
{
    atomic_store(guard->armed, true);
}

void guard_disarm(struct guard *guard)
{
    atomic_store(guard->armed, false);
}

void guard_close(struct guard *guard)
{
    if (!guard)
        return;
    guard_disarm(guard);
    close(guard->pipe);
    while (waitpid(guard->pid, NULL, 0) < 0 && errno == EINTR)
        ;
    munmap(guard->armed, sizeof *guard->armed);
    free(guard);
}
