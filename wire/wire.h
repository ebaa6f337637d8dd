/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WIRE_WIRE_H
#define UNDERSTUDY_WIRE_WIRE_H

#include "base/byteorder.h"

#include <assert.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The replication protocol, version 1, as it lies inside the TLS stream. docs/protocol.md has the narrative.
 *
 * A session is one control lane (index 0) and 1 to WIRE_LANES_MAX data lanes, each a TLS connection that the
 * primary opens. Every lane carries frames: a 64-byte header, then `length` bytes of payload. All integers
 * are little-endian; reserved fields are 0 and checked.
 *
 *     offset 0       8        16        24        32        40       48        56        64
 *            | magic  | length | session| sequence|genera- | epoch  | payload | header  | payload ...
 *            | v t fl | reserv.|        |         |tion    |        |  sum    |  sum    |
 *
 * `sequence` counts the frames of one lane and direction from 0, so a lost, replayed or reordered frame is
 * seen. `payload_sum` is XXH3-64 of the payload (seed 0; of nothing: 0); `header_sum` is XXH3-64 of the 56
 * bytes before it, so it covers the payload too. The sum (mod 2^64) of the header sums of all data frames of
 * a round is the round's sum, whatever lane each frame took. TLS protects against an attacker; the sums
 * protect against ourselves and bad memory.
 */
#define WIRE_MAGIC          0x31545355u /* "UST1" */
#define WIRE_VERSION        1
#define WIRE_PAYLOAD_MAX    (512u * 1024)
#define WIRE_LANES_MAX      64 /* data lanes */
#define WIRE_PAGE_BYTES     4096u
#define WIRE_STATE_MAX      (256u << 20) /* device state of one checkpoint */
#define WIRE_GENERATION_MAX (1ull << 62) /* whoever adopts a peer's can still raise and store it */
#define WIRE_DETECT_MS_MAX  3600000u     /* detect_ms is 1 to this */

enum wire_type {
    /* control lane; P: sent by the primary, S: by the standby */
    WIRE_HELLO = 1,      /* P  first frame on every lane, data lanes too: struct wire_hello */
    WIRE_WELCOME = 2,    /* S  control lane's answer: struct wire_welcome */
    WIRE_REFUSE = 3,     /* PS this session ends: struct wire_refuse */
    WIRE_DESCRIBE = 4,   /* P  the guest: struct wire_describe, blocks, text */
    WIRE_ACCEPT = 5,     /* S  my guest is ready and alike; nothing follows */
    WIRE_HEARTBEAT = 6,  /* PS struct wire_heartbeat */
    WIRE_ROUND = 7,      /* P  a round of the epoch is complete: struct wire_round */
    WIRE_ROUND_DONE = 8, /* S  all of that round has arrived: struct wire_round_done */
    WIRE_COMMIT = 9,     /* P  the epoch is complete: struct wire_commit */
    WIRE_ACK = 10, /* S  the epoch in the header is verified and will survive the primary; nothing follows */
    WIRE_VERIFY = 11, /* P  fingerprints of pages at the epoch in the header: struct wire_verify, le64 each */
    WIRE_VERIFIED = 12, /* S  struct wire_verified, le64 page numbers */
    WIRE_GOODBYE = 13,  /* PS orderly end: struct wire_goodbye */
    WIRE_SWITCH =
        14, /* P  the committed epoch in the header is this guest's last here: load it, do not run */
    WIRE_LOADED = 15,           /* S  done; nothing follows */
    WIRE_HANDOVER = 16,         /* P  run it: the guest here does not any more */
    WIRE_STARTED = 17,          /* S  it runs, by the generation in the header */
    WIRE_SUMS_WANTED = 18,      /* P  what do you have there already? struct wire_sums */
    WIRE_SUMS = 19,             /* S  struct wire_sums as in the question, WIRE_DIGEST_BYTES for each block */
    WIRE_PAGE_SUMS_WANTED = 20, /* P  what does your guest's memory have already? struct wire_page_sums */
    WIRE_PAGE_SUMS = 21, /* S  struct wire_page_sums as in the question, WIRE_DIGEST_BYTES for each page; or
                            none, and a count of 0: nothing there is worth comparing */
    /* data lanes, P */
    WIRE_PAGES = 32,     /* struct wire_pages, its runs, their bodies */
    WIRE_STATE = 33,     /* a piece of the device state: struct wire_state, bytes */
    WIRE_DELTA = 34,     /* what changed inside pages: struct wire_delta, one body */
    WIRE_DISK = 35,      /* changes of the disks, in order: struct wire_disk, its records, their bodies */
    WIRE_STATE_LZ4 = 36, /* a piece of the device state: struct wire_state_lz4, one LZ4 block */
};

