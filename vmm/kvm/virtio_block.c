/* SPDX-License-Identifier: Apache-2.0 */
#include "base/byteorder.h"
#include "base/error.h"
#include "base/scope.h"
#include "vmm/kvm/virtio_block_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <linux/fs.h>
#include <stddef.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>

/*
 * The block device (Virtual I/O Device 1.2, section 5.2) on a raw file or block device, through the page
 * cache.
 *
 * Theory of operation. A request goes through these places; while it is in any, it is under way:
 *
 *     queue ──take──► waiting ──► io_uring ──► (sync) ──► teller ──► pushed
 *                    (a change that overlaps              (a change, while
 *                     an earlier one)                      somebody is told)
 *
 * What is written is copied out of the guest first, so that the disk and whoever is told get the same bytes,
 * whatever the guest does to its buffer meanwhile. Changes that overlap are made, and told, one after the
 * other in the order in which they came, so that both end up with the same content. A change comes back to
 * the guest when it was made and told. It may come back before it is stable, as from any disk with a cache,
 * unless the driver knows no flush.
 *
 * A pause waits for reads alone, which write to guest RAM: a flush of a slow disk would make it as long. All
 * else lasts: what ends while the device is quiet is kept and pushed afterwards, and the state names it as
 * taken, so that another host begins it again. That does no harm: the guest has not been told of it, it is
 * the same request, and what it overlaps with waits for it there as well.
 *
 * A change that fails leaves the disk with unknown content there. Whoever is told hears that as the loss of
 * the disk, and copies it again.
 */

enum { UNMAP = 1 };

#define F_SIZE_MAX     VIRTIO_F(1)
#define F_SEG_MAX      VIRTIO_F(2)
#define F_READ_ONLY    VIRTIO_F(5)
#define F_BLK_SIZE     VIRTIO_F(6)
#define F_DISCARD      VIRTIO_F(13)
#define F_WRITE_ZEROES VIRTIO_F(14)

#define PIECE_BYTES_MAX 65536u
#define PIECES_MAX      (BLOCK_QUEUE_SIZE - 2)
/* What requests of one piece list can carry; more is refused. */
#define DATA_BYTES_MAX (PIECE_BYTES_MAX * PIECES_MAX)
/* Copies of what is being written, together. */
#define COPIES_BYTES_MAX  (32u << 20)
#define RANGE_SECTORS_MAX (1u << 22)

struct request_header {
    le32 type, reserved;
    le64 sector;
};
static_assert(sizeof(struct request_header) == 16, "as in the specification");

struct range {
    le64 sector;
    le32 sectors, flags;
};
static_assert(sizeof(struct range) == 16, "as in the specification");

struct config {
    le64 capacity; /* sectors */
    le32 size_max, seg_max;
    uint8_t geometry[4];
    le32 blk_size;
    uint8_t topology[8], writeback, unused0;
    le16 num_queues;
    le32 max_discard_sectors, max_discard_seg, discard_sector_alignment;
    le32 max_write_zeroes_sectors, max_write_zeroes_seg;
    uint8_t write_zeroes_may_unmap, unused1[3];
} __attribute__((packed));
static_assert(offsetof(struct config, max_discard_sectors) == 36 && sizeof(struct config) == 60,
              "as in the specification");

static bool on_disk(const struct block *block, uint64_t sector, uint64_t bytes)
{
    return bytes % VMM_DISK_SECTOR == 0 && sector <= block->bytes / VMM_DISK_SECTOR &&
           bytes <= block->bytes - sector * VMM_DISK_SECTOR;
}

static void start_data(struct block_request *request, uint64_t sector)
{
    struct block *block = request->block;
    if (!on_disk(block, sector, request->bytes) || (request->type == BLOCK_OUT && block->read_only)) {
        block_end(request, BLOCK_IOERR);
        return;
    }
    request->offset = sector * VMM_DISK_SECTOR;
    if (request->bytes == 0) {
        block_end(request, BLOCK_OK);
    } else if (request->type == BLOCK_IN) {
        block_submit(request);
    } else {
        request->data = malloc(request->bytes);
        if (!request->data) {
            block_end(request, BLOCK_IOERR);
            return;
        }
        block->copies_bytes += request->bytes;
        virtqueue_chain_read(&request->chain, sizeof(struct request_header), request->data, request->bytes);
        block_start_change(request);
    }
}

