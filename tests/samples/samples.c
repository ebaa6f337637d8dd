/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/samples/samples.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <lz4.h>
#include <stdio.h>
#include <string.h>

const uint8_t sample_types[SAMPLE_TYPES] = {
    WIRE_HELLO,     WIRE_WELCOME,  WIRE_REFUSE,      WIRE_DESCRIBE, WIRE_ACCEPT,
    WIRE_HEARTBEAT, WIRE_ROUND,    WIRE_ROUND_DONE,  WIRE_COMMIT,   WIRE_ACK,
    WIRE_VERIFY,    WIRE_VERIFIED, WIRE_GOODBYE,     WIRE_PAGES,    WIRE_STATE,
    WIRE_DELTA,     WIRE_DISK,     WIRE_STATE_LZ4,   WIRE_SWITCH,   WIRE_LOADED,
    WIRE_HANDOVER,  WIRE_STARTED,  WIRE_SUMS_WANTED, WIRE_SUMS,     WIRE_PAGE_SUMS_WANTED,
    WIRE_PAGE_SUMS,
};

void sample_page(uint8_t *to, uint64_t seed)
{
    memset(to, (int)(seed % 251), WIRE_PAGE_BYTES);
    memcpy(to, &seed, sizeof seed);
}

static size_t sample_describe(unsigned variant, uint8_t *to)
{
    static const char *const names[] = {"pc.ram", "vga.vram", "/rom@etc/acpi/tables"};
    struct message_describe describe = {.block_count = variant == 2 ? WIRE_BLOCKS_MAX : 1 + 2 * variant};
    for (uint32_t i = 0; i < describe.block_count; i++) {
        if (i < array_length(names))
            snprintf(describe.blocks[i].name, WIRE_BLOCK_NAME, "%s", names[i]);
        else
            snprintf(describe.blocks[i].name, WIRE_BLOCK_NAME, "0000:00:%02x.0/%0240u", i, i);
        describe.blocks[i].bytes = i == 0 && variant == 2 ? WIRE_BLOCK_BYTES_MAX : (i + 1) * 65536ull;
    }
    char *large cleanup_free = NULL;
    describe.text = "machine pc-q35-7.2\nversion 7.2.9\n";
    describe.text_bytes = variant ? (uint32_t)strlen(describe.text) : 0;
    if (variant == 2) {
        large = malloc(WIRE_DESCRIPTION_MAX);
        memset(large, 'x', WIRE_DESCRIPTION_MAX);
        describe.text = large;
        describe.text_bytes = WIRE_DESCRIPTION_MAX;
    }
    return (size_t)message_describe_build(&describe, to, WIRE_PAYLOAD_MAX);
}

static size_t sample_verify(unsigned variant, uint8_t *to)
{
    static const uint32_t counts[] = {1, 100, WIRE_VERIFY_MAX};
    uint64_t *fingerprints cleanup_free = calloc(counts[variant], sizeof *fingerprints);
    for (uint32_t i = 0; i < counts[variant]; i++)
        fingerprints[i] = wire_sum(&i, sizeof i);
    return (size_t)message_verify_build(variant, variant * 1000, counts[variant], fingerprints, to,
                                        WIRE_PAYLOAD_MAX);
}

static size_t sample_verified(unsigned variant, uint8_t *to)
{
    static const uint32_t differing[] = {0, 7, 3000};
    uint64_t pages[WIRE_VERIFIED_MAX];
    for (uint32_t i = 0; i < WIRE_VERIFIED_MAX; i++)
        pages[i] = 1000 + 3 * i;
    struct message_verify verify = {.block = variant, .count = 4000, .first = 1000};
    return (size_t)message_verified_build(&verify, differing[variant], pages, to, WIRE_PAYLOAD_MAX);
}