struct wire_header {
    le32 magic;
    uint8_t version;
    uint8_t type; /* enum wire_type */
    le16 flags;   /* none defined: 0 */
    le32 length;  /* of the payload, at most WIRE_PAYLOAD_MAX */
    le32 reserved;
    le64 session;    /* chosen at random by the primary for each session, never 0 */
    le64 sequence;   /* of this lane and direction */
    le64 generation; /* of the sender, at most WIRE_GENERATION_MAX */
    le64 epoch;      /* the epoch the frame belongs to; 0 where it belongs to none. HELLO on the control lane:
                        the newest generation that the primary asked an arbiter for and makes no use of, 0: none */
    le64 payload_sum;
    le64 header_sum;
};
static_assert(sizeof(struct wire_header) == 64, "wire_header");
static_assert(offsetof(struct wire_header, session) == 16, "wire_header.session");
static_assert(offsetof(struct wire_header, header_sum) == 56, "wire_header.header_sum");

/* Features. A bit in `required` that the standby does not know is refused; `optional` bits are intersected.
 */
#define WIRE_FEATURE_LZ4       (1ull << 0) /* optional: WIRE_RUN_LZ4 may be used */
#define WIRE_FEATURE_VERIFY    (1ull << 1) /* optional: WIRE_VERIFY may be used */
#define WIRE_FEATURE_DELTA     (1ull << 2) /* optional: WIRE_DELTA may be used */
#define WIRE_FEATURE_DISK      (1ull << 3) /* required by a guest with disks of its own: WIRE_DISK is used */
#define WIRE_FEATURE_STATE_LZ4 (1ull << 4) /* optional: WIRE_STATE_LZ4 may be used */
#define WIRE_FEATURE_SWITCH    (1ull << 5) /* optional: WIRE_SWITCH and WIRE_HANDOVER may be used */
#define WIRE_FEATURE_DISK_SUMS (1ull << 6) /* optional: WIRE_SUMS_WANTED may be used */
#define WIRE_FEATURE_PAGE_SUMS (1ull << 7) /* optional: WIRE_PAGE_SUMS_WANTED may be used */
#define WIRE_FEATURES_KNOWN                                                                                  \
    (WIRE_FEATURE_LZ4 | WIRE_FEATURE_VERIFY | WIRE_FEATURE_DELTA | WIRE_FEATURE_DISK |                       \
     WIRE_FEATURE_STATE_LZ4 | WIRE_FEATURE_SWITCH | WIRE_FEATURE_DISK_SUMS | WIRE_FEATURE_PAGE_SUMS)

struct wire_hello {
    le16 version_min, version_max;
    le16 lane;       /* this connection's index: 0 control, 1..lanes data */
    le16 lanes;      /* number of data lanes in this session */
    le32 page_bytes; /* WIRE_PAGE_BYTES */
    le32 detect_ms;  /* silence after which the primary gives the standby up */
    le64 optional;
    le64 required;
    uint8_t vm_uuid[16];
    uint8_t history[16]; /* identifies one unbroken tracking of the guest's writes */
    le64 acked_epoch;    /* the latest epoch of `history` that the primary saw acknowledged, 0: none */
    char host[64];       /* sender's name, NUL-terminated, for messages only */
};
static_assert(sizeof(struct wire_hello) == 136, "wire_hello");

#define WIRE_WELCOME_HAS_COMMIT (1u << 0) /* the standby holds a committed checkpoint of this VM */

