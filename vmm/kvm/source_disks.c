/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/source_disks.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/feed.h"

#include <errno.h>
#include <stdio.h>
#include <sys/socket.h>

static int hear(struct source_feed *feed)
{
    const struct vmm_disk_sink *sink = feed->sink;
    struct feed_record record;
    int r;
    while ((r = feed_hear(feed->fd, feed->disk_bytes, &record, feed->data)) > 0) {
        if (record.op == FEED_LOST)
            return error_set(-EIO, "%s", (const char *)feed->data);
        sink->change(sink->ctx, feed->disk, (enum vmm_disk_op)record.op, record.offset, record.bytes,
                     record.op == FEED_WRITE ? feed->data : NULL);
        r = feed_answer(feed->fd);
        if (r < 0)
            return r;
    }
    return r < 0 ? r : error_set(-ECONNRESET, "the VMM tells no more of them");
}

static void *serve(void *argument)
{
    struct source_feed *feed = argument;
    char name[16];
    snprintf(name, sizeof name, "us-disk%u", feed->disk);
    pthread_setname_np(pthread_self(), name);
    hear(feed);
    /* The guest does not wait for an answer that will not come. */
    shutdown(feed->fd, SHUT_RDWR);
    /* First this: who hears of the loss may be opening the disks anew before we return. */
    atomic_store(&feed->ended, true);
    if (!atomic_load(&feed->unheard))
        feed->sink->lost(feed->sink->ctx, feed->disk, error_text());
    return NULL;
}

static void stop(struct source_feed *feed)
{
    if (!feed->started)
        return;
    atomic_store(&feed->unheard, true);
    shutdown(feed->fd, SHUT_RDWR);
    pthread_join(feed->thread, NULL);
    close(feed->fd);
    free(feed->data);
    feed->started = false;
}

static int start(struct source_feed *feed, int fd)
{
    feed->data = malloc(FEED_PIECE);
    if (!feed->data)
        return error_set(-ENOMEM, "no memory");
    feed->fd = fd;
    atomic_store(&feed->ended, false);
    atomic_store(&feed->unheard, false);
    int r = -pthread_create(&feed->thread, NULL, serve, feed);
    if (r < 0) {
        free(feed->data);
        return error_errno(r, "thread");
    }
    feed->started = true;
    return 0;
}

static int open_feed(struct source_feed *feed, struct client *client)
{
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return error_errno(-errno, "socket pair");
    int ours cleanup_close = pair[0], theirs cleanup_close = pair[1];
    int r = start(feed, ours);
    if (r < 0)
        return r;
    take_fd(&ours);
    r = client_give(client, CONTROL_TELL, feed->disk, theirs);
    if (r < 0) {
        char text[ERROR_TEXT_MAX];
        snprintf(text, sizeof text, "%s", error_text());
        stop(feed);
        return error_set(r, "%s", text);
    }
    return 0;
}

int source_disks_open(struct source_disks *source, struct client *client, const struct guest_disks *disks,
                      const struct vmm_disk_sink *sink)
{
    bool any = false;
    for (unsigned i = 0; i < source->count; i++)
        any |= source->feeds[i].started;
    if (!any)
        source->sink = *sink;
    source->count = disks->count;
    for (unsigned i = 0; i < disks->count; i++) {
        struct source_feed *feed = &source->feeds[i];
        if (feed->started && !atomic_load(&feed->ended))
            continue;
        stop(feed);
        *feed = (struct source_feed){
            .sink = &source->sink, .disk = i, .disk_bytes = disks->list[i].bytes, .fd = -1};
        int r = open_feed(feed, client);
        if (r < 0)
            return error_add(r, "disk '%s'", disks->list[i].name);
    }
    return 0;
}

void source_disks_close(struct source_disks *source, struct client *client)
{
    for (unsigned i = 0; i < source->count; i++) {
        struct source_feed *feed = &source->feeds[i];
        atomic_store(&feed->unheard, true);
        if (feed->started)
            client_call(client, CONTROL_TELL, i, NULL); /* a VMM that cannot hear it sees the socket end */
        stop(feed);
    }
}
