/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/samples/samples.h"

#include "base/scope.h"

#include <lz4.h>
#include <stdio.h>
#include <string.h>

const uint8_t sample_types[SAMPLE_TYPES] = {
    WIRE_HELLO,     WIRE_WELCOME,  WIRE_REFUSE,     WIRE_DESCRIBE, WIRE_ACCEPT,
    WIRE_HEARTBEAT, WIRE_ROUND,    WIRE_ROUND_DONE, WIRE_COMMIT,   WIRE_ACK,
    WIRE_VERIFY,    WIRE_VERIFIED, WIRE_GOODBYE,    WIRE_PAGES,    WIRE_STATE,
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

int sample_parse(const struct wire_frame *frame)
{
    union {
        struct message_hello hello;
        struct message_welcome welcome;
        struct message_refuse refuse;
        struct message_round round;
        struct message_commit commit;
        struct message_verify verify;
        struct message_verified verified;
        struct message_state state;
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
        r = message_state_parse(frame, &u.state);
        if (r == 0)
            touch(u.state.bytes, u.state.length);
        break;
    }
    return r;
}
