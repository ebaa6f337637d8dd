/* SPDX-License-Identifier: Apache-2.0 */
#include "checkpoint/source.h"

#include "base/byteorder.h"
#include "checkpoint/plan.h"
#include "wire/frame.h"

#include <string.h>

/*
 * The guest writes its memory while we copy it: a data race by the letter of C, with a result that is
 * defined on this machine (any mix of old and new bytes) and allowed by the protocol (a page that is written
 * while it is read is marked and comes again). ThreadSanitizer is told so, here and nowhere else.
 */
#if defined(__SANITIZE_THREAD__)
#define RACY_COPY 1
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
#define RACY_COPY 1
#endif
#endif

#ifdef RACY_COPY
__attribute__((no_sanitize("thread"), noinline)) static void copy_live(void *to, const void *from,
                                                                       size_t bytes)
{
    volatile const uint64_t *source = from;
    uint64_t *target = to;
    for (size_t i = 0; i < bytes / sizeof *target; i++)
        target[i] = source[i];
}
#else
static void copy_live(void *to, const void *from, size_t bytes)
{
    memcpy(to, from, bytes);
}
#endif

int source_read(struct vmm *source, const struct vmm_description *guest, const struct vmm_range *ranges,
                size_t count, void *to)
{
    uint8_t *target = to;
    size_t from = 0; /* ranges before it are read */
    for (size_t i = 0; i < count; i++) {
        const char *map = guest->blocks[ranges[i].block].map;
        if (!map)
            continue;
        /* One read() for all the unmapped ranges in between. */
        uint64_t unmapped = 0;
        for (size_t k = from; k < i; k++)
            unmapped += ranges[k].pages;
        if (unmapped) {
            int r = source->ops->read(source, ranges + from, i - from, target);
            if (r < 0)
                return r;
            target += unmapped * VMM_PAGE_BYTES;
        }
        copy_live(target, map + ranges[i].first * VMM_PAGE_BYTES, ranges[i].pages * VMM_PAGE_BYTES);
        target += ranges[i].pages * VMM_PAGE_BYTES;
        from = i + 1;
    }
    return from < count ? source->ops->read(source, ranges + from, count - from, target) : 0;
}

int source_peek(struct vmm *source, const struct vmm_description *guest, uint32_t block, uint64_t offset,
                uint64_t *ret_value)
{
    uint8_t page[VMM_PAGE_BYTES];
    struct vmm_range range = {.block = block, .first = offset / VMM_PAGE_BYTES, .pages = 1};
    int r = source_read(source, guest, &range, 1, page);
    if (r < 0)
        return r;
    le64 value;
    memcpy(&value, page + offset % VMM_PAGE_BYTES, sizeof value);
    *ret_value = from_le64(value);
    return 0;
}

int source_fingerprint(struct vmm *source, const struct vmm_description *guest, uint32_t block,
                       uint64_t first, uint64_t count, void *scratch, uint64_t *ret_fingerprints)
{
    const uint8_t *map = guest->blocks[block].map;
    while (count) {
        uint64_t pages = count < PLAN_CHUNK_PAGES ? count : PLAN_CHUNK_PAGES;
        const uint8_t *bytes = map ? map + first * VMM_PAGE_BYTES : scratch;
        if (!map) {
            struct vmm_range range = {.block = block, .first = first, .pages = pages};
            int r = source->ops->read(source, &range, 1, scratch);
            if (r < 0)
                return r;
        }
        for (uint64_t i = 0; i < pages; i++)
            *ret_fingerprints++ = wire_sum(bytes + i * VMM_PAGE_BYTES, VMM_PAGE_BYTES);
        first += pages;
        count -= pages;
    }
    return 0;
}
