/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "vmm/kvm/virtio_devices.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/random.h>

/*
 * The entropy device (Virtual I/O Device 1.2, section 5.4). A request is answered with at most ANSWER_BYTES,
 * so that a guest that asks for gigabytes keeps nobody waiting. What the standby's guest gets to see is what
 * it saw at its checkpoint, for it lies in its RAM.
 */
#define ANSWER_BYTES 4096

static int answer_one(struct virtio *virtio)
{
    struct virtqueue_chain chain;
    if (!virtio_peek(virtio, 0, &chain))
        return 0;
    uint8_t bytes[ANSWER_BYTES];
    size_t wanted = chain.in_bytes < sizeof bytes ? chain.in_bytes : sizeof bytes;
    ssize_t got = getrandom(bytes, wanted, 0);
    if (chain.out_bytes || wanted == 0 || got < 0) {
        error_set(-EPROTO, "request %u: nothing to fill", chain.head);
        virtio_break(virtio);
        return 0;
    }
    virtqueue_advance(&virtio->queues[0]);
    size_t put = virtqueue_chain_write(&virtio->queues[0], &chain, 0, bytes, (size_t)got);
    virtqueue_push(&virtio->queues[0], chain.head, (uint32_t)put);
    return 1;
}

static void work(struct virtio *virtio)
{
    if (virtio_work_queue(virtio, 0, answer_one))
        virtio_signal(virtio, 0);
}

static const struct virtio_kind kind = {
    .name = "virtio-rng",
    .device_id = 4,
    .record_type = RECORD_VIRTIO_RNG,
    .queue_count = 1,
    .queue_size = 64,
    .work = work,
};

int virtio_rng_new(struct device **ret_device, const struct virtio_place *place)
{
    struct virtio *virtio = calloc(1, sizeof *virtio);
    if (!virtio)
        return error_set(-ENOMEM, "virtio-rng: no memory");
    virtio_init(virtio, &kind, place, 0, NULL, 0);
    *ret_device = &virtio->device;
    return 0;
}
