/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/events_tell.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/log.h"
#include "base/mailbox.h"
#include "base/scope.h"
#include "replicator/hooks.h"

#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

/*
 * Theory of operation
 *
 * Entries come through a bounded mailbox. The journal takes an entry at once, even while a hook runs; hooks
 * see the entries one after the other, from a second queue, since the state of the world that they build must
 * not be older at the end than in the middle.
 */

#define QUEUE_MAX 256
#define END_NS    (5 * NS_PER_S) /* a service manager waits for us */

struct message {
    struct events_entry entry;
    bool wake; /* no entry: the end has come */
};

struct teller {
    const struct config *config;
    struct mailbox *mailbox;
    struct message
        *last; /* what ends the thread; made at the start, so that it cannot be missing at the end */
    pthread_t thread;
    bool journal;
    atomic_uint_fast64_t deadline_ns; /* UINT64_MAX: no end in sight */
    atomic_uint_fast64_t run, failed, timed_out, dropped;
    struct message *queue[QUEUE_MAX]; /* teller's thread only, as what follows */
    unsigned head, count;
    bool ending;
};

static void take_messages(void *ctx)
{
    struct teller *teller = ctx;
    for (struct message *message; (message = mailbox_take(teller->mailbox));) {
        teller->ending = teller->ending || message->wake;
        if (!message->wake && teller->journal)
            journal_send(teller->config, &message->entry);
        if (message->wake || !teller->config->hooks || teller->count == QUEUE_MAX) {
            if (teller->count == QUEUE_MAX)
                atomic_fetch_add(&teller->dropped, 1);
            free(message);
            continue;
        }
        teller->queue[(teller->head + teller->count++) % QUEUE_MAX] = message;
    }
}

static uint64_t hook_deadline(void *ctx)
{
    return atomic_load(&((struct teller *)ctx)->deadline_ns);
}

#define VARIABLES_MAX 20

struct environment {
    char text[4096];
    size_t used;
    char *variables[VARIABLES_MAX + 1];
    unsigned count;
};

static void set(struct environment *environment, const char *format, ...)
    __attribute__((format(printf, 2, 3)));
static void set(struct environment *environment, const char *format, ...)
{
    size_t room = sizeof environment->text - environment->used;
    char *at = environment->text + environment->used;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(at, room, format, arguments);
    va_end(arguments);
    if (length < 0 || (size_t)length >= room || environment->count == VARIABLES_MAX)
        return; /* every text in it has a bound; the sum stays below ours */
    environment->variables[environment->count++] = at;
    environment->used += (size_t)length + 1;
}

