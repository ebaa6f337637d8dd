/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/samples/samples.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <string.h>

static uint8_t payload[WIRE_PAYLOAD_MAX];

/* Build a table of these runs with bodies of the stated sizes, and parse it. */
static int parse_runs(const struct message_run *runs, unsigned count, struct message_pages *ret_pages)
{
    size_t length = message_pages_build(1, 2, runs, count, payload);
    for (unsigned i = 0; i < count; i++) {
        memset(payload + length, (int)i, runs[i].body_bytes);
        length += runs[i].body_bytes;
    }
    struct wire_frame frame = sample_frame(WIRE_PAGES, payload, length);
    return message_pages_parse(&frame, ret_pages);
}

#define PARSE(ret_pages, ...)                                                                                \
    parse_runs((const struct message_run[]){__VA_ARGS__},                                                    \
               array_length(((const struct message_run[]){__VA_ARGS__})), ret_pages)
#define ZERO(at, n)                                                                                          \
    {                                                                                                        \
        .first = (at), .pages = (n), .encoding = WIRE_RUN_ZERO                                               \
    }
#define RAW(at, n)                                                                                           \
    {                                                                                                        \
        .first = (at), .pages = (n), .encoding = WIRE_RUN_RAW, .body_bytes = (n)*4096                        \
    }
#define LZ4(at, n, length)                                                                                   \
    {                                                                                                        \
        .first = (at), .pages = (n), .encoding = WIRE_RUN_LZ4, .body_bytes = (length)                        \
    }

static void walk(void **state)
{
    (void)state;
    struct message_pages pages;
    assert_int_equal(
        PARSE(&pages, ZERO(0, 65535), RAW(65535, 1), LZ4(70000, 64, 64 * 4096), LZ4(70064, 1, 1)), 0);
    assert_int_equal(pages.block, 1);
    assert_int_equal(pages.round, 2);
    assert_int_equal(pages.run_count, 4);
    assert_int_equal(pages.page_count, 65535 + 1 + 64 + 1);
    const uint64_t firsts[] = {0, 65535, 70000, 70064};
    const uint32_t bodies[] = {0, 4096, 64 * 4096, 1};
    const uint8_t *body = payload + sizeof(struct wire_pages) + 4 * sizeof(struct wire_run);
    struct message_run run;
    for (unsigned i = 0; i < 4; i++) {
        assert_true(message_pages_next(&pages, &run));
        assert_int_equal(run.first, firsts[i]);
        assert_int_equal(run.body_bytes, bodies[i]);
        assert_ptr_equal(run.body, body);
        if (run.body_bytes)
            assert_int_equal(run.body[run.body_bytes - 1], i);
        body += bodies[i];
    }
    assert_false(message_pages_next(&pages, &run));
    assert_false(message_pages_next(&pages, &run));
}

static void bodies_have_bounds(void **state)
{
    (void)state;
    struct message_pages pages;
    assert_int_equal(PARSE(&pages, RAW(0, 64)), 0);
    assert_int_equal(PARSE(&pages, RAW(0, 65)), -EPROTO);
    assert_text_has("run 0", "PAGES", "raw run's pages is 65, expected 1 to 64");
    assert_int_equal(PARSE(&pages, LZ4(0, 65, 100)), -EPROTO);
    assert_text_has("lz4 run's pages is 65");
    assert_int_equal(PARSE(&pages, RAW(0, 0)), -EPROTO);
    assert_int_equal(PARSE(&pages, LZ4(0, 0, 1)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(0, 0)), -EPROTO);
    assert_text_has("zero run's pages is 0");
    assert_int_equal(PARSE(&pages, LZ4(0, 1, 0)), -EPROTO);
    assert_text_has("lz4 run's body is 0, expected 1 to 4096");
    assert_int_equal(PARSE(&pages, LZ4(0, 1, 4096)), 0);
    assert_int_equal(PARSE(&pages, LZ4(0, 1, 4097)), -EPROTO);
    struct message_run run = RAW(0, 2);
    run.body_bytes--;
    assert_int_equal(parse_runs(&run, 1, &pages), -EPROTO);
    assert_text_has("raw run's body is 8191, expected 8192");
    run.body_bytes += 2;
    assert_int_equal(parse_runs(&run, 1, &pages), -EPROTO);
    run = (struct message_run)ZERO(0, 1);
    run.body_bytes = 1;
    assert_int_equal(parse_runs(&run, 1, &pages), -EPROTO);
    assert_text_has("zero run's body is 1, expected 0");
    run = (struct message_run)ZERO(0, 1);
    run.encoding = 3;
    assert_int_equal(parse_runs(&run, 1, &pages), -EPROTO);
    assert_text_has("run's encoding is 3, expected 0 to 2");
}

