/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/kvm.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate_internal.h"
#include "gate/hold.h"
#include "vmm/kvm/client.h"
#include "vmm/kvm/guest.h"

#include <assert.h>
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>

/*
 * The gate of a guest in our own VMM, which does the holding (gatekeeper.h). Here epochs become lines, and
 * requests packets on a connection of the gate's own.
 *
 * Theory of operation. The line of an epoch was drawn by the pause that ends it, and came with the pause's
 * answer, so a mark asks for nothing, but the first: it makes the VMM hold. A release names the line and is
 * not waited for. One that the socket does not take is remembered; later ones are releases of the same and
 * more, and an answer of the VMM's says that there is room again.
 *
 * A thread reads all that comes: answers, of which some are waited for, and events.
 */

#define CALL_NS    (10 * NS_PER_S)   /* as CLIENT_CALL_MS: a pause before us may drain a disk */
#define FIGURES_NS (100 * NS_PER_MS) /* status must not keep the engine's main thread from its standby */
#define END_MS     5000

struct waiter {
    struct waiter *next;
    struct control_message answer; /* `sequence` is set before */
    bool answered;
};

struct kvm_gate {
    struct gate gate;
    struct vmm *source;
    struct client client;
    pthread_t thread;
    bool threaded;
    uint64_t latest_epoch; /* highest marked since it began to hold; the caller's, who is one at a time */

    pthread_mutex_t lock; /* of the rest; nothing is taken after it */
    pthread_cond_t changed;
    uint32_t sequence;
    struct waiter *waiters;
    bool over, closing;
    bool holding;
    bool unsent;   /* a release of `line` */
    uint64_t line; /* the latest that was released */
    struct {
        uint64_t epoch, line;
    } marks[HOLD_MARKS_MAX]; /* not released, in order */
    unsigned mark_count;
    struct gate_stats figures; /* as they were known last */
};

static struct kvm_gate *of(struct gate *gate)
{
    return (struct kvm_gate *)gate;
}

/* --- what comes from the VMM --- */

/* With the lock. */
static int send_release(struct kvm_gate *gate)
{
    const struct control_message request = {
        .op = CONTROL_GATE_RELEASE, .sequence = ++gate->sequence, .value = gate->line};
    int r = control_send(gate->client.fd, &request, NULL, 0, MSG_DONTWAIT);
    gate->unsent = r == -EAGAIN;
    return r == -EAGAIN ? 0 : r;
}

static int take_answer(struct kvm_gate *gate, const struct control_message *answer)
{
    scope_lock(&gate->lock);
    struct waiter *waiter = gate->waiters;
    while (waiter && waiter->answer.sequence != answer->sequence)
        waiter = waiter->next;
    if (waiter) {
        waiter->answer = *answer;
        waiter->answered = true;
        pthread_cond_broadcast(&gate->changed);
    } else if (answer->code < 0) {
        return error_set(answer->code, "VMM %d: %s", gate->client.pid, answer->text);
    }
    return gate->unsent ? send_release(gate) : 0;
}

static int take_packet(struct kvm_gate *gate)
{
    struct control_message message;
    int r = control_receive(gate->client.fd, false, &message, NULL, 0, NULL, MSG_DONTWAIT);
    if (r == -EAGAIN)
        return 0;
    if (r < 0)
        return r;
    if (message.op != CONTROL_GATE_EVENT)
        return take_answer(gate, &message);
    gate_tell(&gate->gate, (unsigned)message.value & (HOLD_WAITING | HOLD_FULL));
    return 0;
}

/* A VMM that is gone lets nothing out, and its driver tells of it; one that lives without us is another
 * matter. */
static void connection_ended(struct kvm_gate *gate)
{
    struct pollfd ended = {.fd = gate->client.process, .events = POLLIN};
    char text[ERROR_TEXT_MAX];
    snprintf(text, sizeof text, "%s", error_text());
    bool closing;
    {
        scope_lock(&gate->lock);
        gate->over = true;
        closing = gate->closing;
        pthread_cond_broadcast(&gate->changed);
    }
    if (closing || poll(&ended, 1, END_MS) > 0)
        return;
    error_set(-ECONNRESET, "%s", text);
    gate_fail(&gate->gate);
}