static void start_range(struct block_request *request)
{
    struct block *block = request->block;
    struct range range;
    uint64_t feature = request->type == BLOCK_DISCARD ? F_DISCARD : F_WRITE_ZEROES;
    if (!(block->virtio.accepted & feature)) {
        block_end(request, BLOCK_UNSUPPORTED);
        return;
    }
    if (request->bytes != sizeof range) { /* one range is all that we offer */
        block_end(request, BLOCK_IOERR);
        return;
    }
    virtqueue_chain_read(&request->chain, sizeof(struct request_header), &range, sizeof range);
    uint32_t sectors = from_le32(range.sectors), flags = from_le32(range.flags);
    request->bytes = (uint64_t)sectors * VMM_DISK_SECTOR;
    if (flags & ~(uint32_t)(request->type == BLOCK_WRITE_ZEROES ? UNMAP : 0)) {
        block_end(request, BLOCK_UNSUPPORTED);
    } else if (sectors > RANGE_SECTORS_MAX || !on_disk(block, from_le64(range.sector), request->bytes)) {
        block_end(request, BLOCK_IOERR);
    } else if (sectors == 0) {
        block_end(request, BLOCK_OK);
    } else {
        request->offset = from_le64(range.sector) * VMM_DISK_SECTOR;
        block_start_change(request);
    }
}

static void start(struct block_request *request, const struct request_header *header)
{
    struct block *block = request->block;
    struct virtqueue *queue = &block->virtio.queues[0];
    switch (request->type) {
    case BLOCK_IN:
    case BLOCK_OUT:
        start_data(request, from_le64(header->sector));
        break;
    case BLOCK_DISCARD:
    case BLOCK_WRITE_ZEROES:
        start_range(request);
        break;
    case BLOCK_FLUSH:
        if (block->read_only)
            block_end(request, BLOCK_OK);
        else
            block_submit(request);
        break;
    case BLOCK_GET_ID: {
        size_t room = request->chain.in_bytes - 1;
        virtqueue_chain_write(queue, &request->chain, 0, block->id,
                              room < sizeof block->id ? room : sizeof block->id);
        block_end(request, BLOCK_OK);
        break;
    }
    default:
        block_end(request, BLOCK_UNSUPPORTED);
    }
}

/* request->chain is a request, `fresh` from the queue or one that another host had begun. 1: it is begun; 0:
 * it is none, and the device is broken; -EAGAIN: not now, the end of another write lets it in. */
static int begin(struct block_request *request, bool fresh)
{
    struct block *block = request->block;
    struct request_header header;
    struct virtqueue_chain *chain = &request->chain;
    if (chain->out_bytes < sizeof header || chain->in_bytes == 0) {
        error_set(-EPROTO, "request %u: %u bytes to read, %u to write: no request", chain->head,
                  chain->out_bytes, chain->in_bytes);
        virtio_break(&block->virtio);
        return 0;
    }
    virtqueue_chain_read(chain, 0, &header, sizeof header);
    request->type = from_le32(header.type);
    request->bytes = request->type == BLOCK_IN ? chain->in_bytes - 1 : chain->out_bytes - sizeof header;
    if (request->type == BLOCK_OUT && request->bytes <= DATA_BYTES_MAX &&
        request->bytes + block->copies_bytes > COPIES_BYTES_MAX)
        return -EAGAIN;
    request->offset = request->done = 0;
    request->tries = 0;
    request->changes = request->started = request->syncing = false;
    request->used = true;
    block->unused = request->next_free;
    block->virtio.under_way++;
    block->virtio.touching += request->type == BLOCK_IN;
    if (fresh)
        virtqueue_advance(&block->virtio.queues[0]);
    if (request->bytes > DATA_BYTES_MAX)
        block_end(request, BLOCK_IOERR);
    else
        start(request, &header);
    return 1;
}

static int take_one(struct virtio *virtio)
{
    struct block *block = (struct block *)virtio;
    struct block_request *request = block->unused;
    if (!request)
        return -EAGAIN; /* the end of another lets it in */
    return virtio_peek(virtio, 0, &request->chain) ? begin(request, true) : 0;
}

/* What another host had taken and not pushed comes first. Returns whether all of it is begun. */
static bool begin_again(struct block *block)
{
    struct virtio *virtio = &block->virtio;
    while (block->again_at < block->again_count) {
        struct block_request *request = block->unused; /* there are as many as the queue is long */
        if (virtqueue_walk(&virtio->queues[0], block->again[block->again_at], &request->chain)) {
            virtio_break(virtio);
            return false;
        }
        if (begin(request, false) <= 0)
            return false;
        block->again_at++;
    }
    return true;
}

static void work(struct virtio *virtio)
{
    struct block *block = (struct block *)virtio;
    if (virtio_queue_runs(virtio, 0) && begin_again(block))
        virtio_work_queue(virtio, 0, take_one); /* what is pushed was signalled, now or later */
}

/* --- what lasts --- */

static void forget(struct virtio *virtio)
{
    struct block *block = (struct block *)virtio;
    block->again_count = block->again_at = 0;
}

/* Flushes concern what has been pushed, so among themselves and with changes they have no order. */
static void save(struct virtio *virtio, struct record_writer *to)
{
    const struct block *block = (const struct block *)virtio;
    for (const struct block_request *request = block->changes; request; request = request->next_change)
        record_put_u16(to, request->chain.head);
    for (unsigned i = 0; i < BLOCK_QUEUE_SIZE; i++)
        if (block->requests[i].used && !block->requests[i].changes)
            record_put_u16(to, block->requests[i].chain.head);
    for (unsigned i = block->again_at; i < block->again_count; i++)
        record_put_u16(to, block->again[i]);
}

