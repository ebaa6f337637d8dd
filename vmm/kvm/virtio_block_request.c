/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/virtio_block_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdlib.h>

/* A request's way from its beginning until it is pushed; virtio_block.c has the picture. */

#define TRIES_MAX 16

/* --- the end of a request --- */

static void proceed(struct block_request *request);
static void start_waiting(struct block *block);

static void finish(struct block_request *request)
{
    struct block *block = request->block;
    struct virtqueue *queue = &block->virtio.queues[0];
    bool ok = request->status == BLOCK_OK;
    if (request->type == BLOCK_IN) /* the kernel may have written anywhere in it, even if it failed */
        virtqueue_chain_mark(queue, &request->chain, 0, request->bytes);
    virtqueue_chain_write(queue, &request->chain, request->chain.in_bytes - 1, &request->status, 1);
    uint32_t written = ok ? request->chain.in_bytes : request->chain.in_bytes == 1;
    virtqueue_push(queue, request->chain.head, written);
    virtio_signal(&block->virtio, 0);

    if (request->data) {
        free(request->data);
        block->copies_bytes -= request->bytes;
    }
    request->data = NULL;
    if (request->changes) {
        struct block_request **at = &block->changes;
        while (*at != request)
            at = &(*at)->next_change;
        *at = request->next_change;
    }
    request->used = false;
    request->next_free = block->unused;
    block->unused = request;
    block->virtio.under_way--;
    block->virtio.touching -= request->type == BLOCK_IN;
    start_waiting(block);
    io_ask(&block->virtio.work); /* there may be more in the queue than there was room for */
}

/* The disk is done with it, and who is told. A quiet device pushes nothing but what it waits for. */
static void finish_or_keep(struct block_request *request)
{
    struct block *block = request->block;
    if (block->virtio.quiet && !block->virtio.stopping && request->type != BLOCK_IN)
        block_list_add(&block->ended, request);
    else
        finish(request);
}

void block_settle(struct virtio *virtio)
{
    struct block_request *request;
    while ((request = block_list_take(&((struct block *)virtio)->ended)))
        finish(request);
}

void block_end(struct block_request *request, uint8_t status)
{
    request->status = status;
    if (!request->changes || !block_tell_later(request))
        finish_or_keep(request);
}

void block_told(struct block_request *request)
{
    finish_or_keep(request);
}

/* --- io_uring --- */

void block_submit(struct block_request *request)
{
    struct block *block = request->block;
    struct io *io = block->virtio.io;
    uint64_t at = request->offset + request->done;
    if (request->syncing || request->type == BLOCK_FLUSH) {
        io_fdatasync(io, &request->io, block->fd);
    } else if (request->type == BLOCK_IN) {
        unsigned count = virtqueue_chain_slice(&request->chain, request->done, request->bytes - request->done,
                                               request->pieces);
        io_readv(io, &request->io, block->fd, request->pieces, count, at);
    } else if (request->type == BLOCK_OUT) {
        io_write(io, &request->io, block->fd, request->data + request->done,
                 (unsigned)(request->bytes - request->done), at);
    } else {
        io_fallocate(io, &request->io, block->fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, request->offset,
                     request->bytes);
    }
}

void block_done(struct io_request *io_request, int result)
{
    struct block_request *request =
        (struct block_request *)((char *)io_request - offsetof(struct block_request, io));
    bool moves = !request->syncing && (request->type == BLOCK_IN || request->type == BLOCK_OUT);
    if ((result == -EINTR || result == -EAGAIN) && request->tries++ < TRIES_MAX) {
        block_submit(request);
        return;
    }
    if (result < 0 || (moves && result == 0)) { /* 0: the file has become shorter */
        block_end(request, BLOCK_IOERR);
        return;
    }
    if (moves)
        request->done += (uint64_t)result;
    if (moves && request->done < request->bytes)
        block_submit(request);
    else
        proceed(request);
}

/* The disk has done its part. A driver that knows no flush takes what is written for stable. */
static void proceed(struct block_request *request)
{
    if (request->changes && !request->syncing && !(request->block->virtio.accepted & BLOCK_F_FLUSH)) {
        request->syncing = true;
        block_submit(request);
    } else {
        block_end(request, BLOCK_OK);
    }
}

/* --- the order of changes --- */

static bool overlap(const struct block_request *a, const struct block_request *b)
{
    return a->offset < b->offset + b->bytes && b->offset < a->offset + a->bytes;
}

static bool must_wait(const struct block_request *request)
{
    for (const struct block_request *earlier = request->block->changes; earlier != request;
         earlier = earlier->next_change)
        if (overlap(earlier, request))
            return true;
    return false;
}

static void start_waiting(struct block *block)
{
    for (struct block_request *request = block->changes; request && block->waiting;
         request = request->next_change)
        if (!request->started && !must_wait(request)) {
            request->started = true;
            block->waiting--;
            block_submit(request);
        }
}

void block_start_change(struct block_request *request)
{
    struct block_request **at = &request->block->changes;
    while (*at)
        at = &(*at)->next_change;
    *at = request;
    request->next_change = NULL;
    request->changes = true;
    request->started = !must_wait(request);
    if (request->started)
        block_submit(request);
    else
        request->block->waiting++;
}
