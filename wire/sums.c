/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "wire/check.h"
#include "wire/message.h"

#include <errno.h>
#include <openssl/evp.h>

static int parse(const struct wire_frame *frame, uint8_t type, bool digests, struct message_sums *ret_sums)
{
    struct wire_sums wire;
    int r = check_fixed(frame, type, &wire, sizeof wire);
    if (r < 0)
        return r;
    struct message_sums sums = {
        .disk = from_le32(wire.disk),
        .count = from_le32(wire.count),
        .first = from_le64(wire.first),
        .digests = digests ? frame->payload + sizeof wire : NULL,
    };
    TRY(r, check_bounds(frame, "disk", sums.disk, 0, WIRE_DISKS_MAX - 1));
    TRY(r, check_bounds(frame, "count", sums.count, 1, WIRE_SUMS_MAX));
    TRY(r, check_bounds(frame, "first", sums.first, 0, WIRE_DISK_END_MAX / WIRE_SUMS_BLOCK - WIRE_SUMS_MAX));
    TRY(r, check_length(frame, sizeof wire + (digests ? (uint64_t)sums.count * WIRE_DIGEST_BYTES : 0)));
    if (r < 0)
        return r;
    *ret_sums = sums;
    return 0;
}

int message_sums_wanted_parse(const struct wire_frame *frame, struct message_sums *ret_sums)
{
    return parse(frame, WIRE_SUMS_WANTED, false, ret_sums);
}

int message_sums_parse(const struct wire_frame *frame, struct message_sums *ret_sums)
{
    return parse(frame, WIRE_SUMS, true, ret_sums);
}

void message_sums_build(const struct message_sums *sums, struct wire_sums *ret_wire)
{
    *ret_wire = (struct wire_sums){
        .disk = to_le32(sums->disk), .count = to_le32(sums->count), .first = to_le64(sums->first)};
}

static int parse_pages(const struct wire_frame *frame, uint8_t type, bool answer,
                       struct message_page_sums *ret_sums)
{
    struct wire_page_sums wire;
    int r = check_fixed(frame, type, &wire, sizeof wire);
    if (r < 0)
        return r;
    struct message_page_sums sums = {
        .block = from_le32(wire.block),
        .count = from_le32(wire.count),
        .first = from_le64(wire.first),
        .digests = answer ? frame->payload + sizeof wire : NULL,
    };
    TRY(r, check_bounds(frame, "block", sums.block, 0, WIRE_BLOCKS_MAX - 1));
    TRY(r, check_bounds(frame, "count", sums.count, answer ? 0 : 1, WIRE_PAGE_SUMS_MAX));
    TRY(r, check_pages(frame, sums.first, sums.count));
    TRY(r, check_length(frame, sizeof wire + (answer ? (uint64_t)sums.count * WIRE_DIGEST_BYTES : 0)));
    if (r < 0)
        return r;
    *ret_sums = sums;
    return 0;
}

int message_page_sums_wanted_parse(const struct wire_frame *frame, struct message_page_sums *ret_sums)
{
    return parse_pages(frame, WIRE_PAGE_SUMS_WANTED, false, ret_sums);
}

int message_page_sums_parse(const struct wire_frame *frame, struct message_page_sums *ret_sums)
{
    return parse_pages(frame, WIRE_PAGE_SUMS, true, ret_sums);
}

void message_page_sums_build(const struct message_page_sums *sums, struct wire_page_sums *ret_wire)
{
    *ret_wire = (struct wire_page_sums){
        .block = to_le32(sums->block), .count = to_le32(sums->count), .first = to_le64(sums->first)};
}

int wire_digest(const void *bytes, size_t length, uint8_t ret_digest[WIRE_DIGEST_BYTES])
{
    unsigned got;
    if (EVP_Digest(bytes, length, ret_digest, &got, EVP_sha256(), NULL) != 1 || got != WIRE_DIGEST_BYTES)
        return error_set(-ENOMEM, "SHA-256 of %zu bytes: OpenSSL cannot", length);
    return 0;
}
