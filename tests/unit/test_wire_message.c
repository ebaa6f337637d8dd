/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/samples/samples.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

static uint8_t payload[WIRE_PAYLOAD_MAX + 1];

/* One field of a sample set to a value that must be refused (code, and a text that names field and value) or,
 * with code 0, accepted. */
struct change {
    uint8_t type;
    unsigned variant;
    size_t offset, bytes;
    uint64_t value;
    int code;
    const char *field;
};

#define FIELD(structure, member) offsetof(struct structure, member), sizeof(((struct structure *)0)->member)
#define BLOCK(index, member)                                                                                 \
    sizeof(struct wire_describe) + (index) * sizeof(struct wire_block) + offsetof(struct wire_block, member)
#define RECORD(index, member)                                                                                \
    sizeof(struct wire_disk) + (index) * sizeof(struct wire_disk_record) +                                   \
        offsetof(struct wire_disk_record, member),                                                           \
        sizeof(((struct wire_disk_record *)0)->member)

static const struct change changes[] = {
    {WIRE_HELLO, 1, FIELD(wire_hello, version_min), 0, -EPROTO, "version_min is 0"},
    {WIRE_HELLO, 1, FIELD(wire_hello, version_min), 3, -EPROTO, "version_max is 2"},
    {WIRE_HELLO, 1, FIELD(wire_hello, version_max), 0, -EPROTO, "version_max is 0"},
    {WIRE_HELLO, 1, FIELD(wire_hello, version_max), 65535, 0, NULL},
    {WIRE_HELLO, 1, FIELD(wire_hello, lanes), 0, -EPROTO, "lanes is 0"},
    {WIRE_HELLO, 1, FIELD(wire_hello, lanes), 65, -EPROTO, "lanes is 65, expected 1 to 64"},
    {WIRE_HELLO, 1, FIELD(wire_hello, lanes), 64, 0, NULL},
    {WIRE_HELLO, 1, FIELD(wire_hello, lane), 3, -EPROTO, "lane is 3, expected 0 to 2"},
    {WIRE_HELLO, 1, FIELD(wire_hello, lane), 2, 0, NULL},
    {WIRE_HELLO, 1, FIELD(wire_hello, page_bytes), 65536, -EPROTO, "page_bytes is 65536, expected 4096"},
    {WIRE_HELLO, 1, FIELD(wire_hello, detect_ms), 0, -EPROTO, "detect_ms is 0"},
    {WIRE_HELLO, 1, FIELD(wire_hello, detect_ms), 3600001, -EPROTO, "detect_ms is 3600001"},
    {WIRE_HELLO, 1, FIELD(wire_hello, detect_ms), 3600000, 0, NULL},
    /* Unknown features are for the answer, which has a code for them. */
    {WIRE_HELLO, 1, FIELD(wire_hello, required), UINT64_MAX, 0, NULL},

    {WIRE_WELCOME, 1, FIELD(wire_welcome, version), 0, -EPROTO, "version is 0"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, version), 2, -EPROTO, "version is 2, expected 1"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, reserved), 1, -EPROTO, "reserved is 1"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, flags), 2, -EPROTO, "flags is 2"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, flags), 3, -EPROTO, "flags is 3"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, flags), 0, -EPROTO, "committed_epoch is 1, expected 0"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, committed_epoch), 0, -EPROTO, "committed_epoch is 0"},
    {WIRE_WELCOME, 0, FIELD(wire_welcome, committed_epoch), 9, -EPROTO, "committed_epoch is 9"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, optional), 256, -EPROTO, "optional is 256"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, optional), 127, 0, NULL},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, detect_ms), 0, -EPROTO, "detect_ms is 0"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, detect_ms), 3600001, -EPROTO, "detect_ms is 3600001"},
    {WIRE_WELCOME, 1, FIELD(wire_welcome, reserved2), 1, -EPROTO, "reserved2 is 1"},

    {WIRE_REFUSE, 1, FIELD(wire_refuse, code), 0, -EPROTO, "code is 0"},
    {WIRE_REFUSE, 1, FIELD(wire_refuse, code), 4000000000, 0, NULL}, /* a later version's */
    {WIRE_REFUSE, 1, FIELD(wire_refuse, reserved), 1, -EPROTO, "reserved is 1"},

    {WIRE_DESCRIBE, 1, FIELD(wire_describe, block_count), 0, -EPROTO, "block_count is 0"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, block_count), 65, -EPROTO, "block_count is 65, expected 1 to 64"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, block_count), UINT32_MAX, -EPROTO, "block_count is 4294967295"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, block_count), 2, -EMSGSIZE, "payload is"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, block_count), 4, -EMSGSIZE, "payload is"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, text_bytes), 131073, -EPROTO, "text_bytes is 131073"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, text_bytes), 131072, -EMSGSIZE, "payload is"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, text_bytes), UINT32_MAX, -EPROTO, "text_bytes is 4294967295"},
    {WIRE_DESCRIBE, 1, FIELD(wire_describe, text_bytes), 0, -EMSGSIZE, "payload is"},
    {WIRE_DESCRIBE, 1, BLOCK(1, bytes), 8, 0, -EPROTO, "block's bytes is 0"},
    {WIRE_DESCRIBE, 1, BLOCK(1, bytes), 8, 4095, -EPROTO, "block's bytes is 4095"},
    {WIRE_DESCRIBE, 1, BLOCK(1, bytes), 8, 4097, -EPROTO, "beyond a whole page is 1"},
    {WIRE_DESCRIBE, 1, BLOCK(1, bytes), 8, (16ull << 40) + 4096, -EPROTO, "block's bytes is 17592186048512"},
    {WIRE_DESCRIBE, 1, BLOCK(1, bytes), 8, 16ull << 40, 0, NULL},
    {WIRE_DESCRIBE, 1, BLOCK(1, name), 1, 0, -EPROTO, "name is 0"},
    {WIRE_DESCRIBE, 1, BLOCK(1, name[3]), 1, '\n', -EPROTO, "byte 3 of block 1's name is 0x0a"},
    {WIRE_DESCRIBE, 1, BLOCK(2, name[0]), 1, 0x7f, -EPROTO, "byte 0 of block 2's name is 0x7f"},
    {WIRE_DESCRIBE, 1, BLOCK(2, name[0]), 1, 0xc3, -EPROTO, "byte 0 of block 2's name is 0xc3"},
    {WIRE_DESCRIBE, 1, BLOCK(3, bytes), 1, 0x1b, -EPROTO, "byte 0 of the text is 0x1b"},
    {WIRE_DESCRIBE, 1, BLOCK(3, bytes), 1, 0, -EPROTO, "byte 0 of the text is 0x00"},
    {WIRE_DESCRIBE, 1, BLOCK(3, bytes), 1, '\n', 0, NULL},

    {WIRE_ROUND, 1, FIELD(wire_round, reserved), 1, -EPROTO, "reserved is 1"},
    {WIRE_ROUND, 1, FIELD(wire_round, round), UINT32_MAX, 0, NULL},
    {WIRE_ROUND, 0, FIELD(wire_round, totals.pages), 1, -EPROTO, "totals.pages is 1, expected 0"},
    {WIRE_ROUND, 0, FIELD(wire_round, totals.bytes), 1, -EPROTO, "totals.bytes is 1, expected 0"},
    {WIRE_ROUND, 0, FIELD(wire_round, totals.sum), 1, -EPROTO, "totals.sum is 1, expected 0"},
    {WIRE_ROUND, 1, FIELD(wire_round, totals.frames), UINT64_MAX, -EPROTO, "totals.frames is"},
    {WIRE_ROUND, 1, FIELD(wire_round, totals.bytes), 3 * WIRE_PAYLOAD_MAX, 0, NULL},
    {WIRE_ROUND, 1, FIELD(wire_round, totals.bytes), 3 * WIRE_PAYLOAD_MAX + 1, -EPROTO, "totals.bytes is"},
    {WIRE_ROUND, 1, FIELD(wire_round, totals.bytes), 50, -EPROTO, "totals.bytes is 50, expected 51"},
    {WIRE_ROUND, 1, FIELD(wire_round, totals.pages), UINT64_MAX, -EPROTO, "totals.pages is"},
    {WIRE_ROUND_DONE, 1, FIELD(wire_round_done, reserved), 1, -EPROTO, "reserved is 1"},

    {WIRE_COMMIT, 1, FIELD(wire_commit, reserved), 1, -EPROTO, "reserved is 1"},
    {WIRE_COMMIT, 1, FIELD(wire_commit, totals.frames), 0, -EPROTO, "totals.bytes is 200000"},
    {WIRE_COMMIT, 1, FIELD(wire_commit, totals.bytes), 329, -EPROTO, "totals.bytes is 329, expected 330"},
    {WIRE_COMMIT, 1, FIELD(wire_commit, totals.bytes), 330, 0, NULL},
    {WIRE_COMMIT, 1, FIELD(wire_commit, state_bytes), 0, -EPROTO, "state_bytes is 0"},
    {WIRE_COMMIT, 1, FIELD(wire_commit, state_bytes), WIRE_STATE_MAX + 1, -EPROTO,
     "state_bytes is 268435457"},
    {WIRE_COMMIT, 1, FIELD(wire_commit, state_bytes), UINT64_MAX, -EPROTO, "state_bytes is"},

    {WIRE_GOODBYE, 1, FIELD(wire_goodbye, reason), 0, -EPROTO, "reason is 0"},
    {WIRE_GOODBYE, 1, FIELD(wire_goodbye, reason), 4, -EPROTO, "reason is 4, expected 1 to 3"},
    {WIRE_GOODBYE, 1, FIELD(wire_goodbye, reserved), 1, -EPROTO, "reserved is 1"},

    {WIRE_SUMS, 1, FIELD(wire_sums, disk), 32, -EPROTO, "disk is 32, expected 0 to 31"},
    {WIRE_SUMS, 1, FIELD(wire_sums, count), 0, -EPROTO, "count is 0"},
    {WIRE_SUMS, 1, FIELD(wire_sums, count), 21, -EMSGSIZE, "payload is 656 bytes, expected 688"},
    {WIRE_SUMS, 1, FIELD(wire_sums, count), 513, -EPROTO, "count is 513"},
    {WIRE_SUMS, 1, FIELD(wire_sums, first), 1ull << 46, -EPROTO, "first is 70368744177664"},
    {WIRE_SUMS, 1, FIELD(wire_sums, first), (1ull << 46) - 512, 0, NULL},
    {WIRE_SUMS_WANTED, 1, FIELD(wire_sums, count), 513, -EPROTO, "count is 513"},
    {WIRE_SUMS_WANTED, 1, FIELD(wire_sums, disk), 99, -EPROTO, "disk is 99"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, block), 64, -EPROTO, "block is 64, expected 0 to 63"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, count), 0, -EMSGSIZE, "payload is 656 bytes, expected 16"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, count), 21, -EMSGSIZE, "payload is 656 bytes, expected 688"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, count), 513, -EPROTO, "count is 513"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, first), (1ull << 52) - 19, -EPROTO, "20 pages from page"},
    {WIRE_PAGE_SUMS, 1, FIELD(wire_page_sums, first), (1ull << 52) - 20, 0, NULL},
    {WIRE_PAGE_SUMS_WANTED, 1, FIELD(wire_page_sums, count), 0, -EPROTO, "count is 0"},
    {WIRE_PAGE_SUMS_WANTED, 1, FIELD(wire_page_sums, count), 513, -EPROTO, "count is 513"},
    {WIRE_PAGE_SUMS_WANTED, 1, FIELD(wire_page_sums, block), 99, -EPROTO, "block is 99"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, block), 64, -EPROTO, "block is 64, expected 0 to 63"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, count), 0, -EPROTO, "count is 0"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, count), 101, -EMSGSIZE, "payload is 816 bytes, expected 824"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, count), 99, -EMSGSIZE, "payload is 816 bytes, expected 808"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, count), 32769, -EPROTO, "count is 32769"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, count), 0x20000064, -EPROTO, "count is 536871012"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, first), UINT64_MAX, -EPROTO, "from page 18446744073709551615"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, first), (1ull << 52) - 99, -EPROTO, "100 pages from page"},
    {WIRE_VERIFY, 1, FIELD(wire_verify, first), (1ull << 52) - 100, 0, NULL},

    {WIRE_VERIFIED, 1, FIELD(wire_verified, block), 64, -EPROTO, "block is 64"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, count), 0, -EPROTO, "count is 0"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, count), 32769, -EPROTO, "count is 32769"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, differing), 4001, -EPROTO,
     "differing is 4001, expected 0 to 4000"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, differing), 8, -EPROTO, "listed is 7, expected 8"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, listed), 6, -EPROTO, "listed is 6, expected 7"},
    {WIRE_VERIFIED, 2, FIELD(wire_verified, differing), 1024, 0, NULL},
    {WIRE_VERIFIED, 2, FIELD(wire_verified, differing), 1023, -EPROTO, "listed is 1024, expected 1023"},
    {WIRE_VERIFIED, 2, FIELD(wire_verified, listed), 1025, -EPROTO, "listed is 1025"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, first), 1001, -EPROTO, "listed page is 1000, expected 1001"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, first), UINT64_MAX, -EPROTO, "from page"},
    {WIRE_VERIFIED, 1, FIELD(wire_verified, count), 18, -EPROTO,
     "listed page is 1018, expected 1016 to 1017"},
    {WIRE_VERIFIED, 1, sizeof(struct wire_verified) + 8, 8, 1000, -EPROTO,
     "listed page is 1000, expected 1001"},

    {WIRE_STATE, 1, FIELD(wire_state, total), 0, -EPROTO, "total is 0"},
    {WIRE_STATE, 1, FIELD(wire_state, total), WIRE_STATE_MAX + 1, -EPROTO, "total is 268435457"},
    {WIRE_STATE, 1, FIELD(wire_state, total), 999, -EPROTO, "length of the piece is 1000, expected 1 to 999"},
    {WIRE_STATE, 1, FIELD(wire_state, offset), 1, -EPROTO, "offset is 1, expected 0"},
    {WIRE_STATE, 1, FIELD(wire_state, offset), UINT64_MAX, -EPROTO, "offset is"},
    {WIRE_STATE, 1, FIELD(wire_state, total), 1001, 0, NULL},

    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, total), 0, -EPROTO, "total is 0"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, total), 1001, 0, NULL},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, total), WIRE_STATE_MAX + 1, -EPROTO, "total is 268435457"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, total), 999, -EPROTO,
     "length of the piece is 1000, expected 1 to 999"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, offset), 1, -EPROTO, "offset is 1, expected 0"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, offset), UINT64_MAX, -EPROTO, "offset is"},
    {WIRE_STATE_LZ4, 2, FIELD(wire_state_lz4, offset), WIRE_STATE_MAX - WIRE_STATE_PIECE_MAX + 1, -EPROTO,
     "offset is 268173313, expected 0 to 268173312"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, raw_bytes), 0, -EPROTO, "raw_bytes is 0, expected 1 to 262144"},
    {WIRE_STATE_LZ4, 2, FIELD(wire_state_lz4, raw_bytes), WIRE_STATE_PIECE_MAX + 1, -EPROTO,
     "raw_bytes is 262145"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, raw_bytes), UINT32_MAX, -EPROTO, "raw_bytes is 4294967295"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, raw_bytes), 1, -EPROTO, "lz4 block is"},
    {WIRE_STATE_LZ4, 1, FIELD(wire_state_lz4, raw_bytes), 999, -EBADMSG, "no LZ4 block of 999 bytes"},
    {WIRE_STATE_LZ4, 0, FIELD(wire_state_lz4, reserved), 1, -EPROTO, "reserved is 1"},

    {WIRE_DELTA, 1, FIELD(wire_delta, block), 63, 0, NULL},
    {WIRE_DELTA, 1, FIELD(wire_delta, block), 64, -EPROTO, "block is 64, expected 0 to 63"},
    {WIRE_DELTA, 1, FIELD(wire_delta, page_count), 0, -EPROTO, "page_count is 0"},
    {WIRE_DELTA, 1, FIELD(wire_delta, page_count), 65, -EPROTO, "page_count is 65, expected 1 to 64"},
    {WIRE_DELTA, 1, FIELD(wire_delta, page_count), 6, -EPROTO, "raw_bytes is 440, expected 528 to 24720"},
    {WIRE_DELTA, 1, FIELD(wire_delta, page_count), 4, -EPROTO, "raw_bytes is 440, expected 352"},
    {WIRE_DELTA, 1, FIELD(wire_delta, encoding), 2, -EPROTO, "encoding is 2, expected 0 to 1"},
    {WIRE_DELTA, 1, offsetof(struct wire_delta, reserved), 1, 1, -EPROTO, "reserved is 1"},
    {WIRE_DELTA, 1, offsetof(struct wire_delta, reserved) + 6, 1, 1, -EPROTO, "reserved is 1"},
    {WIRE_DELTA, 1, FIELD(wire_delta, raw_bytes), 439, -EPROTO, "raw_bytes is 439, expected 440 to 20600"},
    {WIRE_DELTA, 1, FIELD(wire_delta, raw_bytes), 20601, -EPROTO, "raw_bytes is 20601"},
    {WIRE_DELTA, 1, FIELD(wire_delta, raw_bytes), 441, -EMSGSIZE, "payload is 464 bytes, expected 465"},
    {WIRE_DELTA, 0, FIELD(wire_delta, raw_bytes), 87, -EPROTO, "raw_bytes is 87, expected 88 to 4120"},
    /* An LZ4 body may be as long as what it decodes to, and no longer. */
    {WIRE_DELTA, 2, FIELD(wire_delta, raw_bytes), 64 * 88, -EBADMSG, "no LZ4 block of 5632 bytes"},
    {WIRE_DISK, 1, FIELD(wire_disk, round), UINT32_MAX, 0, NULL},
    {WIRE_DISK, 1, FIELD(wire_disk, record_count), 0, -EPROTO, "record_count is 0"},
    {WIRE_DISK, 1, FIELD(wire_disk, record_count), 3, -EMSGSIZE, "payload is"},
    {WIRE_DISK, 0, FIELD(wire_disk, record_count), 2, -EMSGSIZE, "expected at least 64 for 2 records"},
    {WIRE_DISK, 1, FIELD(wire_disk, record_count), UINT32_MAX, -EPROTO, "record_count is 4294967295"},
    {WIRE_DISK, 1, FIELD(wire_disk, first), 1ull << 62, 0, NULL},
    {WIRE_DISK, 1, FIELD(wire_disk, first), (1ull << 62) + 1, -EPROTO, "first is"},
    {WIRE_DISK, 1, RECORD(0, op), 4, -EPROTO, "record's op is 4"},
    {WIRE_DISK, 1, RECORD(0, op), WIRE_DISK_LZ4, 0, NULL}, /* 1024 bytes that may decode to as many */
    {WIRE_DISK, 1, RECORD(0, op), WIRE_DISK_ZERO, -EPROTO, "zero or discard record's body is 1024"},
    {WIRE_DISK, 1, RECORD(1, op), WIRE_DISK_RAW, -EPROTO, "raw record's body is 0, expected 8192"},
    {WIRE_DISK, 1, RECORD(1, op), WIRE_DISK_LZ4, -EPROTO, "lz4 record's body is 0"},
    {WIRE_DISK, 1, RECORD(0, disk), 31, 0, NULL},
    {WIRE_DISK, 1, RECORD(0, disk), 32, -EPROTO, "record's disk is 32, expected 0 to 31"},
    {WIRE_DISK, 1, RECORD(0, reserved), 1, -EPROTO, "record's reserved is 1"},
    {WIRE_DISK, 1, RECORD(0, offset), 513, -EPROTO, "record's offset beyond a whole sector is 1"},
    {WIRE_DISK, 1, RECORD(0, offset), (1ull << 62) - 1024, 0, NULL},
    {WIRE_DISK, 1, RECORD(0, offset), (1ull << 62) - 512, -EPROTO, "record's offset is"},
    {WIRE_DISK, 1, RECORD(0, offset), UINT64_MAX - 511, -EPROTO, "record's offset is"},
    {WIRE_DISK, 1, RECORD(0, bytes), 0, -EPROTO, "record's bytes is 0"},
    {WIRE_DISK, 1, RECORD(0, bytes), 1023, -EPROTO, "record's bytes beyond a whole sector is 511"},
    {WIRE_DISK, 1, RECORD(0, bytes), 512, -EPROTO, "raw record's body is 1024, expected 512"},
    {WIRE_DISK, 1, RECORD(0, bytes), WIRE_DISK_BODY_MAX + 512, -EPROTO, "record's bytes is 262656"},
    {WIRE_DISK, 1, RECORD(1, bytes), 1ull << 62, 0, NULL},
    {WIRE_DISK, 1, RECORD(1, bytes), (1ull << 62) + 512, -EPROTO, "record's bytes is"},
    {WIRE_DISK, 1, RECORD(3, bytes), 1ull << 62, -EPROTO, "record's offset is 512, expected 0"},
    {WIRE_DISK, 1, RECORD(0, body), 1025, -EPROTO, "raw record's body is 1025"},
    {WIRE_DISK, 1, RECORD(2, body), 0, -EPROTO, "lz4 record's body is 0"},
    {WIRE_DISK, 1, RECORD(2, body), 4097, -EPROTO, "lz4 record's body is 4097, expected 1 to 4096"},
    {WIRE_DISK, 1, RECORD(2, body), 4096, -EMSGSIZE, "payload is"},
    {WIRE_DISK, 1, RECORD(2, body), 1, -EMSGSIZE, "payload is"},
};

