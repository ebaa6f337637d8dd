/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/samples.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <string.h>

#define SESSION 0x1122334455667788u
#define BUFFER  (4u << 20)

static uint8_t buffer[BUFFER];

static struct wire_writer writer_new(void)
{
    return (struct wire_writer){.buffer = buffer, .room = BUFFER, .session = SESSION};
}

/* Who sends a type and where, by the protocol's table; stated again, since frame.c's own is under test. */
static bool permitted(uint8_t type, enum wire_side from, bool control)
{
    if (type >= WIRE_PAGES && type <= WIRE_STATE_LZ4)
        return from == WIRE_SIDE_PRIMARY && !control;
    if (type == WIRE_HELLO)
        return from == WIRE_SIDE_PRIMARY;
    if (!control)
        return false;
    if (type == WIRE_REFUSE || type == WIRE_HEARTBEAT || type == WIRE_GOODBYE)
        return true;
    bool standby = type == WIRE_WELCOME || type == WIRE_ACCEPT || type == WIRE_ROUND_DONE ||
                   type == WIRE_ACK || type == WIRE_VERIFIED || type == WIRE_LOADED || type == WIRE_STARTED ||
                   type == WIRE_SUMS || type == WIRE_PAGE_SUMS;
    return standby == (from == WIRE_SIDE_STANDBY);
}

static struct wire_reader reader_for(uint8_t type)
{
    struct wire_reader reader = {.control = type < WIRE_PAGES};
    reader.from = permitted(type, WIRE_SIDE_PRIMARY, reader.control) ? WIRE_SIDE_PRIMARY : WIRE_SIDE_STANDBY;
    return reader;
}

/* Make the sums right again after a field was changed. */
static void reseal(uint8_t *frame)
{
    struct wire_header header;
    memcpy(&header, frame, sizeof header);
    header.header_sum = to_le64(wire_sum(&header, offsetof(struct wire_header, header_sum)));
    memcpy(frame, &header, sizeof header);
}

#define poke(frame, field, value)                                                                            \
    do {                                                                                                     \
        struct wire_header header_;                                                                          \
        memcpy(&header_, (frame), sizeof header_);                                                           \
        header_.field = (value);                                                                             \
        memcpy((frame), &header_, sizeof header_);                                                           \
        reseal(frame);                                                                                       \
    } while (0)

static void round_trip(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++) {
        uint8_t type = sample_types[i];
        struct wire_writer writer = writer_new();
        struct wire_reader reader = reader_for(type);
        uint8_t *payload cleanup_free = malloc(WIRE_PAYLOAD_MAX);
        for (unsigned variant = 0; variant < SAMPLE_VARIANTS; variant++)
            assert_true(sample_put(&writer, type, variant));
        size_t at = 0;
        for (unsigned variant = 0; variant < SAMPLE_VARIANTS; variant++) {
            struct wire_frame frame;
            long taken = wire_reader_next(&reader, buffer + at, writer.used - at, &frame);
            size_t length = sample_payload(type, variant, payload);
            assert_int_equal(taken, sizeof(struct wire_header) + length);
            assert_int_equal(frame.type, type);
            assert_int_equal(frame.length, length);
            assert_int_equal(frame.session, SESSION);
            assert_int_equal(frame.sequence, variant);
            assert_int_equal(frame.generation, 7);
            assert_int_equal(frame.epoch, 42);
            assert_memory_equal(frame.payload, payload, length);
            assert_int_equal(sample_parse(&frame), 0);
            at += (size_t)taken;
        }
        assert_int_equal(at, writer.used);
        assert_int_equal(reader.session, SESSION);
        assert_int_equal(reader.sequence, SAMPLE_VARIANTS);
    }
}

/* A frame that has not wholly arrived is awaited, without a look beyond what is there (the copy is exact, so
 * that a sanitizer sees one) and without a change of the reader. */
static void truncated(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++) {
        struct wire_writer writer = writer_new();
        assert_true(sample_put(&writer, sample_types[i], 1));
        for (size_t length = 0; length < writer.used; length += length < 300 ? 1 : 97) {
            struct wire_reader reader = reader_for(sample_types[i]), before = reader;
            struct wire_frame frame;
            uint8_t *copy cleanup_free = malloc(length + 1);
            memcpy(copy + 1, buffer, length);
            assert_int_equal(wire_reader_next(&reader, copy + 1, length, &frame), 0);
            assert_memory_equal(&reader, &before, sizeof reader);
        }
    }
}