static void fill(struct environment *environment, const struct config *config,
                 const struct events_entry *entry)
{
    char uuid[37], when[40];
    config_uuid_print(config->uuid, uuid);
    events_format_time(entry->wall_ns, when, sizeof when);
    set(environment, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    set(environment, "LC_ALL=C.UTF-8");
    set(environment, "UNDERSTUDY_EVENT=%s", news_name(entry->kind));
    set(environment, "UNDERSTUDY_TIME=%s", when);
    set(environment, "UNDERSTUDY_MONOTONIC_MS=%llu", (unsigned long long)(entry->monotonic_ns / NS_PER_MS));
    set(environment, "UNDERSTUDY_SEQUENCE=%llu", (unsigned long long)entry->sequence);
    set(environment, "UNDERSTUDY_VM=%s", config->name);
    set(environment, "UNDERSTUDY_UUID=%s", uuid);
    set(environment, "UNDERSTUDY_HOST=%s", config->self.name);
    set(environment, "UNDERSTUDY_PEER=%s", config->peer.name);
    set(environment, "UNDERSTUDY_ROLE=%s", news_role(entry->state));
    set(environment, "UNDERSTUDY_STATE=%s", role_state_name(entry->state));
    set(environment, "UNDERSTUDY_GENERATION=%llu", (unsigned long long)entry->generation);
    set(environment, "UNDERSTUDY_EPOCH=%llu", (unsigned long long)entry->epoch);
    set(environment, "UNDERSTUDY_COMMITTED_EPOCH=%llu", (unsigned long long)entry->committed_epoch);
    set(environment, "UNDERSTUDY_REASON=%s", entry->reason);
}

static void run_hooks(struct teller *teller, const struct events_entry *entry)
{
    struct environment environment = {.count = 0};
    struct hooks_meanwhile meanwhile = {mailbox_fd(teller->mailbox), take_messages, hook_deadline, teller};
    struct hooks_count count = {0};
    fill(&environment, teller->config, entry);
    hooks_run(teller->config->hooks, environment.variables, teller->config->hook_timeout_ns, &meanwhile,
              &count);
    atomic_fetch_add(&teller->run, count.run);
    atomic_fetch_add(&teller->failed, count.failed);
    atomic_fetch_add(&teller->timed_out, count.timed_out);
}

static void *tell(void *argument)
{
    struct teller *teller = argument;
    pthread_setname_np(pthread_self(), "us-events");
    for (;;) {
        struct pollfd posted = {.fd = mailbox_fd(teller->mailbox), .events = POLLIN};
        if (!teller->count && !teller->ending)
            poll(&posted, 1, -1);
        take_messages(teller);
        if (teller->count && clock_now_ns() < atomic_load(&teller->deadline_ns)) {
            cleanup_free struct message *message = teller->queue[teller->head];
            teller->head = (teller->head + 1) % QUEUE_MAX;
            teller->count--;
            run_hooks(teller, &message->entry);
        } else if (teller->ending || clock_now_ns() >= atomic_load(&teller->deadline_ns)) {
            break;
        }
    }
    if (teller->count)
        log_warning("hooks: the engine ends; %u events were not told", teller->count);
    for (; teller->count; teller->count--) {
        free(teller->queue[teller->head]);
        teller->head = (teller->head + 1) % QUEUE_MAX;
    }
    return NULL;
}

int teller_new(struct teller **ret_teller, const struct config *config)
{
    bool journal = journal_is_stderr();
    int r = config->hooks ? hooks_check(config->hooks) : 0;
    if (r < 0)
        return r;
    if (!journal && !config->hooks) {
        *ret_teller = NULL;
        return 0;
    }
    struct teller *teller = calloc(1, sizeof *teller);
    if (!teller)
        return error_set(-ENOMEM, "events: out of memory");
    teller->config = config;
    teller->journal = journal;
    atomic_init(&teller->deadline_ns, UINT64_MAX);
    teller->last = calloc(1, sizeof *teller->last);
    if (!teller->last) {
        free(teller);
        return error_set(-ENOMEM, "events: out of memory");
    }
    teller->last->wake = true;
    r = mailbox_new(&teller->mailbox, QUEUE_MAX);
    if (r == 0 && (r = -pthread_create(&teller->thread, NULL, tell, teller)) < 0)
        r = error_errno(r, "events' thread: create");
    if (r < 0) {
        mailbox_free(teller->mailbox);
        free(teller->last);
        free(teller);
        return r;
    }
    *ret_teller = teller;
    return 0;
}

void teller_free(struct teller *teller)
{
    if (!teller)
        return;
    atomic_store(&teller->deadline_ns, clock_now_ns() + END_NS);
    /* A full mailbox has the thread awake; it looks at the deadline then. */
    if (mailbox_post(teller->mailbox, teller->last) < 0)
        free(teller->last);
    pthread_join(teller->thread, NULL);
    mailbox_free(teller->mailbox);
    free(teller);
}

void teller_tell(struct teller *teller, const struct events_entry *entry)
{
    if (!teller)
        return;
    struct message *message = calloc(1, sizeof *message);
    if (message)
        message->entry = *entry;
    if (!message || mailbox_post(teller->mailbox, message) < 0) {
        free(message);
        if (atomic_fetch_add(&teller->dropped, 1) == 0)
            log_warning("events: journal or hooks are too slow; status counts what is dropped");
    }
}

void teller_get_count(const struct teller *teller, struct teller_count *ret_count)
{
    *ret_count = (struct teller_count){0};
    if (!teller)
        return;
    ret_count->run = atomic_load(&teller->run);
    ret_count->failed = atomic_load(&teller->failed);
    ret_count->timed_out = atomic_load(&teller->timed_out);
    ret_count->dropped = atomic_load(&teller->dropped);
}
