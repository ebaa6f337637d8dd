/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/kvm.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/scope.h"
#include "vmm/kvm/guest.h"
#include "vmm/kvm/source_disks.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>

/*
 * A guest of our own VMM as a source of checkpoints. A pause is one request: when its answer is here, the
 * bitmap of what was written and the device state lie in the shared memory already. The bits are kept in
 * `marks` until a scan takes them, since the VMM has forgotten them by then.
 */

struct source {
    struct kvm_guest guest;
    struct source_disks disks;
    struct vmm_block block;
    uint64_t *marks;
    size_t words;
    bool paused;
    bool our_stop; /* valid while paused: RESUME is ours to say */
    bool kept;     /* hold() or halt(): nothing lets it run when we close */
    uint64_t line; /* behind the guest's output, of the latest pause; 0: none was drawn */
    size_t state_bytes;
    void *state; /* state_room bytes */
};

static struct source *of(struct vmm *vmm)
{
    return (struct source *)vmm;
}

static void source_describe(struct vmm *vmm, struct vmm_description *ret_description)
{
    kvm_guest_describe(&of(vmm)->guest, &of(vmm)->block, true, ret_description);
}

static int source_track(struct vmm *vmm)
{
    return client_call(&of(vmm)->guest.client, CONTROL_TRACK, 0, NULL);
}

/* What is there from an earlier request marks too much, and never too little. */
static void take_marks(struct source *source)
{
    const uint64_t *written = (const uint64_t *)source->guest.client.shared;
    for (size_t i = 0; i < source->words; i++)
        source->marks[i] |= written[i];
}

/* The VMM did not answer in time. It obeys in the end, and so it does this. */
static void call_off_pause(struct source *source)
{
    int r = client_call(&source->guest.client, CONTROL_RESUME, 0, NULL);
    if (r == -ETIMEDOUT) /* the next request may overwrite what the pause cleared before we have seen it */
        memset(source->marks, 0xff, source->words * sizeof *source->marks);
}

static int source_pause(struct vmm *vmm)
{
    struct source *source = of(vmm);
    struct client *client = &source->guest.client;
    struct control_message answer;
    assert(!source->paused);
    int r = client_call(client, CONTROL_PAUSE, 0, &answer);
    if (r == -ETIMEDOUT) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        call_off_pause(source);
        error_set(r, "%s", text);
    }
    take_marks(source); /* after a failure as well: the log may have been cleared before it */
    if (r < 0)
        return r;
    source->paused = true;
    source->our_stop = answer.phase == CONTROL_PAUSED;
    source->line = answer.line;
    source->state_bytes = answer.value <= client->state_room ? answer.value : 0;
    return 0;
}

static int add_ranges(const uint64_t *words, size_t count, struct vmm_ranges *to)
{
    int r = 0;
    for (size_t i = 0; i < count; i++) {
        for (uint64_t left = words[i]; r == 0 && left;) {
            unsigned first = (unsigned)__builtin_ctzll(left);
            uint64_t rest = left >> first;
            unsigned pages = ~rest ? (unsigned)__builtin_ctzll(~rest) : 64;
            r = vmm_ranges_add(to, 0, i * 64 + first, pages);
            left = first + pages == 64 ? 0 : left & ~0ull << (first + pages);
        }
    }
    return r;
}

static int source_scan(struct vmm *vmm, bool clear, struct vmm_ranges *to)
{
    struct source *source = of(vmm);
    assert(!clear || source->paused);
    uint64_t *found = source->marks;
    uint64_t *both cleanup_free = NULL;
    if (!source->paused) {
        int r = client_call(&source->guest.client, CONTROL_SCAN, 0, NULL);
        if (r < 0)
            return r;
        const uint64_t *written = (const uint64_t *)source->guest.client.shared;
        found = both = malloc(source->words * sizeof *both);
        if (!both)
            return error_set(-ENOMEM, "dirty log: no memory");
        for (size_t i = 0; i < source->words; i++)
            both[i] = source->marks[i] | written[i];
    }
    int r = add_ranges(found, source->words, to);
    if (r == 0 && clear)
        memset(source->marks, 0, source->words * sizeof *source->marks);
    return r;
}

static int source_save_begin(struct vmm *vmm)
{
    assert(of(vmm)->paused);
    (void)vmm;
    return 0;
}

