/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/virtqueue.h"
#include "base/byteorder.h"
#include "base/error.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation.
 *
 *     descriptors: size × { address, length, flags, next }     a request is a chain of them, or one that
 * points to a table of them elsewhere (indirect) available:   flags, idx, ring[size], used_event written by
 * the driver: heads of requests used:        flags, idx, ring[size], avail_event         written by us: heads
 * that are done
 *
 * Indices grow for ever, modulo 65536; entry i lies at i % size. The driver can be at most `size` ahead of
 * us.
 *
 * used_event and avail_event (with event_idx) are where the other side wants to be told. Telling races with
 * going to sleep: each side first publishes where it wants to be told, then looks once more. Neither may be
 * seen before the other, hence sequentially consistent stores and loads of indices (virtqueue_rearm(), and
 * virtqueue_push() with virtqueue_wants_signal()).
 *
 * What bounds a walk: a chain in the table of the queue has at most `size` descriptors, one in an indirect
 * table at most as many as the table, and both at most VIRTQUEUE_PIECES_MAX. A chain that has more loops.
 */

struct descriptor {
    le64 address;
    le32 bytes;
    le16 flags, next;
};
static_assert(sizeof(struct descriptor) == 16, "as in the specification");

enum { NEXT = 1, WRITE = 2, INDIRECT = 4 };
enum { NO_INTERRUPT = 1 }; /* in the available ring's flags */

#define AVAILABLE_BYTES(size) (6 + 2 * (uint64_t)(size))
#define USED_BYTES(size)      (6 + 8 * (uint64_t)(size))
#define INDEX_AT              2
#define RING_AT               4

int virtqueue_start(struct virtqueue *queue)
{
    assert(!queue->ready && queue->size_max <= VIRTQUEUE_SIZE_MAX);
    const struct area {
        const char *name;
        uint64_t gpa, bytes, alignment;
    } areas[] = {
        {"descriptor table", queue->descriptors, sizeof(struct descriptor) * (uint64_t)queue->size, 16},
        {"available ring", queue->available, AVAILABLE_BYTES(queue->size), 2},
        {"used ring", queue->used, USED_BYTES(queue->size), 4},
    };
    if (queue->size == 0 || queue->size > queue->size_max || (queue->size & (queue->size - 1)))
        return error_set(-EPROTO, "a queue of size %u: not a power of two from 1 to %u", queue->size,
                         queue->size_max);
    for (size_t i = 0; i < 3; i++) {
        if (areas[i].gpa % areas[i].alignment)
            return error_set(-EPROTO, "the %s at 0x%" PRIx64 " is not aligned", areas[i].name, areas[i].gpa);
        if (!guest_memory_pointer(queue->memory, areas[i].gpa, areas[i].bytes))
            return error_set(-EPROTO, "the %s at 0x%" PRIx64 " is not in RAM", areas[i].name, areas[i].gpa);
    }
    queue->ready = true;
    return 0;
}

void virtqueue_reset(struct virtqueue *queue)
{
    *queue = (struct virtqueue){.memory = queue->memory, .size_max = queue->size_max};
}

/* What virtqueue_start() has checked. */
static void *area(const struct virtqueue *queue, uint64_t gpa, uint64_t bytes)
{
    void *host = guest_memory_pointer(queue->memory, gpa, bytes);
    assert(queue->ready && host);
    return host;
}

static uint16_t load_u16(const struct virtqueue *queue, uint64_t gpa)
{
    return __atomic_load_n((const uint16_t *)area(queue, gpa, 2), __ATOMIC_SEQ_CST);
}

static void store_u16(struct virtqueue *queue, uint64_t gpa, uint16_t value)
{
    __atomic_store_n((uint16_t *)area(queue, gpa, 2), value, __ATOMIC_SEQ_CST);
    guest_memory_mark(queue->memory, gpa, 2);
}

static int bad_chain(uint16_t head, const char *what)
{
    return error_set(-EPROTO, "request %u: %s", head, what);
}

