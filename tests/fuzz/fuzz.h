/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_FUZZ_H
#define UNDERSTUDY_TESTS_FUZZ_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

/*
 * A fuzz target is one file with these two functions. It is built with the driver of driver.c in every build,
 * and as a libFuzzer program where meson's option `fuzzers` asks for it.
 */

/* Takes any bytes; returns 0. Ends the program when a property does not hold. */
int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

/* The `index`-th seed of the target, written to `to` (FUZZ_INPUT_MAX bytes); its length, or 0 when there are
 * no more. */
#define FUZZ_INPUT_MAX (1u << 20)
size_t fuzz_seed(unsigned index, uint8_t *to);

/* A property that must hold whatever the input. Unlike assert() it is not ours to blame on the caller, and it
 * stays in every build. */
#define fuzz_require(condition)                                                                              \
    do {                                                                                                     \
        if (!(condition)) {                                                                                  \
            fprintf(stderr, "%s:%d: does not hold: %s\n", __FILE__, __LINE__, #condition);                   \
            abort();                                                                                         \
        }                                                                                                    \
    } while (0)

/* Reads a target's input from the front; zeros when there is nothing left. */
struct fuzz_input {
    const uint8_t *bytes;
    size_t left;
};

static inline uint64_t fuzz_take(struct fuzz_input *input, unsigned bytes)
{
    uint64_t value = 0;
    for (unsigned i = 0; i < bytes && input->left; i++, input->left--)
        value |= (uint64_t)*input->bytes++ << (8 * i);
    return value;
}

/* splitmix64 (Steele, Lea, Flood 2014): a good stream from any seed, 0 included. */
static inline uint64_t fuzz_random(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

#endif
