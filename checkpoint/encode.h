/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_ENCODE_H
#define UNDERSTUDY_CHECKPOINT_ENCODE_H

#include "checkpoint/delta.h"

/*
 * One chunk of pages to one WIRE_PAGES payload, and one of WIRE_DELTA for those of which only changes go, in
 * place in the lane's buffer.
 */
#define ENCODE_PAYLOAD_MAX                                                                                   \
    (sizeof(struct wire_pages) + PLAN_CHUNK_PAGES * sizeof(struct wire_run) +                                \
     (size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES)

/* Both payloads and the header between them: a page takes more room as a change than it does whole, and what
 * goes one way does not go the other. */
#define ENCODE_ROOM                                                                                          \
    (sizeof(struct wire_pages) + sizeof(struct wire_header) + sizeof(struct wire_delta) +                    \
     PLAN_CHUNK_PAGES * (sizeof(struct wire_delta_page) + VMM_PAGE_BYTES))
#define ENCODE_DISK_PAYLOAD_MAX                                                                              \
    (sizeof(struct wire_disk) + sizeof(struct wire_disk_record) + (size_t)WIRE_DISK_BODY_MAX)
#define ENCODE_STATE_PAYLOAD_MAX (sizeof(struct wire_state) + PLAN_STATE_PIECE)

/* What one lane needs for itself. */
struct encoder {
    uint8_t *scratch; /* a chunk of pages: private copies of what the guest may change */
    void *lz4;        /* LZ4's working memory */
    uint8_t *sample;  /* what encode_sample() compresses to; only its size matters */
    struct delta delta;
    size_t memory_bytes;
};
/* `changes`: will look for changes, too. */
int encoder_init(struct encoder *encoder, bool changes);
void encoder_fini(struct encoder *encoder);

struct encoded {
    size_t length;                /* of the payload */
    uint32_t zero, raw, lz4;      /* pages */
    size_t body_bytes, lz4_bytes; /* of all bodies; of those that are compressed */
};

/* Encode the item's pages from `bytes` (the pages one after the other), which nobody changes meanwhile. */
void encode_stable(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes, bool lz4,
                   uint8_t *payload, struct encoded *ret_encoded);

/* Compress a piece out of the middle of a payload's bodies, all of which are raw, to see what it would bring.
 * Returns the piece's bytes; 0: there are no bodies. `*ret_out` is no more than that. */
size_t encode_sample(struct encoder *encoder, const uint8_t *payload, const struct encoded *encoded,
                     size_t *ret_out);

/* Read the item's pages from the guest, which may be running, to the encoder's scratch memory. */
int encode_read(struct encoder *encoder, const struct plan_item *item, struct vmm *source,
                const struct vmm_description *guest);

/* One bit for each of the item's pages that is zero. */
uint64_t encode_find_zeros(const uint8_t *bytes, uint32_t pages);

/* Encode those of the item's pages that encoder->delta says go whole, at least one. */
void encode_whole(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes, bool lz4,
                  uint8_t *payload, struct encoded *ret_encoded);
/* The item's changes of disks to one WIRE_DISK payload. `ret_encoded` counts no pages. */
void encode_disk(struct encoder *encoder, const struct plan_item *item, bool lz4, uint8_t *payload,
                 struct encoded *ret_encoded);

/* Read the item's pages from the guest, which may be running, and encode them. */
int encode_direct(struct encoder *encoder, const struct plan_item *item, struct vmm *source,
                  const struct vmm_description *guest, bool lz4, uint8_t *payload,
                  struct encoded *ret_encoded);

/* The item's piece of the device state `state` to the payload of a STATE_LZ4 or, when it may not be
 * compressed or does not shrink, of a STATE; returns which. */
enum wire_type encode_state(struct encoder *encoder, const struct plan_item *item, const uint8_t *state,
                            bool lz4, uint8_t *payload, size_t *ret_length);

#endif