static void every_bit_flip_is_refused(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++) {
        struct wire_writer writer = writer_new();
        assert_true(sample_put(&writer, sample_types[i], sample_types[i] == WIRE_PAGES ? 1 : 0));
        for (size_t bit = 0; bit < writer.used * 8; bit++) {
            struct wire_reader reader = reader_for(sample_types[i]), before = reader;
            struct wire_frame frame;
            buffer[bit / 8] ^= (uint8_t)(1 << bit % 8);
            long taken = wire_reader_next(&reader, buffer, writer.used, &frame);
            buffer[bit / 8] ^= (uint8_t)(1 << bit % 8);
            if (taken >= 0)
                fail_msg("%s: bit %zu flipped, and accepted", wire_type_name(sample_types[i]), bit);
            assert_memory_equal(&reader, &before, sizeof reader);
        }
    }
}

static long next_of(uint8_t *frame, size_t available, struct wire_reader reader)
{
    struct wire_frame ignored;
    return wire_reader_next(&reader, frame, available, &ignored);
}

static void fields_out_of_bounds(void **state)
{
    (void)state;
    struct wire_writer writer = writer_new();
    assert_true(sample_put(&writer, WIRE_HEARTBEAT, 0));
    const size_t used = writer.used;
    uint8_t good[sizeof(struct wire_header)];
    memcpy(good, buffer, sizeof good);
    struct wire_reader reader = reader_for(WIRE_HEARTBEAT);

#define REFUSED(expected_code, field, value, ...)                                                            \
    do {                                                                                                     \
        memcpy(buffer, good, sizeof good);                                                                   \
        poke(buffer, field, value);                                                                          \
        assert_int_equal(next_of(buffer, used, reader), expected_code);                                      \
        assert_text_has(__VA_ARGS__);                                                                        \
        /* the header alone is enough to refuse */                                                           \
        assert_int_equal(next_of(buffer, sizeof good, reader), expected_code);                               \
    } while (0)

    REFUSED(-EPROTO, magic, to_le32(0x31545354), "magic", "0x31545354", "0x31545355");
    REFUSED(-EPROTO, version, 2, "version", "0x2", "0x1");
    REFUSED(-EPROTO, version, 0, "version", "0x0", "0x1");
    REFUSED(-EPROTO, flags, to_le16(1), "flags", "0x1");
    REFUSED(-EPROTO, flags, to_le16(0x8000), "flags", "0x8000");
    REFUSED(-EPROTO, reserved, to_le32(1), "reserved");
    REFUSED(-EPROTO, type, 0, "type is 0");
    REFUSED(-EPROTO, type, 22, "type is 22");
    REFUSED(-EPROTO, type, 31, "type is 31");
    REFUSED(-EPROTO, type, 37, "type is 37");
    REFUSED(-EPROTO, type, 255, "type is 255");
    REFUSED(-EPROTO, session, to_le64(0), "session is 0");
    REFUSED(-EPROTO, sequence, to_le64(1), "sequence", "0x1", "0x0");
    REFUSED(-EPROTO, generation, to_le64((1ull << 62) + 1), "generation", "0x4000000000000001");
    REFUSED(-EMSGSIZE, length, to_le32(15), "HEARTBEAT", "15", "16");
    REFUSED(-EMSGSIZE, length, to_le32(17), "HEARTBEAT", "17", "16");
    REFUSED(-EMSGSIZE, length, to_le32(UINT32_MAX), "4294967295");

    reader.session_known = true;
    reader.session = SESSION + 1;
    REFUSED(-EPROTO, session, to_le64(SESSION), "session", "0x1122334455667788", "0x1122334455667789");
    reader.session = SESSION;

    /* Damage, as against a peer that means it: sums that do not fit. */
    memcpy(buffer, good, sizeof good);
    buffer[40] ^= 1;
    assert_int_equal(next_of(buffer, used, reader), -EBADMSG);
    assert_text_has("header_sum");
    memcpy(buffer, good, sizeof good);
    buffer[64] ^= 1;
    assert_int_equal(next_of(buffer, used, reader), -EBADMSG);
    assert_text_has("HEARTBEAT", "payload_sum");
    buffer[64] ^= 1;
    poke(buffer, payload_sum, to_le64(1));
    assert_int_equal(next_of(buffer, used, reader), -EBADMSG);
    memcpy(buffer, good, sizeof good);
    assert_int_equal(next_of(buffer, used, reader), used);
#undef REFUSED
}

