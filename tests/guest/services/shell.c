/* SPDX-License-Identifier: Apache-2.0 */
#include "services.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

/*
 * A request is one line, "ID COMMAND"; its answer is each line of output as "ID | LINE", then "ID = CODE".
 * The identifier is the asker's, who ignores lines with another: a takeover may cut a line of an earlier one.
 * Output goes through a file, so that a server that a command leaves behind holds nothing up.
 */

#define OUTPUT_MAX 65536

static int line_open(void)
{
    int fd = open("/dev/ttyS1", O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (fd < 0) /* a machine without a second port */
        for (;;)
            pause();
    struct termios mode;
    tcgetattr(fd, &mode);
    cfmakeraw(&mode);
    cfsetspeed(&mode, B115200);
    tcsetattr(fd, TCSANOW, &mode);
    return fd;
}

static void put(int fd, const char *text, size_t bytes)
{
    while (bytes) {
        ssize_t done = write(fd, text, bytes);
        if (done < 0 && errno != EINTR)
            return;
        if (done > 0) {
            text += done;
            bytes -= (size_t)done;
        }
    }
}

static int perform(const char *command, int output)
{
    pid_t child = fork();
    if (child == 0) {
        int null = open("/dev/null", O_RDONLY);
        dup2(null, STDIN_FILENO);
        dup2(output, STDOUT_FILENO);
        dup2(output, STDERR_FILENO);
        execl("/bin/sh", "sh", "-c", command, NULL);
        _exit(127);
    }
    int status;
    while (waitpid(child, &status, 0) < 0)
        if (errno != EINTR)
            return 127;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

static void answer(int fd, const char *id, const char *command)
{
    static char text[OUTPUT_MAX];
    char line[4200];
    int output = open("/tmp", O_TMPFILE | O_RDWR | O_CLOEXEC | O_APPEND, 0600);
    int code = perform(command, output);
    ssize_t bytes = pread(output, text, sizeof text - 1, 0);
    close(output);
    text[bytes < 0 ? 0 : bytes] = '\0';
    for (char *rest = text, *one; (one = strsep(&rest, "\n"));)
        if (*one || rest)
            put(fd, line, (size_t)snprintf(line, sizeof line, "%.32s | %.4000s\n", id, one));
    put(fd, line, (size_t)snprintf(line, sizeof line, "%.32s = %d\n", id, code));
}

void shell_run(void)
{
    static char line[4096];
    size_t length = 0;
    int fd = line_open();
    say("ready shell");
    for (char c;;) {
        ssize_t got = read(fd, &c, 1);
        if (got <= 0) {
            sleep_ns(10000000);
            continue;
        }
        if (c != '\n') {
            if (length < sizeof line - 1)
                line[length++] = c;
            continue;
        }
        line[length] = '\0';
        length = 0;
        char *command = strchr(line, ' ');
        if (!command)
            continue;
        *command++ = '\0';
        answer(fd, line, command);
    }
}
