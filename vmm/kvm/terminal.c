/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/terminal.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <termios.h>
#include <unistd.h>

#define FLAGS (O_CLOEXEC | O_NOCTTY | O_NONBLOCK)

/* The shell that started us has the same open file, and would find it non-blocking one day: terminals and
 * pipes are opened anew. Of others, that would lose the place in a file. */
static int standard(int fd, int access)
{
    struct stat status;
    char path[32];
    if (fstat(fd, &status) == 0 && (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode))) {
        snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
        int again = open(path, access | FLAGS);
        if (again >= 0)
            return again;
    }
    return fcntl(fd, F_DUPFD_CLOEXEC, 0);
}

static int open_standard(struct terminal *terminal)
{
    terminal->out = standard(STDOUT_FILENO, O_WRONLY);
    if (terminal->out < 0)
        return -errno;
    if (isatty(STDIN_FILENO))
        terminal->in = standard(STDIN_FILENO, O_RDONLY);
    return 0;
}

static int open_pty(struct terminal *terminal, const char *what)
{
    char path[PATH_MAX];
    struct termios raw;
    int fd cleanup_close = posix_openpt(O_RDWR | FLAGS);
    if (fd < 0 || grantpt(fd) < 0 || unlockpt(fd) < 0 || ptsname_r(fd, path, sizeof path) != 0)
        return -errno;
    int other cleanup_close = open(path, O_RDWR | FLAGS);
    if (other < 0 || tcgetattr(other, &raw) < 0)
        return -errno;
    cfmakeraw(&raw); /* an echo of what the guest says would be input */
    if (tcsetattr(other, TCSANOW, &raw) < 0)
        return -errno;
    fprintf(stderr, "understudy run: the %s is at %s\n", what, path);
    terminal->in = terminal->out = take_fd(&fd);
    terminal->other = take_fd(&other);
    return 0;
}

static int open_path(struct terminal *terminal, const char *path)
{
    struct stat status = {0};
    bool exists = stat(path, &status) == 0;
    bool both = exists && (S_ISCHR(status.st_mode) || S_ISFIFO(status.st_mode));
    terminal->out =
        both ? open(path, O_RDWR | FLAGS) : open(path, O_WRONLY | O_CREAT | O_APPEND | FLAGS, 0640);
    if (terminal->out < 0)
        return -errno;
    if (isatty(terminal->out))
        terminal->in = terminal->out;
    return 0;
}

int terminal_open(struct terminal *terminal, const char *what, const char *where)
{
    struct terminal opened = TERMINAL_NONE;
    int r = strcmp(where, "stdio") == 0 ? open_standard(&opened)
            : strcmp(where, "pty") == 0 ? open_pty(&opened, what)
                                        : open_path(&opened, where);
    if (r < 0) {
        terminal_close(&opened);
        return error_errno(r, "%s %s", what, where);
    }
    *terminal = opened;
    return 0;
}

void terminal_close(struct terminal *terminal)
{
    if (terminal->in >= 0 && terminal->in != terminal->out)
        close(terminal->in);
    if (terminal->out >= 0)
        close(terminal->out);
    if (terminal->other >= 0)
        close(terminal->other);
    *terminal = TERMINAL_NONE;
}