static void every_field_has_bounds(void **state)
{
    (void)state;
    for (size_t i = 0; i < array_length(changes); i++) {
        const struct change *change = &changes[i];
        size_t length = sample_payload(change->type, change->variant, payload);
        memcpy(payload + change->offset, &change->value, change->bytes);
        struct wire_frame frame = sample_frame(change->type, payload, length);
        int r = sample_parse(&frame);
        if (r != change->code)
            fail_msg("change %zu (%s, value %llu): %d, expected %d", i, wire_type_name(change->type),
                     (unsigned long long)change->value, r, change->code);
        if (r < 0)
            assert_text_has(wire_type_name(change->type), change->field);
    }
}

/* Each payload cut short or with a byte too many is refused, and nothing beyond its end is looked at (the
 * copy is exact, so that a sanitizer sees it, and lies at an odd address). */
static void every_length_but_the_right_one(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++)
        for (unsigned variant = 0; variant < 2; variant++) {
            uint8_t type = sample_types[i];
            size_t whole = sample_payload(type, variant, payload);
            payload[whole] = 0;
            for (size_t length = 0; whole && length <= whole + 1; length++) {
                uint8_t *copy cleanup_free = malloc(length + 1);
                memcpy(copy + 1, payload, length);
                struct wire_frame frame = sample_frame(type, copy + 1, length);
                int r = sample_parse(&frame);
                if (length == whole) {
                    assert_int_equal(r, 0);
                } else if (type == WIRE_STATE && length > sizeof(struct wire_state) && length < whole) {
                    assert_int_equal(r, 0); /* its length is the piece's */
                } else {
                    /* Where the length is not told apart, the content tells: too long, or no LZ4 block. */
                    bool told = r == -EMSGSIZE || (type == WIRE_STATE && r == -EPROTO) ||
                                (type == WIRE_STATE_LZ4 && (r == -EPROTO || r == -EBADMSG));
                    if (!told)
                        fail_msg("%s %u of %zu bytes, not %zu: %d", wire_type_name(type), variant, length,
                                 whole, r);
                    assert_text_has(wire_type_name(type));
                }
            }
        }
}

