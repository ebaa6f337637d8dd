/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/fence.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "base/spawn.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>

#define OPTIONS_MAX 4096 /* what the program gets on standard input */
#define OUTPUT_MAX  2048 /* of its output the end is kept */
#define LOOK_MS     20   /* how often *cancelled and the program's end are looked at */

struct agent {
    const char *name;
    pid_t pid;  /* of the process and its group; 0: none, or reaped */
    int output; /* what it says */
    size_t length;
    char said[OUTPUT_MAX];
};

int fence_check(char *const *words)
{
    size_t bytes = sizeof "action=off\n";
    if (!words || !words[0] || words[0][0] != '/')
        return error_set(-EINVAL, "fence must begin with the absolute path of a program");
    for (unsigned i = 1; words[i]; i++) {
        const char *equals = strchr(words[i], '=');
        if (!equals || equals == words[i])
            return error_set(-EINVAL, "fence: '%.60s' is not NAME=VALUE", words[i]);
        if (!strncmp(words[i], "action=", 7))
            return error_set(-EINVAL,
                             "fence: action is always off; a host that is started again by its fence "
                             "could run its guest again");
        bytes += strlen(words[i]) + 1;
    }
    if (bytes > OPTIONS_MAX)
        return error_set(-EINVAL, "fence: the options have more than %d bytes", OPTIONS_MAX);
    return 0;
}

int fence_check_file(char *const *words)
{
    struct stat status;
    if (stat(words[0], &status) < 0)
        return error_errno(-errno, "fence %s", words[0]);
    if (!S_ISREG(status.st_mode) || access(words[0], X_OK) < 0)
        return error_set(-EINVAL, "fence %s: not a program that may be run", words[0]);
    if (status.st_mode & (S_IWGRP | S_IWOTH))
        return error_set(-EINVAL, "fence %s: others may write it (mode %04o); remove that", words[0],
                         status.st_mode & 07777);
    return 0;
}

/* Nothing of ours is inherited, the environment neither. */
static int start_program(struct agent *agent, char *path, int input, int output)
{
    char *argv[] = {path, NULL};
    char *environment[] = {(char[]){"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}, (char[]){"LC_ALL=C"}, NULL};
    struct spawn spawn = {
        .argv = argv, .environment = environment, .input = input, .output = output, .errors = output};
    int r = spawn_start(&agent->pid, &spawn);
    return r < 0 ? error_add(r, "fence") : 0;
}

static size_t print_options(char *const *words, char to[OPTIONS_MAX + 1])
{
    size_t length = (size_t)snprintf(to, OPTIONS_MAX + 1, "action=off\n");
    for (unsigned i = 1; words[i]; i++)
        length += (size_t)snprintf(to + length, OPTIONS_MAX + 1 - length, "%s\n", words[i]);
    return length;
}

/* A socket, not a pipe: a program that does not read its input must not end us by SIGPIPE, and what is
 * written fits its buffer, so writing never waits. */
static int start(struct agent *agent, char *const *words)
{
    int input[2], output[2];
    char options[OPTIONS_MAX + 1];
    size_t length = print_options(words, options);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, input) < 0)
        return error_errno(-errno, "fence: socketpair");
    cleanup_close int own_input = input[0], its_input = input[1];
    if (pipe2(output, O_CLOEXEC) < 0)
        return error_errno(-errno, "fence: pipe");
    cleanup_close int own_output = output[0], its_output = output[1];
    int r = start_program(agent, words[0], its_input, its_output);
    if (r < 0)
        return r;
    (void)fcntl(own_output, F_SETFL, O_NONBLOCK);
    /* Should it have ended already, its exit status says more than this would. */
    (void)!send(own_input, options, length, MSG_NOSIGNAL);
    agent->output = take_fd(&own_output);
    return 0;
}

static void hear(struct agent *agent)
{
    char bytes[512];
    ssize_t got;
    while ((got = read(agent->output, bytes, sizeof bytes)) > 0) {
        size_t room = sizeof agent->said - agent->length;
        if ((size_t)got > room) { /* the end is what matters */
            size_t drop = (size_t)got - room;
            memmove(agent->said, agent->said + drop, agent->length - drop);
            agent->length -= drop;
        }
        memcpy(agent->said + agent->length, bytes, (size_t)got);
        agent->length += (size_t)got;
    }
    if (got == 0) { /* it has closed it; poll() would not wait any more */
        close(agent->output);
        agent->output = -1;
    }
}

/* The last line it said, printable. */
static const char *last_line(struct agent *agent)
{
    size_t end = agent->length < sizeof agent->said ? agent->length : sizeof agent->said - 1;
    while (end && isspace((unsigned char)agent->said[end - 1]))
        end--;
    agent->said[end] = 0;
    size_t begin = end;
    while (begin && agent->said[begin - 1] != '\n' && end - begin < 150)
        begin--;
    for (size_t i = begin; i < end; i++)
        if (!isprint((unsigned char)agent->said[i]))
            agent->said[i] = '?';
    return agent->said + begin;
}

static int wait_for_end(struct agent *agent, uint64_t by_ns, const atomic_bool *cancelled, int *ret_status)
{
    for (;;) {
        pid_t ended = waitpid(agent->pid, ret_status, WNOHANG);
        if (ended == agent->pid)
            return 0;
        if (ended < 0 && errno != EINTR)
            return error_errno(-errno, "fence %s: wait", agent->name);
        if (atomic_load(cancelled))
            return error_set(-ECANCELED, "fence %s: given up, for the engine ends", agent->name);
        if (clock_now_ns() >= by_ns)
            return error_set(-ETIMEDOUT, "fence %s: no end within its time", agent->name);
        struct pollfd output = {.fd = agent->output, .events = POLLIN};
        if (poll(&output, 1, LOOK_MS) > 0)
            hear(agent);
    }
}

int fence_run(char *const *words, unsigned timeout_ms, const atomic_bool *cancelled)
{
    struct agent agent = {.name = words[0], .output = -1};
    int status = 0, r = start(&agent, words);
    if (r < 0)
        return r;
    r = wait_for_end(&agent, clock_now_ns() + timeout_ms * NS_PER_MS, cancelled, &status);
    if (r < 0) {
        kill(-agent.pid, SIGKILL);
        waitpid(agent.pid, NULL, 0);
    }
    if (agent.output >= 0)
        hear(&agent);
    if (agent.output >= 0)
        close(agent.output);
    const char *said = last_line(&agent);
    if (r == 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0)
        return 0;
    if (r == 0)
        r = error_set(-EIO, "fence %s: %s %d", words[0],
                      WIFEXITED(status) ? "exit status" : "killed by signal",
                      WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status));
    if (said[0]) {
        char why[ERROR_TEXT_MAX];
        snprintf(why, sizeof why, "%s", error_text());
        error_set(r, "%s: %s", why, said);
    }
    return r;
}