/* A guest that lies may have had a head taken twice, or more than its queue is long; that is its own affair.
 */
static int load(struct virtio *virtio, struct record *from, unsigned count)
{
    struct block *block = (struct block *)virtio;
    if (count > BLOCK_QUEUE_SIZE)
        return error_set(-EBADMSG, "%u requests are under way, it can have %d", count, BLOCK_QUEUE_SIZE);
    for (unsigned i = 0; i < count; i++) {
        block->again[i] = record_take_u16(from);
        if (block->again[i] >= virtio->queues[0].size)
            return error_set(-EBADMSG, "request %u is under way in a queue of size %u", block->again[i],
                             virtio->queues[0].size);
    }
    block->again_count = count;
    block->again_at = 0;
    return 0;
}

static void free_block(struct virtio *virtio)
{
    struct block *block = (struct block *)virtio;
    block_tell_end(block);
    for (unsigned i = 0; i < BLOCK_QUEUE_SIZE; i++)
        free(block->requests[i].data);
    if (block->fd >= 0)
        close(block->fd);
}

static const struct virtio_kind kind = {
    .name = "virtio-block",
    .device_id = 2,
    .record_type = RECORD_VIRTIO_BLOCK,
    .queue_count = 1,
    .queue_size = BLOCK_QUEUE_SIZE,
    .work = work,
    .lasting = {block_settle, forget, save, load},
    .free = free_block,
};

int virtio_block_look(int fd, const char *name, uint64_t *ret_bytes, bool *ret_discards)
{
    struct stat stat;
    if (fstat(fd, &stat))
        return error_errno(-errno, "disk '%s': stat", name);
    uint64_t bytes = (uint64_t)stat.st_size;
    if (S_ISBLK(stat.st_mode)) {
        if (ioctl(fd, BLKGETSIZE64, &bytes))
            return error_errno(-errno, "disk '%s': find its size", name);
    } else if (!S_ISREG(stat.st_mode)) {
        return error_set(-EINVAL, "disk '%s' is neither a file nor a block device", name);
    }
    if (bytes == 0 || bytes % VMM_DISK_SECTOR)
        return error_set(-EINVAL, "disk '%s': its %" PRIu64 " bytes are no whole number of sectors of %u",
                         name, bytes, VMM_DISK_SECTOR);
    /* Behind the end a hole changes nothing, and shows whether the file system can make one. */
    *ret_discards = S_ISREG(stat.st_mode) && fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                                                       stat.st_size, VMM_DISK_SECTOR) == 0;
    *ret_bytes = bytes;
    return 0;
}

uint64_t virtio_block_bytes(const struct device *device)
{
    return ((const struct block *)device)->bytes;
}

int virtio_block_new(struct device **ret_device, const struct virtio_place *place, int fd, bool read_only,
                     const char *name)
{
    uint64_t bytes = 0;
    bool discards = false;
    int rc = virtio_block_look(fd, name, &bytes, &discards);
    if (rc)
        return rc;
    struct block *block = calloc(1, sizeof *block);
    if (!block)
        return error_set(-ENOMEM, "disk '%s': no memory", name);
    block->fd = fd;
    block->read_only = read_only;
    block->bytes = bytes;
    memcpy(block->id, name, strnlen(name, sizeof block->id));
    for (unsigned i = 0; i < BLOCK_QUEUE_SIZE; i++) {
        struct block_request *request = &block->requests[i];
        request->block = block;
        request->io.done = block_done;
        request->next_free = block->unused;
        block->unused = request;
    }
    struct config config = {
        .capacity = to_le64(bytes / VMM_DISK_SECTOR),
        .size_max = to_le32(PIECE_BYTES_MAX),
        .seg_max = to_le32(PIECES_MAX),
        .blk_size = to_le32(VMM_DISK_SECTOR),
    };
    uint64_t features = F_SIZE_MAX | F_SEG_MAX | F_BLK_SIZE | BLOCK_F_FLUSH;
    if (read_only) {
        features |= F_READ_ONLY;
    } else if (discards) {
        features |= F_DISCARD | F_WRITE_ZEROES;
        config.max_discard_sectors = config.max_write_zeroes_sectors = to_le32(RANGE_SECTORS_MAX);
        config.max_discard_seg = config.max_write_zeroes_seg = to_le32(1);
        config.discard_sector_alignment = to_le32(1);
        config.write_zeroes_may_unmap = 1;
    }
    block_list_clear(&block->ended);
    rc = block_tell_init(block, place->io);
    if (rc) {
        free(block);
        return error_add(rc, "disk '%s'", name);
    }
    virtio_init(&block->virtio, &kind, place, features, &config, sizeof config);
    *ret_device = &block->virtio.device;
    return 0;
}
