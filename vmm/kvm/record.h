/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_RECORD_H
#define UNDERSTUDY_VMM_KVM_RECORD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * The state of a guest, apart from its RAM, as a sequence of records:
 *
 *     type u32 │ version u32 │ bytes u32 │ instance u32 │ payload ... │ type u32 │ ...
 *
 * All integers are little-endian, nothing is aligned. A standby loads what a peer sent: no length is
 * believed, reading beyond a payload gives zeros and is remembered, and a payload of which something is left
 * over is as wrong as one that is too short.
 */

enum record_type {
    /* 1 to 0xff: virtual CPUs and what KVM has in the kernel; see the files that write them. */
    RECORD_DEVICES = 0x100, /* from here on: devices on a bus (device.h) */
    RECORD_VIRTIO_NET = 0x101,
    RECORD_VIRTIO_BLOCK = 0x102,
    RECORD_VIRTIO_CONSOLE = 0x103,
    RECORD_VIRTIO_RNG = 0x104,
    RECORD_SERIAL = 0x110,
};

#define RECORD_HEADER_BYTES 16
#define RECORD_BYTES_MAX    (16u << 20)

/* Writes into memory of the caller's. What does not fit is remembered, and told by record_writer_end(). */
struct record_writer {
    uint8_t *to;
    size_t room, bytes;
    size_t begin; /* of the open record */
    bool open, full;
};

void record_writer_init(struct record_writer *writer, void *to, size_t room);
/* -ENOBUFS: it was too little room. */
int record_writer_end(const struct record_writer *writer, size_t *ret_bytes);

void record_begin(struct record_writer *writer, uint32_t type, uint32_t version, uint32_t instance);
void record_end(struct record_writer *writer);
void record_put(struct record_writer *writer, const void *from, size_t bytes);
void record_put_u8(struct record_writer *writer, uint8_t value);
void record_put_u16(struct record_writer *writer, uint16_t value);
void record_put_u32(struct record_writer *writer, uint32_t value);
void record_put_u64(struct record_writer *writer, uint64_t value);

struct record_reader {
    const uint8_t *from;
    size_t left;
};

/* One record; `payload` lies in the reader's memory. */
struct record {
    uint32_t type, version, instance, bytes;
    const uint8_t *payload;
    uint32_t at;
    bool overrun; /* more was taken than there is */
};

void record_reader_init(struct record_reader *reader, const void *from, size_t bytes);
/* 1: ret_record is the next; 0: there is none; -EBADMSG: what is left is no record. */
int record_next(struct record_reader *reader, struct record *ret_record);

/* The next bytes of the payload; zeros when it is over. */
void record_take(struct record *record, void *to, size_t bytes);
uint8_t record_take_u8(struct record *record);
uint16_t record_take_u16(struct record *record);
uint32_t record_take_u32(struct record *record);
uint64_t record_take_u64(struct record *record);
/* A piece of the payload where it lies, NULL (an overrun) when there is less. */
const void *record_take_piece(struct record *record, size_t bytes);
static inline size_t record_left(const struct record *record)
{
    return record->bytes - record->at;
}
/* Everything that was to be taken has been: -EBADMSG when something is left or was missing. `what` names it.
 */
int record_check_end(const struct record *record, const char *what);
/* -EBADMSG unless the version is this one. */
int record_check_version(const struct record *record, const char *what, uint32_t version);

#endif