static size_t sample_sums(unsigned variant, bool digests, uint8_t *to)
{
    static const uint32_t counts[] = {1, 20, WIRE_SUMS_MAX};
    struct message_sums sums = {.disk = variant, .count = counts[variant], .first = variant * 512};
    struct wire_sums wire;
    message_sums_build(&sums, &wire);
    memcpy(to, &wire, sizeof wire);
    size_t length = sizeof wire;
    for (uint32_t i = 0; digests && i < sums.count; i++, length += WIRE_DIGEST_BYTES)
        if (wire_digest(&i, sizeof i, to + length) < 0)
            return 0;
    return length;
}

static size_t sample_page_sums(unsigned variant, bool answer, uint8_t *to)
{
    static const uint32_t counts[] = {1, 20, WIRE_PAGE_SUMS_MAX};
    struct message_page_sums sums = {.block = variant, .count = counts[variant], .first = variant * 512};
    if (answer && variant == 0)
        sums.count = 0;
    struct wire_page_sums wire;
    message_page_sums_build(&sums, &wire);
    memcpy(to, &wire, sizeof wire);
    size_t length = sizeof wire;
    for (uint32_t i = 0; answer && i < sums.count; i++, length += WIRE_DIGEST_BYTES)
        if (wire_digest(&i, sizeof i, to + length) < 0)
            return 0;
    return length;
}

static size_t sample_pages(unsigned variant, uint8_t *to)
{
    if (variant == 0) {
        struct message_run zero = {.first = 3, .pages = 2, .encoding = WIRE_RUN_ZERO};
        return message_pages_build(0, 0, &zero, 1, to);
    }
    if (variant == 2) {
        struct message_run raw = {.first = 0,
                                  .pages = WIRE_RUN_BODY_PAGES_MAX,
                                  .encoding = WIRE_RUN_RAW,
                                  .body_bytes = WIRE_RUN_BODY_PAGES_MAX * WIRE_PAGE_BYTES};
        size_t body = message_pages_build(0, 0, &raw, 1, to);
        for (unsigned i = 0; i < raw.pages; i++)
            sample_page(to + body + i * WIRE_PAGE_BYTES, i);
        return body + raw.body_bytes;
    }
    uint8_t page[WIRE_PAGE_BYTES];
    char packed[LZ4_COMPRESSBOUND(WIRE_PAGE_BYTES)];
    sample_page(page, 5);
    struct message_run runs[] = {
        {.first = 1, .pages = 2, .encoding = WIRE_RUN_ZERO},
        {.first = 3, .pages = 1, .encoding = WIRE_RUN_RAW, .body_bytes = WIRE_PAGE_BYTES},
        {.first = 9, .pages = 1, .encoding = WIRE_RUN_LZ4},
        {.first = 11, .pages = 1, .encoding = WIRE_RUN_LZ4},
    };
    int packed_bytes =
        LZ4_compress_default((const char *)page, packed, sizeof page, LZ4_COMPRESSBOUND(WIRE_PAGE_BYTES));
    runs[2].body_bytes = runs[3].body_bytes = (uint32_t)packed_bytes;
    uint8_t *at = to + message_pages_build(0, 0, runs, array_length(runs), to);
    at = mempcpy(at, page, sizeof page);
    at = mempcpy(at, packed, (size_t)packed_bytes);
    at = mempcpy(at, packed, (size_t)packed_bytes);
    return (size_t)(at - to);
}

static size_t sample_state(unsigned variant, uint8_t *to)
{
    static const uint32_t pieces[] = {1, 1000, WIRE_PAYLOAD_MAX - sizeof(struct wire_state)};
    static const uint64_t totals[] = {1, 1000, WIRE_STATE_MAX};
    size_t body = message_state_build(variant == 2 ? WIRE_STATE_MAX - pieces[2] : 0, totals[variant], to);
    memset(to + body, 0x5a, pieces[variant]);
    return body + pieces[variant];
}