static struct wire_frame built(uint8_t type, unsigned variant)
{
    return sample_frame(type, payload, sample_payload(type, variant, payload));
}

static void values_survive(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_HELLO, 1);
    struct message_hello hello;
    assert_int_equal(message_hello_parse(&frame, &hello), 0);
    assert_int_equal(hello.version_min, 1);
    assert_int_equal(hello.version_max, 2);
    assert_int_equal(hello.lane, 1);
    assert_int_equal(hello.lanes, 2);
    assert_int_equal(hello.detect_ms, 250);
    assert_int_equal(hello.optional, WIRE_FEATURES_KNOWN);
    assert_int_equal(hello.required, 0);
    assert_int_equal(hello.acked_epoch, 1);
    assert_memory_equal(hello.vm_uuid, ((uint8_t[16]){1, 2, 3}), 16);
    assert_memory_equal(hello.history, ((uint8_t[16]){4, 5, 6}), 16);
    assert_string_equal(hello.host, "alpha.example");

    frame = built(WIRE_WELCOME, 2);
    struct message_welcome welcome;
    assert_int_equal(message_welcome_parse(&frame, &welcome), 0);
    assert_int_equal(welcome.version, 1);
    assert_true(welcome.has_commit);
    assert_int_equal(welcome.detect_ms, 250);
    assert_int_equal(welcome.optional, WIRE_FEATURE_LZ4);
    assert_int_equal(welcome.committed_epoch, 2);
    assert_int_equal(welcome.staging_bytes, 1 << 30);
    assert_memory_equal(welcome.history, ((uint8_t[16]){4, 5, 6}), 16);
    assert_string_equal(welcome.host, "beta.example");

    frame = built(WIRE_COMMIT, 2);
    struct message_commit commit;
    assert_int_equal(message_commit_parse(&frame, &commit), 0);
    assert_int_equal(commit.round, 2);
    assert_int_equal(commit.totals.frames, 3);
    assert_int_equal(commit.totals.pages, 70);
    assert_int_equal(commit.totals.bytes, 200000);
    assert_int_equal(commit.totals.sum, 0x123456789abcdef0);
    assert_int_equal(commit.state_bytes, 80000);
    assert_int_equal(commit.state_sum, 0xfeedbeef);

    frame = built(WIRE_ROUND, 1);
    struct message_round round;
    assert_int_equal(message_round_parse(&frame, &round), 0);
    assert_int_equal(round.round, 1);
    assert_memory_equal(&round.totals, &commit.totals, sizeof round.totals);

    uint64_t count, committed;
    uint32_t reason, done;
    frame = built(WIRE_HEARTBEAT, 2);
    assert_int_equal(message_heartbeat_parse(&frame, &count, &committed), 0);
    assert_int_equal(count, 2);
    assert_int_equal(committed, 43);
    frame = built(WIRE_GOODBYE, 2);
    assert_int_equal(message_goodbye_parse(&frame, &reason), 0);
    assert_int_equal(reason, WIRE_GOODBYE_GUEST_FAILED);
    frame = built(WIRE_ROUND_DONE, 2);
    assert_int_equal(message_round_done_parse(&frame, &done), 0);
    assert_int_equal(done, 2);

    frame = built(WIRE_STATE, 2);
    struct message_state piece;
    assert_int_equal(message_state_parse(&frame, &piece), 0);
    assert_int_equal(piece.offset + piece.length, WIRE_STATE_MAX);
    assert_int_equal(piece.total, WIRE_STATE_MAX);
    assert_ptr_equal(piece.bytes, payload + sizeof(struct wire_state));
    assert_false(piece.lz4);
    assert_int_equal(piece.body_bytes, piece.length);

    frame = built(WIRE_STATE_LZ4, 2);
    assert_int_equal(message_state_parse(&frame, &piece), 0);
    assert_true(piece.lz4);
    assert_int_equal(piece.length, WIRE_STATE_PIECE_MAX);
    assert_int_equal(piece.offset, WIRE_STATE_MAX - WIRE_STATE_PIECE_MAX);
    assert_int_equal(piece.total, WIRE_STATE_MAX);
    assert_ptr_equal(piece.bytes, payload + sizeof(struct wire_state_lz4));
    assert_int_equal(piece.body_bytes, frame.length - sizeof(struct wire_state_lz4));
}

