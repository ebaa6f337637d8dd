/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/samples.h"

#include <errno.h>
#include <string.h>

/*
 * WIRE_DELTA in both steps, against a second opinion in wide arithmetic: the payload is accepted exactly when
 * all rules on it hold, the decompressed body when all rules on the table do, and what is then walked is what
 * the table says.
 *
 * Input: flags; then, with F_TABLE, one page per 12 bytes, from which a raw body with right counts and
 * lengths is built (so that mutations reach the rules on pages); else the payload itself.
 */
enum { F_TABLE = 1, F_ASCEND = 2, F_LENGTH = 4 };

static bool head_holds(const uint8_t *payload, size_t length)
{
    struct wire_delta head;
    if (length < sizeof head)
        return false;
    memcpy(&head, payload, sizeof head);
    uint64_t pages = from_le32(head.page_count), raw = from_le32(head.raw_bytes), body = length - sizeof head;
    for (unsigned i = 0; i < sizeof head.reserved; i++)
        if (head.reserved[i])
            return false;
    if (from_le32(head.block) >= 64 || pages == 0 || pages > 64 || raw < pages * 88 || raw > pages * 4120)
        return false;
    return head.encoding == WIRE_DELTA_RAW ? body == raw
                                           : head.encoding == WIRE_DELTA_LZ4 && body >= 1 && body <= raw;
}

static bool table_holds(const uint8_t *raw, uint32_t pages, uint32_t raw_bytes)
{
    unsigned __int128 free_from = 0, end = (unsigned __int128)pages * 24;
    for (uint32_t i = 0; i < pages; i++) {
        struct wire_delta_page page;
        memcpy(&page, raw + i * sizeof page, sizeof page);
        if (from_le64(page.page) < free_from || from_le64(page.page) >= 1ull << 52 ||
            !from_le64(page.changed))
            return false;
        free_from = (unsigned __int128)from_le64(page.page) + 1;
        for (unsigned bit = 0; bit < 64; bit++)
            end += from_le64(page.changed) >> bit & 1 ? 64 : 0;
    }
    return end == raw_bytes;
}

/* Returns the payload's length, and the payload as one heap block. */
static size_t build_table(struct fuzz_input *input, unsigned flags, uint8_t **ret_payload)
{
    struct wire_delta_page pages[WIRE_DELTA_PAGES_MAX];
    struct message_delta delta = {.block = (uint32_t)fuzz_take(input, 1)};
    uint32_t blocks = flags & F_LENGTH ? (uint32_t)fuzz_take(input, 1) : 0;
    uint64_t next = 0;
    while (delta.page_count < array_length(pages) && input->left) {
        uint64_t page = fuzz_take(input, 7), changed = fuzz_take(input, 5);
        if (flags & F_ASCEND)
            page = next + (page & 0xff);
        next = page + 1;
        pages[delta.page_count++] = (struct wire_delta_page){to_le64(page), to_le64(changed), to_le64(next)};
        blocks += (uint32_t)__builtin_popcountll(changed);
    }
    delta.raw_bytes = delta.page_count * (uint32_t)sizeof *pages + blocks * WIRE_DELTA_BLOCK;
    *ret_payload = calloc(1, sizeof(struct wire_delta) + delta.raw_bytes);
    size_t body = message_delta_build(&delta, *ret_payload);
    memcpy(*ret_payload + body, pages, delta.page_count * sizeof *pages);
    return body + delta.raw_bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    unsigned flags = (unsigned)fuzz_take(&input, 1);
    uint8_t *built cleanup_free = NULL;
    if (flags & F_TABLE) {
        input.left = build_table(&input, flags, &built);
        input.bytes = built;
    }
    if (input.left > WIRE_PAYLOAD_MAX)
        input.left = WIRE_PAYLOAD_MAX;
    uint8_t *exact cleanup_free = malloc(input.left ? input.left : 1);
    if (input.left)
        memcpy(exact, input.bytes, input.left);
    struct wire_frame frame = sample_frame(WIRE_DELTA, exact, input.left);
    struct message_delta delta;
    error_clear();
    int r = message_delta_parse(&frame, &delta);
    fuzz_require((r == 0) == head_holds(exact, input.left));
    fuzz_require(r == 0 || strcmp(error_text(), "no error was recorded"));
    if (r < 0)
        return 0;
    fuzz_require(delta.body == exact + sizeof(struct wire_delta) &&
                 delta.body + delta.body_bytes == exact + input.left);

    uint8_t *raw cleanup_free = malloc(delta.raw_bytes);
    r = sample_delta_open(&delta, raw);
    if (r == -EBADMSG)
        return 0;
    fuzz_require((r == 0) == table_holds(raw, delta.page_count, delta.raw_bytes));
    struct message_delta_page page;
    uint32_t taken = 0, at = delta.page_count * (uint32_t)sizeof(struct wire_delta_page);
    for (; r == 0 && message_delta_next(&delta, &page); taken++) {
        struct wire_delta_page wire;
        memcpy(&wire, raw + taken * sizeof wire, sizeof wire);
        fuzz_require(page.page == from_le64(wire.page) && page.changed == from_le64(wire.changed) &&
                     page.sum == from_le64(wire.sum) && page.blocks == raw + at);
        at += (uint32_t)__builtin_popcountll(page.changed) * WIRE_DELTA_BLOCK;
    }
    fuzz_require(r < 0 || (taken == delta.page_count && at == delta.raw_bytes));
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    if (index < SAMPLE_VARIANTS) {
        to[0] = 0;
        return 1 + sample_payload(WIRE_DELTA, index, to + 1);
    }
    if (index >= 7)
        return 0;
    static const uint8_t pages[][12] = {
        /* page (7), changed (5) */
        {1, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0, 0},
        {2, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 0x80},
        {9, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff},
        {0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 2, 0, 0, 0, 0},
    };
    to[0] = F_TABLE | (index % 2 ? F_ASCEND : 0);
    to[1] = 1;
    memcpy(to + 2, pages, sizeof pages);
    return 2 + sizeof pages[0] * (index < 5 ? 4 : 2);
}
