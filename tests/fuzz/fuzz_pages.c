/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/samples.h"

#include <string.h>

/*
 * The table of WIRE_PAGES, against a second opinion that is written in another way: every rule of the
 * protocol tested on its own, in wide arithmetic. The parser must say yes exactly when all rules hold, and
 * what it then walks must be what the table says.
 *
 * Input: flags; then, with F_TABLE, one run per 14 bytes, from which a payload with right counts and lengths
 * is built (so that mutations reach the rules on runs); else the payload itself.
 */
enum { F_TABLE = 1, F_ASCEND = 2 };

static bool rules_hold(const uint8_t *payload, size_t length)
{
    struct wire_pages head;
    if (length < sizeof head)
        return false;
    memcpy(&head, payload, sizeof head);
    unsigned __int128 end = sizeof head + (size_t)from_le16(head.run_count) * sizeof(struct wire_run);
    unsigned __int128 pages = 0, free_from = 0;
    if (from_le16(head.run_count) == 0 || end > length || from_le16(head.reserved) != 0 ||
        from_le32(head.block) >= WIRE_BLOCKS_MAX)
        return false;
    for (unsigned i = 0; i < from_le16(head.run_count); i++) {
        struct wire_run run;
        memcpy(&run, payload + sizeof head + i * sizeof run, sizeof run);
        unsigned __int128 first = from_le64(run.first), count = from_le16(run.pages);
        uint64_t body = from_le32(run.body), all = (uint64_t)count * 4096;
        if (count == 0 || run.reserved != 0 || first < free_from || first + count > 1ull << 52)
            return false;
        if (run.encoding == WIRE_RUN_ZERO  ? body != 0
            : run.encoding == WIRE_RUN_RAW ? body != all || count > 64
            : run.encoding == WIRE_RUN_LZ4 ? body == 0 || body > all || count > 64
                                           : true)
            return false;
        free_from = first + count;
        pages += count;
        end += body;
    }
    return pages == from_le32(head.page_count) && end == length;
}

/* Returns the payload's length, and the payload as one heap block. */
static size_t build_table(struct fuzz_input *input, bool ascend, uint8_t **ret_payload)
{
    struct message_run runs[256];
    unsigned count = 0;
    uint64_t next = 0;
    size_t bodies = 0, room = WIRE_PAYLOAD_MAX - sizeof(struct wire_pages) - 256 * sizeof(struct wire_run);
    uint32_t block = (uint32_t)fuzz_take(input, 1), round = (uint32_t)fuzz_take(input, 1);
    while (count < array_length(runs) && input->left) {
        struct message_run *run = &runs[count];
        uint64_t first = fuzz_take(input, 8);
        run->pages = (uint32_t)fuzz_take(input, 2);
        run->encoding = (uint8_t)fuzz_take(input, 1);
        uint32_t body = (uint32_t)fuzz_take(input, 3);
        run->first = ascend ? next + (first & 0xffff) : first;
        next = run->first + run->pages;
        run->body_bytes = run->encoding == WIRE_RUN_RAW && !(body & 0x800000) ? run->pages * WIRE_PAGE_BYTES
                                                                              : body & 0x7fffff;
        if (bodies + run->body_bytes > room)
            break;
        bodies += run->body_bytes;
        count++;
    }
    if (count == 0)
        return 0;
    size_t length = sizeof(struct wire_pages) + count * sizeof(struct wire_run) + bodies;
    *ret_payload = calloc(1, length);
    message_pages_build(block, round, runs, count, *ret_payload);
    return length;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    unsigned flags = (unsigned)fuzz_take(&input, 1);
    uint8_t *built cleanup_free = NULL;
    if (flags & F_TABLE) {
        input.left = build_table(&input, flags & F_ASCEND, &built);
        input.bytes = built;
    }
    if (input.left > WIRE_PAYLOAD_MAX)
        input.left = WIRE_PAYLOAD_MAX;
    uint8_t *exact cleanup_free = malloc(input.left ? input.left : 1);
    if (input.left)
        memcpy(exact, input.bytes, input.left);
    struct wire_frame frame = sample_frame(WIRE_PAGES, exact, input.left);
    struct message_pages pages;
    int r = message_pages_parse(&frame, &pages);
    fuzz_require((r == 0) == rules_hold(exact, input.left));
    if (r < 0)
        return 0;

    struct message_run run;
    unsigned taken = 0;
    const uint8_t *body = exact + sizeof(struct wire_pages) + pages.run_count * sizeof(struct wire_run);
    for (; message_pages_next(&pages, &run); taken++) {
        struct wire_run wire;
        memcpy(&wire, exact + sizeof(struct wire_pages) + taken * sizeof wire, sizeof wire);
        fuzz_require(run.first == from_le64(wire.first) && run.pages == from_le16(wire.pages) &&
                     run.encoding == wire.encoding && run.body_bytes == from_le32(wire.body));
        fuzz_require(run.body == body && body + run.body_bytes <= exact + input.left);
        body += run.body_bytes;
    }
    fuzz_require(taken == pages.run_count && body == exact + input.left);
    fuzz_require(sample_parse(&frame) == 0);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    if (index < 2) {
        to[0] = 0;
        return 1 + sample_payload(WIRE_PAGES, index, to + 1);
    }
    if (index >= 6)
        return 0;
    static const uint8_t runs[][14] = {
        /* first (8), pages (2), encoding, body (3) */
        {1, 0, 0, 0, 0, 0, 0, 0, 3, 0, WIRE_RUN_ZERO, 0, 0, 0},
        {9, 0, 0, 0, 0, 0, 0, 0, 2, 0, WIRE_RUN_RAW, 0, 0x20, 0},
        {11, 0, 0, 0, 0, 0, 0, 0, 64, 0, WIRE_RUN_LZ4, 0x10, 0, 0}, /* right after the last */
        {0xfe, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f, 0, 2, 0, WIRE_RUN_LZ4, 1, 0, 0},
    };
    to[0] = F_TABLE | (index % 2 ? F_ASCEND : 0);
    to[1] = 1;
    to[2] = 0;
    memcpy(to + 3, runs, sizeof runs);
    return 3 + sizeof runs[0] * (index < 4 ? 4 : 2);
}
