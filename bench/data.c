/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/data.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <string.h>

#define STRETCH_BYTES ((size_t)16 * 4096)

static const char *const names[] = {
    [DATA_RANDOM] = "random", [DATA_ZERO] = "zero", [DATA_TEXT] = "text", [DATA_MIXED] = "mixed"};

int data_kind_parse(const char *text, enum data_kind *ret_kind)
{
    for (unsigned i = 0; i < array_length(names); i++)
        if (!strcmp(text, names[i])) {
            *ret_kind = (enum data_kind)i;
            return 0;
        }
    return error_set(-EINVAL, "--data: '%s' is not random, zero, text or mixed", text);
}

const char *data_kind_name(enum data_kind kind)
{
    return names[kind];
}

/* splitmix64 (Steele, Lea and Flood, 2014). */
static uint64_t next(uint64_t *state)
{
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ z >> 27) * 0x94d049bb133111ebull;
    return z ^ z >> 31;
}

static void fill_random(uint8_t *to, size_t bytes, uint64_t *state)
{
    for (size_t i = 0; i < bytes; i += sizeof(uint64_t)) {
        uint64_t word = next(state);
        memcpy(to + i, &word, sizeof word);
    }
}

static void fill_text(uint8_t *to, size_t bytes, uint64_t *state)
{
    static const char *const words[] = {
        "the",    "request", "connection", "from",  "user",    "session",  "opened",  "closed",
        "by",     "error",   "timeout",    "while", "reading", "response", "header",  "upstream",
        "server", "GET",     "POST",       "HTTP",  "/index",  "/api/v1",  "status",  "200",
        "404",    "kernel",  "memory",     "page",  "fault",   "process",  "started", "failed"};
    for (size_t at = 0; at < bytes;) {
        uint64_t random = next(state);
        char number[] = "00000000";
        const char *word = words[random % array_length(words)];
        if (random >> 60 < 3) { /* a number here and there, as logs and tables have them */
            for (unsigned i = 0; i < 8; i++)
                number[i] = "0123456789abcdef"[random >> (8 + 4 * i) & 15];
            word = number;
        }
        size_t length = strlen(word), part = length < bytes - at ? length : bytes - at;
        memcpy(to + at, word, part);
        at += part;
        if (at < bytes)
            to[at++] = ' ';
    }
}

static void fill_stretch(uint8_t *to, size_t bytes, enum data_kind kind, uint64_t seed)
{
    uint64_t state = seed;
    if (kind == DATA_MIXED) {
        static const enum data_kind mix[] = {DATA_ZERO, DATA_TEXT, DATA_TEXT, DATA_RANDOM};
        kind = mix[next(&state) % array_length(mix)];
    }
    if (kind == DATA_ZERO)
        memset(to, 0, bytes);
    else if (kind == DATA_RANDOM)
        fill_random(to, bytes, &state);
    else
        fill_text(to, bytes, &state);
}

void data_fill(void *memory, size_t bytes, enum data_kind kind, uint64_t seed)
{
    uint8_t *to = memory;
    for (size_t at = 0; at < bytes; at += STRETCH_BYTES) {
        size_t part = bytes - at < STRETCH_BYTES ? bytes - at : STRETCH_BYTES;
        fill_stretch(to + at, part, kind, seed + at);
    }
}
