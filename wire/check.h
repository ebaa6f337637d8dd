/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WIRE_CHECK_H
#define UNDERSTUDY_WIRE_CHECK_H

#include "base/error.h"
#include "wire/frame.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* What the parsers of wire/ share; no other folder includes this. */

/* Page numbers stay below this, so that page * WIRE_PAGE_BYTES never wraps. */
#define WIRE_PAGE_LIMIT (1ull << 52)

/* Refuse unless low <= value <= high. */
static inline int check_bounds(const struct wire_frame *frame, const char *field, uint64_t value,
                               uint64_t low, uint64_t high)
{
    if (value >= low && value <= high)
        return 0;
    if (low == high)
        return error_set(-EPROTO, "%s: %s is %" PRIu64 ", expected %" PRIu64, wire_type_name(frame->type),
                         field, value, low);
    return error_set(-EPROTO, "%s: %s is %" PRIu64 ", expected %" PRIu64 " to %" PRIu64,
                     wire_type_name(frame->type), field, value, low, high);
}

/* Refuse unless the payload is exactly `expected` bytes. */
static inline int check_length(const struct wire_frame *frame, uint64_t expected)
{
    if (frame->length == expected)
        return 0;
    return error_set(-EMSGSIZE, "%s: payload is %u bytes, expected %" PRIu64, wire_type_name(frame->type),
                     frame->length, expected);
}

/* Copy out the payload's fixed part (the payload may lie at any address). Refuses a shorter payload. Asserts
 * the type: to give a frame to another type's parser is our own mistake. */
static inline int check_fixed(const struct wire_frame *frame, enum wire_type type, void *to, size_t bytes)
{
    assert(frame->type == type);
    if (frame->length < bytes)
        return error_set(-EMSGSIZE, "%s: payload is %u bytes, expected at least %zu",
                         wire_type_name(frame->type), frame->length, bytes);
    memcpy(to, frame->payload, bytes);
    return 0;
}

static inline int check_pages(const struct wire_frame *frame, uint64_t first, uint64_t count)
{
    if (first < WIRE_PAGE_LIMIT && count <= WIRE_PAGE_LIMIT - first)
        return 0;
    return error_set(-EPROTO, "%s: %" PRIu64 " pages from page %" PRIu64 ", expected an end at 2^52 at most",
                     wire_type_name(frame->type), count, first);
}

/* For chains: int r = 0; TRY(r, check...); TRY(r, check...); the first refusal stays. */
#define TRY(r, check)                                                                                        \
    do {                                                                                                     \
        if ((r) == 0)                                                                                        \
            (r) = (check);                                                                                   \
    } while (0)

#endif
