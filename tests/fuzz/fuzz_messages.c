/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "tests/samples/samples.h"

#include <string.h>

/*
 * Every message's parser. Properties: nothing outside the payload is touched; a refusal has words; what was
 * accepted, built anew from the values that were understood, is accepted again with the same values.
 *
 * Input: the type, the payload's alignment, the payload.
 */

#define AGAIN(kind, frame, type_)                                                                            \
    do {                                                                                                     \
        struct message_##kind first_, second_;                                                               \
        struct wire_##kind wire_;                                                                            \
        fuzz_require(message_##kind##_parse((frame), &first_) == 0);                                         \
        message_##kind##_build(&first_, &wire_);                                                             \
        struct wire_frame again_ = sample_frame((type_), &wire_, sizeof wire_);                              \
        fuzz_require(message_##kind##_parse(&again_, &second_) == 0);                                        \
        fuzz_require(memcmp(&first_, &second_, sizeof first_) == 0);                                         \
    } while (0)

static void describe_again(const struct wire_frame *frame)
{
    struct message_describe *first cleanup_free = malloc(sizeof *first);
    struct message_describe *second cleanup_free = malloc(sizeof *second);
    uint8_t *built cleanup_free = malloc(frame->length);
    fuzz_require(message_describe_parse(frame, first) == 0);
    fuzz_require(message_describe_build(first, built, frame->length) == (long)frame->length);
    struct wire_frame again = sample_frame(WIRE_DESCRIBE, built, frame->length);
    fuzz_require(message_describe_parse(&again, second) == 0);
    fuzz_require(memcmp(first->blocks, second->blocks, sizeof first->blocks) == 0);
    fuzz_require(first->text_bytes == second->text_bytes &&
                 memcmp(first->text, second->text, first->text_bytes) == 0);
}

static void disk_again(const struct wire_frame *frame)
{
    struct message_disk disk, second;
    fuzz_require(message_disk_parse(frame, &disk) == 0);
    struct message_disk_record *records cleanup_free = calloc(disk.record_count, sizeof *records);
    struct message_disk walk = disk;
    for (uint32_t i = 0; i < disk.record_count; i++) {
        fuzz_require(message_disk_next(&walk, &records[i]));
        const struct message_disk_record *record = &records[i];
        fuzz_require(record->disk < WIRE_DISKS_MAX && record->bytes > 0 && record->bytes % 512 == 0 &&
                     record->offset % 512 == 0 && record->bytes <= WIRE_DISK_END_MAX &&
                     record->offset <= WIRE_DISK_END_MAX - record->bytes);
    }
    uint8_t *built cleanup_free = malloc(frame->length);
    memcpy(built, frame->payload, frame->length);
    size_t body = message_disk_build(disk.round, disk.first, records, disk.record_count, built);
    fuzz_require(memcmp(built, frame->payload, frame->length) == 0);
    fuzz_require(body <= frame->length);
    struct wire_frame again = sample_frame(WIRE_DISK, built, frame->length);
    fuzz_require(message_disk_parse(&again, &second) == 0);
}

static void state_again(const struct wire_frame *frame)
{
    struct message_state state;
    uint8_t built[sizeof(struct wire_state_lz4)];
    fuzz_require(message_state_parse(frame, &state) == 0);
    size_t head = state.lz4 ? message_state_lz4_build(state.offset, state.total, state.length, built)
                            : message_state_build(state.offset, state.total, built);
    fuzz_require(head + state.body_bytes == frame->length && memcmp(built, frame->payload, head) == 0);
}

static void sums_again(const struct wire_frame *frame)
{
    struct message_sums sums;
    struct wire_sums built;
    int r =
        frame->type == WIRE_SUMS ? message_sums_parse(frame, &sums) : message_sums_wanted_parse(frame, &sums);
    fuzz_require(r == 0 && sums.disk < WIRE_DISKS_MAX && sums.count && sums.count <= WIRE_SUMS_MAX);
    /* So that no receiver's arithmetic on bytes can pass what a disk can be. */
    fuzz_require((sums.first + sums.count) * WIRE_SUMS_BLOCK <= WIRE_DISK_END_MAX);
    message_sums_build(&sums, &built);
    fuzz_require(memcmp(&built, frame->payload, sizeof built) == 0);
}

static void page_sums_again(const struct wire_frame *frame)
{
    struct message_page_sums sums;
    struct wire_page_sums built;
    bool answer = frame->type == WIRE_PAGE_SUMS;
    int r = answer ? message_page_sums_parse(frame, &sums) : message_page_sums_wanted_parse(frame, &sums);
    fuzz_require(r == 0 && sums.block < WIRE_BLOCKS_MAX && sums.count <= WIRE_PAGE_SUMS_MAX);
    fuzz_require((answer || sums.count) && sums.first + sums.count <= UINT64_C(1) << 52);
    message_page_sums_build(&sums, &built);
    fuzz_require(memcmp(&built, frame->payload, sizeof built) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    uint8_t type = sample_types[fuzz_take(&input, 1) % SAMPLE_TYPES];
    size_t misaligned = fuzz_take(&input, 1) % 8;
    if (input.left > WIRE_PAYLOAD_MAX)
        input.left = WIRE_PAYLOAD_MAX;
    uint8_t *exact cleanup_free = malloc(misaligned + input.left + 1);
    uint8_t *payload = exact + misaligned;
    memcpy(payload, input.bytes, input.left);
    /* One byte more than the payload is there, so that an empty payload has an address: poison it by value.
     */
    payload[input.left] = 0xff;

    struct wire_frame frame = sample_frame(type, payload, input.left);
    error_clear();
    int r = sample_parse(&frame);
    if (r < 0) {
        fuzz_require(strcmp(error_text(), "no error was recorded"));
        return 0;
    }
    switch (type) {
    case WIRE_HELLO:
        AGAIN(hello, &frame, WIRE_HELLO);
        break;
    case WIRE_WELCOME:
        AGAIN(welcome, &frame, WIRE_WELCOME);
        break;
    case WIRE_ROUND:
        AGAIN(round, &frame, WIRE_ROUND);
        break;
    case WIRE_COMMIT:
        AGAIN(commit, &frame, WIRE_COMMIT);
        break;
    case WIRE_DESCRIBE:
        describe_again(&frame);
        break;
    case WIRE_DISK:
        disk_again(&frame);
        break;
    case WIRE_SUMS_WANTED:
    case WIRE_SUMS:
        sums_again(&frame);
        break;
    case WIRE_PAGE_SUMS_WANTED:
    case WIRE_PAGE_SUMS:
        page_sums_again(&frame);
        break;
    case WIRE_STATE:
    case WIRE_STATE_LZ4:
        state_again(&frame);
        break;
    default:
        break;
    }
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    /* The largest forms only where they are short: mutations of a few bytes should hit fields. */
    if (index < SAMPLE_TYPES * 2) {
        to[0] = (uint8_t)(index % SAMPLE_TYPES);
        to[1] = (uint8_t)(index % 8);
        return 2 + sample_payload(sample_types[index % SAMPLE_TYPES], index / SAMPLE_TYPES, to + 2);
    }
    if (index > SAMPLE_TYPES * 2)
        return 0;
    /* The most blocks, with the longest names, but little text. */
    struct wire_describe head;
    const uint32_t text_bytes = 16;
    to[0] = (uint8_t)((const uint8_t *)memchr(sample_types, WIRE_DESCRIBE, SAMPLE_TYPES) - sample_types);
    to[1] = 0;
    size_t length = sample_payload(WIRE_DESCRIBE, 2, to + 2);
    memcpy(&head, to + 2, sizeof head);
    length -= from_le32(head.text_bytes) - text_bytes;
    head.text_bytes = to_le32(text_bytes);
    memcpy(to + 2, &head, sizeof head);
    return 2 + length;
}
