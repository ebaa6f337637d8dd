/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/kvm.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/guest.h"
#include "vmm/process.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>

/* A VMM that waits with --incoming, as a target: its memory is filled through our own mapping of it, and its
 * disks through descriptors of its own. */

#define READY_MS      10000
#define RETRY_MS      5
#define QUIT_MS       1000
#define LAST_WORDS_MS 500

struct target {
    struct kvm_guest guest;
    struct vmm_block block;
    struct process process;
    char *pid_path;
    bool recorded, halted;
    enum { WAITING, LOADED, RUNNING } phase;
};

static struct target *of(struct vmm *vmm)
{
    return (struct target *)vmm;
}

static void target_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    kvm_guest_describe(&of(vmm)->guest, &of(vmm)->block, false, ret_description);
}

static int target_write(struct vmm *vmm, const struct vmm_range *ranges, size_t count, const void *from)
{
    const uint8_t *at = from;
    for (size_t i = 0; i < count; i++) {
        assert(ranges[i].block == 0);
        memcpy(client_page(&of(vmm)->guest.client, &ranges[i]), at, ranges[i].pages << VMM_PAGE_SHIFT);
        at += ranges[i].pages << VMM_PAGE_SHIFT;
    }
    return 0;
}

static int target_zero(struct vmm *vmm, const struct vmm_range *range)
{
    const struct client *client = &of(vmm)->guest.client;
    assert(range->block == 0);
    if (fallocate(client->memory_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                  (off_t)(range->first << VMM_PAGE_SHIFT), (off_t)(range->pages << VMM_PAGE_SHIFT)) < 0)
        return error_errno(-errno, "zero pages of VMM %d", client->pid);
    return 0;
}

static int target_disk_write(struct vmm *vmm, uint32_t disk, uint64_t offset, size_t bytes, const void *from)
{
    return guest_disks_write(&of(vmm)->guest.disks, disk, offset, bytes, from);
}

static int target_disk_zero(struct vmm *vmm, uint32_t disk, enum vmm_disk_op op, uint64_t offset,
                            uint64_t bytes)
{
    assert(op != VMM_DISK_WRITE);
    (void)op;
    return guest_disks_zero(&of(vmm)->guest.disks, disk, offset, bytes);
}

static int target_disk_flush(struct vmm *vmm)
{
    return guest_disks_flush(&of(vmm)->guest.disks);
}

static int target_load(struct vmm *vmm, const void *state, size_t bytes)
{
    struct target *target = of(vmm);
    struct client *client = &target->guest.client;
    assert(target->phase == WAITING);
    if (bytes > client->state_room)
        return error_set(-EMSGSIZE, "a state of %zu bytes, VMM %d takes at most %zu", bytes, client->pid,
                         client->state_room);
    int r = guest_disks_flush(&target->guest.disks);
    if (r < 0)
        return r;
    memcpy(client->shared + control_state_offset(client->memory_bytes), state, bytes);
    r = client_call(client, CONTROL_LOAD, bytes, NULL);
    if (r == 0) {
        target->phase = LOADED;
        guest_disks_close(&target->guest.disks); /* from now on they are the guest's */
    }
    return r;
}

static int target_run(struct vmm *vmm)
{
    struct target *target = of(vmm);
    assert(target->phase == LOADED);
    int r = process_record(&target->process, target->pid_path, true);
    if (r < 0)
        return r;
    target->phase = RUNNING;
    return client_call(&target->guest.client, CONTROL_RUN, 0, NULL);
}

static int target_announce(struct vmm *vmm)
{
    return client_call(&of(vmm)->guest.client, CONTROL_ANNOUNCE, 0, NULL);
}

static int target_halt(struct vmm *vmm)
{
    struct target *target = of(vmm);
    if (target->phase < RUNNING || target->halted)
        return 0;
    int r = client_call(&target->guest.client, CONTROL_HOLD, 0, NULL);
    target->halted = r == 0;
    return r;
}