static void lengths_have_bounds_by_type(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++) {
        uint8_t type = sample_types[i];
        size_t min, max;
        assert_true(wire_type_bounds(type, &min, &max));
        assert_true(min <= max && max <= WIRE_PAYLOAD_MAX);
        struct wire_writer writer = writer_new();
        assert_true(sample_put(&writer, type, 0));
        for (int beyond = 0; beyond < 2; beyond++) {
            if (!beyond && min == 0)
                continue;
            poke(buffer, length, to_le32((uint32_t)(beyond ? max + 1 : min - 1)));
            assert_int_equal(next_of(buffer, sizeof(struct wire_header), reader_for(type)), -EMSGSIZE);
        }
        poke(buffer, length, to_le32((uint32_t)max));
        assert_int_equal(next_of(buffer, sizeof(struct wire_header), reader_for(type)),
                         max ? 0 : (long)sizeof(struct wire_header));
    }
    size_t min = 77, max = 77;
    for (unsigned type = 0; type < 256; type++)
        if (!memchr(sample_types, (int)type, SAMPLE_TYPES))
            assert_false(wire_type_bounds((uint8_t)type, &min, &max));
    assert_int_equal(min, 77);
    assert_int_equal(max, 77);
}

static void lanes_and_directions(void **state)
{
    (void)state;
    for (unsigned i = 0; i < SAMPLE_TYPES; i++)
        for (int side = 0; side < 2; side++)
            for (int control = 0; control < 2; control++) {
                struct wire_writer writer = writer_new();
                struct wire_reader reader = {.from = side ? WIRE_SIDE_STANDBY : WIRE_SIDE_PRIMARY,
                                             .control = control};
                assert_true(sample_put(&writer, sample_types[i], 1));
                long taken = next_of(buffer, writer.used, reader);
                if (permitted(sample_types[i], reader.from, control)) {
                    assert_int_equal(taken, writer.used);
                } else {
                    assert_int_equal(taken, -EPROTO);
                    assert_text_has("type is", wire_type_name(sample_types[i]));
                }
            }
}

/* Frames of one lane that come twice, or in another order, or with one missing, are refused. */
static void sequence_is_kept(void **state)
{
    (void)state;
    struct wire_writer writer = writer_new();
    size_t at[4];
    for (unsigned i = 0; i < 4; i++) {
        at[i] = writer.used;
        assert_true(sample_put(&writer, WIRE_HEARTBEAT, i % SAMPLE_VARIANTS));
    }
    const size_t each = at[1];
    for (unsigned second = 0; second < 4; second++) {
        struct wire_reader reader = reader_for(WIRE_HEARTBEAT);
        struct wire_frame frame;
        assert_int_equal(wire_reader_next(&reader, buffer, each, &frame), each);
        long taken = wire_reader_next(&reader, buffer + at[second], each, &frame);
        assert_int_equal(taken, second == 1 ? (long)each : -EPROTO);
        if (second != 1) {
            assert_text_has("sequence");
            /* and the right one is still taken */
            assert_int_equal(wire_reader_next(&reader, buffer + at[1], each, &frame), each);
        }
    }
    /* The first frame's session holds for the rest of the lane. */
    struct wire_reader reader = reader_for(WIRE_HEARTBEAT);
    struct wire_frame frame;
    assert_int_equal(wire_reader_next(&reader, buffer, each, &frame), each);
    poke(buffer + at[1], session, to_le64(SESSION + 1));
    assert_int_equal(wire_reader_next(&reader, buffer + at[1], each, &frame), -EPROTO);
    assert_text_has("session");
}

/* Whatever pieces the transport delivers, the same frames come out. */
static void any_chunking(void **state)
{
    (void)state;
    struct wire_writer writer = writer_new();
    for (unsigned i = 0; i < 40; i++)
        assert_true(sample_put(&writer, i % 3 ? WIRE_STATE : WIRE_PAGES, i % 2));
    unsigned seed = 1;
    for (unsigned repeat = 0; repeat < 20; repeat++) {
        struct wire_reader reader = reader_for(WIRE_PAGES);
        size_t begin = 0, end = 0, frames = 0;
        while (begin < writer.used) {
            struct wire_frame frame;
            long taken = wire_reader_next(&reader, buffer + begin, end - begin, &frame);
            assert_true(taken >= 0);
            if (taken == 0) {
                end += 1 + (size_t)rand_r(&seed) % (repeat < 10 ? 100 : 3000);
                end = end > writer.used ? writer.used : end;
                continue;
            }
            assert_int_equal(sample_parse(&frame), 0);
            begin += (size_t)taken;
            frames++;
        }
        assert_int_equal(frames, 40);
    }
}