static void disk_records_survive(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_DISK, 1);
    struct message_disk disk;
    struct message_disk_record records[5];
    assert_int_equal(message_disk_parse(&frame, &disk), 0);
    assert_int_equal(disk.record_count, 4);
    for (unsigned i = 0; i < 4; i++)
        assert_true(message_disk_next(&disk, &records[i]));
    assert_false(message_disk_next(&disk, &records[4]));
    assert_int_equal(records[0].op, WIRE_DISK_RAW);
    assert_ptr_equal(records[0].body,
                     payload + sizeof(struct wire_disk) + 4 * sizeof(struct wire_disk_record));
    assert_int_equal(records[1].op, WIRE_DISK_ZERO);
    assert_int_equal(records[1].disk, 1);
    assert_int_equal(records[1].bytes, 8192);
    assert_ptr_equal(records[2].body, records[0].body + 1024);
    assert_int_equal(records[2].offset, 4096);
    assert_ptr_equal(records[2].body + records[2].body_bytes, payload + frame.length);
    assert_int_equal(records[3].op, WIRE_DISK_DISCARD);
    assert_int_equal(records[3].bytes, 1ull << 40);
    uint8_t *again cleanup_free = malloc(frame.length);
    size_t body = message_disk_build(disk.round, disk.first, records, 4, again);
    assert_memory_equal(again, payload, body);

    frame = built(WIRE_DISK, 2);
    assert_int_equal(message_disk_parse(&frame, &disk), 0);
    assert_int_equal(disk.round, 7);
    assert_int_equal(disk.first, WIRE_DISK_END_MAX);
}

