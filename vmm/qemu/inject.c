/* SPDX-License-Identifier: Apache-2.0 */
/*
 * A userfaultfd serves the address space of the process that creates it, so QEMU itself has to make the
 * system call. It never asked for that; ptrace lets it make one all the same.
 *
 * Theory of operation.
 *
 *      engine                    helper (forked)                QEMU's main thread
 *        |--- fork ----------------->|
 *        |                           |--- SEIZE, INTERRUPT -------->| stops
 *        |                           |--- registers, SINGLESTEP --->| ioctl(device, USERFAULTFD_IOC_NEW) = n
 *        |                           |  pidfd_getfd(n)              |
 *        |                           |--- registers, SINGLESTEP --->| close(n)
 *        |                           |--- old registers, DETACH --->| goes on; a system call that was
 *        |<-- descriptor ------------|                                interrupted is restarted by the kernel
 *
 * Between the first and the last change of its registers the thread must not run on by itself, but that is
 * what the kernel lets it do when its tracer dies. An engine may be killed at any moment (and its tests do
 * just that), hence the helper: a process of its own that nobody aims at, that lives for a millisecond, and
 * that finishes its work though the engine be gone. It is forked from a program with threads, so it keeps to
 * system calls: no allocation, no stdio, no locks.
 *
 * The instruction that is stepped is a `syscall` of the vDSO, which every process has, wherever the thread
 * was when it stopped. While it is stopped all its signals but SIGTRAP are blocked, so that the step cannot
 * end in a signal handler.
 *
 * If an earlier engine's helper was killed half-way, what can be left in QEMU is an unused userfaultfd, which
 * protects nothing.
 */
#include "vmm/qemu/inject.h"

#include "vmm/qemu/compat.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/user.h>
#include <sys/wait.h>

#define STOP_WAIT_NS (2 * NS_PER_S) /* for the main thread to stop: it may sit in an uninterruptible wait */
#define STEP_WAIT_NS (2 * NS_PER_S)
#define ATTEMPTS     5
#define SIGNALS_HELD 8

struct outcome {
    int code; /* 0 or negative errno */
    int step; /* enum step: where */
};

enum step { STEP_SEIZE, STEP_STOP, STEP_REGISTERS, STEP_CALL, STEP_TAKE, STEP_RESTORE, STEP_SEND };
static const char *const step_names[] = {
    "ptrace seize", "stopping the main thread", "reading its registers", "userfaultfd in QEMU",
    "pidfd_getfd",  "restoring its registers",  "handing over",
};

struct tracee {
    pid_t pid;
    uint64_t syscall_at; /* address of a syscall instruction */
    struct user_regs_struct saved;
    uint64_t saved_mask;
    int held[SIGNALS_HELD]; /* signals that came while it was stopped: sent again afterwards */
    unsigned held_count;
};

/* Wait for a stop of the tracee. */
static int wait_stop(pid_t pid, uint64_t limit_ns, int *ret_status)
{
    uint64_t deadline = clock_now_ns() + limit_ns;
    for (unsigned spins = 0;; spins++) {
        int status;
        pid_t got = waitpid(pid, &status, __WALL | WNOHANG);
        if (got < 0)
            return -errno;
        if (got == pid) {
            if (!WIFSTOPPED(status))
                return -ESRCH;
            *ret_status = status;
            return 0;
        }
        if (clock_now_ns() > deadline)
            return -ETIMEDOUT;
        /* The stop takes microseconds unless the thread is stuck; do not sleep past it at first. */
        struct timespec nap = {.tv_nsec = spins < 50 ? 2000 : 200000};
        nanosleep(&nap, NULL);
    }
}

static bool is_trap(int status)
{
    return WSTOPSIG(status) == SIGTRAP && status >> 16 == 0;
}

static void hold_signal(struct tracee *tracee, int status)
{
    /* A stop without an event is a signal on its way. More than a few at once do not happen: the thread takes
     * its signals through a signalfd. */
    if (status >> 16 == 0 && tracee->held_count < SIGNALS_HELD)
        tracee->held[tracee->held_count++] = WSTOPSIG(status);
}

static int seize_and_stop(struct tracee *tracee, enum step *step)
{
    *step = STEP_SEIZE;
    if (ptrace(PTRACE_SEIZE, tracee->pid, 0, 0) < 0)
        return -errno;
    *step = STEP_STOP;
    if (ptrace(PTRACE_INTERRUPT, tracee->pid, 0, 0) < 0)
        return -errno;
    for (;;) {
        int status;
        int r = wait_stop(tracee->pid, STOP_WAIT_NS, &status);
        if (r < 0)
            return r;
        if (status >> 16 == PTRACE_EVENT_STOP)
            return 0;
        hold_signal(tracee, status);
        if (ptrace(PTRACE_CONT, tracee->pid, 0, 0) < 0)
            return -errno;
    }
}

