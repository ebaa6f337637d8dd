/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/encode.h"

#include "base/error.h"
#include "checkpoint/rate.h"
#include "checkpoint/source.h"

#include <errno.h>
#include <lz4.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * The table of runs stands before the bodies, and how many runs there are depends on which pages are zero. So
 * the pages are looked at first (`zeros`: one bit a page), then the table is laid out, then the bodies
 * follow.
 *
 * Pages of a running guest change under our hands: zero when looked at and not when copied, or, worse, bytes
 * that change while LZ4 looks for matches in them. Such pages are copied once to memory of our own, and
 * everything else happens there. When they will go raw, that memory is the payload itself, where the bodies
 * would lie if no page were zero; with no zero page among them, nothing moves any more. That is the path that
 * a full copy of incompressible memory takes: one copy in all.
 */

/* LZ4 that saves less than this share of a run is not worth the receiver's time. */
#define LZ4_ROOM(bytes) ((bytes) - (bytes) / 16)
#define SAMPLE_BYTES    ((size_t)RATE_SAMPLE_PAGES * VMM_PAGE_BYTES)

_Static_assert(PLAN_CHUNK_PAGES == 64, "the zero pages of a chunk are one 64-bit word");
_Static_assert(PLAN_CHUNK_PAGES <= WIRE_RUN_BODY_PAGES_MAX, "a run of a chunk is a run on the wire");
_Static_assert(ENCODE_PAYLOAD_MAX <= WIRE_PAYLOAD_MAX, "a chunk is a frame");
_Static_assert(ENCODE_DISK_PAYLOAD_MAX <= ENCODE_PAYLOAD_MAX,
               "changes of disks take no more room than pages");
_Static_assert(ENCODE_STATE_PAYLOAD_MAX <= ENCODE_PAYLOAD_MAX,
               "a piece of device state takes no more room than pages");
_Static_assert(PLAN_STATE_PIECE <= WIRE_STATE_PIECE_MAX, "a piece of device state may be compressed");

int encoder_init(struct encoder *encoder, bool changes)
{
    size_t scratch_bytes = (size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES;
    *encoder = (struct encoder){.memory_bytes = scratch_bytes + (size_t)LZ4_sizeofState() + SAMPLE_BYTES +
                                                (changes ? MESSAGE_DELTA_RAW_MAX : 0)};
    if (changes && delta_init(&encoder->delta) < 0)
        return -ENOMEM;
    encoder->scratch = aligned_alloc(VMM_PAGE_BYTES, scratch_bytes);
    encoder->lz4 = malloc((size_t)LZ4_sizeofState());
    encoder->sample = malloc(SAMPLE_BYTES);
    if (!encoder->scratch || !encoder->lz4 || !encoder->sample) {
        encoder_fini(encoder);
        return error_errno(-ENOMEM, "encoder of a lane");
    }
    return 0;
}

void encoder_fini(struct encoder *encoder)
{
    free(encoder->scratch);
    free(encoder->lz4);
    free(encoder->sample);
    delta_fini(&encoder->delta);
    *encoder = (struct encoder){0};
}

static bool is_zero(const uint8_t *page)
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    uint64_t first;
    memcpy(&first, page, sizeof first);
    return first == 0 && memcmp(page, zeros, sizeof zeros) == 0;
}

uint64_t encode_find_zeros(const uint8_t *bytes, uint32_t pages)
{
    uint64_t zeros = 0;
    for (uint32_t i = 0; i < pages; i++)
        zeros |= (uint64_t)is_zero(bytes + (size_t)i * VMM_PAGE_BYTES) << i;
    return zeros;
}

static void write_head(const struct plan_item *item, uint16_t runs, uint32_t pages, uint8_t *payload)
{
    struct wire_pages head = {.block = to_le32(item->ranges[0].block),
                              .run_count = to_le16(runs),
                              .round = to_le32(item->round),
                              .page_count = to_le32(pages)};
    memcpy(payload, &head, sizeof head);
}

static uint8_t *run_at(uint8_t *payload, uint32_t index)
{
    return payload + sizeof(struct wire_pages) + index * sizeof(struct wire_run);
}