static void verification_survives(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_VERIFY, 1);
    struct message_verify verify;
    assert_int_equal(message_verify_parse(&frame, &verify), 0);
    assert_int_equal(verify.block, 1);
    assert_int_equal(verify.first, 1000);
    assert_int_equal(verify.count, 100);
    for (uint32_t i = 0; i < verify.count; i++)
        assert_int_equal(from_le64(verify.fingerprints[i]), wire_sum(&i, sizeof i));

    frame = built(WIRE_VERIFIED, 2);
    struct message_verified verified;
    assert_int_equal(message_verified_parse(&frame, &verified), 0);
    assert_int_equal(verified.differing, 3000);
    assert_int_equal(verified.listed, WIRE_VERIFIED_MAX);
    for (uint64_t i = 0; i < verified.listed; i++) {
        le64 page;
        memcpy(&page, verified.pages + i * 8, 8);
        assert_int_equal(from_le64(page), 1000 + 3 * i);
    }
    uint64_t fingerprint = 1;
    assert_int_equal(message_verify_build(0, 0, 1, &fingerprint, payload, 23), -EMSGSIZE);
    assert_int_equal(message_verify_build(0, 0, 1, &fingerprint, payload, 24), 24);
    assert_int_equal(message_verified_build(&verify, 1, &fingerprint, payload, 31), -EMSGSIZE);
    assert_int_equal(message_verified_build(&verify, 1, &fingerprint, payload, 32), 32);
}