/* Run one system call in the stopped tracee. */
static int run_call(struct tracee *tracee, long number, uint64_t a, uint64_t b, uint64_t c,
                    int64_t *ret_value)
{
    struct user_regs_struct registers = tracee->saved;
    registers.rip = tracee->syscall_at;
    registers.rax = (uint64_t)number;
    registers.orig_rax = UINT64_MAX; /* or the kernel would "restart" the call that was interrupted, here */
    registers.rdi = a;
    registers.rsi = b;
    registers.rdx = c;
    if (ptrace(PTRACE_SETREGS, tracee->pid, 0, &registers) < 0)
        return -errno;
    for (;;) {
        if (ptrace(PTRACE_SINGLESTEP, tracee->pid, 0, 0) < 0)
            return -errno;
        int status;
        int r = wait_stop(tracee->pid, STEP_WAIT_NS, &status);
        if (r < 0)
            return r;
        if (!is_trap(status)) {
            hold_signal(tracee, status);
            continue;
        }
        if (ptrace(PTRACE_GETREGS, tracee->pid, 0, &registers) < 0)
            return -errno;
        if (registers.rip != tracee->syscall_at + 2)
            return -ENXIO;
        *ret_value = (int64_t)registers.rax;
        return 0;
    }
}

static int call_and_take(struct tracee *tracee, int device_fd, int pidfd, enum step *step)
{
    *step = STEP_CALL;
    int64_t remote;
    int r = run_call(tracee, SYS_ioctl, (uint64_t)device_fd, USERFAULTFD_IOC_NEW, O_CLOEXEC | O_NONBLOCK,
                     &remote);
    if (r < 0)
        return r;
    if (remote < 0)
        return remote < -4095 ? -EPROTO : (int)remote;
    *step = STEP_TAKE;
    int fd = (int)syscall(SYS_pidfd_getfd, pidfd, (int)remote, 0);
    int code = fd < 0 ? -errno : fd;
    int64_t closed;
    r = run_call(tracee, SYS_close, (uint64_t)remote, 0, 0, &closed);
    if (r < 0) {
        if (fd >= 0)
            close(fd);
        return r;
    }
    return code;
}

/* Returns a descriptor, or negative errno and the step that failed. */
static int inject(struct tracee *tracee, int device_fd, int pidfd, enum step *step)
{
    int r = seize_and_stop(tracee, step);
    if (r < 0)
        return r; /* still seized at worst; ends with us */
    *step = STEP_REGISTERS;
    if (ptrace(PTRACE_GETREGS, tracee->pid, 0, &tracee->saved) < 0 ||
        ptrace(PTRACE_GETSIGMASK, tracee->pid, sizeof tracee->saved_mask, &tracee->saved_mask) < 0)
        r = -errno;
    if (r == 0) {
        uint64_t mask = ~(UINT64_C(1) << (SIGTRAP - 1));
        if (ptrace(PTRACE_SETSIGMASK, tracee->pid, sizeof mask, &mask) < 0)
            r = -errno;
        else
            r = call_and_take(tracee, device_fd, pidfd, step);
        /* Whatever happened, the thread goes on as it was. */
        if (ptrace(PTRACE_SETREGS, tracee->pid, 0, &tracee->saved) < 0 ||
            ptrace(PTRACE_SETSIGMASK, tracee->pid, sizeof tracee->saved_mask, &tracee->saved_mask) < 0) {
            if (r >= 0)
                close(r);
            *step = STEP_RESTORE;
            r = -errno;
        }
    }
    ptrace(PTRACE_DETACH, tracee->pid, 0, 0);
    for (unsigned i = 0; i < tracee->held_count; i++)
        syscall(SYS_tgkill, tracee->pid, tracee->pid, tracee->held[i]);
    return r;
}

static void send_outcome(int socket, const struct outcome *outcome, int fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control = {0};
    struct iovec vector = {(void *)outcome, sizeof *outcome};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1};
    if (fd >= 0) {
        message.msg_control = control.bytes;
        message.msg_controllen = sizeof control.bytes;
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(sizeof fd);
        memcpy(CMSG_DATA(header), &fd, sizeof fd);
    }
    sendmsg(socket, &message, MSG_NOSIGNAL);
}