static void writer_keeps_to_its_room(void **state)
{
    (void)state;
    uint8_t small[3 * sizeof(struct wire_header) + 16];
    memset(small, 0xee, sizeof small);
    struct wire_writer writer = {
        .buffer = small, .room = sizeof(struct wire_header) + 15, .session = SESSION};
    uint8_t payload[16] = {0};
    size_t room;
    assert_int_equal(wire_writer_put(&writer, WIRE_HEARTBEAT, 1, 1, payload, 16), -ENOBUFS);
    assert_text_has("HEARTBEAT", "16", "15");
    assert_int_equal(writer.used, 0);
    assert_int_equal(writer.sequence, 0);
    assert_int_equal(small[0], 0xee);
    writer.room++;
    assert_int_equal(wire_writer_put(&writer, WIRE_HEARTBEAT, 1, 1, payload, 16), 0);
    assert_int_equal(writer.used, writer.room);
    assert_int_equal(writer.sequence, 1);
    assert_int_equal(small[writer.room], 0xee);

    writer.room += sizeof(struct wire_header) - 1;
    assert_null(wire_writer_payload(&writer, &room));
    assert_int_equal(room, 0);
    assert_int_equal(wire_writer_put(&writer, WIRE_ACK, 1, 1, NULL, 0), -ENOBUFS);
    writer.room++;
    assert_non_null(wire_writer_payload(&writer, &room));
    assert_int_equal(room, 0);
    assert_int_equal(wire_writer_put(&writer, WIRE_ACK, 1, 1, NULL, 0), 0);

    struct wire_writer large = writer_new();
    assert_ptr_equal(wire_writer_payload(&large, &room), buffer + sizeof(struct wire_header));
    assert_int_equal(room, WIRE_PAYLOAD_MAX);
}

/* A round's sum does not depend on which lane took which frame, nor on the order of lanes. */
static void round_sums(void **state)
{
    (void)state;
    struct wire_writer writer = writer_new();
    uint8_t payload[64];
    uint64_t sum = 0, read_sum = 0;
    for (unsigned i = 0; i < 10; i++) {
        size_t length = sample_payload(WIRE_PAGES, 0, payload);
        size_t room;
        memcpy(wire_writer_payload(&writer, &room), payload, length);
        sum += wire_writer_finish(&writer, WIRE_PAGES, 1, i, length);
    }
    struct wire_reader reader = reader_for(WIRE_PAGES);
    for (size_t at = 0; at < writer.used;) {
        struct wire_frame frame;
        long taken = wire_reader_next(&reader, buffer + at, writer.used - at, &frame);
        assert_true(taken > 0);
        read_sum += frame.header_sum;
        at += (size_t)taken;
    }
    assert_int_equal(read_sum, sum);
}

/* The published test vectors of XXH3-64: every path of the library gives the same sums as the peer's. */
static void sums_are_xxh3(void **state)
{
    (void)state;
    assert_int_equal(wire_sum("", 0), 0);
    assert_int_equal(wire_sum("a", 1), 0xe6c632b61e964e1full);
    assert_int_equal(wire_sum("abc", 3), 0x78af5f94892f3950ull);
    assert_int_equal(wire_sum("The quick brown fox jumps over the lazy dog", 43), 0xce7d19a5418fb365ull);
}

static void names(void **state)
{
    (void)state;
    assert_string_equal(wire_type_name(WIRE_COMMIT), "COMMIT");
    assert_string_equal(wire_type_name(WIRE_STATE), "STATE");
    assert_string_equal(wire_type_name(WIRE_STATE_LZ4), "STATE_LZ4");
    for (unsigned type = 0; type < 256; type++)
        assert_int_equal(!strcmp(wire_type_name((uint8_t)type), "?"),
                         !memchr(sample_types, (int)type, SAMPLE_TYPES));
    assert_string_equal(wire_refusal_name(WIRE_REFUSE_MISMATCH), "machine-mismatch");
    assert_string_equal(wire_refusal_name(0), "unknown");
    assert_string_equal(wire_refusal_name(UINT32_MAX), "unknown");
    for (uint32_t a = WIRE_REFUSE_PROTOCOL; a <= WIRE_REFUSE_INTERNAL; a++)
        for (uint32_t b = 0; b < a; b++)
            assert_string_not_equal(wire_refusal_name(a), wire_refusal_name(b));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(round_trip),
        cmocka_unit_test(truncated),
        cmocka_unit_test(every_bit_flip_is_refused),
        cmocka_unit_test(fields_out_of_bounds),
        cmocka_unit_test(lengths_have_bounds_by_type),
        cmocka_unit_test(lanes_and_directions),
        cmocka_unit_test(sequence_is_kept),
        cmocka_unit_test(any_chunking),
        cmocka_unit_test(writer_keeps_to_its_room),
        cmocka_unit_test(round_sums),
        cmocka_unit_test(sums_are_xxh3),
        cmocka_unit_test(names),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
