/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/libvirt.h"

#include "base/error.h"
#include "base/scope.h"
#include "base/spawn.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

#define PROGRAM "understudy-libvirt"
#define URI     "qemu:///system"
#define ARGS    12

int libvirt_open(struct qmp **ret_qmp, const struct qemu_domain *domain, bool start, uint32_t timeout_ms)
{
    char program[PATH_MAX], title[128];
    int r = spawn_find_helper(PROGRAM, program, sizeof program);
    if (r < 0)
        return r;
    const char *argv[ARGS] = {program, "--uri", domain->uri ? domain->uri : URI, "--domain", domain->name};
    size_t count = 5;
    if (start)
        argv[count++] = "--start";
    if (domain->machine) {
        argv[count++] = "--machine";
        argv[count++] = domain->machine;
        argv[count++] = "--peer";
        argv[count++] = domain->peer;
    }
    snprintf(title, sizeof title, "domain %.100s", domain->name);
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_errno(-errno, "%s: socket pair", title);
    int ours cleanup_close = pair[0], theirs cleanup_close = pair[1];
    /* Its messages go where ours do. */
    const struct spawn spawn = {
        .argv = (char *const *)argv, .input = theirs, .output = STDOUT_FILENO, .errors = STDERR_FILENO};
    pid_t child = 0;
    r = spawn_start(&child, &spawn);
    if (r < 0)
        return r;
    close(take_fd(&theirs));
    return qmp_open_stream(ret_qmp, take_fd(&ours), child, title, timeout_ms);
}