static int add_piece(struct virtqueue *queue, struct virtqueue_chain *chain,
                     const struct descriptor *descriptor)
{
    uint64_t gpa = from_le64(descriptor->address);
    uint32_t bytes = from_le32(descriptor->bytes);
    bool in = from_le16(descriptor->flags) & WRITE;
    uint32_t *total = in ? &chain->in_bytes : &chain->out_bytes;
    if (!in && chain->in_count)
        return bad_chain(chain->head, "a piece to read follows one to write");
    if (bytes == 0)
        return 0;
    if (bytes > UINT32_MAX - *total)
        return bad_chain(chain->head, "more than 4 GiB");
    void *host = guest_memory_pointer(queue->memory, gpa, bytes);
    if (!host)
        return error_set(-EPROTO, "request %u: %u bytes at 0x%" PRIx64 " are not in RAM", chain->head, bytes,
                         gpa);
    unsigned at = chain->out_count + chain->in_count;
    assert(at < VIRTQUEUE_PIECES_MAX); /* walks are bounded by it */
    chain->pieces[at] = (struct iovec){host, bytes};
    chain->gpas[at] = gpa;
    *total += bytes;
    ++*(in ? &chain->in_count : &chain->out_count);
    return 0;
}

/* Follow a chain in a table of `count` descriptors from `at` on. Returns 1 at an indirect descriptor. */
static int walk(struct virtqueue *queue, struct virtqueue_chain *chain, uint64_t table, uint32_t count,
                uint16_t at, bool nested, struct descriptor *ret_indirect)
{
    for (uint32_t walked = 0; walked < count; walked++) {
        struct descriptor descriptor;
        if (at >= count)
            return bad_chain(chain->head, "the next descriptor is outside its table");
        if (guest_memory_read(queue->memory, table + sizeof descriptor * (uint64_t)at, &descriptor,
                              sizeof descriptor))
            return bad_chain(chain->head, "its table is not in RAM");
        uint16_t flags = from_le16(descriptor.flags);
        if (flags & INDIRECT) {
            if (nested || !queue->indirect || walked || (flags & NEXT))
                return bad_chain(chain->head, nested             ? "an indirect table in another"
                                              : !queue->indirect ? "an indirect table was not negotiated"
                                                                 : "an indirect table in a chain");
            *ret_indirect = descriptor;
            return 1;
        }
        int rc = add_piece(queue, chain, &descriptor);
        if (rc)
            return rc;
        if (!(flags & NEXT))
            return 0;
        at = from_le16(descriptor.next);
    }
    return bad_chain(chain->head, "its descriptors are a loop");
}

int virtqueue_walk(struct virtqueue *queue, uint16_t head, struct virtqueue_chain *ret_chain)
{
    ret_chain->head = head;
    ret_chain->out_count = ret_chain->in_count = 0;
    ret_chain->out_bytes = ret_chain->in_bytes = 0;
    struct descriptor indirect;
    int rc = walk(queue, ret_chain, queue->descriptors, queue->size, head, false, &indirect);
    if (rc <= 0)
        return rc;
    uint64_t table = from_le64(indirect.address);
    uint32_t bytes = from_le32(indirect.bytes);
    if (bytes == 0 || bytes % sizeof indirect || bytes / sizeof indirect > VIRTQUEUE_PIECES_MAX)
        return error_set(-EPROTO, "request %u: an indirect table of %u bytes", head, bytes);
    if (!guest_memory_pointer(queue->memory, table, bytes))
        return bad_chain(head, "its table is not in RAM");
    return walk(queue, ret_chain, table, (uint32_t)(bytes / sizeof indirect), 0, true, NULL);
}

int virtqueue_peek(struct virtqueue *queue, struct virtqueue_chain *ret_chain)
{
    uint16_t ahead = (uint16_t)(load_u16(queue, queue->available + INDEX_AT) - queue->next_available);
    if (ahead == 0)
        return 0;
    if (ahead > queue->size)
        return error_set(-EPROTO, "the available ring is %u ahead, its size is %u", ahead, queue->size);
    uint64_t entry = queue->available + RING_AT + 2 * (uint64_t)(queue->next_available % queue->size);
    int rc = virtqueue_walk(queue, load_u16(queue, entry), ret_chain);
    return rc ? rc : 1;
}

void virtqueue_advance(struct virtqueue *queue)
{
    queue->next_available++;
}