static void write_run(uint8_t *payload, uint32_t index, uint64_t first, uint32_t pages,
                      enum wire_encoding encoding, size_t body)
{
    struct wire_run run = {.first = to_le64(first),
                           .pages = to_le16((uint16_t)pages),
                           .encoding = (uint8_t)encoding,
                           .body = to_le32((uint32_t)body)};
    memcpy(run_at(payload, index), &run, sizeof run);
}

/* A stretch of consecutive pages that are all zero or all not. */
struct stretch {
    uint64_t first;
    uint32_t at, pages; /* in the chunk's bytes */
    bool zero;
};

static uint32_t find_stretches(const struct plan_item *item, uint64_t whole, uint64_t zeros,
                               struct stretch stretches[PLAN_CHUNK_PAGES])
{
    uint32_t count = 0, at = 0;
    for (uint32_t r = 0; r < item->range_count; r++) {
        const struct vmm_range *range = &item->ranges[r];
        bool begin = true;
        for (uint32_t i = 0; i < range->pages; i++, at++) {
            bool zero = zeros >> at & 1, begins = begin;
            begin = !(whole >> at & 1);
            if (begin)
                continue;
            if (begins || stretches[count - 1].zero != zero)
                stretches[count++] = (struct stretch){.first = range->first + i, .at = at, .zero = zero};
            stretches[count - 1].pages++;
        }
    }
    return count;
}

/* `whole`: the pages that are to be encoded. */
static void encode_known(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes,
                         uint64_t whole, uint64_t zeros, bool lz4, uint8_t *payload,
                         struct encoded *ret_encoded)
{
    struct stretch stretches[PLAN_CHUNK_PAGES];
    uint32_t count = find_stretches(item, whole, zeros, stretches);
    struct encoded encoded = {0};
    uint8_t *body = run_at(payload, count);

    for (uint32_t i = 0; i < count; i++) {
        const struct stretch *stretch = &stretches[i];
        if (stretch->zero) {
            write_run(payload, i, stretch->first, stretch->pages, WIRE_RUN_ZERO, 0);
            encoded.zero += stretch->pages;
            continue;
        }
        const uint8_t *from = bytes + (size_t)stretch->at * VMM_PAGE_BYTES;
        int raw_bytes = (int)(stretch->pages * VMM_PAGE_BYTES);
        int body_bytes = 0;
        if (lz4)
            body_bytes = LZ4_compress_fast_extState(encoder->lz4, (const char *)from, (char *)body, raw_bytes,
                                                    LZ4_ROOM(raw_bytes), 1);
        if (body_bytes > 0) {
            write_run(payload, i, stretch->first, stretch->pages, WIRE_RUN_LZ4, (size_t)body_bytes);
            encoded.lz4 += stretch->pages;
            encoded.lz4_bytes += (size_t)body_bytes;
        } else {
            body_bytes = raw_bytes;
            memcpy(body, from, (size_t)raw_bytes);
            write_run(payload, i, stretch->first, stretch->pages, WIRE_RUN_RAW, (size_t)raw_bytes);
            encoded.raw += stretch->pages;
        }
        body += body_bytes;
        encoded.body_bytes += (size_t)body_bytes;
    }
    write_head(item, (uint16_t)count, encoded.zero + encoded.raw + encoded.lz4, payload);
    encoded.length = (size_t)(body - payload);
    *ret_encoded = encoded;
}

void encode_whole(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes, bool lz4,
                  uint8_t *payload, struct encoded *ret_encoded)
{
    const struct delta *delta = &encoder->delta;
    encode_known(encoder, item, bytes, delta->whole, delta->zeros, lz4, payload, ret_encoded);
}

void encode_stable(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes, bool lz4,
                   uint8_t *payload, struct encoded *ret_encoded)
{
    encode_known(encoder, item, bytes, UINT64_MAX, encode_find_zeros(bytes, item->pages), lz4, payload,
                 ret_encoded);
}

size_t encode_sample(struct encoder *encoder, const uint8_t *payload, const struct encoded *encoded,
                     size_t *ret_out)
{
    size_t bytes = encoded->body_bytes < SAMPLE_BYTES ? encoded->body_bytes : SAMPLE_BYTES;
    if (bytes == 0)
        return 0;
    const uint8_t *from = payload + encoded->length - encoded->body_bytes + (encoded->body_bytes - bytes) / 2;
    int out = LZ4_compress_fast_extState(encoder->lz4, (const char *)from, (char *)encoder->sample,
                                         (int)bytes, (int)LZ4_ROOM(bytes), 1);
    *ret_out = out > 0 ? (size_t)out : bytes;
    return bytes;
}

