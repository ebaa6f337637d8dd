/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WIRE_FRAME_H
#define UNDERSTUDY_WIRE_FRAME_H

#include "wire/wire.h"

#include <stdbool.h>

/* The project's one checksum: XXH3-64 with seed 0; 0 for no bytes. Frames, pages and device state use it. */
uint64_t wire_sum(const void *bytes, size_t length);

/*
 * Framing: pure functions over memory. A lane owns one writer and one reader; both keep the sequence number
 * of their direction.
 */

struct wire_writer {
    uint8_t *buffer;
    size_t room, used; /* bytes; `used` grows with each finished frame */
    uint64_t session;
    uint64_t sequence; /* of the next frame */
};

/* Where the next frame's payload can be built in place, and how much fits (at most WIRE_PAYLOAD_MAX; 0 when
 * not even a header fits). */
void *wire_writer_payload(const struct wire_writer *writer, size_t *ret_room);

/* Finish the frame whose payload of `length` bytes was built at wire_writer_payload(): fill in its header and
 * sums. Returns the header sum. `length` must fit, in the buffer and in the type's bounds (asserted). */
uint64_t wire_writer_finish(struct wire_writer *writer, enum wire_type type, uint64_t generation,
                            uint64_t epoch, size_t length);

/* Append a whole frame with a copied payload. -ENOBUFS when it does not fit; nothing is written then. */
int wire_writer_put(struct wire_writer *writer, enum wire_type type, uint64_t generation, uint64_t epoch,
                    const void *payload, size_t length);

/* A frame as the reader found it, in native integers; the payload points into the caller's buffer. */
struct wire_frame {
    uint8_t type;
    uint32_t length;
    uint64_t session, sequence, generation, epoch;
    uint64_t header_sum;
    const uint8_t *payload;
};

enum wire_side { WIRE_SIDE_PRIMARY, WIRE_SIDE_STANDBY };

struct wire_reader {
    enum wire_side from; /* who sends on this direction */
    bool control;        /* control lane or data lane */
    bool session_known;  /* when false, the first frame's session is adopted */
    uint64_t session;
    uint64_t sequence; /* expected next */
};

/*
 * Take one frame from the front of `bytes`. Returns its size (header and payload; > 0), 0 when more bytes are
 * needed, or -EPROTO (magic, version, reserved fields, type not permitted on this lane or direction, session,
 * sequence), -EMSGSIZE (length out of bounds for the type), -EBADMSG (a sum is wrong); error_text() names the
 * field with the value found and the value expected. The header is judged as soon as its 64 bytes are there,
 * so a hostile length is refused before anything is buffered for it.
 */
long wire_reader_next(struct wire_reader *reader, const void *bytes, size_t available,
                      struct wire_frame *ret_frame);

/* Payload bounds of a type: false if the type is unknown. */
bool wire_type_bounds(uint8_t type, size_t *ret_min, size_t *ret_max);

#endif
