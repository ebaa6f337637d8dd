/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate_internal.h"
#include "gate/hold.h"
#include "gate/queue.h"
#include "gate/rules.h"

#include <errno.h>
#include <inttypes.h>
#include <linux/netfilter.h>
#include <net/if.h>
#include <poll.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>

/*
 * Theory of operation. Rules (rules.c) send each frame of the guest to a queue of netfilter's. The frame
 * stays in the kernel; a message with its number and length comes to us. Numbers grow, and one verdict speaks
 * for all up to a number, so a release is one system call however much was held. The kernel drops what is in
 * a queue whose owner is gone, and what comes after: that is how the gate fails closed. With --queue-bypass
 * the latter passes: that is how it fails open.
 *
 * A guest's frame enters the bridge inside the write() to its tap, or inside vhost's. So when the guest is
 * paused all its frames have been queued, and a mark reads the socket until it is empty. (Receive packet
 * steering on the tap would make some come later. Those count for the next epoch: late, never early.)
 *
 * The rules stand from open to close. While the gate passes, each batch is accepted as it is read.
 *
 * The thread reads while nobody else does; the caller does it itself in a mark, for the guest is paused and
 * waits. `lock` guards all but what is set at opening; events are told, and programs run, without it.
 */

struct nfqueue {
    struct gate gate;
    struct rules rules;
    struct queue queue;
    int wake_fd;
    pthread_t thread;

    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct hold hold;
    bool stopping, broken;
    enum rules_rest rest, rest_wanted;
    int rest_rc; /* of the latest attempt to make `rest` what is wanted */
    char rest_text[ERROR_TEXT_MAX];
    unsigned own_index[GATE_PORTS_MAX]; /* indices of the taps as last seen */
};

static struct nfqueue *nfqueue_of(struct gate *gate)
{
    return (struct nfqueue *)gate;
}

static void wake(struct nfqueue *nfqueue)
{
    eventfd_write(nfqueue->wake_fd, 1);
}

static int broken(void)
{
    return error_set(-EIO, "nfqueue: the gate failed before");
}

/*
 * A queue's number is found anew by each engine, and a dead one's rules still name its own: frames of another
 * guest, whose gate failed closed, must not get out through this one.
 */
static bool from_own_tap(struct nfqueue *nfqueue, unsigned index)
{
    for (unsigned i = 0; i < nfqueue->rules.count; i++)
        if (nfqueue->own_index[i] == index && index)
            return true;
    char name[IF_NAMESIZE];
    if (!index || !if_indextoname(index, name))
        return false;
    for (unsigned i = 0; i < nfqueue->rules.count; i++)
        if (!strcmp(name, nfqueue->rules.taps[i])) { /* a tap made anew has another index */
            nfqueue->own_index[i] = index;
            return true;
        }
    return false;
}

/* Accepts what may go, with one verdict. */
static int let_out(struct nfqueue *nfqueue)
{
    const struct held_frame *frame = hold_ready(&nfqueue->hold);
    if (!frame)
        return 0;
    uint64_t count = nfqueue->hold.open_end - nfqueue->hold.front, now_ns = clock_now_ns();
    int rc =
        queue_verdict_up_to(&nfqueue->queue, hold_ready_at(&nfqueue->hold, count - 1)->packet_id, NF_ACCEPT);
    if (rc)
        return rc;
    while (count--)
        hold_pop(&nfqueue->hold, now_ns);
    return 0;
}

static int drop_all(struct nfqueue *nfqueue)
{
    struct held_frame frame;
    bool any = false;
    while (hold_drop(&nfqueue->hold, &frame))
        any = true;
    return any ? queue_verdict_up_to(&nfqueue->queue, frame.packet_id, NF_DROP) : 0;
}

/* One batch of messages. Returns how many frames came (0: the socket is empty), or a failure. */
static int take_batch(struct nfqueue *nfqueue)
{
    struct queue_packet packets[QUEUE_BATCH];
    int count = queue_read(&nfqueue->queue, packets);
    if (count <= 0)
        return count;
    uint64_t now_ns = clock_now_ns();
    for (int i = 0; i < count; i++) {
        struct held_frame frame = {
            .arrived_ns = now_ns, .packet_id = packets[i].id, .bytes = packets[i].bytes};
        int rc = 0;
        if (!from_own_tap(nfqueue, packets[i].interface) || hold_push(&nfqueue->hold, &frame))
            rc = queue_verdict(&nfqueue->queue, frame.packet_id, NF_DROP);
        if (rc)
            return rc;
    }
    int rc = nfqueue->hold.passing ? let_out(nfqueue) : 0;
    return rc ? rc : count;
}