int encode_read(struct encoder *encoder, const struct plan_item *item, struct vmm *source,
                const struct vmm_description *guest)
{
    return source_read(source, guest, item->ranges, item->range_count, encoder->scratch);
}

int encode_direct(struct encoder *encoder, const struct plan_item *item, struct vmm *source,
                  const struct vmm_description *guest, bool lz4, uint8_t *payload,
                  struct encoded *ret_encoded)
{
    size_t bytes = (size_t)item->pages * VMM_PAGE_BYTES;
    uint8_t *to = lz4 ? encoder->scratch : run_at(payload, item->range_count);
    int r = source_read(source, guest, item->ranges, item->range_count, to);
    if (r < 0)
        return r;
    uint64_t zeros = encode_find_zeros(to, item->pages);
    if (lz4) {
        encode_known(encoder, item, to, UINT64_MAX, zeros, true, payload, ret_encoded);
        return 0;
    }
    if (zeros) {
        memcpy(encoder->scratch, to, bytes);
        encode_known(encoder, item, encoder->scratch, UINT64_MAX, zeros, false, payload, ret_encoded);
        return 0;
    }
    write_head(item, (uint16_t)item->range_count, item->pages, payload);
    for (uint32_t i = 0; i < item->range_count; i++)
        write_run(payload, i, item->ranges[i].first, (uint32_t)item->ranges[i].pages, WIRE_RUN_RAW,
                  item->ranges[i].pages * VMM_PAGE_BYTES);
    *ret_encoded =
        (struct encoded){.length = (size_t)(to - payload) + bytes, .raw = item->pages, .body_bytes = bytes};
    return 0;
}

void encode_disk(struct encoder *encoder, const struct plan_item *item, bool lz4, uint8_t *payload,
                 struct encoded *ret_encoded)
{
    struct wire_disk head = {.round = to_le32(item->round),
                             .record_count = to_le32(item->record_count),
                             .first = to_le64(item->first_record)};
    uint8_t *at = mempcpy(payload, &head, sizeof head);
    uint8_t *body = at + item->record_count * sizeof(struct wire_disk_record);
    const struct disk_record *record;
    TAILQ_FOREACH(record, &item->records, link)
    {
        size_t bytes = disk_record_body(record), used = 0;
        uint8_t op = record->op;
        if (bytes && lz4)
            used = (size_t)LZ4_compress_fast_extState(encoder->lz4, (const char *)record->data, (char *)body,
                                                      (int)bytes, (int)LZ4_ROOM(bytes), 1);
        if (used) {
            op = WIRE_DISK_LZ4;
        } else if (bytes) {
            memcpy(body, record->data, bytes);
            used = bytes;
        }
        struct wire_disk_record wire = {.offset = to_le64(record->offset),
                                        .bytes = to_le64(record->bytes),
                                        .body = to_le32((uint32_t)used),
                                        .disk = (uint8_t)record->disk,
                                        .op = op};
        at = mempcpy(at, &wire, sizeof wire);
        body += used;
        ret_encoded->body_bytes += used;
    }
    ret_encoded->length = (size_t)(body - payload);
}

enum wire_type encode_state(struct encoder *encoder, const struct plan_item *item, const uint8_t *state,
                            bool lz4, uint8_t *payload, size_t *ret_length)
{
    const uint8_t *piece = state + item->offset;
    size_t head;
    if (lz4) {
        head = message_state_lz4_build(item->offset, item->total, (uint32_t)item->length, payload);
        int block = LZ4_compress_fast_extState(encoder->lz4, (const char *)piece, (char *)payload + head,
                                               (int)item->length, (int)LZ4_ROOM(item->length), 1);
        if (block > 0) {
            *ret_length = head + (size_t)block;
            return WIRE_STATE_LZ4;
        }
    }
    head = message_state_build(item->offset, item->total, payload);
    memcpy(payload + head, piece, item->length);
    *ret_length = head + item->length;
    return WIRE_STATE;
}