static size_t sample_state_lz4(unsigned variant, uint8_t *to)
{
    static const uint32_t pieces[] = {20, 1000, WIRE_STATE_PIECE_MAX};
    static const uint64_t totals[] = {20, 1000, WIRE_STATE_MAX};
    uint8_t *raw cleanup_free = malloc(pieces[variant]);
    memset(raw, 0x5a, pieces[variant]);
    size_t body = message_state_lz4_build(variant == 2 ? WIRE_STATE_MAX - pieces[2] : 0, totals[variant],
                                          pieces[variant], to);
    return body + (size_t)LZ4_compress_default((const char *)raw, (char *)to + body, (int)pieces[variant],
                                               (int)pieces[variant]);
}

size_t sample_delta_raw(uint32_t pages, bool all, uint8_t *to)
{
    uint8_t *at = to + pages * sizeof(struct wire_delta_page);
    for (uint32_t i = 0; i < pages; i++) {
        struct wire_delta_page page = {.page = to_le64(3 + 2 * i),
                                       .changed = to_le64(all ? UINT64_MAX : 1ull << i % 64),
                                       .sum = to_le64(i)};
        memcpy(to + i * sizeof page, &page, sizeof page);
        size_t blocks = all ? WIRE_PAGE_BYTES : WIRE_DELTA_BLOCK;
        memset(at, 0, blocks);
        at[i % blocks] = 0x5a;
        at += blocks;
    }
    return (size_t)(at - to);
}

/* Compressed only where it is large: a cut payload of the others shows in its length. */
static size_t sample_delta(unsigned variant, uint8_t *to)
{
    static const uint32_t pages[] = {1, 5, WIRE_DELTA_PAGES_MAX};
    uint8_t *raw cleanup_free = malloc(MESSAGE_DELTA_RAW_MAX);
    struct message_delta delta = {.block = variant, .round = variant, .page_count = pages[variant]};
    delta.raw_bytes = (uint32_t)sample_delta_raw(pages[variant], variant == 2, raw);
    delta.encoding = variant == 2 ? WIRE_DELTA_LZ4 : WIRE_DELTA_RAW;
    size_t body = message_delta_build(&delta, to);
    if (delta.encoding == WIRE_DELTA_LZ4)
        return body + (size_t)LZ4_compress_default((const char *)raw, (char *)to + body, (int)delta.raw_bytes,
                                                   (int)delta.raw_bytes);
    memcpy(to + body, raw, delta.raw_bytes);
    return body + delta.raw_bytes;
}

int sample_delta_open(struct message_delta *delta, uint8_t *raw)
{
    if (delta->encoding == WIRE_DELTA_RAW)
        memcpy(raw, delta->body, delta->raw_bytes);
    else if (LZ4_decompress_safe((const char *)delta->body, (char *)raw, (int)delta->body_bytes,
                                 (int)delta->raw_bytes) != (int)delta->raw_bytes)
        return error_set(-EBADMSG, "DELTA: the body is no LZ4 block of %u bytes", delta->raw_bytes);
    return message_delta_open(delta, raw);
}

static size_t sample_disk(unsigned variant, uint8_t *to)
{
    if (variant == 0) {
        struct message_disk_record zero = {.bytes = WIRE_DISK_SECTOR, .op = WIRE_DISK_ZERO};
        return message_disk_build(0, 0, &zero, 1, to);
    }
    if (variant == 2) {
        struct message_disk_record raw = {.offset = WIRE_DISK_END_MAX - WIRE_DISK_BODY_MAX,
                                          .bytes = WIRE_DISK_BODY_MAX,
                                          .disk = WIRE_DISKS_MAX - 1,
                                          .op = WIRE_DISK_RAW,
                                          .body_bytes = WIRE_DISK_BODY_MAX};
        size_t body = message_disk_build(7, WIRE_DISK_END_MAX, &raw, 1, to);
        memset(to + body, 0x5a, raw.body_bytes);
        return body + raw.body_bytes;
    }
    uint8_t page[WIRE_PAGE_BYTES];
    char packed[LZ4_COMPRESSBOUND(WIRE_PAGE_BYTES)];
    sample_page(page, 5);
    int packed_bytes =
        LZ4_compress_default((const char *)page, packed, sizeof page, LZ4_COMPRESSBOUND(WIRE_PAGE_BYTES));
    struct message_disk_record records[] = {
        {.offset = 4096, .bytes = 1024, .op = WIRE_DISK_RAW, .body_bytes = 1024},
        {.offset = 0, .bytes = 8192, .disk = 1, .op = WIRE_DISK_ZERO},
        {.offset = 4096, .bytes = 4096, .op = WIRE_DISK_LZ4, .body_bytes = (uint32_t)packed_bytes},
        {.offset = 512, .bytes = 1ull << 40, .disk = 2, .op = WIRE_DISK_DISCARD},
    };
    uint8_t *at = to + message_disk_build(0, 0, records, array_length(records), to);
    at = mempcpy(at, page, 1024);
    at = mempcpy(at, packed, (size_t)packed_bytes);
    return (size_t)(at - to);
}