static void sums_survive(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_SUMS, 1);
    struct message_sums sums;
    assert_int_equal(message_sums_parse(&frame, &sums), 0);
    assert_int_equal(sums.disk, 1);
    assert_int_equal(sums.first, 512);
    assert_int_equal(sums.count, 20);
    for (uint32_t i = 0; i < sums.count; i++) {
        uint8_t digest[WIRE_DIGEST_BYTES];
        assert_int_equal(wire_digest(&i, sizeof i, digest), 0);
        assert_memory_equal(sums.digests + (size_t)i * WIRE_DIGEST_BYTES, digest, sizeof digest);
    }
    frame = built(WIRE_SUMS_WANTED, 2);
    assert_int_equal(message_sums_wanted_parse(&frame, &sums), 0);
    assert_int_equal(sums.count, WIRE_SUMS_MAX);
    assert_null(sums.digests);

    struct message_page_sums pages;
    frame = built(WIRE_PAGE_SUMS, 2);
    assert_int_equal(message_page_sums_parse(&frame, &pages), 0);
    assert_int_equal(pages.block, 2);
    assert_int_equal(pages.first, 1024);
    assert_int_equal(pages.count, WIRE_PAGE_SUMS_MAX);
    for (uint32_t i = 0; i < pages.count; i++) {
        uint8_t digest[WIRE_DIGEST_BYTES];
        assert_int_equal(wire_digest(&i, sizeof i, digest), 0);
        assert_memory_equal(pages.digests + (size_t)i * WIRE_DIGEST_BYTES, digest, sizeof digest);
    }
    frame = built(WIRE_PAGE_SUMS, 0);
    assert_int_equal(message_page_sums_parse(&frame, &pages), 0);
    assert_int_equal(pages.count, 0);
    frame = built(WIRE_PAGE_SUMS_WANTED, 1);
    assert_int_equal(message_page_sums_wanted_parse(&frame, &pages), 0);
    assert_int_equal(pages.count, 20);
    assert_null(pages.digests);
    /* FIPS 180-4's own example. */
    static const uint8_t abc[] = {0xba, 0x78, 0x16, 0xbf, 0x8f, 0x01, 0xcf, 0xea, 0x41, 0x41, 0x40,
                                  0xde, 0x5d, 0xae, 0x22, 0x23, 0xb0, 0x03, 0x61, 0xa3, 0x96, 0x17,
                                  0x7a, 0x9c, 0xb4, 0x10, 0xff, 0x61, 0xf2, 0x00, 0x15, 0xad};
    uint8_t digest[WIRE_DIGEST_BYTES];
    assert_int_equal(wire_digest("abc", 3, digest), 0);
    assert_memory_equal(digest, abc, sizeof abc);
}

