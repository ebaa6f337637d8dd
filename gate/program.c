/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/program.h"
#include "base/error.h"
#include "base/scope.h"
#include "base/spawn.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>

#define LIMIT_MS   10000
#define OUTPUT_MAX (4u << 20)

/* Files in memory instead of pipes: nobody waits for a reader, so there is nothing to pump. */
static int memory_file(const char *name, const char *content)
{
    cleanup_close int fd = memfd_create(name, MFD_CLOEXEC);
    if (fd < 0)
        return error_errno(-errno, "memfd_create");
    size_t length = content ? strlen(content) : 0;
    if (length && (write(fd, content, length) != (ssize_t)length || lseek(fd, 0, SEEK_SET) != 0))
        return error_errno(errno ? -errno : -EIO, "write to a memfd");
    return take_fd(&fd);
}

static char *read_back(int fd)
{
    off_t length = lseek(fd, 0, SEEK_END);
    if (length < 0 || length > (off_t)OUTPUT_MAX)
        return NULL;
    char *text = calloc(1, (size_t)length + 1);
    if (text && pread(fd, text, (size_t)length, 0) != length) {
        free(text);
        return NULL;
    }
    return text;
}

static int wait_for(const char *name, pid_t pid, int *ret_status)
{
    int rc = 0;
    cleanup_close int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    int ready = -1;
    if (fd >= 0)
        while ((ready = poll(&poll_fd, 1, LIMIT_MS)) < 0 && errno == EINTR)
            ;
    if (ready <= 0) {
        kill(-pid, SIGKILL); /* and what it started */
        rc = error_set(-ETIMEDOUT, "'%s' did not end within %d s", name, LIMIT_MS / 1000);
    }
    while (waitpid(pid, ret_status, 0) < 0)
        if (errno != EINTR)
            return error_errno(-errno, "wait for '%s'", name);
    return rc;
}

int program_run(const char *const argv[], const char *input, char **ret_output)
{
    cleanup_close int in = memory_file("input", input);
    cleanup_close int out = memory_file("output", NULL);
    cleanup_close int errors = memory_file("errors", NULL);
    if (in < 0 || out < 0 || errors < 0)
        return in < 0 ? in : out < 0 ? out : errors;
    pid_t pid;
    int status = 0;
    struct spawn spawn = {
        .argv = (char *const *)argv, .input = in, .output = out, .errors = errors, .search = true};
    int rc = spawn_start(&pid, &spawn);
    if (rc)
        return rc;
    rc = wait_for(argv[0], pid, &status);
    if (rc)
        return rc;
    if (!WIFEXITED(status) || WEXITSTATUS(status)) {
        cleanup_free char *said = read_back(errors);
        if (said)
            said[strcspn(said, "\n")] = 0;
        return error_set(-EIO, "'%s' failed: %s", argv[0], said && *said ? said : "it said nothing");
    }
    if (ret_output) {
        char *output = read_back(out);
        if (!output)
            return error_set(-ENOMEM, "'%s': no room for its output", argv[0]);
        *ret_output = output;
    }
    return 0;
}
