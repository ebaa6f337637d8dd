/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/samples/samples.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <lz4.h>
#include <string.h>

static uint8_t payload[WIRE_PAYLOAD_MAX], raw[MESSAGE_DELTA_RAW_MAX];

static struct wire_delta_page entry(uint64_t page, uint64_t changed, uint64_t sum)
{
    return (struct wire_delta_page){to_le64(page), to_le64(changed), to_le64(sum)};
}

/* A table and as many blocks as `raw_bytes` leaves room for; what open() says. */
static int open_table(const struct wire_delta_page *pages, uint32_t count, uint32_t blocks,
                      struct message_delta *ret_delta)
{
    *ret_delta = (struct message_delta){
        .page_count = count, .raw_bytes = count * (uint32_t)sizeof *pages + blocks * WIRE_DELTA_BLOCK};
    /* An exact copy, at an odd address: a sanitizer sees what looks beyond it. */
    static uint8_t *copy;
    free(copy);
    copy = malloc(ret_delta->raw_bytes + 1);
    memcpy(copy + 1, pages, count * sizeof *pages);
    for (uint32_t i = 0; i < blocks; i++)
        memset(copy + 1 + count * sizeof *pages + i * WIRE_DELTA_BLOCK, (int)i, WIRE_DELTA_BLOCK);
    return message_delta_open(ret_delta, copy + 1);
}

static void walk(void **state)
{
    (void)state;
    const struct wire_delta_page pages[] = {entry(0, 1, 11), entry(1, 1ull << 63 | 6, 12),
                                            entry(70, UINT64_MAX, 13), entry((1ull << 52) - 1, 2, 14)};
    struct message_delta delta;
    struct message_delta_page page;
    const unsigned blocks[] = {1, 3, 64, 1};
    assert_int_equal(open_table(pages, 4, 69, &delta), 0);
    for (unsigned i = 0, before = 0; i < 4; before += blocks[i++]) {
        assert_true(message_delta_next(&delta, &page));
        assert_int_equal(page.page, from_le64(pages[i].page));
        assert_int_equal(page.changed, from_le64(pages[i].changed));
        assert_int_equal(page.sum, 11 + i);
        assert_int_equal(page.blocks[0], before);
        assert_int_equal(page.blocks[blocks[i] * WIRE_DELTA_BLOCK - 1], before + blocks[i] - 1);
    }
    assert_false(message_delta_next(&delta, &page));
    assert_false(message_delta_next(&delta, &page));
}

static void tables_have_rules(void **state)
{
    (void)state;
    struct message_delta delta;
    struct wire_delta_page pages[] = {entry(5, 1, 0), entry(5, 1, 0)};
    assert_int_equal(open_table(pages, 2, 2, &delta), -EPROTO);
    assert_text_has("DELTA", "entry 1", "page is 5, expected 6");
    pages[1] = entry(4, 1, 0);
    assert_int_equal(open_table(pages, 2, 2, &delta), -EPROTO);
    pages[1] = entry(1ull << 52, 1, 0);
    assert_int_equal(open_table(pages, 2, 2, &delta), -EPROTO);
    assert_text_has("page is 4503599627370496");
    pages[1] = entry(UINT64_MAX, 1, 0);
    assert_int_equal(open_table(pages, 2, 2, &delta), -EPROTO);
    pages[1] = entry(6, 0, 0);
    assert_int_equal(open_table(pages, 2, 2, &delta), -EPROTO);
    assert_text_has("entry 1", "nothing of page 6 has changed");
    pages[1] = entry(6, 7, 0);
    assert_int_equal(open_table(pages, 2, 4, &delta), 0);
    assert_int_equal(open_table(pages, 2, 3, &delta), -EPROTO);
    assert_text_has("raw_bytes is 240, expected 304");
    assert_int_equal(open_table(pages, 2, 5, &delta), -EPROTO);
}

/* Raw bodies are as long as they say, compressed ones at most as long. */
static void bodies_have_lengths(void **state)
{
    (void)state;
    struct message_delta delta = {.page_count = 1, .encoding = WIRE_DELTA_LZ4}, parsed;
    delta.raw_bytes = (uint32_t)sample_delta_raw(1, false, raw);
    size_t body = message_delta_build(&delta, payload);
    for (uint32_t length = 0; length <= 90; length++) {
        struct wire_frame frame = sample_frame(WIRE_DELTA, payload, body + length);
        int r = message_delta_parse(&frame, &parsed);
        assert_int_equal(r, length >= 1 && length <= 88 ? 0 : -EPROTO);
        if (r < 0)
            assert_text_has("DELTA", "lz4 body is", "expected 1 to 88");
        else
            assert_int_equal(parsed.body_bytes, length);
    }
    delta.encoding = WIRE_DELTA_RAW;
    message_delta_build(&delta, payload);
    for (uint32_t length = 0; length <= 90; length++) {
        struct wire_frame frame = sample_frame(WIRE_DELTA, payload, body + length);
        assert_int_equal(message_delta_parse(&frame, &parsed), length == 88 ? 0 : -EMSGSIZE);
    }
}

static void the_largest_fits_in_a_frame(void **state)
{
    (void)state;
    for (unsigned encoding = WIRE_DELTA_RAW; encoding <= WIRE_DELTA_LZ4; encoding++) {
        struct message_delta delta = {.block = 3,
                                      .round = 9,
                                      .page_count = WIRE_DELTA_PAGES_MAX,
                                      .encoding = (uint8_t)encoding},
                             parsed;
        delta.raw_bytes = (uint32_t)sample_delta_raw(WIRE_DELTA_PAGES_MAX, true, raw);
        assert_int_equal(delta.raw_bytes, MESSAGE_DELTA_RAW_MAX);
        size_t at = message_delta_build(&delta, payload), length = delta.raw_bytes;
        if (encoding == WIRE_DELTA_RAW)
            memcpy(payload + at, raw, length);
        else
            length = (size_t)LZ4_compress_default((const char *)raw, (char *)payload + at, (int)length,
                                                  (int)length);
        struct wire_frame frame = sample_frame(WIRE_DELTA, payload, at + length);
        assert_true(frame.length <= WIRE_PAYLOAD_MAX);
        assert_int_equal(message_delta_parse(&frame, &parsed), 0);
        assert_int_equal(parsed.block, 3);
        assert_int_equal(parsed.round, 9);
        assert_int_equal(parsed.page_count, WIRE_DELTA_PAGES_MAX);
        assert_int_equal(sample_delta_open(&parsed, raw), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walk),
        cmocka_unit_test(tables_have_rules),
        cmocka_unit_test(bodies_have_lengths),
        cmocka_unit_test(the_largest_fits_in_a_frame),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
