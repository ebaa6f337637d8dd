/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_RESTORE_DECODE_H
#define UNDERSTUDY_RESTORE_DECODE_H

#include "restore/staging.h"
#include "wire/message.h"

enum decode_way {
    DECODE_DIRECT,  /* into the guest's memory */
    DECODE_STAGE,   /* into staging */
    DECODE_COMPARE, /* into staging, except pages that the guest has like that already */
};

struct decode {
    struct vmm *target;
    const struct vmm_block *block; /* in the target */
    uint32_t block_index;
    enum decode_way way;
    struct staging_writer *writer;
};

/* Take a frame's runs to where they belong. -EPROTO: pages beyond the block. -EBADMSG: a body that is no LZ4
 * block of that many pages. -ENOSPC, -ECANCELED: staging. Else what the driver says. */
int decode_pages(const struct decode *decode, struct message_pages *pages);

/* Take a frame's changes to staging; never DECODE_DIRECT, and no commit may be waiting to be applied. As
 * decode_pages(); -EPROTO also for a bad table of pages, -EBADMSG for a page whose sum is wrong in the end,
 * since its base is not what the primary believes. */
int decode_delta(const struct decode *decode, struct message_delta *delta);

#endif