static void target_close(struct vmm *vmm)
{
    if (!vmm)
        return;
    struct target *target = of(vmm);
    process_leave(&target->process, target->phase < RUNNING ? QUIT_MS : -1,
                  target->recorded ? target->pid_path : NULL);
    guest_disks_close(&target->guest.disks);
    client_close(&target->guest.client);
    free(target->pid_path);
    free(target);
}

static const struct vmm_ops target_ops = {
    .driver = "kvm",
    .describe = target_describe,
    .read = kvm_guest_read,
    .event_fd = kvm_guest_event_fd,
    .event = kvm_guest_event,
    .halt = target_halt,
    .close = target_close,
    .disk_read = kvm_guest_disk_read,
    .disk_write = target_disk_write,
    .disk_zero = target_disk_zero,
    .disk_flush = target_disk_flush,
    .write = target_write,
    .zero = target_zero,
    .load = target_load,
    .run = target_run,
    .announce = target_announce,
};

/* --- launch --- */

static int refuse_running(const char *socket_path)
{
    struct kvm_look look;
    int r = kvm_look(socket_path, &look);
    if (r < 0 || look.state == KVM_GUEST_NONE)
        return r;
    return error_set(-EADDRINUSE, "vmm %s: VMM %d serves this socket already; does the machine run here?",
                     socket_path, look.pid);
}

static int await_ready(struct target *target, const char *socket_path, uint32_t ready_ms)
{
    struct client *client = &target->guest.client;
    uint64_t deadline = clock_now_ns() + ready_ms * NS_PER_MS;
    int r;
    while ((r = client_open(client, socket_path)) < 0) {
        if (r != -ENOENT && r != -ECONNREFUSED)
            return r;
        if (process_wait(&target->process, RETRY_MS))
            return error_set(-ECHILD, "VMM %d ended while it started", target->process.child);
        if (clock_now_ns() >= deadline)
            return error_set(-ETIMEDOUT, "VMM %d does not serve %s after %u ms", target->process.child,
                             socket_path, ready_ms);
    }
    r = process_adopt(&target->process, client->pid);
    if (r < 0)
        return error_add(r, "vmm %s", socket_path);
    r = client_greet(client, true);
    if (r == 0 && client->phase != CONTROL_WAITING)
        r = error_set(-EINVAL, "VMM %d does not wait for a guest", client->pid);
    return r < 0 ? r : guest_disks_open(&target->guest.disks, client);
}

static int record(struct target *target)
{
    int r = process_record(&target->process, target->pid_path, false);
    target->recorded = r == 0;
    return r;
}

static int start(struct target *target, const struct kvm_launch *launch)
{
    static const char *const extra[] = {"--incoming", NULL};
    int r = launch->pid_path ? process_end_recorded(launch->pid_path) : 0;
    if (r == 0)
        r = refuse_running(launch->socket_path);
    if (r == 0)
        r = process_start(&target->process, launch->argv, extra, launch->log_path);
    if (r == 0)
        r = record(target);
    if (r == 0)
        r = await_ready(target, launch->socket_path, launch->ready_ms ? launch->ready_ms : READY_MS);
    if (r == 0)
        r = record(target);
    if (r < 0 && target->process.child > 0 &&
        process_wait(&target->process, r == -ECONNRESET ? LAST_WORDS_MS : 0))
        return process_explain(&target->process, r);
    return r;
}

int kvm_launch(struct vmm **ret_target, const struct kvm_launch *launch)
{
    struct target *target = calloc(1, sizeof *target);
    if (!target)
        return error_set(-ENOMEM, "vmm %s: no memory", launch->socket_path);
    target->guest.vmm.ops = &target_ops;
    target->guest.client = CLIENT_NONE;
    target->process = PROCESS_NONE;
    int r = 0;
    if (launch->pid_path && !(target->pid_path = strdup(launch->pid_path)))
        r = error_set(-ENOMEM, "vmm %s: no memory", launch->socket_path);
    if (r == 0)
        r = start(target, launch);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        target_close(&target->guest.vmm);
        return error_set(r, "%s", text);
    }
    *ret_target = &target->guest.vmm;
    return 0;
}