static void description_survives(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_DESCRIBE, 1);
    struct message_describe *describe cleanup_free = malloc(sizeof *describe);
    assert_int_equal(message_describe_parse(&frame, describe), 0);
    assert_int_equal(describe->block_count, 3);
    assert_string_equal(describe->blocks[0].name, "pc.ram");
    assert_string_equal(describe->blocks[2].name, "/rom@etc/acpi/tables");
    assert_int_equal(describe->blocks[2].bytes, 3 * 65536);
    assert_int_equal(describe->text_bytes, strlen("machine pc-q35-7.2\nversion 7.2.9\n"));
    assert_memory_equal(describe->text, "machine pc-q35-7.2\nversion 7.2.9\n", describe->text_bytes);

    /* The same name twice, though what stands behind the NUL differs. */
    memcpy(payload + BLOCK(2, name), "pc.ram\0other", 12);
    assert_int_equal(message_describe_parse(&frame, describe), -EPROTO);
    assert_text_has("blocks 0 and 2", "'pc.ram'");
    frame = built(WIRE_DESCRIBE, 1);
    memset(payload + BLOCK(1, name), 'n', WIRE_BLOCK_NAME); /* no NUL */
    assert_int_equal(message_describe_parse(&frame, describe), -EPROTO);
    assert_text_has("length of a block's name is 256");

    frame = built(WIRE_DESCRIBE, 1);
    assert_int_equal(message_describe_parse(&frame, describe), 0);
    uint8_t *small cleanup_free = malloc(frame.length);
    assert_int_equal(message_describe_build(describe, small, frame.length - 1), -EMSGSIZE);
    assert_int_equal(message_describe_build(describe, small, frame.length), frame.length);
    assert_memory_equal(small, payload, frame.length);
    describe->text_bytes = WIRE_DESCRIPTION_MAX + 1;
    assert_int_equal(message_describe_build(describe, small, SIZE_MAX), -EMSGSIZE);
}