size_t sample_payload(uint8_t type, unsigned variant, uint8_t *to)
{
    const struct message_totals totals = {
        .frames = 3, .pages = 70, .bytes = 200000, .sum = 0x123456789abcdef0};
    union {
        struct wire_hello hello;
        struct wire_welcome welcome;
        struct wire_refuse refuse;
        struct wire_heartbeat heartbeat;
        struct wire_round round;
        struct wire_round_done round_done;
        struct wire_commit commit;
        struct wire_goodbye goodbye;
    } wire;
    size_t length = 0;
    switch ((enum wire_type)type) {
    case WIRE_HELLO: {
        struct message_hello hello = {
            .version_min = 1,
            .version_max = (uint16_t)(1 + variant),
            .lane = (uint16_t)(variant == 2 ? WIRE_LANES_MAX : variant),
            .lanes = variant == 2 ? WIRE_LANES_MAX : 2,
            .detect_ms = variant == 2 ? WIRE_DETECT_MS_MAX : 250,
            .optional = WIRE_FEATURES_KNOWN,
            .acked_epoch = variant,
            .vm_uuid = {1, 2, 3},
            .history = {4, 5, 6},
            .host = "alpha.example",
        };
        message_hello_build(&hello, &wire.hello);
        length = sizeof wire.hello;
        break;
    }
    case WIRE_WELCOME: {
        struct message_welcome welcome = {
            .version = WIRE_VERSION,
            .has_commit = variant > 0,
            .detect_ms = 250,
            .optional = WIRE_FEATURE_LZ4,
            .committed_epoch = variant,
            .staging_bytes = 1 << 30,
            .history = {4, 5, 6},
            .host = "beta.example",
        };
        message_welcome_build(&welcome, &wire.welcome);
        length = sizeof wire.welcome;
        break;
    }
    case WIRE_REFUSE:
        message_refuse_build(WIRE_REFUSE_PROTOCOL + variant, variant ? "machines differ" : "", &wire.refuse);
        length = sizeof wire.refuse;
        break;
    case WIRE_DESCRIBE:
        return sample_describe(variant, to);
    case WIRE_ACCEPT:
    case WIRE_ACK:
    case WIRE_SWITCH:
    case WIRE_LOADED:
    case WIRE_HANDOVER:
    case WIRE_STARTED:
        return 0;
    case WIRE_HEARTBEAT:
        message_heartbeat_build(variant, 41 + variant, &wire.heartbeat);
        length = sizeof wire.heartbeat;
        break;
    case WIRE_ROUND:
        message_round_build(&(struct message_round){variant, variant ? totals : (struct message_totals){0}},
                            &wire.round);
        length = sizeof wire.round;
        break;
    case WIRE_ROUND_DONE:
        message_round_done_build(variant, &wire.round_done);
        length = sizeof wire.round_done;
        break;
    case WIRE_COMMIT:
        message_commit_build(&(struct message_commit){variant, totals, 80000, 0xfeedbeef}, &wire.commit);
        length = sizeof wire.commit;
        break;
    case WIRE_VERIFY:
        return sample_verify(variant, to);
    case WIRE_SUMS_WANTED:
    case WIRE_SUMS:
        return sample_sums(variant, type == WIRE_SUMS, to);
    case WIRE_PAGE_SUMS_WANTED:
    case WIRE_PAGE_SUMS:
        return sample_page_sums(variant, type == WIRE_PAGE_SUMS, to);
    case WIRE_VERIFIED:
        return sample_verified(variant, to);
    case WIRE_GOODBYE:
        message_goodbye_build(WIRE_GOODBYE_STOP + variant, &wire.goodbye);
        length = sizeof wire.goodbye;
        break;
    case WIRE_PAGES:
        return sample_pages(variant, to);
    case WIRE_STATE:
        return sample_state(variant, to);
    case WIRE_DELTA:
        return sample_delta(variant, to);
    case WIRE_DISK:
        return sample_disk(variant, to);
    case WIRE_STATE_LZ4:
        return sample_state_lz4(variant, to);
    }
    memcpy(to, &wire, length);
    return length;
}

