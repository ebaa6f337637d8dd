/* SPDX-License-Identifier: Apache-2.0 */
#include "wire/message.h"

#include "wire/check.h"

/* The messages that set a session up, keep it alive and end it. */

static bool printable(char c)
{
    return c >= 0x20 && c < 0x7f;
}

/* Copy a peer's text that is for people only: must end inside its field; what could harm a terminal or a log
 * becomes '?'. */
static int take_text(const struct wire_frame *frame, const char *field, const char *from, char *to,
                     size_t room)
{
    size_t length = strnlen(from, room);
    if (length == room)
        return error_set(-EPROTO, "%s: %s does not end within %zu bytes", wire_type_name(frame->type), field,
                         room);
    memset(to, 0, room);
    for (size_t i = 0; i < length; i++)
        to[i] = printable(from[i]) ? from[i] : '?';
    return 0;
}

static void put_text(const char *from, char *to, size_t room)
{
    memset(to, 0, room);
    memcpy(to, from, strnlen(from, room - 1));
}

int message_hello_parse(const struct wire_frame *frame, struct message_hello *ret_hello)
{
    struct wire_hello wire;
    int r = check_fixed(frame, WIRE_HELLO, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    struct message_hello hello = {
        .version_min = from_le16(wire.version_min),
        .version_max = from_le16(wire.version_max),
        .lane = from_le16(wire.lane),
        .lanes = from_le16(wire.lanes),
        .detect_ms = from_le32(wire.detect_ms),
        .optional = from_le64(wire.optional),
        .required = from_le64(wire.required),
        .acked_epoch = from_le64(wire.acked_epoch),
    };
    memcpy(hello.vm_uuid, wire.vm_uuid, sizeof hello.vm_uuid);
    memcpy(hello.history, wire.history, sizeof hello.history);
    /* No bound on versions and features but order: those that we lack are refused with their own code, by
     * whoever answers. */
    TRY(r, check_bounds(frame, "version_min", hello.version_min, 1, UINT16_MAX));
    TRY(r, check_bounds(frame, "version_max", hello.version_max, hello.version_min, UINT16_MAX));
    TRY(r, check_bounds(frame, "lanes", hello.lanes, 1, WIRE_LANES_MAX));
    TRY(r, check_bounds(frame, "lane", hello.lane, 0, hello.lanes));
    TRY(r, check_bounds(frame, "page_bytes", from_le32(wire.page_bytes), WIRE_PAGE_BYTES, WIRE_PAGE_BYTES));
    TRY(r, check_bounds(frame, "detect_ms", hello.detect_ms, 1, WIRE_DETECT_MS_MAX));
    TRY(r, take_text(frame, "host", wire.host, hello.host, sizeof hello.host));
    if (r < 0)
        return r;
    *ret_hello = hello;
    return 0;
}

void message_hello_build(const struct message_hello *hello, struct wire_hello *ret_wire)
{
    *ret_wire = (struct wire_hello){
        .version_min = to_le16(hello->version_min),
        .version_max = to_le16(hello->version_max),
        .lane = to_le16(hello->lane),
        .lanes = to_le16(hello->lanes),
        .page_bytes = to_le32(WIRE_PAGE_BYTES),
        .detect_ms = to_le32(hello->detect_ms),
        .optional = to_le64(hello->optional),
        .required = to_le64(hello->required),
        .acked_epoch = to_le64(hello->acked_epoch),
    };
    memcpy(ret_wire->vm_uuid, hello->vm_uuid, sizeof ret_wire->vm_uuid);
    memcpy(ret_wire->history, hello->history, sizeof ret_wire->history);
    put_text(hello->host, ret_wire->host, sizeof ret_wire->host);
}

int message_welcome_parse(const struct wire_frame *frame, struct message_welcome *ret_welcome)
{
    struct wire_welcome wire;
    int r = check_fixed(frame, WIRE_WELCOME, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    struct message_welcome welcome = {
        .version = from_le16(wire.version),
        .has_commit = from_le32(wire.flags) & WIRE_WELCOME_HAS_COMMIT,
        .detect_ms = from_le32(wire.detect_ms),
        .optional = from_le64(wire.optional),
        .committed_epoch = from_le64(wire.committed_epoch),
        .staging_bytes = from_le64(wire.staging_bytes),
    };
    memcpy(welcome.history, wire.history, sizeof welcome.history);
    TRY(r, check_bounds(frame, "version", welcome.version, WIRE_VERSION, WIRE_VERSION));
    TRY(r, check_bounds(frame, "reserved", from_le16(wire.reserved), 0, 0));
    TRY(r, check_bounds(frame, "flags", from_le32(wire.flags), 0, WIRE_WELCOME_HAS_COMMIT));
    TRY(r,
        check_bounds(frame, "unknown features in optional", welcome.optional & ~WIRE_FEATURES_KNOWN, 0, 0));
    TRY(r, check_bounds(frame, "committed_epoch", welcome.committed_epoch, welcome.has_commit ? 1 : 0,
                        welcome.has_commit ? UINT64_MAX : 0));
    TRY(r, check_bounds(frame, "detect_ms", welcome.detect_ms, 1, WIRE_DETECT_MS_MAX));
    TRY(r, check_bounds(frame, "reserved2", from_le32(wire.reserved2), 0, 0));
    TRY(r, take_text(frame, "host", wire.host, welcome.host, sizeof welcome.host));
    if (r < 0)
        return r;
    *ret_welcome = welcome;
    return 0;
}

void message_welcome_build(const struct message_welcome *welcome, struct wire_welcome *ret_wire)
{
    *ret_wire = (struct wire_welcome){
        .version = to_le16(welcome->version),
        .flags = to_le32(welcome->has_commit ? WIRE_WELCOME_HAS_COMMIT : 0),
        .optional = to_le64(welcome->optional),
        .committed_epoch = to_le64(welcome->committed_epoch),
        .staging_bytes = to_le64(welcome->staging_bytes),
        .detect_ms = to_le32(welcome->detect_ms),
    };
    memcpy(ret_wire->history, welcome->history, sizeof ret_wire->history);
    put_text(welcome->host, ret_wire->host, sizeof ret_wire->host);
}

int message_refuse_parse(const struct wire_frame *frame, struct message_refuse *ret_refuse)
{
    struct wire_refuse wire;
    int r = check_fixed(frame, WIRE_REFUSE, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    struct message_refuse refuse = {.code = from_le32(wire.code)};
    TRY(r, check_bounds(frame, "code", refuse.code, 1, UINT32_MAX));
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    TRY(r, take_text(frame, "text", wire.text, refuse.text, sizeof refuse.text));
    if (r < 0)
        return r;
    *ret_refuse = refuse;
    return 0;
}

void message_refuse_build(uint32_t code, const char *text, struct wire_refuse *ret_wire)
{
    *ret_wire = (struct wire_refuse){.code = to_le32(code)};
    put_text(text, ret_wire->text, sizeof ret_wire->text);
}

static int take_block(const struct wire_frame *frame, uint32_t index, struct message_describe *describe)
{
    struct wire_block wire;
    memcpy(&wire, frame->payload + sizeof(struct wire_describe) + index * sizeof wire, sizeof wire);
    uint64_t bytes = from_le64(wire.bytes);
    int r = check_bounds(frame, "block's bytes", bytes, WIRE_PAGE_BYTES, WIRE_BLOCK_BYTES_MAX);
    TRY(r, check_bounds(frame, "block's bytes beyond a whole page", bytes % WIRE_PAGE_BYTES, 0, 0));
    size_t length = strnlen(wire.name, sizeof wire.name);
    TRY(r, check_bounds(frame, "length of a block's name", length, 1, sizeof wire.name - 1));
    for (size_t i = 0; r == 0 && i < length; i++)
        if (!printable(wire.name[i]))
            r = error_set(-EPROTO, "%s: byte %zu of block %u's name is 0x%02x, expected printable ASCII",
                          wire_type_name(frame->type), i, index, (uint8_t)wire.name[i]);
    if (r < 0)
        return r;
    memcpy(describe->blocks[index].name, wire.name, length + 1);
    describe->blocks[index].bytes = bytes;
    for (uint32_t i = 0; i < index; i++)
        if (!strcmp(describe->blocks[i].name, wire.name))
            return error_set(-EPROTO, "%s: blocks %u and %u are both named '%.100s', expected distinct names",
                             wire_type_name(frame->type), i, index, wire.name);
    return 0;
}

int message_describe_parse(const struct wire_frame *frame, struct message_describe *ret_describe)
{
    struct wire_describe wire;
    int r = check_fixed(frame, WIRE_DESCRIBE, &wire, sizeof wire);
    if (r < 0)
        return r;
    struct message_describe describe = {
        .block_count = from_le32(wire.block_count),
        .text_bytes = from_le32(wire.text_bytes),
    };
    TRY(r, check_bounds(frame, "block_count", describe.block_count, 1, WIRE_BLOCKS_MAX));
    TRY(r, check_bounds(frame, "text_bytes", describe.text_bytes, 0, WIRE_DESCRIPTION_MAX));
    TRY(r, check_length(frame, sizeof wire + (uint64_t)describe.block_count * sizeof(struct wire_block) +
                                   describe.text_bytes));
    for (uint32_t i = 0; r == 0 && i < describe.block_count; i++)
        r = take_block(frame, i, &describe);
    if (r < 0)
        return r;
    describe.text = (const char *)frame->payload + frame->length - describe.text_bytes;
    for (uint32_t i = 0; i < describe.text_bytes; i++)
        if (!printable(describe.text[i]) && describe.text[i] != '\n')
            return error_set(-EPROTO,
                             "%s: byte %u of the text is 0x%02x, expected printable ASCII or newline",
                             wire_type_name(frame->type), i, (uint8_t)describe.text[i]);
    *ret_describe = describe;
    return 0;
}

long message_describe_build(const struct message_describe *describe, void *to, size_t room)
{
    assert(describe->block_count <= WIRE_BLOCKS_MAX);
    size_t length = sizeof(struct wire_describe) + describe->block_count * sizeof(struct wire_block) +
                    describe->text_bytes;
    if (describe->text_bytes > WIRE_DESCRIPTION_MAX || length > room)
        return error_set(-EMSGSIZE,
                         "description of %u blocks and %u bytes of text: room for %zu bytes, and %u of text",
                         describe->block_count, describe->text_bytes, room, WIRE_DESCRIPTION_MAX);
    uint8_t *at = to;
    struct wire_describe wire = {to_le32(describe->block_count), to_le32(describe->text_bytes)};
    at = mempcpy(at, &wire, sizeof wire);
    for (uint32_t i = 0; i < describe->block_count; i++) {
        struct wire_block block = {.bytes = to_le64(describe->blocks[i].bytes)};
        put_text(describe->blocks[i].name, block.name, sizeof block.name);
        at = mempcpy(at, &block, sizeof block);
    }
    if (describe->text_bytes)
        memcpy(at, describe->text, describe->text_bytes);
    return (long)length;
}

int message_heartbeat_parse(const struct wire_frame *frame, uint64_t *ret_count, uint64_t *ret_committed)
{
    struct wire_heartbeat wire;
    int r = check_fixed(frame, WIRE_HEARTBEAT, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    *ret_count = from_le64(wire.count);
    *ret_committed = from_le64(wire.committed_epoch);
    return 0;
}

void message_heartbeat_build(uint64_t count, uint64_t committed_epoch, struct wire_heartbeat *ret_wire)
{
    *ret_wire = (struct wire_heartbeat){to_le64(count), to_le64(committed_epoch)};
}

int message_goodbye_parse(const struct wire_frame *frame, uint32_t *ret_reason)
{
    struct wire_goodbye wire;
    int r = check_fixed(frame, WIRE_GOODBYE, &wire, sizeof wire);
    TRY(r, check_length(frame, sizeof wire));
    if (r < 0)
        return r;
    TRY(r,
        check_bounds(frame, "reason", from_le32(wire.reason), WIRE_GOODBYE_STOP, WIRE_GOODBYE_GUEST_FAILED));
    TRY(r, check_bounds(frame, "reserved", from_le32(wire.reserved), 0, 0));
    if (r < 0)
        return r;
    *ret_reason = from_le32(wire.reason);
    return 0;
}

void message_goodbye_build(uint32_t reason, struct wire_goodbye *ret_wire)
{
    *ret_wire = (struct wire_goodbye){.reason = to_le32(reason)};
}
