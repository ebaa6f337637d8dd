/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_ENCODE_H
#define UNDERSTUDY_CHECKPOINT_ENCODE_H

#include "checkpoint/plan.h"

/*
 * One chunk of pages to one WIRE_PAGES payload, in place in the lane's buffer.
 */
#define ENCODE_PAYLOAD_MAX                                                                                   \
    (sizeof(struct wire_pages) + PLAN_CHUNK_PAGES * sizeof(struct wire_run) +                                \
     (size_t)PLAN_CHUNK_PAGES * VMM_PAGE_BYTES)

/* What one lane needs for itself. */
struct encoder {
    uint8_t *scratch; /* a chunk of pages: private copies of what the guest may change */
    void *lz4;        /* LZ4's working memory */
    size_t memory_bytes;
};
int encoder_init(struct encoder *encoder);
void encoder_fini(struct encoder *encoder);

struct encoded {
    size_t length;           /* of the payload */
    uint32_t zero, raw, lz4; /* pages */
    size_t body_bytes;
};

/* Encode the item's pages from `bytes` (the pages one after the other), which nobody changes meanwhile. */
void encode_stable(struct encoder *encoder, const struct plan_item *item, const uint8_t *bytes, bool lz4,
                   uint8_t *payload, struct encoded *ret_encoded);

/* Read the item's pages from the guest, which may be running, and encode them. */
int encode_direct(struct encoder *encoder, const struct plan_item *item, struct vmm *source,
                  const struct vmm_description *guest, bool lz4, uint8_t *payload,
                  struct encoded *ret_encoded);

#endif