static void runs_ascend_without_overlap(void **state)
{
    (void)state;
    struct message_pages pages;
    assert_int_equal(PARSE(&pages, ZERO(10, 5), ZERO(15, 1)), 0);
    assert_int_equal(PARSE(&pages, ZERO(10, 5), ZERO(14, 1)), -EPROTO);
    assert_text_has("run 1", "first page is 14, expected 15");
    assert_int_equal(PARSE(&pages, ZERO(10, 5), ZERO(10, 5)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(10, 1), ZERO(9, 1)), -EPROTO);
    assert_int_equal(PARSE(&pages, RAW(10, 1), ZERO(0, 100)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(1, 1), ZERO(3, 1), ZERO(2, 1)), -EPROTO);
    assert_text_has("run 2");
}

static void page_numbers_do_not_wrap(void **state)
{
    (void)state;
    struct message_pages pages;
    const uint64_t limit = 1ull << 52;
    assert_int_equal(PARSE(&pages, ZERO(limit - 1, 1)), 0);
    assert_int_equal(PARSE(&pages, ZERO(limit - 65535, 65535)), 0);
    assert_int_equal(PARSE(&pages, ZERO(limit - 1, 2)), -EPROTO);
    assert_text_has("2 pages from page 4503599627370495");
    assert_int_equal(PARSE(&pages, ZERO(limit, 1)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(UINT64_MAX, 1)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(UINT64_MAX - 5, 10)), -EPROTO);
    assert_int_equal(PARSE(&pages, ZERO(5, 1), ZERO(UINT64_MAX, 1)), -EPROTO);
}

#define SET(structure, member, convert, value)                                                               \
    do {                                                                                                     \
        __typeof__(((struct structure *)0)->member) set_ = convert(value);                                   \
        memcpy(at + offsetof(struct structure, member), &set_, sizeof set_);                                 \
    } while (0)
#define AS_IS(value) (value)

static void table_is_checked_whole(void **state)
{
    (void)state;
    struct message_pages pages;
    uint8_t *at = payload;
    size_t length = sample_payload(WIRE_PAGES, 1, payload);
    struct wire_frame frame = sample_frame(WIRE_PAGES, payload, length);
    assert_int_equal(message_pages_parse(&frame, &pages), 0);

    SET(wire_pages, block, to_le32, WIRE_BLOCKS_MAX);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("block is 64, expected 0 to 63");
    SET(wire_pages, block, to_le32, 0);
    SET(wire_pages, reserved, to_le16, 1);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("reserved is 1");
    SET(wire_pages, reserved, to_le16, 0);
    SET(wire_pages, run_count, to_le16, 0);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("run_count is 0");
    SET(wire_pages, run_count, to_le16, 65535);
    assert_int_equal(message_pages_parse(&frame, &pages), -EMSGSIZE);
    assert_text_has("65535 runs", "1048576");
    SET(wire_pages, run_count, to_le16, 3); /* the fourth run would be body */
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    SET(wire_pages, run_count, to_le16, 4);
    SET(wire_pages, page_count, to_le32, 6);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("page_count is 6, expected 5");
    SET(wire_pages, page_count, to_le32, 5);
    frame.length--;
    assert_int_equal(message_pages_parse(&frame, &pages), -EMSGSIZE);
    frame.length += 2;
    assert_int_equal(message_pages_parse(&frame, &pages), -EMSGSIZE);
    frame.length--;

    at = payload + sizeof(struct wire_pages) + 3 * sizeof(struct wire_run);
    SET(wire_run, reserved, AS_IS, 1);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("run 3", "run's reserved is 1");
    SET(wire_run, reserved, AS_IS, 0);
    /* Body lengths whose sum would wrap 32 bits. */
    SET(wire_run, body, to_le32, UINT32_MAX);
    assert_int_equal(message_pages_parse(&frame, &pages), -EPROTO);
    assert_text_has("lz4 run's body is 4294967295");
}

/* The most runs that a payload can hold, and the most that it cannot. */
static void many_runs(void **state)
{
    (void)state;
    const unsigned fit = (WIRE_PAYLOAD_MAX - sizeof(struct wire_pages)) / sizeof(struct wire_run);
    struct message_run *runs cleanup_free = calloc(fit, sizeof *runs);
    for (unsigned i = 0; i < fit; i++)
        runs[i] = (struct message_run){.first = i * 70000ull, .pages = WIRE_RUN_PAGES_MAX};
    struct message_pages pages;
    assert_int_equal(parse_runs(runs, fit, &pages), 0);
    assert_int_equal(pages.page_count, fit * WIRE_RUN_PAGES_MAX);
    struct message_run run;
    unsigned seen = 0;
    while (message_pages_next(&pages, &run))
        assert_int_equal(run.first, seen++ * 70000ull);
    assert_int_equal(seen, fit);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(walk),
        cmocka_unit_test(bodies_have_bounds),
        cmocka_unit_test(runs_ascend_without_overlap),
        cmocka_unit_test(page_numbers_do_not_wrap),
        cmocka_unit_test(table_is_checked_whole),
        cmocka_unit_test(many_runs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
