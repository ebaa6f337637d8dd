/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/virtio_block_internal.h"

#include <assert.h>
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>

/*
 * Telling of changes (struct vmm_disk_sink). The sink may wait, so it is called on a thread of the disk's
 * own, the teller, without any lock: a disk whose changes are not taken keeps nobody but itself waiting.
 * Requests come to it in `to_tell` and go back to the devices' thread in `told`.
 */

static enum vmm_disk_op op_of(const struct block_request *request)
{
    if (request->type == BLOCK_DISCARD)
        return VMM_DISK_DISCARD;
    return request->type == BLOCK_WRITE_ZEROES ? VMM_DISK_ZERO : VMM_DISK_WRITE;
}

/* Without the lock. Returns false when the disk is lost to those who are told. */
static bool tell(struct block *block, const struct block_request *request)
{
    const struct vmm_disk_sink *sink = &block->sink;
    if (request->status != BLOCK_OK) {
        char why[128];
        snprintf(why, sizeof why, "a change of %llu bytes at %llu failed, so that its content is not known",
                 (unsigned long long)request->bytes, (unsigned long long)request->offset);
        sink->lost(sink->ctx, block->disk, why);
        return false;
    }
    sink->change(sink->ctx, block->disk, op_of(request), request->offset, request->bytes, request->data);
    return true;
}

static void *teller(void *argument)
{
    struct block *block = argument;
    scope_lock(&block->tell_lock);
    for (;;) {
        struct block_request *request = block_list_take(&block->to_tell);
        if (!request) {
            if (block->tell_stop)
                return NULL;
            pthread_cond_wait(&block->tell_changed, &block->tell_lock);
            continue;
        }
        if (!block->lost) {
            pthread_mutex_unlock(&block->tell_lock);
            bool kept = tell(block, request);
            pthread_mutex_lock(&block->tell_lock);
            block->lost = !kept;
        }
        block_list_add(&block->told, request);
        block->to_tell_count--;
        pthread_cond_broadcast(&block->tell_changed);
        io_ask(&block->told_work);
    }
}

bool block_tell_later(struct block_request *request)
{
    struct block *block = request->block;
    scope_lock(&block->tell_lock);
    if (!block->telling || block->lost)
        return false;
    block_list_add(&block->to_tell, request);
    block->to_tell_count++;
    pthread_cond_broadcast(&block->tell_changed);
    return true;
}

static void on_told(struct io_work *work)
{
    struct block *block = (struct block *)((char *)work - offsetof(struct block, told_work));
    for (;;) {
        pthread_mutex_lock(&block->tell_lock);
        struct block_request *request = block_list_take(&block->told);
        pthread_mutex_unlock(&block->tell_lock);
        if (!request)
            return;
        block_told(request);
    }
}

int block_tell_init(struct block *block, struct io *io)
{
    pthread_mutex_init(&block->tell_lock, NULL);
    pthread_cond_init(&block->tell_changed, NULL);
    block_list_clear(&block->to_tell);
    block_list_clear(&block->told);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are for the other threads */
    int rc = -pthread_create(&block->teller, NULL, teller, block);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (rc) {
        pthread_cond_destroy(&block->tell_changed);
        pthread_mutex_destroy(&block->tell_lock);
        return error_errno(rc, "start the thread that tells of changes");
    }
    block->told_work.run = on_told;
    io_work_add(io, &block->told_work);
    return 0;
}

void block_tell_end(struct block *block)
{
    pthread_mutex_lock(&block->tell_lock);
    block->tell_stop = true;
    pthread_cond_broadcast(&block->tell_changed);
    pthread_mutex_unlock(&block->tell_lock);
    pthread_join(block->teller, NULL);
    pthread_cond_destroy(&block->tell_changed);
    pthread_mutex_destroy(&block->tell_lock);
}

void virtio_block_tell(struct device *device, const struct vmm_disk_sink *sink, uint32_t disk)
{
    struct block *block = (struct block *)device;
    scope_lock(&block->tell_lock);
    block->telling = false;
    while (block->to_tell_count) /* who was told hears the rest */
        pthread_cond_wait(&block->tell_changed, &block->tell_lock);
    if (!sink)
        return;
    block->sink = *sink;
    block->disk = disk;
    block->lost = false;
    block->telling = true;
}
