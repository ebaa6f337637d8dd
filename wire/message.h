/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WIRE_MESSAGE_H
#define UNDERSTUDY_WIRE_MESSAGE_H

#include "wire/frame.h"

/*
 * Validation of payloads: each function checks every field of a frame's payload that can be checked without
 * knowing the guest, and returns native values. Nothing else in the project reads the bytes of a payload
 * before its function here has accepted them. All return 0, or -EPROTO/-EMSGSIZE with error_text() naming the
 * message, the field, the value and the bound. Pointers in results point into the payload.
 */

struct message_hello {
    uint16_t version_min, version_max, lane, lanes;
    uint32_t detect_ms;
    uint64_t optional, required, acked_epoch;
    uint8_t vm_uuid[16], history[16];
    char host[64];
};
int message_hello_parse(const struct wire_frame *frame, struct message_hello *ret_hello);
void message_hello_build(const struct message_hello *hello, struct wire_hello *ret_wire);

struct message_welcome {
    uint16_t version;
    bool has_commit;
    uint32_t detect_ms;
    uint64_t optional, committed_epoch, staging_bytes;
    uint8_t history[16];
    char host[64];
};
int message_welcome_parse(const struct wire_frame *frame, struct message_welcome *ret_welcome);
void message_welcome_build(const struct message_welcome *welcome, struct wire_welcome *ret_wire);

/* The text comes back with everything but printable ASCII replaced by '?'. */
struct message_refuse {
    uint32_t code;
    char text[504];
};
int message_refuse_parse(const struct wire_frame *frame, struct message_refuse *ret_refuse);
void message_refuse_build(uint32_t code, const char *text, struct wire_refuse *ret_wire);

/* Block names are NUL-terminated, printable and distinct; the text is printable ASCII and newlines. */
struct message_describe {
    uint32_t block_count;
    struct {
        char name[WIRE_BLOCK_NAME];
        uint64_t bytes;
    } blocks[WIRE_BLOCKS_MAX];
    const char *text; /* not NUL-terminated */
    uint32_t text_bytes;
};
int message_describe_parse(const struct wire_frame *frame, struct message_describe *ret_describe);
/* Builds the whole payload in `to`; returns its length or -EMSGSIZE. */
long message_describe_build(const struct message_describe *describe, void *to, size_t room);

struct message_totals {
    uint64_t frames, pages, bytes, sum;
};
struct message_round {
    uint32_t round;
    struct message_totals totals;
};
int message_round_parse(const struct wire_frame *frame, struct message_round *ret_round);
void message_round_build(const struct message_round *round, struct wire_round *ret_wire);
int message_round_done_parse(const struct wire_frame *frame, uint32_t *ret_round);
void message_round_done_build(uint32_t round, struct wire_round_done *ret_wire);

struct message_commit {
    uint32_t round;
    struct message_totals totals;
    uint64_t state_bytes, state_sum;
};
int message_commit_parse(const struct wire_frame *frame, struct message_commit *ret_commit);
void message_commit_build(const struct message_commit *commit, struct wire_commit *ret_wire);

int message_heartbeat_parse(const struct wire_frame *frame, uint64_t *ret_count, uint64_t *ret_committed);
void message_heartbeat_build(uint64_t count, uint64_t committed_epoch, struct wire_heartbeat *ret_wire);
int message_goodbye_parse(const struct wire_frame *frame, uint32_t *ret_reason);
void message_goodbye_build(uint32_t reason, struct wire_goodbye *ret_wire);

struct message_verify {
    uint32_t block, count;
    uint64_t first;
    const le64 *fingerprints; /* unaligned: read with memcpy or from_le64 on a copy */
};
int message_verify_parse(const struct wire_frame *frame, struct message_verify *ret_verify);
/* Builds the whole payload in `to`; returns its length or -EMSGSIZE. */
long message_verify_build(uint32_t block, uint64_t first, uint32_t count, const uint64_t *fingerprints,
                          void *to, size_t room);

struct message_verified {
    uint32_t block, count, differing, listed;
    uint64_t first;
    const uint8_t *pages; /* listed x le64, ascending, within first and count */
};
int message_verified_parse(const struct wire_frame *frame, struct message_verified *ret_verified);
/* The answer to `verify`: builds the whole payload in `to` with as many of `pages` as may be listed; returns
 * its length or -EMSGSIZE. */
long message_verified_build(const struct message_verify *verify, uint32_t differing, const uint64_t *pages,
                            void *to, size_t room);

/* SUMS_WANTED, whose `digests` is NULL, and SUMS. */
struct message_sums {
    uint32_t disk, count;
    uint64_t first;
    const uint8_t *digests; /* count x WIRE_DIGEST_BYTES */
};
int message_sums_wanted_parse(const struct wire_frame *frame, struct message_sums *ret_sums);
int message_sums_parse(const struct wire_frame *frame, struct message_sums *ret_sums);
/* The payload's head; the digests of a SUMS follow it. */
void message_sums_build(const struct message_sums *sums, struct wire_sums *ret_wire);

