/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_SAMPLES_H
#define UNDERSTUDY_TESTS_SAMPLES_H

#include "wire/message.h"

/*
 * A valid payload of every message of the protocol, and one call that runs the parser of any type. Tests
 * derive what is refused from what is valid here; fuzzers take their first inputs from it.
 */

#define SAMPLE_TYPES 26
extern const uint8_t sample_types[SAMPLE_TYPES];

#define SAMPLE_VARIANTS 3 /* 0: the smallest that is valid, 1: a usual one, 2: the largest or close to it */

/* Build a payload in `to` (WIRE_PAYLOAD_MAX bytes of room); returns its length. */
size_t sample_payload(uint8_t type, unsigned variant, uint8_t *to);

/* A DELTA body before compression: one block of each page has changed, or all of them have. Returns its
 * length (at most MESSAGE_DELTA_RAW_MAX). */
size_t sample_delta_raw(uint32_t pages, bool all, uint8_t *to);

/* Decompress and check a DELTA whose payload was accepted; `raw`: MESSAGE_DELTA_RAW_MAX bytes. */
int sample_delta_open(struct message_delta *delta, uint8_t *raw);

/* Append the sample as a whole frame; returns false when it does not fit. */
bool sample_put(struct wire_writer *writer, uint8_t type, unsigned variant);

/* Give the frame to the parser of its type, if it has one, and read all that the result points to. */
int sample_parse(const struct wire_frame *frame);

/* A frame as the reader would return it, without one. */
struct wire_frame sample_frame(uint8_t type, const void *payload, size_t length);

/* Fill a page so that its first bytes tell `seed` and the rest compresses. */
void sample_page(uint8_t *to, uint64_t seed);

#endif
