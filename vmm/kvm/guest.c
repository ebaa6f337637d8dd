/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/guest.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/kvm.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/pidfd.h>

#define END_MS  5000
#define KILL_MS 2000

static struct kvm_guest *of(struct vmm *vmm)
{
    return (struct kvm_guest *)vmm;
}

int kvm_guest_read(struct vmm *vmm, const struct vmm_range *ranges, size_t count, void *to)
{
    uint8_t *at = to;
    for (size_t i = 0; i < count; i++) {
        assert(ranges[i].block == 0);
        memcpy(at, client_page(&of(vmm)->client, &ranges[i]), ranges[i].pages << VMM_PAGE_SHIFT);
        at += ranges[i].pages << VMM_PAGE_SHIFT;
    }
    return 0;
}

void kvm_guest_describe(const struct kvm_guest *guest, struct vmm_block *block, bool mapped,
                        struct vmm_description *ret_description)
{
    client_describe(&guest->client, block, mapped, ret_description);
    ret_description->disks = guest->disks.list;
    ret_description->disk_count = guest->disks.count;
}

int kvm_guest_disk_read(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, void *to)
{
    return guest_disks_read(&of(vmm)->disks, disk, offset, bytes, to);
}

int kvm_guest_event_fd(struct vmm *vmm)
{
    /* A connection that has ended is always readable, and has been told of. */
    return of(vmm)->client.over ? -1 : of(vmm)->client.fd;
}

enum vmm_event kvm_guest_event(struct vmm *vmm)
{
    return client_event(&of(vmm)->client);
}

pid_t kvm_pid(const struct vmm *vmm)
{
    return ((const struct kvm_guest *)vmm)->client.pid;
}

static bool nobody(int code)
{
    return code == -ENOENT || code == -ECONNREFUSED || code == -ECONNRESET;
}

int kvm_look(const char *socket_path, struct kvm_look *ret_look)
{
    static const enum kvm_guest_state states[] = {[CONTROL_WAITING] = KVM_GUEST_WAITS,
                                                  [CONTROL_LOADED] = KVM_GUEST_WAITS,
                                                  [CONTROL_RUNNING] = KVM_GUEST_RUNS,
                                                  [CONTROL_PAUSED] = KVM_GUEST_RUNS,
                                                  [CONTROL_HELD] = KVM_GUEST_STOPPED};
    struct client client cleanup(client_close);
    struct control_message answer;
    int r = client_open(&client, socket_path);
    if (r == 0)
        r = client_call(&client, CONTROL_LOOK, 0, &answer);
    if (r < 0 && !nobody(r))
        return r;
    *ret_look = r < 0 ? (struct kvm_look){.state = KVM_GUEST_NONE}
                      : (struct kvm_look){.state = states[answer.phase], .pid = client.pid};
    return 0;
}

static bool ended_within(int pid_fd, int ms)
{
    struct pollfd ended = {.fd = pid_fd, .events = POLLIN};
    int r;
    while ((r = poll(&ended, 1, ms)) < 0 && errno == EINTR)
        ;
    return r > 0;
}

static int read_left_behind(void *ctx, const struct vmm_range *range, void *to)
{
    memcpy(to, client_page(ctx, range), range->pages << VMM_PAGE_SHIFT);
    return 0;
}

/* Of a guest that stands still for good; who greets another would be in its engine's way. */
static int keep_memory(struct client *client, struct vmm_keep **ret_keep)
{
    struct vmm_description description;
    struct vmm_block block;
    int r = client_call(client, CONTROL_LOOK, 0, NULL);
    if (r == 0 && client->phase != CONTROL_HELD)
        r = error_set(-EADDRINUSE, "it was not stopped for good");
    if (r == 0)
        r = client_greet(client, false);
    if (r < 0)
        return r;
    client_describe(client, &block, true, &description);
    return vmm_keep_new(ret_keep, &block, 1, read_left_behind, client);
}

static int end_left_behind(struct client *client)
{
    int pid_fd cleanup_close = pidfd_open(client->pid, 0);
    if (pid_fd < 0)
        return error_errno(-errno, "pidfd of VMM %d", client->pid);
    int r = client_call(client, CONTROL_RETIRE, 0, NULL);
    if (r < 0)
        return r;
    if (!ended_within(pid_fd, END_MS)) {
        pidfd_send_signal(pid_fd, SIGKILL, NULL, 0);
        if (!ended_within(pid_fd, KILL_MS))
            return error_set(-EBUSY, "VMM %d, whose guest was left behind here, does not end", client->pid);
    }
    return 0;
}

int kvm_retire(const char *socket_path, bool *ret_ended, struct vmm_keep **ret_keep, char *why,
               size_t why_room)
{
    struct client client cleanup(client_close);
    struct vmm_keep *keep = NULL;
    int r = client_open(&client, socket_path);
    if (nobody(r))
        *ret_ended = false;
    if (r < 0)
        return nobody(r) ? 0 : r;
    if (ret_keep && keep_memory(&client, &keep) < 0)
        snprintf(why, why_room, "%s", error_text());
    r = end_left_behind(&client);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        vmm_keep_free(keep);
        return error_set(r, "vmm %s: %s", socket_path, text);
    }
    *ret_ended = true;
    if (ret_keep)
        *ret_keep = keep;
    return 0;
}
