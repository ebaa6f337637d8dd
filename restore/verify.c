/* SPDX-License-Identifier: Apache-2.0 */
#include "restore/internal.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <string.h>

/* Pages read in one call where they are not mapped. */
#define READ_PAGES 64u

int restore_verify(struct restore *restore, const struct message_verify *verify, uint32_t *ret_differing,
                   uint64_t *ret_pages)
{
    int r = restore_settle(restore, "verifying");
    if (r < 0)
        return r;
    if (verify->block >= restore->map_count)
        return error_set(-EPROTO, "VERIFY: block %" PRIu32 ", the guest has %" PRIu32, verify->block,
                         restore->map_count);
    uint32_t index = restore->map[verify->block];
    const struct vmm_block *block = &restore->description.blocks[index];
    uint64_t pages = block->bytes >> VMM_PAGE_SHIFT;
    if (verify->first >= pages || verify->count > pages - verify->first)
        return error_set(-EPROTO, "VERIFY: %" PRIu32 " pages from %" PRIu64 ": block '%s' has %" PRIu64,
                         verify->count, verify->first, block->name, pages);

    cleanup_free uint8_t *copy = NULL;
    if (!block->map && !(copy = malloc((size_t)READ_PAGES << VMM_PAGE_SHIFT)))
        return error_set(-ENOMEM, "verifying: out of memory");
    uint32_t differing = 0;
    for (uint32_t i = 0; i < verify->count; i++) {
        uint64_t page = verify->first + i;
        if (copy && i % READ_PAGES == 0) {
            uint32_t left = verify->count - i;
            struct vmm_range range = {index, page, left < READ_PAGES ? left : READ_PAGES};
            r = restore->target->ops->read(restore->target, &range, 1, copy);
            if (r < 0)
                return error_add(r, "verifying block '%s'", block->name);
        }
        const uint8_t *found = copy ? copy + ((size_t)(i % READ_PAGES) << VMM_PAGE_SHIFT)
                                    : (const uint8_t *)block->map + (page << VMM_PAGE_SHIFT);
        le64 wanted;
        memcpy(&wanted, (const uint8_t *)verify->fingerprints + (size_t)i * sizeof wanted, sizeof wanted);
        if (wire_sum(found, VMM_PAGE_BYTES) == from_le64(wanted))
            continue;
        if (differing < WIRE_VERIFIED_MAX)
            ret_pages[differing] = page;
        differing++;
    }
    *ret_differing = differing;
    return 0;
}

static int digest_page(const uint8_t *page, uint8_t ret_digest[WIRE_DIGEST_BYTES])
{
    static const uint8_t zeros[VMM_PAGE_BYTES];
    static _Thread_local uint8_t zero[WIRE_DIGEST_BYTES];
    static _Thread_local bool zero_known;
    if (memcmp(page, zeros, sizeof zeros) != 0)
        return wire_digest(page, VMM_PAGE_BYTES, ret_digest);
    int r = zero_known ? 0 : wire_digest(zeros, sizeof zeros, zero);
    zero_known = r == 0;
    memcpy(ret_digest, zero, sizeof zero);
    return r;
}

int restore_page_sums(struct restore *restore, const struct message_page_sums *wanted, uint32_t *ret_count,
                      uint8_t *ret_digests)
{
    if (wanted->block >= restore->map_count)
        return error_set(-EPROTO, "PAGE_SUMS_WANTED: block %" PRIu32 ", the guest has %" PRIu32,
                         wanted->block, restore->map_count);
    uint32_t index = restore->map[wanted->block];
    const struct vmm_block *block = &restore->description.blocks[index];
    uint64_t pages = block->bytes >> VMM_PAGE_SHIFT;
    if (wanted->first >= pages || wanted->count > pages - wanted->first)
        return error_set(-EPROTO,
                         "PAGE_SUMS_WANTED: %" PRIu32 " pages from %" PRIu64 ": block '%s' has %" PRIu64,
                         wanted->count, wanted->first, block->name, pages);
    if (!restore->filled) {
        *ret_count = 0;
        return 0;
    }
    uint8_t *copy cleanup_free = malloc((size_t)READ_PAGES << VMM_PAGE_SHIFT);
    if (!copy)
        return error_set(-ENOMEM, "PAGE_SUMS_WANTED: out of memory");
    for (uint32_t i = 0; i < wanted->count; i += READ_PAGES) {
        uint32_t left = wanted->count - i, count = left < READ_PAGES ? left : READ_PAGES;
        struct vmm_range range = {index, wanted->first + i, count};
        int r = restore->target->ops->read(restore->target, &range, 1, copy);
        for (uint32_t k = 0; r == 0 && k < count; k++)
            r = digest_page(copy + ((size_t)k << VMM_PAGE_SHIFT),
                            ret_digests + (size_t)(i + k) * WIRE_DIGEST_BYTES);
        if (r < 0)
            return error_add(r, "digests of block '%s'", block->name);
    }
    *ret_count = wanted->count;
    return 0;
}

int restore_probe(struct restore *restore, const char *name, uint64_t offset, uint64_t *ret_value)
{
    int r = restore_settle(restore, "probing");
    if (r < 0)
        return r;
    uint32_t index = 0;
    while (index < restore->description.block_count && strcmp(restore->description.blocks[index].name, name))
        index++;
    if (index == restore->description.block_count)
        return error_set(-ENOENT, "probing: the guest has no block '%s'", name);
    const struct vmm_block *block = &restore->description.blocks[index];
    uint64_t in_page = offset % VMM_PAGE_BYTES;
    if (offset >= block->bytes || in_page > VMM_PAGE_BYTES - sizeof(le64))
        return error_set(-ERANGE, "probing: no 8 bytes within a page at offset %" PRIu64 " of block '%s'",
                         offset, name);
    uint8_t page[VMM_PAGE_BYTES];
    struct vmm_range range = {index, offset >> VMM_PAGE_SHIFT, 1};
    r = restore->target->ops->read(restore->target, &range, 1, page);
    if (r < 0)
        return error_add(r, "probing block '%s'", name);
    le64 value;
    memcpy(&value, page + in_page, sizeof value);
    *ret_value = from_le64(value);
    return 0;
}