struct wire_welcome {
    le16 version;
    le16 reserved;
    le32 flags;
    le64 optional;        /* features that both have */
    uint8_t history[16];  /* of the committed checkpoint */
    le64 committed_epoch; /* of the committed checkpoint */
    le64 staging_bytes;   /* what the standby is willing to stage for one epoch */
    le32 detect_ms;
    le32 reserved2;
    char host[64];
};
static_assert(sizeof(struct wire_welcome) == 120, "wire_welcome");

enum wire_refusal {
    WIRE_REFUSE_PROTOCOL = 1,   /* malformed or unexpected frame */
    WIRE_REFUSE_VERSION = 2,    /* no common version */
    WIRE_REFUSE_FEATURE = 3,    /* unknown required feature */
    WIRE_REFUSE_VM = 4,         /* another VM UUID */
    WIRE_REFUSE_MISMATCH = 5,   /* machine descriptions differ */
    WIRE_REFUSE_GENERATION = 6, /* the header's generation is newer than yours: yield */
    WIRE_REFUSE_BUSY = 7,       /* another session is up */
    WIRE_REFUSE_STAGING = 8,    /* the epoch does not fit in staging */
    WIRE_REFUSE_CORRUPT = 9,    /* epoch's sum or counts are wrong */
    WIRE_REFUSE_GUEST = 10,     /* the standby's guest failed or could not be started */
    WIRE_REFUSE_INTERNAL = 11,
};

struct wire_refuse {
    le32 code; /* enum wire_refusal */
    le32 reserved;
    char text[504]; /* NUL-terminated; printed with control characters replaced */
};
static_assert(sizeof(struct wire_refuse) == 512, "wire_refuse");

#define WIRE_BLOCKS_MAX      64
#define WIRE_BLOCK_NAME      256
#define WIRE_DESCRIPTION_MAX (128u * 1024)
#define WIRE_BLOCK_BYTES_MAX (16ull << 40)

struct wire_describe {
    le32 block_count; /* 1..WIRE_BLOCKS_MAX */
    le32 text_bytes;  /* at most WIRE_DESCRIPTION_MAX, without NUL */
    /* struct wire_block blocks[block_count]; char text[text_bytes]; */
};
static_assert(sizeof(struct wire_describe) == 8, "wire_describe");

struct wire_block {
    le64 bytes; /* multiple of the page size, 1 page..WIRE_BLOCK_BYTES_MAX */
    char name[WIRE_BLOCK_NAME];
};
static_assert(sizeof(struct wire_block) == 264, "wire_block");

struct wire_heartbeat {
    le64 count;           /* heartbeats sent before this one in this session */
    le64 committed_epoch; /* S: latest committed; P: latest acknowledged */
};
static_assert(sizeof(struct wire_heartbeat) == 16, "wire_heartbeat");

/* What a round brought, summed over the data lanes. */
struct wire_totals {
    le64 frames; /* data frames, of every type */
    le64 pages;
    le64 bytes; /* payload bytes of those frames */
    le64 sum;   /* of their header sums, mod 2^64 */
};
static_assert(sizeof(struct wire_totals) == 32, "wire_totals");

struct wire_round {
    le32 round; /* from 0 in each epoch */
    le32 reserved;
    struct wire_totals totals;
};
static_assert(sizeof(struct wire_round) == 40, "wire_round");

struct wire_round_done {
    le32 round;
    le32 reserved;
};
static_assert(sizeof(struct wire_round_done) == 8, "wire_round_done");

struct wire_commit {
    le32 round; /* the final round's number: what `totals` counts */
    le32 reserved;
    struct wire_totals totals;
    le64 state_bytes; /* device state of this checkpoint, more than 0 */
    le64 state_sum;   /* XXH3-64 of it */
};
static_assert(sizeof(struct wire_commit) == 56, "wire_commit");

#define WIRE_VERIFY_MAX 32768u /* pages in one WIRE_VERIFY */

struct wire_verify {
    le32 block;
    le32 count; /* 1..WIRE_VERIFY_MAX fingerprints (XXH3-64 of a page) follow */
    le64 first; /* page */
};
static_assert(sizeof(struct wire_verify) == 16, "wire_verify");