bool sample_put(struct wire_writer *writer, uint8_t type, unsigned variant)
{
    uint8_t *payload cleanup_free = malloc(WIRE_PAYLOAD_MAX);
    size_t length = sample_payload(type, variant, payload);
    return wire_writer_put(writer, type, 7, 42, payload, length) == 0;
}

struct wire_frame sample_frame(uint8_t type, const void *payload, size_t length)
{
    return (struct wire_frame){.type = type, .length = (uint32_t)length, .session = 1, .payload = payload};
}

static volatile uint64_t touched; /* keeps the reads below in the program */

static void touch(const void *bytes, size_t length)
{
    touched += wire_sum(bytes, length);
}

static int parse_pages(const struct wire_frame *frame)
{
    struct message_pages pages;
    struct message_run run;
    int r = message_pages_parse(frame, &pages);
    if (r < 0)
        return r;
    uint64_t count = 0;
    const uint8_t *end = frame->payload + frame->length, *body = pages.body;
    while (message_pages_next(&pages, &run)) {
        assert(run.body == body && run.body_bytes <= (size_t)(end - body));
        touch(run.body, run.body_bytes);
        body += run.body_bytes;
        count += run.pages;
    }
    assert(body == end && count == pages.page_count);
    return 0;
}

static int parse_state(const struct wire_frame *frame)
{
    struct message_state state;
    int r = message_state_parse(frame, &state);
    if (r < 0)
        return r;
    touch(state.bytes, state.body_bytes);
    assert(state.offset < state.total && state.length <= state.total - state.offset);
    assert(state.bytes + state.body_bytes == frame->payload + frame->length);
    if (!state.lz4)
        return 0;
    uint8_t *raw cleanup_free = malloc(state.length);
    if (LZ4_decompress_safe((const char *)state.bytes, (char *)raw, (int)state.body_bytes,
                            (int)state.length) != (int)state.length)
        return error_set(-EBADMSG, "STATE_LZ4: the body is no LZ4 block of %u bytes", state.length);
    return 0;
}

static int parse_delta(const struct wire_frame *frame)
{
    struct message_delta delta;
    int r = message_delta_parse(frame, &delta);
    if (r < 0)
        return r;
    touch(delta.body, delta.body_bytes);
    uint8_t *raw cleanup_free = malloc(delta.raw_bytes);
    r = sample_delta_open(&delta, raw);
    if (r < 0)
        return r;
    struct message_delta_page page;
    const uint8_t *blocks = raw + delta.page_count * sizeof(struct wire_delta_page);
    uint32_t count = 0;
    for (; message_delta_next(&delta, &page); count++) {
        size_t bytes = (size_t)__builtin_popcountll(page.changed) * WIRE_DELTA_BLOCK;
        assert(page.blocks == blocks && bytes && bytes <= (size_t)(raw + delta.raw_bytes - blocks));
        touch(page.blocks, bytes);
        blocks += bytes;
    }
    assert(blocks == raw + delta.raw_bytes && count == delta.page_count);
    return 0;
}

