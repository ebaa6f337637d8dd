/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_VIRTIO_BLOCK_INTERNAL_H
#define UNDERSTUDY_VMM_KVM_VIRTIO_BLOCK_INTERNAL_H

#include "vmm/kvm/virtio_devices.h"

#define BLOCK_QUEUE_SIZE 128
#define BLOCK_F_FLUSH    VIRTIO_F(9)

/* Of a request: Virtual I/O Device 1.2, section 5.2.6. */
enum {
    BLOCK_IN = 0,
    BLOCK_OUT = 1,
    BLOCK_FLUSH = 4,
    BLOCK_GET_ID = 8,
    BLOCK_DISCARD = 11,
    BLOCK_WRITE_ZEROES = 13,
};
enum { BLOCK_OK, BLOCK_IOERR, BLOCK_UNSUPPORTED };

/* One request, from the queue until it is pushed; see virtio_block.c. */
struct block_request {
    struct io_request io;
    struct block *block;
    struct virtqueue_chain chain;
    uint32_t type;
    uint64_t offset, bytes; /* on the disk; `done` of them have been moved */
    uint64_t done;
    char *data; /* OUT: the copy */
    unsigned tries;
    uint8_t status;
    bool used, changes; /* it is under way; and in block->changes */
    bool started, syncing;
    struct block_request *next_free, *next_change, *next_listed;
    struct iovec pieces[VIRTQUEUE_PIECES_MAX];
};

/* A FIFO of requests. */
struct block_list {
    struct block_request *first, **end;
};

static inline void block_list_clear(struct block_list *list)
{
    list->first = NULL;
    list->end = &list->first;
}

static inline void block_list_add(struct block_list *list, struct block_request *request)
{
    request->next_listed = NULL;
    *list->end = request;
    list->end = &request->next_listed;
}

static inline struct block_request *block_list_take(struct block_list *list)
{
    struct block_request *request = list->first;
    if (!request)
        return NULL;
    list->first = request->next_listed;
    if (!list->first)
        list->end = &list->first;
    return request;
}

struct block {
    struct virtio virtio;
    int fd;
    bool read_only;
    uint64_t bytes;
    char id[20];
    struct block_request requests[BLOCK_QUEUE_SIZE], *unused;
    struct block_request *changes; /* under way, in the order in which they came */
    unsigned waiting;              /* of these, those that are not started */
    uint64_t copies_bytes;
    struct block_list ended;          /* while quiet: to be pushed */
    uint16_t again[BLOCK_QUEUE_SIZE]; /* heads that another host had taken ... */
    unsigned again_count, again_at;   /* ... and the next to be begun again */

    /* Telling (virtio_block_tell.c). Guarded by tell_lock, which is taken after io's lock. */
    pthread_mutex_t tell_lock;
    pthread_cond_t tell_changed;
    pthread_t teller;
    bool telling, tell_stop;
    bool lost;              /* told so: nothing more is told */
    unsigned to_tell_count; /* of to_tell, and what the teller is telling */
    struct vmm_disk_sink sink;
    uint32_t disk;
    struct block_list to_tell, told;
    struct io_work told_work;
};

/* Give a request to io_uring. Its type, chain, and where it is on the disk are set. */
void block_submit(struct block_request *request);
/* The same for one that changes the disk, as soon as no earlier one overlaps it. */
void block_start_change(struct block_request *request);
/* Its io.done. */
void block_done(struct io_request *request, int result);
/* The request has this status: tell of it, and push it. */
void block_end(struct block_request *request, uint8_t status);
/* Of struct virtio_kind. */
void block_settle(struct virtio *virtio);

/* Starts the teller. */
int block_tell_init(struct block *block, struct io *io);
/* Ends it. */
void block_tell_end(struct block *block);
/* A change is made (or has failed). True: block_told() will be called when somebody has been told of it. */
bool block_tell_later(struct block_request *request);
void block_told(struct block_request *request);
#endif