#define WIRE_VERIFIED_MAX 1024u /* differing pages that are listed one by one */

struct wire_verified {
    le32 block;
    le32 count; /* as in the WIRE_VERIFY answered */
    le64 first;
    le32 differing; /* pages that differ */
    le32 listed;    /* of these, how many page numbers follow: min(differing, WIRE_VERIFIED_MAX) */
};
static_assert(sizeof(struct wire_verified) == 24, "wire_verified");

enum wire_goodbye_reason {
    WIRE_GOODBYE_STOP = 1, /* the engine was told to stop; the guest runs on unprotected: no takeover */
    WIRE_GOODBYE_GUEST_ENDED = 2,  /* the guest shut down in order: no takeover */
    WIRE_GOODBYE_GUEST_FAILED = 3, /* the guest crashed: take over */
};

/*
 * Blocks of a disk, of WIRE_SUMS_BLOCK bytes each (the last of a disk may be shorter). A digest is SHA-256 of
 * a block's content (FIPS 180-4): a guest can choose what is on its disks, and must not be able to make two
 * contents that pass for one.
 */
#define WIRE_SUMS_BLOCK   65536u
#define WIRE_SUMS_MAX     512u
#define WIRE_DIGEST_BYTES 32u

struct wire_sums {
    le32 disk;  /* index, below WIRE_DISKS_MAX */
    le32 count; /* blocks, 1..WIRE_SUMS_MAX */
    le64 first; /* block */
};
static_assert(sizeof(struct wire_sums) == 16, "wire_sums");

/* Pages of a block of memory; a digest is SHA-256 of a page, for the same reason. */
#define WIRE_PAGE_SUMS_MAX 512u

struct wire_page_sums {
    le32 block;
    le32 count; /* 1..WIRE_PAGE_SUMS_MAX; in an answer also 0 */
    le64 first; /* page */
};
static_assert(sizeof(struct wire_page_sums) == 16, "wire_page_sums");

struct wire_goodbye {
    le32 reason;
    le32 reserved;
};
static_assert(sizeof(struct wire_goodbye) == 8, "wire_goodbye");

/*
 * WIRE_PAGES payload:  wire_pages | run_count x wire_run | bodies, in the order of the runs
 * A run is a stretch of consecutive pages, encoded as one.
 */
struct wire_pages {
    le32 block; /* index into the blocks of WIRE_DESCRIBE */
    le16 run_count;
    le16 reserved;
    le32 round;
    le32 page_count; /* of all runs together */
};
static_assert(sizeof(struct wire_pages) == 16, "wire_pages");

#define WIRE_RUN_PAGES_MAX      65535u /* of a zero run */
#define WIRE_RUN_BODY_PAGES_MAX 64u    /* of a raw or lz4 run */

enum wire_encoding {
    WIRE_RUN_ZERO = 0, /* no body */
    WIRE_RUN_RAW = 1,  /* body: the pages */
    WIRE_RUN_LZ4 = 2,  /* body: one LZ4 block that decodes to exactly the pages */
};

struct wire_run {
    le64 first; /* page within the block */
    le16 pages; /* at least 1 */
    uint8_t encoding;
    uint8_t reserved;
    le32 body; /* bytes: 0 for zero, pages * 4096 for raw, 1..pages * 4096 for lz4 */
};
static_assert(sizeof(struct wire_run) == 16, "wire_run");

struct wire_state {
    le64 offset; /* of this piece */
    le64 total;  /* of the whole device state, at most WIRE_STATE_MAX */
    /* bytes to the end of the payload, at least 1 */
};
static_assert(sizeof(struct wire_state) == 16, "wire_state");

#define WIRE_STATE_PIECE_MAX (256u * 1024) /* of a compressed piece, decompressed */
#define WIRE_LZ4_RATIO_MAX   255u          /* no byte of an LZ4 block stands for more than this */