/* PAGE_SUMS_WANTED, whose `digests` is NULL, and PAGE_SUMS. */
struct message_page_sums {
    uint32_t block, count;
    uint64_t first;
    const uint8_t *digests; /* count x WIRE_DIGEST_BYTES */
};
int message_page_sums_wanted_parse(const struct wire_frame *frame, struct message_page_sums *ret_sums);
int message_page_sums_parse(const struct wire_frame *frame, struct message_page_sums *ret_sums);
/* The payload's head; the digests of a PAGE_SUMS follow it. */
void message_page_sums_build(const struct message_page_sums *sums, struct wire_page_sums *ret_wire);

/* SHA-256 of `length` bytes. -ENOMEM. */
int wire_digest(const void *bytes, size_t length, uint8_t ret_digest[WIRE_DIGEST_BYTES]);

/* A piece of the device state, of a STATE or of a STATE_LZ4; to decompress the latter is for the caller. */
struct message_state {
    uint64_t offset, total;
    uint32_t length; /* of the piece, decompressed; offset + length is at most total */
    bool lz4;
    const uint8_t *bytes; /* as they came: the piece, or one LZ4 block */
    uint32_t body_bytes;  /* of those: 1..length */
};
int message_state_parse(const struct wire_frame *frame, struct message_state *ret_state);
/* Write the fixed part of a STATE or STATE_LZ4, and return its length; the piece's bytes or block follow. */
size_t message_state_build(uint64_t offset, uint64_t total, void *to);
size_t message_state_lz4_build(uint64_t offset, uint64_t total, uint32_t raw_bytes, void *to);

/*
 * Pages. parse() checks the whole table (run count, encodings, body lengths that add up to the payload, page
 * numbers below 2^52 that do not wrap, runs of one frame in ascending order without overlap); then next()
 * walks it. Whether block and pages exist in the guest is for the caller, who knows the guest.
 */
struct message_pages {
    uint32_t block, round, page_count;
    uint16_t run_count;
    const uint8_t *runs, *body; /* internal to next() */
    uint16_t taken;
};
struct message_run {
    uint64_t first;
    uint32_t pages;
    uint8_t encoding;
    const uint8_t *body;
    uint32_t body_bytes;
};
int message_pages_parse(const struct wire_frame *frame, struct message_pages *ret_pages);
/* False at the end. */
bool message_pages_next(struct message_pages *pages, struct message_run *ret_run);
/* Writes the fixed part and the table of `runs` (their `body` pointers are not looked at); returns the offset
 * at which the bodies go, in the order of the runs. */
size_t message_pages_build(uint32_t block, uint32_t round, const struct message_run *runs, unsigned run_count,
                           void *to);

/*
 * What changed inside pages. parse() checks what can be checked before the body is decompressed, which is for
 * the caller; open() then checks the table of the decompressed body (pages ascending and below 2^52, each
 * with a change, blocks that add up to raw_bytes), and next() walks it.
 */
#define MESSAGE_DELTA_RAW_MAX (WIRE_DELTA_PAGES_MAX * (sizeof(struct wire_delta_page) + WIRE_PAGE_BYTES))

struct message_delta {
    uint32_t block, round, page_count, raw_bytes;
    uint8_t encoding;
    const uint8_t *body; /* as it came: compressed, or `raw_bytes` of it */
    uint32_t body_bytes;
    const uint8_t *table, *blocks; /* internal to next() */
    uint32_t taken;
};
struct message_delta_page {
    uint64_t page, changed, sum;
    const uint8_t *blocks; /* WIRE_DELTA_BLOCK bytes for each bit of `changed` */
};
int message_delta_parse(const struct wire_frame *frame, struct message_delta *ret_delta);
/* `raw`: raw_bytes bytes, which must stay while next() is called. */
int message_delta_open(struct message_delta *delta, const uint8_t *raw);
/* False at the end. */
bool message_delta_next(struct message_delta *delta, struct message_delta_page *ret_page);
/* Writes the fixed part (block, round, page_count, raw_bytes, encoding) and returns where the body goes. */
size_t message_delta_build(const struct message_delta *delta, void *to);

/*
 * Changes of disks. parse() checks the whole table (record count, ops, whole sectors that end at
 * WIRE_DISK_END_MAX at most, body lengths that add up to the payload); then next() walks it. Whether disk and
 * sectors exist in the guest is for the caller, who knows the guest.
 */
struct message_disk {
    uint32_t round, record_count;
    uint64_t first;                /* number of the first record in the epoch */
    const uint8_t *records, *body; /* internal to next() */
    uint32_t taken;
};
struct message_disk_record {
    uint64_t offset, bytes;
    uint8_t disk, op;
    const uint8_t *body;
    uint32_t body_bytes;
};
int message_disk_parse(const struct wire_frame *frame, struct message_disk *ret_disk);
/* False at the end. */
bool message_disk_next(struct message_disk *disk, struct message_disk_record *ret_record);
/* Writes the fixed part and the table of `records` (their `body` pointers are not looked at); returns the
 * offset at which the bodies go, in the order of the records. */
size_t message_disk_build(uint32_t round, uint64_t first, const struct message_disk_record *records,
                          unsigned record_count, void *to);

#endif