static _Noreturn void helper(struct tracee *tracee, int device_fd, int pidfd, int socket)
{
    /* Signals meant for the engine's process group (an interrupt from a terminal) must not end us half-way.
     */
    sigset_t all;
    sigfillset(&all);
    sigprocmask(SIG_BLOCK, &all, NULL);
    enum step step = STEP_SEIZE;
    int fd = inject(tracee, device_fd, pidfd, &step);
    struct outcome outcome = {.code = fd < 0 ? fd : 0, .step = step};
    send_outcome(socket, &outcome, fd);
    _exit(0);
}

static int receive_outcome(int socket, struct outcome *outcome, int *ret_fd)
{
    union {
        char bytes[CMSG_SPACE(sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec vector = {outcome, sizeof *outcome};
    struct msghdr message = {.msg_iov = &vector,
                             .msg_iovlen = 1,
                             .msg_control = control.bytes,
                             .msg_controllen = sizeof control.bytes};
    ssize_t got;
    do
        got = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    while (got < 0 && errno == EINTR);
    if (got != (ssize_t)sizeof *outcome)
        return error_set(-EIO, "the helper that traces QEMU ended without a word");
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_type == SCM_RIGHTS)
        memcpy(ret_fd, CMSG_DATA(header), sizeof *ret_fd);
    return 0;
}

/* A `syscall` instruction in the vDSO of the process. */
static int find_syscall(pid_t pid, uint64_t *ret_address)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/maps", pid);
    FILE *maps cleanup_fclose = fopen(path, "re");
    if (!maps)
        return error_errno(-errno, "%s", path);
    char *line cleanup_free = NULL;
    size_t room = 0;
    uint64_t start = 0, end = 0;
    while (getline(&line, &room, maps) > 0)
        if (strstr(line, "[vdso]") && sscanf(line, "%" SCNx64 "-%" SCNx64, &start, &end) == 2)
            break;
    if (end <= start || end - start > 65536)
        return error_set(-ENXIO, "process %d has no vDSO", pid);
    size_t bytes = end - start;
    uint8_t *text cleanup_free = malloc(bytes);
    if (!text)
        return error_set(-ENOMEM, "vDSO: no memory");
    struct iovec local = {text, bytes}, remote = {(void *)(uintptr_t)start, bytes};
    if (process_vm_readv(pid, &local, 1, &remote, 1, 0) != (ssize_t)bytes)
        return error_errno(-errno, "reading the vDSO of process %d", pid);
    const uint8_t *found = memmem(text, bytes, "\x0f\x05", 2);
    if (!found)
        return error_set(-ENXIO, "the vDSO of process %d holds no syscall instruction", pid);
    *ret_address = start + (uint64_t)(found - text);
    return 0;
}

static int attempt(struct tracee *tracee, int device_fd, int pidfd, int *ret_fd)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, pair) < 0)
        return error_errno(-errno, "socketpair");
    pid_t child = fork();
    if (child < 0) {
        int code = -errno;
        close(pair[0]);
        close(pair[1]);
        return error_errno(code, "fork of the helper that traces QEMU");
    }
    if (child == 0)
        helper(tracee, device_fd, pidfd, pair[1]);
    close(pair[1]);
    struct outcome outcome = {0};
    int fd = -1;
    int r = receive_outcome(pair[0], &outcome, &fd);
    close(pair[0]);
    while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
        ;
    if (r < 0)
        return r;
    if (outcome.code == 0 && fd < 0)
        return error_set(-EMFILE, "taking over the userfaultfd: no descriptor came");
    if (outcome.code < 0) {
        if (outcome.step == STEP_SEIZE && outcome.code == -EPERM)
            return error_set(-EBUSY, "process %d is being traced by somebody else, or we may not trace it",
                             tracee->pid);
        return error_errno(outcome.code, "process %d: %s", tracee->pid, step_names[outcome.step]);
    }
    *ret_fd = fd;
    return 0;
}

int inject_userfaultfd(pid_t pid, int device_fd, int *ret_fd)
{
    struct tracee tracee = {.pid = pid};
    int r = find_syscall(pid, &tracee.syscall_at);
    if (r < 0)
        return r;
    int pidfd cleanup_close = (int)syscall(SYS_pidfd_open, pid, 0);
    if (pidfd < 0)
        return error_errno(-errno, "pidfd_open of process %d", pid);
    for (unsigned attempts = 0; attempts < ATTEMPTS; attempts++) {
        r = attempt(&tracee, device_fd, pidfd, ret_fd);
        /* An earlier engine's helper may be about to detach; a busy thread may need another try. */
        if (r != -EBUSY && r != -ETIMEDOUT && r != -ENXIO)
            return r;
        struct timespec nap = {.tv_nsec = (long)(20 * NS_PER_MS)};
        nanosleep(&nap, NULL);
    }
    return r;
}