void virtqueue_push(struct virtqueue *queue, uint16_t head, uint32_t written)
{
    assert(queue->next_used != queue->next_available); /* each comes back once */
    struct {
        le32 head, bytes;
    } element = {to_le32(head), to_le32(written)};
    uint64_t entry = queue->used + RING_AT + sizeof element * (uint64_t)(queue->next_used % queue->size);
    memcpy(area(queue, entry, sizeof element), &element, sizeof element);
    guest_memory_mark(queue->memory, entry, sizeof element);
    store_u16(queue, queue->used + INDEX_AT, ++queue->next_used);
}

bool virtqueue_rearm(struct virtqueue *queue)
{
    if (queue->event_idx)
        store_u16(queue, queue->used + RING_AT + 8 * (uint64_t)queue->size, queue->next_available);
    return load_u16(queue, queue->available + INDEX_AT) != queue->next_available;
}

bool virtqueue_wants_signal(struct virtqueue *queue)
{
    if (!queue->event_idx)
        return !(load_u16(queue, queue->available) & NO_INTERRUPT);
    uint16_t before = queue->signalled, now = queue->next_used;
    bool known = queue->signalled_known;
    queue->signalled = now;
    queue->signalled_known = true;
    if (known && before == now)
        return false;
    uint16_t event = load_u16(queue, queue->available + RING_AT + 2 * (uint64_t)queue->size);
    /* Whether `event` is one of before ... now - 1 (section 2.7.7.1). */
    return !known || (uint16_t)(now - event - 1) < (uint16_t)(now - before);
}

size_t virtqueue_chain_read(const struct virtqueue_chain *chain, size_t offset, void *to, size_t bytes)
{
    size_t done = 0;
    for (unsigned i = 0; i < chain->out_count && done < bytes; i++) {
        const struct iovec *piece = &chain->pieces[i];
        if (offset >= piece->iov_len) {
            offset -= piece->iov_len;
            continue;
        }
        size_t part = piece->iov_len - offset < bytes - done ? piece->iov_len - offset : bytes - done;
        memcpy((char *)to + done, (const char *)piece->iov_base + offset, part);
        done += part;
        offset = 0;
    }
    return done;
}

size_t virtqueue_chain_write(struct virtqueue *queue, const struct virtqueue_chain *chain, size_t offset,
                             const void *from, size_t bytes)
{
    struct iovec pieces[VIRTQUEUE_PIECES_MAX];
    size_t done = 0;
    unsigned count = virtqueue_chain_slice(chain, offset, bytes, pieces);
    for (unsigned i = 0; i < count; i++) {
        memcpy(pieces[i].iov_base, (const char *)from + done, pieces[i].iov_len);
        done += pieces[i].iov_len;
    }
    virtqueue_chain_mark(queue, chain, offset, done);
    return done;
}

unsigned virtqueue_chain_slice(const struct virtqueue_chain *chain, size_t offset, size_t bytes,
                               struct iovec ret_pieces[VIRTQUEUE_PIECES_MAX])
{
    unsigned count = 0;
    for (unsigned i = chain->out_count; i < chain->out_count + chain->in_count && bytes; i++) {
        const struct iovec *piece = &chain->pieces[i];
        if (offset >= piece->iov_len) {
            offset -= piece->iov_len;
            continue;
        }
        size_t part = piece->iov_len - offset < bytes ? piece->iov_len - offset : bytes;
        ret_pieces[count++] = (struct iovec){(char *)piece->iov_base + offset, part};
        bytes -= part;
        offset = 0;
    }
    return count;
}

void virtqueue_chain_mark(struct virtqueue *queue, const struct virtqueue_chain *chain, size_t offset,
                          size_t bytes)
{
    for (unsigned i = chain->out_count; i < chain->out_count + chain->in_count && bytes; i++) {
        size_t length = chain->pieces[i].iov_len;
        if (offset >= length) {
            offset -= length;
            continue;
        }
        size_t part = length - offset < bytes ? length - offset : bytes;
        guest_memory_mark(queue->memory, chain->gpas[i] + offset, part);
        bytes -= part;
        offset = 0;
    }
}