static int source_save_end(struct vmm *vmm, const void **ret_state, size_t *ret_bytes)
{
    struct source *source = of(vmm);
    const struct client *client = &source->guest.client;
    assert(source->paused);
    if (source->state_bytes == 0)
        return error_set(-EBADMSG, "VMM %d: an impossible size of its state", client->pid);
    /* The next pause, of whatever kind, overwrites what is shared. */
    memcpy(source->state, client->shared + control_state_offset(client->memory_bytes), source->state_bytes);
    *ret_state = source->state;
    *ret_bytes = source->state_bytes;
    return 0;
}

static int source_resume(struct vmm *vmm)
{
    struct source *source = of(vmm);
    assert(source->paused);
    source->paused = source->kept = false;
    source->line = 0;
    return source->our_stop ? client_release(&source->guest.client) : 0;
}

static int source_hold(struct vmm *vmm)
{
    struct source *source = of(vmm);
    bool ran = source->paused ? source->our_stop : source->guest.client.phase == CONTROL_RUNNING;
    int r = client_call(&source->guest.client, CONTROL_HOLD, 0, NULL);
    if (r < 0)
        return r;
    source->our_stop = ran;
    source->paused = source->kept = true;
    return 0;
}

/* Held, and not even resume() lets it run. */
static int source_halt(struct vmm *vmm)
{
    int r = source_hold(vmm);
    of(vmm)->our_stop &= r < 0;
    return r;
}

static int source_disks_open_all(struct vmm *vmm, const struct vmm_disk_sink *sink)
{
    struct source *source = of(vmm);
    return source_disks_open(&source->disks, &source->guest.client, &source->guest.disks, sink);
}

static void source_disks_close_all(struct vmm *vmm)
{
    source_disks_close(&of(vmm)->disks, &of(vmm)->guest.client);
}

uint64_t kvm_guest_line(const struct vmm *source)
{
    return ((const struct source *)source)->line;
}

void kvm_guest_figures(const struct vmm *source, struct gate_stats *ret_figures)
{
    const struct client *client = &((const struct source *)source)->guest.client;
    memcpy(ret_figures, client->shared + control_figures_offset(client->memory_bytes, client->state_room),
           sizeof *ret_figures);
}

static void source_close(struct vmm *vmm)
{
    if (!vmm)
        return;
    struct source *source = of(vmm);
    if (source->paused && !source->kept)
        source_resume(vmm);
    source_disks_close(&source->disks, &source->guest.client);
    guest_disks_close(&source->guest.disks);
    client_close(&source->guest.client);
    free(source->marks);
    free(source->state);
    free(source);
}

static const struct vmm_ops source_ops = {
    .driver = "kvm",
    .describe = source_describe,
    .read = kvm_guest_read,
    .event_fd = kvm_guest_event_fd,
    .event = kvm_guest_event,
    .halt = source_halt,
    .hold = source_hold,
    .close = source_close,
    .track = source_track,
    .pause = source_pause,
    .scan = source_scan,
    .save_begin = source_save_begin,
    .save_end = source_save_end,
    .resume = source_resume,
    .disks_open = source_disks_open_all,
    .disks_close = source_disks_close_all,
    .disk_read = kvm_guest_disk_read,
};

static int attach(struct source *source, const char *socket_path)
{
    struct client *client = &source->guest.client;
    int r = client_open(client, socket_path);
    if (r == 0)
        r = client_greet(client, false);
    if (r < 0)
        return r;
    if (client->phase < CONTROL_RUNNING)
        return error_set(-EINVAL, "vmm %s: its guest waits to be loaded; nothing runs here", socket_path);
    r = guest_disks_open(&source->guest.disks, client);
    if (r < 0)
        return r;
    source->words = control_dirty_bytes(client->memory_bytes) / sizeof *source->marks;
    source->marks = calloc(source->words, sizeof *source->marks);
    source->state = malloc(client->state_room);
    if (!source->marks || !source->state)
        return error_set(-ENOMEM, "vmm %s: no memory", socket_path);
    return fault_point(FAULT_ATTACH);
}

int kvm_attach(struct vmm **ret_source, const char *socket_path)
{
    struct source *source = calloc(1, sizeof *source);
    if (!source)
        return error_set(-ENOMEM, "vmm %s: no memory", socket_path);
    source->guest.vmm.ops = &source_ops;
    source->guest.client = CLIENT_NONE;
    int r = attach(source, socket_path);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        source_close(&source->guest.vmm);
        return error_set(r, "%s", text);
    }
    *ret_source = &source->guest.vmm;
    return 0;
}
