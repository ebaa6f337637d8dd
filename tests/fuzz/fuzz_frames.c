/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/samples.h"

#include <string.h>

/*
 * The stream of one lane. Properties: nothing outside the bytes that arrived is touched; the same frames and
 * the same verdict come out however the stream is cut into pieces; what is taken keeps the reader's promises.
 *
 * Input: flags, a seed for the cutting, then the stream. With F_RESEAL the sums of whatever stands where
 * frames stand are made right first, so that mutations reach what lies behind the sums.
 */
enum { F_STANDBY = 1, F_CONTROL = 2, F_RESEAL = 4, F_KNOWN = 8 };

struct outcome {
    long last; /* what the reader said in the end */
    uint64_t frames, digest;
    size_t taken;
};

static void reseal(uint8_t *stream, size_t length)
{
    for (size_t at = 0; length - at >= sizeof(struct wire_header);) {
        struct wire_header header;
        memcpy(&header, stream + at, sizeof header);
        size_t left = length - at - sizeof header, payload = from_le32(header.length);
        if (payload <= left)
            header.payload_sum = to_le64(wire_sum(stream + at + sizeof header, payload));
        header.header_sum = to_le64(wire_sum(&header, offsetof(struct wire_header, header_sum)));
        memcpy(stream + at, &header, sizeof header);
        if (payload > left)
            return;
        at += sizeof header + payload;
    }
}

static struct outcome read_all(struct wire_reader reader, const uint8_t *stream, size_t length,
                               uint64_t random, bool cut)
{
    struct outcome outcome = {0};
    size_t end = cut ? 0 : length;
    for (;;) {
        struct wire_frame frame;
        size_t available = end - outcome.taken;
        uint8_t *exact cleanup_free = malloc(available + 1);
        memcpy(exact + 1, stream + outcome.taken, available);
        uint64_t sequence = reader.sequence;
        error_clear();
        outcome.last = wire_reader_next(&reader, exact + 1, available, &frame);
        if (outcome.last < 0) {
            fuzz_require(reader.sequence == sequence);
            fuzz_require(strcmp(error_text(), "no error was recorded"));
            return outcome;
        }
        if (outcome.last == 0) {
            if (end == length)
                return outcome;
            /* Less than a header is awaited; with a whole header, no more than a payload may be. */
            fuzz_require(available < sizeof(struct wire_header) + WIRE_PAYLOAD_MAX);
            size_t piece = 1 + (size_t)(fuzz_random(&random) % (fuzz_random(&random) % 8 ? 70 : 5000));
            end += piece < length - end ? piece : length - end;
            continue;
        }
        size_t min, max;
        fuzz_require((size_t)outcome.last == sizeof(struct wire_header) + frame.length);
        fuzz_require((size_t)outcome.last <= available);
        fuzz_require(frame.payload == exact + 1 + sizeof(struct wire_header));
        fuzz_require(frame.sequence == sequence && reader.sequence == sequence + 1);
        fuzz_require(frame.session == reader.session && reader.session_known);
        fuzz_require(wire_type_bounds(frame.type, &min, &max) && frame.length >= min && frame.length <= max);
        outcome.frames++;
        outcome.digest = outcome.digest * 31 + frame.header_sum + (uint64_t)(sample_parse(&frame) == 0);
        outcome.taken += (size_t)outcome.last;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    unsigned flags = (unsigned)fuzz_take(&input, 1);
    uint64_t random = fuzz_take(&input, 1);
    if (input.left > 32768) /* cutting costs the square of the length */
        input.left = 32768;
    uint8_t *stream cleanup_free = malloc(input.left + 1);
    memcpy(stream, input.bytes, input.left);
    if (flags & F_RESEAL)
        reseal(stream, input.left);
    struct wire_reader reader = {
        .from = flags & F_STANDBY ? WIRE_SIDE_STANDBY : WIRE_SIDE_PRIMARY,
        .control = flags & F_CONTROL,
        .session_known = flags & F_KNOWN,
        .session = 0x5e55,
    };
    struct outcome whole = read_all(reader, stream, input.left, 0, false);
    struct outcome cut = read_all(reader, stream, input.left, random, true);
    fuzz_require(whole.last == cut.last && whole.frames == cut.frames && whole.digest == cut.digest &&
                 whole.taken == cut.taken);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    /* Three streams, as the three kinds of lane carry them, each with and without F_RESEAL. */
    static const uint8_t streams[3][12] = {
        {WIRE_HELLO, WIRE_DESCRIBE, WIRE_HEARTBEAT, WIRE_ROUND, WIRE_COMMIT, WIRE_VERIFY, WIRE_SUMS_WANTED,
         WIRE_PAGE_SUMS_WANTED, WIRE_GOODBYE, WIRE_REFUSE},
        {WIRE_WELCOME, WIRE_ACCEPT, WIRE_ROUND_DONE, WIRE_ACK, WIRE_VERIFIED, WIRE_SUMS, WIRE_PAGE_SUMS,
         WIRE_HEARTBEAT, WIRE_REFUSE},
        {WIRE_HELLO, WIRE_PAGES, WIRE_DELTA, WIRE_STATE, WIRE_STATE_LZ4, WIRE_PAGES},
    };
    static const uint8_t flags[3] = {F_CONTROL, F_CONTROL | F_STANDBY, 0};
    if (index >= 24)
        return 0;
    unsigned kind = index % 3, variant = index / 3 % 2;
    to[0] = flags[kind] | (index / 6 % 2 ? F_RESEAL : 0) | (index / 12 ? F_KNOWN : 0);
    to[1] = (uint8_t)index;
    struct wire_writer writer = {.buffer = to + 2, .room = 32768, .session = 0x5e55};
    for (unsigned i = 0; streams[kind][i]; i++)
        if (!sample_put(&writer, streams[kind][i], variant))
            break;
    return 2 + writer.used;
}
