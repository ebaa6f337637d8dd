/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/hooks.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "base/spawn.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define GRACE_NS    NS_PER_S
#define LINES_MAX   200 /* of one run of a hook; the log is not a hook's data store */
#define DRAIN_READS 64  /* more than a pipe holds */
#define EXIT_NOT_MY 77

struct hook_list {
    char *names[HOOKS_MAX];
    unsigned count;
};

static void list_free(struct hook_list *list)
{
    for (unsigned i = 0; i < list->count; i++)
        free(list->names[i]);
}

static int check_owner(const char *what, const char *directory, const char *name, const struct stat *status)
{
    const char *slash = name[0] ? "/" : "";
    if (status->st_uid != 0 && status->st_uid != geteuid())
        return error_set(-EPERM,
                         "%s '%s%s%s' belongs to user %u; it must belong to root or to user %u, as whom "
                         "the engine runs",
                         what, directory, slash, name, (unsigned)status->st_uid, (unsigned)geteuid());
    if (status->st_mode & 022)
        return error_set(-EPERM,
                         "%s '%s%s%s' has mode %04o: others than its owner may write to it (chmod go-w)",
                         what, directory, slash, name, (unsigned)(status->st_mode & 07777));
    return 0;
}

static int open_directory(const char *path, DIR **ret_directory)
{
    struct stat status;
    cleanup_close int fd = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_errno(-errno, "hooks '%s'", path);
    int r = check_owner("hook directory", path, "", &status);
    if (r < 0)
        return r;
    DIR *directory = fdopendir(fd);
    if (!directory)
        return error_errno(-errno, "hooks '%s'", path);
    (void)take_fd(&fd);
    *ret_directory = directory;
    return 0;
}

static bool is_hook_name(const char *name)
{
    if (name[0] == '.')
        return false;
    for (; *name; name++)
        if (!isalnum((unsigned char)*name) && !strchr("._-", *name))
            return false;
    return true;
}