struct wire_state_lz4 {
    le64 offset;    /* of this piece in the device state */
    le64 total;     /* as in wire_state */
    le32 raw_bytes; /* of the decompressed piece, 1..WIRE_STATE_PIECE_MAX */
    le32 reserved;
    /* to the end of the payload one LZ4 block that decodes to exactly raw_bytes, at most as long as they are
     */
};
static_assert(sizeof(struct wire_state_lz4) == 24, "wire_state_lz4");

/*
 * WIRE_DELTA payload: wire_delta | body
 *
 * The body, once decompressed, is `raw_bytes` long:
 *
 *     page_count x wire_delta_page | blocks of page 0 | blocks of page 1 | ...
 *
 * Each page is cut into 64 blocks of WIRE_DELTA_BLOCK bytes; a set bit n in `changed` says that block n
 * follows, in the order of the bits, as the exclusive-or of its old and its new content. The base is the page
 * as the standby has it: as it arrived earlier in the same epoch, else as it is in the last committed
 * checkpoint. `sum` is XXH3-64 of the whole new page, so that a base that is not what the primary believed is
 * seen.
 */
#define WIRE_DELTA_BLOCK     64u
#define WIRE_DELTA_PAGES_MAX 64u

enum wire_delta_encoding {
    WIRE_DELTA_RAW = 0, /* the body as it is */
    WIRE_DELTA_LZ4 = 1, /* one LZ4 block that decodes to exactly raw_bytes */
};

struct wire_delta {
    le32 block; /* index into the blocks of WIRE_DESCRIBE */
    le32 round;
    le32 page_count; /* 1..WIRE_DELTA_PAGES_MAX */
    le32 raw_bytes;  /* of the decompressed body */
    uint8_t encoding;
    uint8_t reserved[7];
};
static_assert(sizeof(struct wire_delta) == 24, "wire_delta");

struct wire_delta_page {
    le64 page;    /* within the block; ascending */
    le64 changed; /* bit n: block n follows; not 0 */
    le64 sum;     /* XXH3-64 of the new page */
};
static_assert(sizeof(struct wire_delta_page) == 24, "wire_delta_page");

/*
 * WIRE_DISK payload: wire_disk | record_count x wire_disk_record | bodies, in the order of the records
 *
 * The changes of an epoch are numbered from 0, over all its rounds; they are applied in that order, whatever
 * lane each frame took. The frames of one lane carry ascending numbers.
 */
#define WIRE_DISKS_MAX     32
#define WIRE_DISK_SECTOR   512u
#define WIRE_DISK_BODY_MAX (256u * 1024) /* data of one record, before compression */
#define WIRE_DISK_END_MAX  (1ull << 62)  /* offset + bytes */

enum wire_disk_op {
    WIRE_DISK_RAW = 0,     /* body: the data */
    WIRE_DISK_LZ4 = 1,     /* body: one LZ4 block that decodes to exactly `bytes` */
    WIRE_DISK_ZERO = 2,    /* no body: reads as zeros from now on */
    WIRE_DISK_DISCARD = 3, /* no body: the guest does not need it any more; reads as zeros */
};

struct wire_disk {
    le32 round;
    le32 record_count; /* at least 1 */
    le64 first;        /* number of the first record in the epoch; the others follow one by one */
};
static_assert(sizeof(struct wire_disk) == 16, "wire_disk");

struct wire_disk_record {
    le64 offset; /* bytes, a multiple of WIRE_DISK_SECTOR */
    le64 bytes;  /* at least 1 sector, a multiple; with a body at most WIRE_DISK_BODY_MAX */
    le32 body;   /* bytes: `bytes` for raw, 1..bytes for lz4, 0 for zero and discard */
    uint8_t
        disk;   /* index into the disks of the guest, in the order of its description; below WIRE_DISKS_MAX */
    uint8_t op; /* enum wire_disk_op */
    le16 reserved;
};
static_assert(sizeof(struct wire_disk_record) == 24, "wire_disk_record");

/* The type's name for messages ("COMMIT"), "?" for an unknown one. */
const char *wire_type_name(uint8_t type);

/* A refusal's name for messages and status ("machine-mismatch"), "unknown" for an unknown one. */
const char *wire_refusal_name(uint32_t code);

#endif
