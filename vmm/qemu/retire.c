/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/qemu.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/qemu/blocks.h"
#include "vmm/qemu/fdset.h"
#include "vmm/qemu/libvirt.h"
#include "vmm/qemu/qmp.h"
#include "vmm/qemu/read.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>
#include <unistd.h>

/*
 * A guest that was left behind, stopped, is the only thing that this ends, so everything is checked first, on
 * the one connection on which "quit" is then said: that it stands still, and that it was an engine that
 * wanted it so (FDSET_LEAVE, which QEMU keeps as long as the guest is stopped). A guest that an administrator
 * let run again has lost that mark.
 */

#define COMMAND_MS 5000
#define QUIT_MS    5000
#define KILL_MS    2000
#define DOMAIN_MS  30000 /* libvirt lets one command wait for another on the domain */
#define POLL_MS    50

static int query_status(struct qmp *qmp, char *ret_status, size_t room, enum qemu_guest_state *ret_state)
{
    static const char *const stopped[] = {"paused",         "postmigrate", "shutdown",
                                          "internal-error", "io-error",    "guest-panicked"};
    json_t *answer = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &answer, "query-status", NULL);
    if (r < 0)
        return r;
    const char *word = json_string_value(json_object_get(answer, "status"));
    snprintf(ret_status, room, "%s", word ? word : "");
    json_decref(answer);
    *ret_state = !strcmp(ret_status, "running") ? QEMU_GUEST_RUNS : QEMU_GUEST_NONE;
    for (size_t i = 0; i < array_length(stopped); i++)
        if (!strcmp(ret_status, stopped[i]))
            *ret_state = QEMU_GUEST_STOPPED;
    return 0;
}

/* 1: nobody is there. */
static int open_monitor(struct qmp **ret_qmp, const char *qmp_path, const struct qemu_domain *domain)
{
    if (domain) {
        int r = libvirt_open(ret_qmp, domain, false, DOMAIN_MS);
        return r == -ESRCH ? 1 : r;
    }
    int r = qmp_open(ret_qmp, qmp_path, COMMAND_MS);
    return r == -ENOENT || r == -ECONNREFUSED || r == -ECONNRESET ? 1 : r;
}

int qemu_guest_state(const char *qmp_path, const struct qemu_domain *domain, enum qemu_guest_state *ret_state)
{
    struct qmp *qmp;
    char status[32];
    int r = open_monitor(&qmp, qmp_path, domain);
    if (r < 0)
        return r;
    if (r > 0) {
        *ret_state = QEMU_GUEST_NONE;
        return 0;
    }
    r = query_status(qmp, status, sizeof status, ret_state);
    qmp_close(qmp);
    return r;
}

/* 1: it waits to be filled, and whoever starts a domain replaces that. */
static int check_left_behind(struct qmp *qmp, const char *name, bool is_domain)
{
    char status[32];
    enum qemu_guest_state state;
    bool leave = false;
    int r = query_status(qmp, status, sizeof status, &state);
    if (r == 0 && is_domain && !strcmp(status, "inmigrate"))
        return 1;
    if (r == 0 && state == QEMU_GUEST_STOPPED)
        r = fdset_find(qmp, FDSET_LEAVE, &leave);
    if (r == 0 && !leave)
        return error_set(-EADDRINUSE,
                         "%s: the QEMU there (process %d) is \"%s\"%s; if the machine is not meant to run "
                         "here, end it",
                         name, qmp_pid(qmp), status,
                         state == QEMU_GUEST_STOPPED ? ", but no engine stopped it for good" : "");
    return r;
}

static bool ended_within(int pid_fd, int ms)
{
    struct pollfd pollfd = {.fd = pid_fd, .events = POLLIN};
    int r;
    while ((r = poll(&pollfd, 1, ms)) < 0 && errno == EINTR)
        ;
    return r > 0;
}

/* libvirtd knows of it, too. */
static int wait_shut_off(const struct qemu_domain *domain)
{
    uint64_t deadline_ns = clock_now_ns() + QUIT_MS * NS_PER_MS;
    for (;;) {
        struct qmp *qmp;
        int r = open_monitor(&qmp, NULL, domain);
        if (r > 0)
            return 0;
        if (r == 0)
            qmp_close(qmp);
        if (clock_now_ns() > deadline_ns)
            return error_set(-EBUSY, "domain %s: libvirt does not see its end", domain->name);
        poll(NULL, 0, POLL_MS);
    }
}

struct left_behind {
    pid_t pid;
    struct qemu_blocks blocks;
    struct vmm_block shown[VMM_BLOCKS_MAX];
};

static int read_left_behind(void *ctx, const struct vmm_range *range, void *to)
{
    const struct left_behind *left = ctx;
    return read_ranges(left->pid, &left->blocks, left->shown, range, 1, to);
}

static int keep_memory(struct qmp *qmp, struct vmm_keep **ret_keep)
{
    struct left_behind *left cleanup_free = calloc(1, sizeof *left);
    if (!left)
        return error_set(-ENOMEM, "no memory");
    left->pid = qmp_pid(qmp);
    int r = blocks_find(qmp, left->pid, &left->blocks);
    for (size_t i = 0; r == 0 && i < left->blocks.count; i++) {
        memcpy(left->shown[i].name, left->blocks.items[i].name, sizeof left->shown[i].name);
        left->shown[i].bytes = left->blocks.items[i].bytes;
    }
    return r < 0 ? r : vmm_keep_new(ret_keep, left->shown, left->blocks.count, read_left_behind, left);
}

static int quit(struct qmp *qmp, const char *name, bool is_domain, bool keep, struct qemu_retired *retired)
{
    int r = check_left_behind(qmp, name, is_domain);
    if (r == 0 && keep) {
        if (keep_memory(qmp, &retired->keep) < 0)
            snprintf(retired->why, sizeof retired->why, "%s", error_text());
        /* That took its time, in which somebody may have let the guest run. */
        r = check_left_behind(qmp, name, is_domain);
    }
    if (r == 0 && (r = qmp_call(qmp, COMMAND_MS, NULL, "quit", NULL)) == -ECONNRESET)
        r = 0;
    retired->ended = r == 0;
    return r < 0 ? r : 0;
}

static int wait_end(int pid_fd, pid_t pid)
{
    if (ended_within(pid_fd, QUIT_MS))
        return 0;
    pidfd_send_signal(pid_fd, SIGKILL, NULL, 0);
    if (ended_within(pid_fd, KILL_MS))
        return 0;
    return error_set(-EBUSY, "QEMU %d, whose guest was left behind here, does not end", pid);
}

int qemu_retire(const char *qmp_path, const struct qemu_domain *domain, bool keep,
                struct qemu_retired *ret_retired)
{
    struct qmp *qmp;
    struct qemu_retired retired = {0};
    int r = open_monitor(&qmp, qmp_path, domain);
    if (r > 0)
        *ret_retired = retired;
    if (r != 0)
        return r < 0 ? r : 0;
    pid_t pid = qmp_pid(qmp);
    int pid_fd cleanup_close = pidfd_open(pid, 0);
    if (pid_fd < 0)
        r = error_errno(-errno, "pidfd of QEMU %d", pid);
    if (r == 0)
        r = quit(qmp, domain ? domain->name : qmp_path, domain, keep, &retired);
    qmp_close(qmp);
    if (r == 0 && retired.ended)
        r = wait_end(pid_fd, pid);
    if (r == 0 && retired.ended && domain)
        r = wait_shut_off(domain);
    if (r < 0) {
        vmm_keep_free(retired.keep);
        return r;
    }
    *ret_retired = retired;
    return 0;
}
