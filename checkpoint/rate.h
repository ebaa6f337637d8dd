/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_CHECKPOINT_RATE_H
#define UNDERSTUDY_CHECKPOINT_RATE_H

#include <stdbool.h>
#include <stdint.h>

/*
 * Does compression pay? Decided from what was measured, for the pages of a whole session and not page by
 * page.
 *
 * A lane's thread needs, for each byte of guest memory that is not zero,
 *
 *     raw   encode_raw             + carry           ns     carry: between two calls of produce(), for each
 *     lz4   encode_lz4 + out / in  * carry           ns            byte written: encryption, the socket, and
 *                                                                  waiting for the wire or the peer
 *
 * and the smaller sum wins. A slow wire makes carry large, so that compressing pays; a fast one leaves the
 * processor as the bottleneck, so that it does not, unless the data shrink a lot. The way not taken is tried
 * on one chunk in RATE_SAMPLE_EVERY, so that both columns stay known when the data or the wire change. LZ4 is
 * the dear one: RATE_SAMPLE_PAGES of that chunk are compressed beside it, and it goes raw. They are taken as
 * they lie one after the other, across the ends of runs; whole chunks, once there are any, put that right.
 *
 * Who compresses reads the pages, too, so encode_lz4 is never below encode_raw: what says otherwise was
 * measured while something else had the processor.
 * Pure: no clock, no lock.
 */
#define RATE_SAMPLE_EVERY 64u
#define RATE_SAMPLE_PAGES 8u /* half of what LZ4 looks back at */

/* A ratio of sums in which old samples fade. */
struct rate_meter {
    double value, weight;
};

struct rate {
    struct rate_meter raw_ns, lz4_ns; /* for each byte in */
    struct rate_meter lz4_out;        /* bytes out for each byte in */
    struct rate_meter change_out;     /* the same for blocks that changed */
    struct rate_meter carry_ns;       /* for each byte out */
    bool compressing;
    uint32_t until_sample; /* chunks until the other way is tried */
};

enum rate_way {
    RATE_RAW,
    RATE_LZ4,
    RATE_RAW_AND_SAMPLE, /* raw, and rate_sampled() is told of a piece that was compressed beside it */
};

/* How to encode the next chunk; counts down to the samples. */
enum rate_way rate_next(struct rate *rate);

/* `in` bytes of pages (no zero pages among them) became `out` bytes in `ns`. */
void rate_encoded(struct rate *rate, bool lz4, uint64_t in, uint64_t out, uint64_t ns);

/* `in` of a chunk's `whole` bytes were compressed to `out` bytes in `ns`, beside the chunk itself. */
void rate_sampled(struct rate *rate, uint64_t whole, uint64_t in, uint64_t out, uint64_t ns);

/* `in` bytes of blocks that changed went as `out` bytes. */
void rate_changes(struct rate *rate, uint64_t in, uint64_t out);

/* Bytes out for each byte in, as measured lately: of pages that LZ4 compressed, and of blocks that changed. 1
 * while nothing is known. */
double rate_lz4_out(const struct rate *rate);
double rate_change_out(const struct rate *rate);

/* A lane came back after `ns` for more, having been given `bytes`. */
void rate_carried(struct rate *rate, uint64_t bytes, uint64_t ns);

#endif