static int by_bytes(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* `strict`: the first file that is not to be trusted is an error; else it is passed over with a warning. */
static int list_hooks(const char *path, bool strict, struct hook_list *list)
{
    cleanup(scope_closedir) DIR *directory = NULL;
    int r = open_directory(path, &directory);
    if (r < 0)
        return r;
    for (struct dirent *entry; (entry = readdir(directory));) {
        struct stat status;
        if (!is_hook_name(entry->d_name) ||
            fstatat(dirfd(directory), entry->d_name, &status, AT_SYMLINK_NOFOLLOW) < 0 ||
            !S_ISREG(status.st_mode) || !(status.st_mode & 0111))
            continue;
        r = check_owner("hook", path, entry->d_name, &status);
        if (r < 0 && strict)
            return r;
        if (r < 0) {
            log_warning("not run: %s", error_text());
            continue;
        }
        if (list->count == HOOKS_MAX)
            return error_set(-E2BIG, "hooks '%s': more than %d", path, HOOKS_MAX);
        if (!(list->names[list->count] = strdup(entry->d_name)))
            return error_set(-ENOMEM, "hooks '%s': out of memory", path);
        list->count++;
    }
    qsort(list->names, list->count, sizeof list->names[0], by_bytes);
    return 0;
}

int hooks_check(const char *directory)
{
    cleanup(list_free) struct hook_list list = {.count = 0};
    return list_hooks(directory, true, &list);
}

/* --- one hook --- */

struct hook {
    const char *name;
    pid_t pid;
    int pidfd, output; /* output: -1 at its end */
    char line[512];
    size_t used;
    unsigned lines;
    uint64_t end_ns; /* of its patience: SIGTERM, then SIGKILL */
    int signal;      /* last sent; 0: none */
};

static void log_output(struct hook *hook)
{
    hook->line[hook->used] = 0;
    for (char *c = hook->line; *c; c++)
        if (iscntrl((unsigned char)*c))
            *c = '?';
    if (hook->used && hook->lines < LINES_MAX)
        log_info("hook %s: %s", hook->name, hook->line);
    if (hook->used && hook->lines++ == LINES_MAX)
        log_warning("hook %s: says more than %d lines; the rest is dropped", hook->name, LINES_MAX);
    hook->used = 0;
}

/* What is there now; false at the end. */
static bool read_output(struct hook *hook)
{
    char bytes[4096];
    ssize_t got = read(hook->output, bytes, sizeof bytes);
    if (got < 0)
        return errno == EAGAIN || errno == EINTR;
    for (ssize_t i = 0; i < got; i++) {
        if (bytes[i] != '\n' && bytes[i])
            hook->line[hook->used++] = bytes[i];
        if (bytes[i] == '\n' || hook->used == sizeof hook->line - 1)
            log_output(hook);
    }
    return got > 0;
}

static void close_output(struct hook *hook)
{
    log_output(hook);
    close(hook->output);
    hook->output = -1;
}

static void lose_patience(struct hook *hook, uint64_t now, uint64_t timeout_ns, struct hooks_count *count)
{
    if (!hook->signal) {
        log_warning("hook %s: not done within %llu ms: ended", hook->name,
                    (unsigned long long)(timeout_ns / NS_PER_MS));
        count->timed_out++;
        hook->signal = SIGTERM;
    } else {
        hook->signal = SIGKILL;
    }
    kill(-hook->pid, hook->signal);
    hook->end_ns = now + GRACE_NS;
}

/* Until the process has ended. A descendant that keeps the output open is not waited for. */
static void wait_for_end(struct hook *hook, uint64_t timeout_ns, const struct hooks_meanwhile *meanwhile,
                         struct hooks_count *count)
{
    for (;;) {
        uint64_t now = clock_now_ns(), until = hook->end_ns;
        if (!hook->signal && meanwhile->deadline(meanwhile->ctx) < until)
            until = meanwhile->deadline(meanwhile->ctx);
        if (now >= until) {
            lose_patience(hook, now, timeout_ns, count);
            continue;
        }
        struct pollfd fds[3] = {{.fd = hook->pidfd, .events = POLLIN},
                                {.fd = hook->output, .events = POLLIN},
                                {.fd = meanwhile->fd, .events = POLLIN}};
        if (poll(fds, 3, (int)((until - now) / NS_PER_MS) + 1) < 0)
            continue;
        if (fds[1].revents && !read_output(hook))
            close_output(hook);
        if (fds[2].revents)
            meanwhile->ready(meanwhile->ctx);
        if (!fds[0].revents)
            continue;
        for (unsigned i = 0; i < DRAIN_READS && hook->output >= 0; i++) /* what it said last */
            if (!read_output(hook))
                close_output(hook);
        return;
    }
}

static bool judge(const struct hook *hook, int status)
{
    if (WIFEXITED(status) && (WEXITSTATUS(status) == 0 || WEXITSTATUS(status) == EXIT_NOT_MY))
        return true;
    if (WIFEXITED(status))
        log_warning("hook %s: failed with exit status %d", hook->name, WEXITSTATUS(status));
    else if (!hook->signal)
        log_warning("hook %s: killed by signal %d", hook->name, WTERMSIG(status));
    return false;
}

static void run_hook(const char *directory, const char *name, char *const environment[], uint64_t timeout_ns,
                     const struct hooks_meanwhile *meanwhile, struct hooks_count *count)
{
    struct hook hook = {.name = name};
    cleanup_free char *path = NULL;
    int ends[2], status = 0;
    count->run++;
    if (asprintf(&path, "%s/%s", directory, name) < 0 || pipe2(ends, O_CLOEXEC) < 0) {
        log_warning("hook %s: no memory or no descriptors for it", name);
        count->failed++;
        return;
    }
    cleanup_close int output = ends[0], writer = ends[1];
    fcntl(output, F_SETFL, O_NONBLOCK);
    char *argv[] = {path, NULL};
    struct spawn spawn = {
        .argv = argv, .environment = environment, .input = -1, .output = writer, .errors = writer};
    if (spawn_start(&hook.pid, &spawn) < 0) {
        log_warning("hook %s: cannot be run: %s", name, error_text());
        count->failed++;
        return;
    }
    close(take_fd(&writer));
    hook.pidfd = (int)syscall(SYS_pidfd_open, hook.pid, 0);
    if (hook.pidfd < 0) { /* cannot be waited for within a bound */
        log_warning("hook %s: pidfd_open: %s; ended", name, strerror(errno));
        kill(-hook.pid, SIGKILL);
    } else {
        hook.output = take_fd(&output);
        hook.end_ns = clock_now_ns() + timeout_ns;
        wait_for_end(&hook, timeout_ns, meanwhile, count);
        if (hook.output >= 0)
            close_output(&hook);
        close(hook.pidfd);
    }
    while (waitpid(hook.pid, &status, 0) < 0 && errno == EINTR)
        ;
    if (!judge(&hook, status))
        count->failed++;
}

void hooks_run(const char *directory, char *const environment[], uint64_t timeout_ns,
               const struct hooks_meanwhile *meanwhile, struct hooks_count *count)
{
    cleanup(list_free) struct hook_list list = {.count = 0};
    if (list_hooks(directory, false, &list) < 0) {
        log_warning("no hook is run: %s", error_text());
        count->failed++;
        return;
    }
    for (unsigned i = 0; i < list.count && clock_now_ns() < meanwhile->deadline(meanwhile->ctx); i++)
        run_hook(directory, list.names[i], environment, timeout_ns, meanwhile, count);
}
