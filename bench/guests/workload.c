/* SPDX-License-Identifier: Apache-2.0 */
#include "workload.h"

uint64_t workload_mix(uint64_t digest, uint64_t word)
{
    uint64_t x = (digest ^ word) * 0xff51afd7ed558ccdu + 0x9e3779b97f4a7c15u;
    return x ^ (x >> 29);
}

/* The data of a page or line, word by word. */
struct source {
    enum workload_data kind;
    uint64_t seed;
};

static struct source source_of(enum workload_data kind, uint64_t name, uint64_t iteration)
{
    return (struct source){.kind = kind, .seed = workload_mix(workload_mix(0, name), iteration)};
}

static inline uint64_t source_next(struct source *source)
{
    /* Eight letters each, so that a text is words[] in any order; little endian. */
    static const char words[16][9] = {
        "machine ", "standby ", "primary ", "counter ", "pattern ", "memory, ", "writing ", "reading ",
        "checks. ", "process ", "between ", "whether ", "through ", "nothing ", "network ", "storage ",
    };
    source->seed = source->seed * 6364136223846793005u + 1442695040888963407u;
    if (source->kind == WORKLOAD_RANDOM)
        return source->seed;
    const char *word = words[source->seed >> 60];
    uint64_t value = 0;
    for (unsigned i = 0; i < 8; i++)
        value |= (uint64_t)(unsigned char)word[i] << (8 * i);
    return value;
}

/* Whether the n-th write (from 1) of a place leaves zeros. */
static bool leaves_zeros(enum workload_data data, uint64_t nth)
{
    return nth == 0 || (data == WORKLOAD_ZERO && nth % 2 == 0);
}

/* A piece is a page or a line: `words` of them, named by `name`. */
static void piece_write(uint64_t *piece, unsigned words, enum workload_data data, uint64_t name,
                        uint64_t iteration, bool zeros)
{
    if (zeros) {
        for (unsigned i = 0; i < words; i++)
            piece[i] = 0;
        return;
    }
    struct source source = source_of(data, name, iteration);
    uint64_t sum = iteration + name;
    piece[0] = iteration;
    piece[1] = name;
    for (unsigned i = 2; i < words - 1; i++)
        sum += piece[i] = source_next(&source);
    piece[words - 1] = sum;
}

/* The first word that is wrong, or `words`. */
static unsigned piece_differs(const uint64_t *piece, unsigned words, enum workload_data data, uint64_t name,
                              uint64_t iteration, bool zeros)
{
    if (zeros) {
        unsigned i = 0;
        while (i < words && piece[i] == 0)
            i++;
        return i;
    }
    struct source source = source_of(data, name, iteration);
    uint64_t sum = iteration + name;
    if (piece[0] != iteration)
        return 0;
    if (piece[1] != name)
        return 1;
    for (unsigned i = 2; i < words - 1; i++) {
        uint64_t word = source_next(&source);
        if (piece[i] != word)
            return i;
        sum += word;
    }
    return piece[words - 1] == sum ? words : words - 1;
}

/* At which iteration of its page a line was written last. */
static uint64_t line_iteration(unsigned line, uint64_t iteration)
{
    uint64_t writes = iteration / WORKLOAD_LINES + (line < iteration % WORKLOAD_LINES);
    return writes ? (writes - 1) * WORKLOAD_LINES + line + 1 : 0;
}

void workload_write(uint64_t *page, enum workload_unit unit, enum workload_data data, uint64_t number,
                    uint64_t iteration)
{
    if (unit == WORKLOAD_PAGE) {
        piece_write(page, WORKLOAD_PAGE_WORDS, data, number, iteration, leaves_zeros(data, iteration));
        return;
    }
    unsigned line = (unsigned)((iteration - 1) % WORKLOAD_LINES);
    uint64_t nth = (iteration - 1) / WORKLOAD_LINES + 1;
    piece_write(page + line * WORKLOAD_LINE_WORDS, WORKLOAD_LINE_WORDS, data, number * WORKLOAD_LINES + line,
                iteration, leaves_zeros(data, nth));
}

/* One page or line, judged at an iteration of its own. */
static unsigned piece_check(const uint64_t *piece, enum workload_unit unit, enum workload_data data,
                            uint64_t name, uint64_t iteration)
{
    if (unit == WORKLOAD_PAGE)
        return piece_differs(piece, WORKLOAD_PAGE_WORDS, data, name, iteration,
                             leaves_zeros(data, iteration));
    uint64_t nth = iteration ? (iteration - 1) / WORKLOAD_LINES + 1 : 0;
    return piece_differs(piece, WORKLOAD_LINE_WORDS, data, name, iteration, leaves_zeros(data, nth));
}

bool workload_check(const uint64_t *page, enum workload_unit unit, enum workload_data data, uint64_t number,
                    uint64_t iteration, struct workload_fault *ret_fault)
{
    unsigned words = unit == WORKLOAD_PAGE ? WORKLOAD_PAGE_WORDS : WORKLOAD_LINE_WORDS;
    for (unsigned i = 0; i < WORKLOAD_PAGE_WORDS / words; i++) {
        const uint64_t *piece = page + i * words;
        uint64_t name = unit == WORKLOAD_PAGE ? number : number * WORKLOAD_LINES + i;
        uint64_t wanted = unit == WORKLOAD_PAGE ? iteration : line_iteration(i, iteration);
        unsigned word = piece_check(piece, unit, data, name, wanted);
        if (word == words)
            continue;
        uint64_t found = piece[0];
        *ret_fault = (struct workload_fault){
            .wanted = wanted,
            .found = found,
            .word = i * words + word,
            .whole = found != wanted && piece_check(piece, unit, data, name, found) == words,
        };
        return false;
    }
    return true;
}

void workload_walk_start(struct workload_walk *walk, uint64_t first, uint64_t count)
{
    walk->first = first;
    walk->count = count;
    walk->next = 0;
    walk->seed = workload_mix(0x756e646572u, first) | 1;
}

uint64_t workload_walk_next(struct workload_walk *walk)
{
    if (walk->order == WORKLOAD_ORDER_SEQUENTIAL) {
        uint64_t next = walk->next++;
        if (walk->next == walk->count)
            walk->next = 0;
        return walk->first + next;
    }
    walk->seed ^= walk->seed << 13;
    walk->seed ^= walk->seed >> 7;
    walk->seed ^= walk->seed << 17;
    uint64_t among = walk->count;
    if (walk->order == WORKLOAD_ORDER_HOT && walk->hot < among && (walk->seed >> 32) % 10 != 0)
        among = walk->hot;
    return walk->first + (walk->seed & 0xffffffffffffu) % among;
}