static void *listen_to(void *argument)
{
    struct kvm_gate *gate = argument;
    struct pollfd readable = {.fd = gate->client.fd, .events = POLLIN};
    int r = 0;
    while (r == 0)
        if (poll(&readable, 1, -1) > 0)
            r = take_packet(gate);
    connection_ended(gate);
    return NULL;
}

/* --- what is asked of it --- */

static void forget(struct kvm_gate *gate, struct waiter *waiter)
{
    struct waiter **at = &gate->waiters;
    while (*at != waiter)
        at = &(*at)->next;
    *at = waiter->next;
}

/* Ask, and wait for the answer. */
static int ask(struct kvm_gate *gate, struct control_message request, uint64_t limit_ns,
               struct control_message *ret_answer)
{
    uint64_t end = clock_now_ns() + limit_ns;
    const struct timespec until = {(time_t)(end / NS_PER_S), (long)(end % NS_PER_S)};
    scope_lock(&gate->lock);
    if (gate->over)
        return error_set(-ECONNRESET, "VMM %d is gone", gate->client.pid);
    request.sequence = ++gate->sequence;
    int r = control_send(gate->client.fd, &request, NULL, 0, MSG_DONTWAIT);
    if (r < 0)
        return error_add(r, "VMM %d", gate->client.pid);
    struct waiter waiter = {.next = gate->waiters, .answer = {.sequence = request.sequence}};
    gate->waiters = &waiter;
    while (!waiter.answered && !gate->over && r == 0)
        r = -pthread_cond_timedwait(&gate->changed, &gate->lock, &until);
    forget(gate, &waiter);
    if (!waiter.answered)
        return gate->over ? error_set(-ECONNRESET, "VMM %d is gone", gate->client.pid)
                          : error_set(-ETIMEDOUT, "VMM %d does not answer", gate->client.pid);
    if (waiter.answer.code < 0)
        return error_set(waiter.answer.code, "VMM %d: %s", gate->client.pid, waiter.answer.text);
    *ret_answer = waiter.answer;
    return 0;
}

/* Two marks of one epoch are one; when there are too many, the older of two waits for the later one's epoch.
 */
static void remember(struct kvm_gate *gate, uint64_t epoch, uint64_t line)
{
    bool again = gate->mark_count && gate->marks[gate->mark_count - 1].epoch == epoch;
    if (!again && gate->mark_count < HOLD_MARKS_MAX)
        gate->mark_count++;
    gate->marks[gate->mark_count - 1].epoch = epoch;
    gate->marks[gate->mark_count - 1].line = line;
}

static int kvm_gate_mark_begin(struct gate *base, uint64_t epoch)
{
    struct kvm_gate *gate = of(base);
    struct control_message answer = {.line = kvm_guest_line(gate->source)};
    int r = 0;
    if (epoch < gate->latest_epoch)
        return error_set(-EINVAL, "gate: mark of epoch %llu after epoch %llu", (unsigned long long)epoch,
                         (unsigned long long)gate->latest_epoch);
    if (answer.line == 0)
        r = ask(gate, (struct control_message){.op = CONTROL_GATE_HOLD}, CALL_NS, &answer);
    if (r < 0)
        return error_add(r, "gate: mark of epoch %llu", (unsigned long long)epoch);
    scope_lock(&gate->lock);
    gate->holding = true;
    gate->latest_epoch = epoch;
    remember(gate, epoch, answer.line);
    return 0;
}

static int kvm_gate_mark_end(struct gate *base)
{
    (void)base; /* the line was drawn by the pause */
    return 0;
}

static int kvm_gate_release(struct gate *base, uint64_t epoch)
{
    struct kvm_gate *gate = of(base);
    unsigned count = 0;
    scope_lock(&gate->lock);
    while (count < gate->mark_count && gate->marks[count].epoch <= epoch)
        gate->line = gate->marks[count++].line;
    if (count == 0)
        return 0;
    gate->mark_count -= count;
    memmove(gate->marks, gate->marks + count, gate->mark_count * sizeof *gate->marks);
    return send_release(gate);
}

