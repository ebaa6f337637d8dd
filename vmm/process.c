/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/process.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/pidfd.h>
#include <sys/wait.h>

#define LOG_MEMORY     65536
#define ARGS_MAX       4096
#define LEFT_ALONE_MAX 8
#define KILL_MS        5000 /* a killed process may still have memory to give back */

/* --- start --- */

/* Sealed at its size: what it writes beyond is lost, instead of filling our memory. */
static int memory_log(void)
{
    int fd cleanup_close = memfd_create("understudy-output", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    if (fd < 0 || ftruncate(fd, LOG_MEMORY) < 0 || fcntl(fd, F_ADD_SEALS, F_SEAL_GROW) < 0)
        return error_errno(-errno, "memory for the output of the guest's process");
    return take_fd(&fd);
}

static int open_log(struct process *process, const char *log_path)
{
    process->log_from = 0;
    if (!log_path) {
        process->log = memory_log();
        return process->log < 0 ? process->log : 0;
    }
    process->log = open(log_path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0640);
    if (process->log < 0)
        return error_errno(-errno, "log %s", log_path);
    off_t end = lseek(process->log, 0, SEEK_END);
    if (end > 0)
        process->log_from = end;
    return 0;
}

static int join(char *const *argv, const char *const *extra, char ***ret_joined)
{
    size_t count = 0, more = 0;
    while (argv[count])
        count++;
    while (extra[more])
        more++;
    if (count == 0 || count > ARGS_MAX)
        return error_set(-EINVAL, "the command that starts the standby's guest has %zu words", count);
    char **joined = calloc(count + more + 1, sizeof *joined);
    if (!joined)
        return error_set(-ENOMEM, "%s: no memory", argv[0]);
    memcpy(joined, argv, count * sizeof *joined);
    memcpy(joined + count, extra, more * sizeof *joined);
    *ret_joined = joined;
    return 0;
}

int process_start(struct process *process, char *const *argv, const char *const *extra, const char *log_path)
{
    char **joined cleanup_free = NULL;
    *process = PROCESS_NONE;
    int r = join(argv, extra, &joined);
    if (r == 0)
        r = open_log(process, log_path);
    if (r == 0) {
        struct spawn spawn = {
            .argv = joined, .input = -1, .output = process->log, .errors = process->log, .search = true};
        r = spawn_start(&process->child, &spawn);
    }
    if (r < 0) {
        process_release(process);
        return r;
    }
    process->pid = process->child;
    process->child_fd = pidfd_open(process->child, 0);
    if (process->child_fd < 0) {
        r = error_errno(-errno, "pidfd of %s", argv[0]);
        kill(-process->child, SIGKILL);
        waitpid(process->child, NULL, 0);
        process->child = 0;
        process_release(process);
    }
    return r;
}

int process_adopt(struct process *process, pid_t pid)
{
    int fd cleanup_close = pidfd_open(pid, 0);
    if (fd < 0 || getsid(pid) != process->child)
        return error_set(
            -ESRCH,
            "process %d is not of the session of %d, which was started; the command must stay in "
            "the foreground (no -daemonize)",
            pid, process->child);
    process->pid = pid;
    process->pid_fd = take_fd(&fd);
    return 0;
}

int process_follow(struct process *process, pid_t pid)
{
    *process = PROCESS_NONE;
    process->pid_fd = pidfd_open(pid, 0);
    if (process->pid_fd < 0)
        return error_errno(-errno, "process %d", pid);
    process->pid = pid;
    return 0;
}

/* --- observe --- */

/* A pidfd is readable when its process has ended. */
static bool ended_within(int pid_fd, int ms)
{
    uint64_t deadline = clock_now_ns() + (uint64_t)ms * NS_PER_MS;
    struct pollfd pollfd = {.fd = pid_fd, .events = POLLIN};
    for (;;) {
        int r = poll(&pollfd, 1, ms);
        if (r > 0)
            return true;
        uint64_t now = clock_now_ns();
        if (r == 0 || errno != EINTR || now >= deadline)
            return false;
        ms = (int)((deadline - now + NS_PER_MS - 1) / NS_PER_MS);
    }
}

bool process_wait(const struct process *process, int ms)
{
    return ended_within(process->pid_fd >= 0 ? process->pid_fd : process->child_fd, ms);
}

static void last_line(const struct process *process, char *to, size_t room)
{
    char tail[4096];
    to[0] = '\0';
    /* The writer's offset is ours too: the end of the memory log, which is always at its full size. A file
     * may have been appended to by others. */
    off_t end = process->log >= 0 ? lseek(process->log, 0, SEEK_CUR) : -1;
    if (end <= process->log_from)
        return;
    off_t from = end - process->log_from > (off_t)sizeof tail ? end - (off_t)sizeof tail : process->log_from;
    ssize_t got = pread(process->log, tail, (size_t)(end - from), from);
    while (got > 0 && (tail[got - 1] == '\n' || tail[got - 1] == '\r'))
        got--;
    ssize_t begin = got > 0 ? got : 0;
    while (begin > 0 && tail[begin - 1] != '\n')
        begin--;
    for (ssize_t i = begin; i < got; i++)
        if ((unsigned char)tail[i] < ' ')
            tail[i] = ' ';
    if (got > begin)
        snprintf(to, room, "%.*s", (int)(got - begin), tail + begin);
}

int process_explain(const struct process *process, int code)
{
    char line[256], text[ERROR_TEXT_MAX];
    last_line(process, line, sizeof line);
    if (!line[0])
        return code;
    snprintf(text, sizeof text, "%s", error_text());
    return error_set(code, "%.200s; its last output: %s", text, line);
}

/* --- end --- */

void process_end(struct process *process, int grace_ms)
{
    if (process->child <= 0)
        return;
    int fd = process->pid_fd >= 0 ? process->pid_fd : process->child_fd;
    if (grace_ms > 0 && pidfd_send_signal(fd, SIGTERM, NULL, 0) == 0)
        ended_within(fd, grace_ms);
    /* The group's number is the child's, which is not reaped yet: it cannot be anybody else's. */
    kill(-process->child, SIGKILL);
    ended_within(fd, KILL_MS);
    ended_within(process->child_fd, KILL_MS);
}

/* Children that outlive what we know of them: an engine that takes guests over again and again must not keep
 * a zombie of each. Used by the guest's thread alone. */
static pid_t left_alone[LEFT_ALONE_MAX];

static void reap_left_alone(void)
{
    for (size_t i = 0; i < LEFT_ALONE_MAX; i++)
        if (left_alone[i] && waitpid(left_alone[i], NULL, WNOHANG) != 0)
            left_alone[i] = 0;
}

static void leave_alone(pid_t child)
{
    for (size_t i = 0; i < LEFT_ALONE_MAX; i++)
        if (!left_alone[i]) {
            left_alone[i] = child;
            return;
        }
}

void process_release(struct process *process)
{
    reap_left_alone();
    if (process->child > 0 && waitpid(process->child, NULL, WNOHANG) == 0)
        leave_alone(process->child);
    if (process->child_fd >= 0)
        close(process->child_fd);
    if (process->pid_fd >= 0)
        close(process->pid_fd);
    if (process->log >= 0)
        close(process->log);
    *process = PROCESS_NONE;
}

void process_leave(struct process *process, int grace_ms, const char *pid_path)
{
    bool ended = grace_ms >= 0;
    if (ended)
        process_end(process, grace_ms);
    else
        ended = process_wait(process, 0);
    if (ended && pid_path)
        unlink(pid_path);
    process_release(process);
}

/* --- pid file --- */

static int start_time(pid_t pid, unsigned long long *ret_ticks)
{
    char path[64], text[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file cleanup_fclose = fopen(path, "re");
    size_t got = file ? fread(text, 1, sizeof text - 1, file) : 0;
    text[got] = '\0';
    /* The command's name, in parentheses, may hold anything; field 22 is the 20th after it. */
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    if (!at || sscanf(at, " %llu", ret_ticks) != 1)
        return -ESRCH;
    return 0;
}

int process_record(const struct process *process, const char *pid_path, bool running)
{
    unsigned long long started;
    char fresh[PATH_MAX];
    if (!pid_path)
        return 0;
    if (snprintf(fresh, sizeof fresh, "%s.new", pid_path) >= (int)sizeof fresh)
        return error_set(-ENAMETOOLONG, "pid file %s", pid_path);
    int r = start_time(process->pid, &started);
    if (r < 0)
        return error_set(r, "pid file %s: process %d has ended", pid_path, process->pid);
    FILE *file cleanup_fclose = fopen(fresh, "we");
    if (!file)
        return error_errno(-errno, "pid file %s", fresh);
    fprintf(file, "%d %llu %s\n", process->pid, started, running ? "running" : "waiting");
    if (fflush(file) != 0 || rename(fresh, pid_path) < 0)
        return error_errno(-errno, "pid file %s", pid_path);
    return 0;
}

int process_end_recorded(const char *pid_path)
{
    FILE *file cleanup_fclose = fopen(pid_path, "re");
    if (!file)
        return errno == ENOENT ? 0 : error_errno(-errno, "pid file %s", pid_path);
    int pid = 0;
    unsigned long long recorded, found;
    char word[16] = "";
    if (fscanf(file, "%d %llu %15s", &pid, &recorded, word) != 3 || pid <= 1)
        return error_set(-EINVAL, "pid file %s is not one of ours; remove it if no guest is left", pid_path);
    /* The descriptor first, the start time after: then both speak of the same process. */
    int fd cleanup_close = pidfd_open(pid, 0);
    if (fd < 0 || start_time(pid, &found) < 0 || found != recorded || ended_within(fd, 0))
        return 0;
    if (strcmp(word, "waiting") != 0)
        return error_set(-EBUSY, "process %d runs a guest that was taken over here (%s)", pid, pid_path);
    pidfd_send_signal(fd, SIGTERM, NULL, 0);
    if (ended_within(fd, 1000))
        return 0;
    pidfd_send_signal(fd, SIGKILL, NULL, 0);
    if (!ended_within(fd, KILL_MS))
        return error_set(-EBUSY, "process %d, which an earlier engine left waiting, does not end (%s)", pid,
                         pid_path);
    return 0;
}