/* Texts for people: must end in their field, and cannot carry a terminal's control sequences. */
static void texts(void **state)
{
    (void)state;
    struct message_refuse refuse;
    struct wire_frame frame = built(WIRE_REFUSE, 1);
    memcpy(payload + offsetof(struct wire_refuse, text), "a\x1b[2J\x7f\n\xff", 9);
    assert_int_equal(message_refuse_parse(&frame, &refuse), 0);
    assert_int_equal(refuse.code, WIRE_REFUSE_VERSION);
    assert_string_equal(refuse.text, "a?[2J???");
    memset(payload + offsetof(struct wire_refuse, text), 'x', sizeof refuse.text);
    assert_int_equal(message_refuse_parse(&frame, &refuse), -EPROTO);
    assert_text_has("REFUSE", "text", "504");

    frame = built(WIRE_HELLO, 1);
    struct message_hello hello;
    payload[offsetof(struct wire_hello, host) + 1] = '\r';
    assert_int_equal(message_hello_parse(&frame, &hello), 0);
    assert_string_equal(hello.host, "a?pha.example");
    memset(payload + offsetof(struct wire_hello, host), 'x', sizeof hello.host);
    assert_int_equal(message_hello_parse(&frame, &hello), -EPROTO);
    assert_text_has("HELLO", "host", "64");
    frame = built(WIRE_WELCOME, 1);
    struct message_welcome welcome;
    memset(payload + offsetof(struct wire_welcome, host), 'x', sizeof welcome.host);
    assert_int_equal(message_welcome_parse(&frame, &welcome), -EPROTO);

    /* Ours are cut to fit, and end. */
    char longer[600];
    memset(longer, 'y', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    struct wire_refuse wire;
    message_refuse_build(WIRE_REFUSE_GUEST, longer, &wire);
    frame = sample_frame(WIRE_REFUSE, &wire, sizeof wire);
    assert_int_equal(message_refuse_parse(&frame, &refuse), 0);
    assert_int_equal(strlen(refuse.text), sizeof refuse.text - 1);
}

/* A refused message leaves the caller's result as it was. */
static void outputs_untouched(void **state)
{
    (void)state;
    struct wire_frame frame = built(WIRE_HELLO, 1);
    struct message_hello hello, before;
    memset(&hello, 0xab, sizeof hello);
    before = hello;
    payload[offsetof(struct wire_hello, page_bytes)] = 1;
    assert_int_equal(message_hello_parse(&frame, &hello), -EPROTO);
    assert_memory_equal(&hello, &before, sizeof hello);

    frame = built(WIRE_HEARTBEAT, 1);
    frame.length--;
    uint64_t count = 5, committed = 6;
    assert_int_equal(message_heartbeat_parse(&frame, &count, &committed), -EMSGSIZE);
    assert_int_equal(count, 5);
    assert_int_equal(committed, 6);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_field_has_bounds), cmocka_unit_test(every_length_but_the_right_one),
        cmocka_unit_test(values_survive),         cmocka_unit_test(disk_records_survive),
        cmocka_unit_test(verification_survives),  cmocka_unit_test(sums_survive),
        cmocka_unit_test(description_survives),   cmocka_unit_test(texts),
        cmocka_unit_test(outputs_untouched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