static int parse_disk(const struct wire_frame *frame)
{
    struct message_disk disk;
    struct message_disk_record record;
    int r = message_disk_parse(frame, &disk);
    if (r < 0)
        return r;
    uint32_t count = 0;
    const uint8_t *end = frame->payload + frame->length, *body = disk.body;
    for (; message_disk_next(&disk, &record); count++) {
        assert(record.body == body && record.body_bytes <= (size_t)(end - body));
        touch(record.body, record.body_bytes);
        body += record.body_bytes;
    }
    assert(body == end && count == disk.record_count);
    return 0;
}

int sample_parse(const struct wire_frame *frame)
{
    union {
        struct message_hello hello;
        struct message_welcome welcome;
        struct message_refuse refuse;
        struct message_round round;
        struct message_commit commit;
        struct message_verify verify;
        struct message_sums sums;
        struct message_page_sums page_sums;
        struct message_verified verified;
    } u;
    uint64_t a, b;
    uint32_t c;
    int r = 0;
    switch ((enum wire_type)frame->type) {
    case WIRE_HELLO:
        r = message_hello_parse(frame, &u.hello);
        if (r == 0)
            touch(u.hello.host, strlen(u.hello.host));
        break;
    case WIRE_WELCOME:
        r = message_welcome_parse(frame, &u.welcome);
        if (r == 0)
            touch(u.welcome.host, strlen(u.welcome.host));
        break;
    case WIRE_REFUSE:
        r = message_refuse_parse(frame, &u.refuse);
        if (r == 0)
            touch(u.refuse.text, strlen(u.refuse.text));
        break;
    case WIRE_DESCRIBE: {
        struct message_describe *describe cleanup_free = malloc(sizeof *describe);
        r = message_describe_parse(frame, describe);
        if (r == 0)
            touch(describe->text, describe->text_bytes);
        for (uint32_t i = 0; r == 0 && i < describe->block_count; i++)
            touch(describe->blocks[i].name, strlen(describe->blocks[i].name));
        break;
    }
    case WIRE_ACCEPT:
    case WIRE_ACK:
    case WIRE_SWITCH:
    case WIRE_LOADED:
    case WIRE_HANDOVER:
    case WIRE_STARTED:
        break;
    case WIRE_HEARTBEAT:
        r = message_heartbeat_parse(frame, &a, &b);
        break;
    case WIRE_ROUND:
        r = message_round_parse(frame, &u.round);
        break;
    case WIRE_ROUND_DONE:
        r = message_round_done_parse(frame, &c);
        break;
    case WIRE_COMMIT:
        r = message_commit_parse(frame, &u.commit);
        break;
    case WIRE_SUMS_WANTED:
        return message_sums_wanted_parse(frame, &u.sums);
    case WIRE_SUMS:
        r = message_sums_parse(frame, &u.sums);
        if (r == 0)
            touch(u.sums.digests, u.sums.count * WIRE_DIGEST_BYTES);
        return r;
    case WIRE_PAGE_SUMS_WANTED:
        return message_page_sums_wanted_parse(frame, &u.page_sums);
    case WIRE_PAGE_SUMS:
        r = message_page_sums_parse(frame, &u.page_sums);
        if (r == 0)
            touch(u.page_sums.digests, u.page_sums.count * WIRE_DIGEST_BYTES);
        return r;
    case WIRE_VERIFY:
        r = message_verify_parse(frame, &u.verify);
        if (r == 0)
            touch(u.verify.fingerprints, u.verify.count * sizeof(le64));
        break;
    case WIRE_VERIFIED:
        r = message_verified_parse(frame, &u.verified);
        if (r == 0)
            touch(u.verified.pages, u.verified.listed * sizeof(le64));
        break;
    case WIRE_GOODBYE:
        r = message_goodbye_parse(frame, &c);
        break;
    case WIRE_PAGES:
        r = parse_pages(frame);
        break;
    case WIRE_STATE:
    case WIRE_STATE_LZ4:
        r = parse_state(frame);
        break;
    case WIRE_DELTA:
        r = parse_delta(frame);
        break;
    case WIRE_DISK:
        r = parse_disk(frame);
        break;
    }
    return r;
}
