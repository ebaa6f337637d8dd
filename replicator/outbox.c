/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/outbox.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <string.h>

void outbox_init(struct outbox *outbox)
{
    pthread_condattr_t monotonic;
    memset(outbox, 0, sizeof *outbox);
    pthread_mutex_init(&outbox->mutex, NULL);
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&outbox->emptied, &monotonic);
    pthread_condattr_destroy(&monotonic);
}

void outbox_clear(struct outbox *outbox)
{
    for (; outbox->count; outbox->count--, outbox->head = (outbox->head + 1) % OUTBOX_MAX)
        free(outbox->items[outbox->head].payload);
    pthread_cond_destroy(&outbox->emptied);
    pthread_mutex_destroy(&outbox->mutex);
}

int outbox_put(struct outbox *outbox, enum wire_type type, uint64_t generation, uint64_t epoch,
               const void *payload, size_t length)
{
    cleanup_free void *copy = NULL;
    if (length) {
        copy = malloc(length);
        if (!copy)
            return error_set(-ENOMEM, "%s frame of %zu bytes: out of memory", wire_type_name((uint8_t)type),
                             length);
        memcpy(copy, payload, length);
    }
    scope_lock(&outbox->mutex);
    if (outbox->count == OUTBOX_MAX)
        return error_set(-ENOBUFS, "%s frame: %d control frames wait for the peer already",
                         wire_type_name((uint8_t)type), OUTBOX_MAX);
    outbox->items[(outbox->head + outbox->count++) % OUTBOX_MAX] =
        (struct outbox_item){type, generation, epoch, take_ptr(copy), length};
    return 0;
}

int outbox_produce(struct outbox *outbox, struct wire_writer *writer)
{
    int moved = 0;
    scope_lock(&outbox->mutex);
    while (outbox->count) {
        struct outbox_item *item = &outbox->items[outbox->head];
        if (wire_writer_put(writer, item->type, item->generation, item->epoch, item->payload, item->length) <
            0)
            break; /* no room: the lane asks again when this buffer is on its way */
        free(item->payload);
        outbox->head = (outbox->head + 1) % OUTBOX_MAX;
        if (--outbox->count == 0)
            pthread_cond_broadcast(&outbox->emptied);
        moved = 1;
    }
    return moved;
}

void outbox_drain(struct outbox *outbox, unsigned limit_ms)
{
    struct timespec until;
    clock_gettime(CLOCK_MONOTONIC, &until);
    until.tv_nsec += (long)(limit_ms % 1000) * (long)NS_PER_MS;
    until.tv_sec += limit_ms / 1000 + until.tv_nsec / (long)NS_PER_S;
    until.tv_nsec %= (long)NS_PER_S;
    scope_lock(&outbox->mutex);
    while (outbox->count && pthread_cond_timedwait(&outbox->emptied, &outbox->mutex, &until) == 0)
        ;
}
