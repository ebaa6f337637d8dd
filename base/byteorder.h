/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_BASE_BYTEORDER_H
#define UNDERSTUDY_BASE_BYTEORDER_H

#include <endian.h>
#include <stdint.h>

/*
 * Little-endian integers as they lie on the wire and in files. A struct wrapper keeps them from being read
 * without conversion: le32 x; x + 1 does not compile.
 */
typedef struct {
    uint16_t raw;
} le16;
typedef struct {
    uint32_t raw;
} le32;
typedef struct {
    uint64_t raw;
} le64;

static inline le16 to_le16(uint16_t value)
{
    return (le16){htole16(value)};
}
static inline le32 to_le32(uint32_t value)
{
    return (le32){htole32(value)};
}
static inline le64 to_le64(uint64_t value)
{
    return (le64){htole64(value)};
}
static inline uint16_t from_le16(le16 value)
{
    return le16toh(value.raw);
}
static inline uint32_t from_le32(le32 value)
{
    return le32toh(value.raw);
}
static inline uint64_t from_le64(le64 value)
{
    return le64toh(value.raw);
}

#endif
