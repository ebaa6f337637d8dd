/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <string.h>

/*
 * A page that is not all zeros begins with {iteration, page number, pattern} and ends with the sum of all
 * words before, so that a dump of memory can be judged without the guest's own tables.
 */

uint64_t pattern_mix(uint64_t a, uint64_t b)
{
    uint64_t x = a * 0x9e3779b97f4a7c15u + b;
    x = (x ^ (x >> 31)) * 0xd6e8feb86659fd93u;
    return x ^ (x >> 32);
}

static uint64_t step(uint64_t x)
{
    return x * 6364136223846793005u + 1442695040888963407u;
}

static void fill_random(uint64_t *page, uint64_t seed)
{
    for (unsigned i = 0; i < PAGE_WORDS; i++)
        page[i] = seed = step(seed);
}

static void fill_text(uint64_t *page, uint64_t seed)
{
    static const char words[32][9] = {
        "machine ", "standby ", "primary ", "counter ", "pattern ", "memory, ", "writing ", "reading ",
        "checks. ", "kernel; ", "process ", "packet, ", "between ", "another ", "whether ", "through ",
        "nothing ", "already ", "forever ", "against ", "because ", "instant ", "moments ", "network ",
        "storage ", "virtual ", "device, ", "channel ", "restore ", "resume. ", "release ", "commits ",
    };
    for (unsigned i = 0; i < PAGE_WORDS; i++) {
        seed = step(seed);
        memcpy(&page[i], words[seed >> 59], 8);
    }
}

static void fill_sparse(uint64_t *page, uint64_t number, uint64_t seed)
{
    fill_random(page, pattern_mix(number, 0));
    for (unsigned i = 0; i < 4; i++)
        page[(seed >> (i * 9)) % PAGE_WORDS] ^= seed;
}

void pattern_make(uint64_t page[PAGE_WORDS], enum pattern mode, uint64_t number, uint64_t iteration)
{
    uint64_t seed = pattern_mix(number + 1, iteration);
    if (mode == PATTERN_MIXED)
        mode = (enum pattern)(seed >> 62);
    else if (mode == PATTERN_ZERO && iteration % 2)
        mode = PATTERN_TEXT;
    switch (mode) {
    case PATTERN_ZERO:
        memset(page, 0, PAGE_BYTES);
        return;
    case PATTERN_TEXT:
        fill_text(page, seed);
        break;
    case PATTERN_SPARSE:
        fill_sparse(page, number, seed);
        break;
    default:
        fill_random(page, seed);
    }
    page[0] = iteration;
    page[1] = number;
    page[2] = mode;
    uint64_t sum = 0;
    for (unsigned i = 0; i < PAGE_WORDS - 1; i++)
        sum += page[i];
    page[PAGE_WORDS - 1] = sum;
}

void pattern_disk(uint64_t block[PAGE_WORDS], uint64_t number)
{
    fill_random(block, pattern_mix(number, 0x6469736bu));
}