static int end_holding(struct gate *base, enum control_op op)
{
    struct kvm_gate *gate = of(base);
    struct control_message answer;
    int r = ask(gate, (struct control_message){.op = op}, CALL_NS, &answer);
    if (r < 0)
        return error_add(r, "gate");
    scope_lock(&gate->lock);
    gate->holding = gate->unsent = false;
    gate->mark_count = 0;
    gate->latest_epoch = 0;
    return 0;
}

static int kvm_gate_pass(struct gate *base)
{
    return end_holding(base, CONTROL_GATE_PASS);
}

static int kvm_gate_shut(struct gate *base)
{
    return end_holding(base, CONTROL_GATE_SHUT);
}

static void kvm_gate_get_stats(struct gate *base, struct gate_stats *ret_stats)
{
    struct kvm_gate *gate = of(base);
    struct control_message answer;
    struct gate_stats now = gate->figures;
    if (ask(gate, (struct control_message){.op = CONTROL_GATE_FIGURES}, FIGURES_NS, &answer) == 0)
        kvm_guest_figures(gate->source, &now);
    scope_lock(&gate->lock);
    now.holding = gate->holding;
    *ret_stats = gate->figures = now;
}

static void kvm_gate_close(struct gate *base)
{
    struct kvm_gate *gate = of(base);
    {
        scope_lock(&gate->lock);
        gate->closing = true;
    }
    if (gate->threaded) {
        shutdown(gate->client.fd, SHUT_RDWR);
        pthread_join(gate->thread, NULL);
    }
    client_close(&gate->client);
    pthread_cond_destroy(&gate->changed);
    pthread_mutex_destroy(&gate->lock);
    free(gate);
}

static const struct gate_ops ops = {
    .mark_begin = kvm_gate_mark_begin,
    .mark_end = kvm_gate_mark_end,
    .release = kvm_gate_release,
    .pass = kvm_gate_pass,
    .shut = kvm_gate_shut,
    .get_stats = kvm_gate_get_stats,
    .close = kvm_gate_close,
};

/* --- making it --- */

static int open_it(struct kvm_gate *gate, const char *socket_path)
{
    const struct gate_config *config = &gate->gate.config;
    struct control_message answer, request = {.op = CONTROL_GATE, .held_bytes_max = config->held_bytes_max};
    request.value |= config->opens_holding ? CONTROL_GATE_HOLDS : 0;
    request.value |= config->failure == GATE_FAIL_OPEN ? CONTROL_GATE_FAILS_OPEN : 0;
    int r = client_open(&gate->client, socket_path);
    if (r < 0)
        return r;
    r = -pthread_create(&gate->thread, NULL, listen_to, gate);
    if (r < 0)
        return error_errno(r, "gate: start its thread");
    gate->threaded = true;
    r = ask(gate, request, CALL_NS, &answer);
    gate->holding = r == 0 && answer.value;
    return r;
}

int kvm_gate_open(struct gate **ret_gate, struct vmm *source, const char *socket_path,
                  const struct gate_config *config, const struct gate_events *events)
{
    struct kvm_gate *gate = calloc(1, sizeof *gate);
    if (!gate)
        return error_set(-ENOMEM, "gate: no memory");
    gate->gate = (struct gate){.ops = &ops, .kind = GATE_VMM, .config = *config, .events = *events};
    gate->source = source;
    gate->client = CLIENT_NONE;
    histogram_reset(&gate->figures.delay_us);
    pthread_mutex_init(&gate->lock, NULL);
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&gate->changed, &monotonic);
    pthread_condattr_destroy(&monotonic);
    int r = open_it(gate, socket_path);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        kvm_gate_close(&gate->gate);
        return error_set(r, "%s", text);
    }
    *ret_gate = &gate->gate;
    return 0;
}