/* Until the socket is empty. What waits is bounded; who sends faster than this reads just comes late. */
static int take_all(struct nfqueue *nfqueue)
{
    int count = 0;
    for (uint64_t taken = 0; taken <= nfqueue->hold.frames_max; taken += (unsigned)count)
        if ((count = take_batch(nfqueue)) <= 0)
            return count;
    return 0;
}

/* Under the lock. With GATE_FAIL_OPEN the socket's end makes the kernel pass frames on. */
static void break_down(struct nfqueue *nfqueue)
{
    nfqueue->broken = true;
    if (nfqueue->gate.config.failure == GATE_FAIL_OPEN)
        queue_close(&nfqueue->queue);
    pthread_cond_broadcast(&nfqueue->changed);
}

/* Runs nft, so without the lock. */
static void change_rest(struct nfqueue *nfqueue)
{
    pthread_mutex_lock(&nfqueue->lock);
    enum rules_rest wanted = nfqueue->rest_wanted;
    bool needed = wanted != nfqueue->rest && !nfqueue->rest_rc;
    pthread_mutex_unlock(&nfqueue->lock);
    if (!needed)
        return;
    int rc = rules_set_rest(&nfqueue->rules, wanted);
    pthread_mutex_lock(&nfqueue->lock);
    if (rc) {
        nfqueue->rest_rc = rc;
        snprintf(nfqueue->rest_text, sizeof nfqueue->rest_text, "%s", error_text());
    } else {
        nfqueue->rest = wanted;
    }
    pthread_cond_broadcast(&nfqueue->changed);
    pthread_mutex_unlock(&nfqueue->lock);
}

static void *thread_main(void *argument)
{
    struct nfqueue *nfqueue = argument;
    for (;;) {
        pthread_mutex_lock(&nfqueue->lock);
        bool stop = nfqueue->stopping, dead = nfqueue->broken;
        int rc = dead ? 0 : take_batch(nfqueue);
        if (rc < 0)
            break_down(nfqueue);
        unsigned events = hold_take_events(&nfqueue->hold);
        int fd = nfqueue->broken ? -1 : queue_fd(&nfqueue->queue);
        pthread_mutex_unlock(&nfqueue->lock);
        if (rc < 0)
            gate_fail(&nfqueue->gate);
        if (stop)
            return NULL;
        gate_tell(&nfqueue->gate, events);
        change_rest(nfqueue);
        if (rc > 0)
            continue;
        struct pollfd fds[] = {{.fd = nfqueue->wake_fd, .events = POLLIN}, {.fd = fd, .events = POLLIN}};
        eventfd_t ignored;
        if (poll(fds, 2, -1) > 0 && fds[0].revents)
            eventfd_read(nfqueue->wake_fd, &ignored);
    }
}

/* Under the lock. The thread makes the rest of the frames be treated so; rest_end() waits. */
static void rest_begin(struct nfqueue *nfqueue, enum rules_rest rest)
{
    if (nfqueue->rules.kind == RULES_NFT && rest == REST_HELD)
        rest = REST_PASSES; /* there is no rest: all frames come by the queue */
    nfqueue->rest_wanted = rest;
    nfqueue->rest_rc = 0;
}

static int rest_end(struct nfqueue *nfqueue)
{
    while (nfqueue->rest != nfqueue->rest_wanted && !nfqueue->rest_rc)
        pthread_cond_wait(&nfqueue->changed, &nfqueue->lock);
    return nfqueue->rest_rc ? error_set(nfqueue->rest_rc, "nfqueue: %s", nfqueue->rest_text) : 0;
}

static int nfqueue_mark_begin(struct gate *gate, uint64_t epoch)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    if (nfqueue->broken)
        return broken();
    int rc = take_all(nfqueue);
    if (rc)
        break_down(nfqueue);
    rc = rc ? rc : hold_mark(&nfqueue->hold, epoch);
    if (!rc)
        rest_begin(nfqueue, REST_HELD);
    wake(nfqueue);
    return rc;
}

static int nfqueue_mark_end(struct gate *gate)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    return rest_end(nfqueue);
}

static int nfqueue_release(struct gate *gate, uint64_t epoch)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    if (nfqueue->broken)
        return broken();
    hold_release(&nfqueue->hold, epoch);
    int rc = let_out(nfqueue);
    if (rc)
        break_down(nfqueue);
    wake(nfqueue);
    return rc;
}

static int nfqueue_pass(struct gate *gate)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    if (nfqueue->broken)
        return broken();
    if (nfqueue->hold.shut)
        return error_set(-ESHUTDOWN, "nfqueue: pass: the gate is shut");
    hold_pass(&nfqueue->hold);
    int rc = let_out(nfqueue);
    if (rc)
        break_down(nfqueue);
    rest_begin(nfqueue, REST_PASSES);
    wake(nfqueue);
    return rc ? rc : rest_end(nfqueue);
}

static int nfqueue_shut(struct gate *gate)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    hold_shut(&nfqueue->hold);
    int rc = 0;
    if (!nfqueue->broken) {
        rc = drop_all(nfqueue);
        if (rc)
            break_down(nfqueue);
    }
    rest_begin(nfqueue, REST_DROPPED);
    wake(nfqueue);
    int rest_rc = rest_end(nfqueue);
    return rc ? rc : rest_rc;
}

static void nfqueue_stats(struct gate *gate, struct gate_stats *ret_stats)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    scope_lock(&nfqueue->lock);
    gate_hold_stats(&nfqueue->hold, ret_stats);
    if (!nfqueue->broken)
        ret_stats->dropped += queue_dropped(&nfqueue->queue);
}

static void nfqueue_free(struct nfqueue *nfqueue)
{
    queue_close(&nfqueue->queue);
    if (nfqueue->wake_fd >= 0)
        close(nfqueue->wake_fd);
    hold_free(&nfqueue->hold);
    pthread_cond_destroy(&nfqueue->changed);
    pthread_mutex_destroy(&nfqueue->lock);
    free(nfqueue);
}

static void stop_thread(struct nfqueue *nfqueue)
{
    pthread_mutex_lock(&nfqueue->lock);
    nfqueue->stopping = true;
    pthread_mutex_unlock(&nfqueue->lock);
    wake(nfqueue);
    pthread_join(nfqueue->thread, NULL);
}

static void nfqueue_close(struct gate *gate)
{
    struct nfqueue *nfqueue = nfqueue_of(gate);
    bool passing = nfqueue->hold.passing; /* the caller's thread is the only one to change it */
    if (passing)                          /* while the thread still lets frames out */
        rules_remove(&nfqueue->rules);
    stop_thread(nfqueue);
    if (passing && !nfqueue->broken)
        take_all(nfqueue);
    else if (nfqueue->gate.config.failure == GATE_FAIL_OPEN)
        rules_set_rest(&nfqueue->rules, REST_PASSES);
    nfqueue_free(nfqueue);
}

static const struct gate_ops nfqueue_ops = {
    .mark_begin = nfqueue_mark_begin,
    .mark_end = nfqueue_mark_end,
    .release = nfqueue_release,
    .pass = nfqueue_pass,
    .shut = nfqueue_shut,
    .get_stats = nfqueue_stats,
    .close = nfqueue_close,
};

static int start(struct nfqueue *nfqueue)
{
    const struct gate_config *config = &nfqueue->gate.config;
    nfqueue->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (nfqueue->wake_fd < 0)
        return error_errno(-errno, "nfqueue: eventfd");
    nfqueue->rules.fail_open = config->failure == GATE_FAIL_OPEN;
    nfqueue->rules.count = config->port_count;
    for (unsigned i = 0; i < config->port_count; i++)
        strcpy(nfqueue->rules.taps[i], config->ports[i].tap);
    /* The queue first: rules without one would drop frames of a guest that nothing protects yet. */
    int rc = queue_open(&nfqueue->queue, config->ports[0].tap, nfqueue->hold.frames_max);
    if (rc)
        return rc;
    nfqueue->rules.queue = nfqueue->queue.number;
    rc = rules_install(&nfqueue->rules);
    if (rc)
        return rc;
    rc = -pthread_create(&nfqueue->thread, NULL, thread_main, nfqueue);
    if (rc) {
        rules_remove(&nfqueue->rules);
        return error_errno(rc, "nfqueue: thread");
    }
    return 0;
}

int nfqueue_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events)
{
    struct nfqueue *nfqueue = calloc(1, sizeof *nfqueue);
    if (!nfqueue)
        return error_set(-ENOMEM, "nfqueue: no memory");
    nfqueue->gate = (struct gate){.ops = &nfqueue_ops, .kind = GATE_NFQUEUE, .config = *config};
    if (events)
        nfqueue->gate.events = *events;
    nfqueue->wake_fd = -1;
    queue_init(&nfqueue->queue);
    pthread_mutex_init(&nfqueue->lock, NULL);
    pthread_cond_init(&nfqueue->changed, NULL);
    hold_init(&nfqueue->hold, config->held_bytes_max);
    if (config->opens_holding)
        hold_mark(&nfqueue->hold, 0);
    int rc = start(nfqueue);
    if (rc) {
        nfqueue_free(nfqueue);
        return rc;
    }
    *ret_gate = &nfqueue->gate;
    return 0;
}
