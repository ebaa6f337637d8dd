/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/clock.h"
#include "base/scope.h"

#include <getopt.h>
#include <signal.h>
#include <string.h>

/*
 * Drives one fuzz target without libFuzzer, so that every build, whatever its compiler, runs them all: first
 * the target's seeds, then random mutations of them. Run number i depends on the seed and on i alone, so a
 * failure is repeated with --seed S --at I.
 */

#define SEEDS_MAX 256

static uint64_t seed = 1;
static volatile uint64_t at; /* the present run; below seed_count: that seed as it is */
static unsigned seed_count;
static uint8_t *seeds[SEEDS_MAX];
static size_t lengths[SEEDS_MAX];

static void say_where(void)
{
    fprintf(stderr, "fuzz driver: failed at run %llu; to repeat it: --seed %llu --at %llu\n",
            (unsigned long long)at, (unsigned long long)seed, (unsigned long long)at);
}

static void on_signal(int number)
{
    say_where();
    signal(number, SIG_DFL);
    raise(number);
}

/* Provided by a sanitizer's runtime, if there is one. */
void __sanitizer_set_death_callback(void (*callback)(void)) __attribute__((weak));

static size_t below(uint64_t *random, size_t limit)
{
    return limit ? (size_t)(fuzz_random(random) % limit) : 0;
}

/* Values at which bounds lie. */
static uint64_t interesting(uint64_t *random)
{
    uint64_t power = 1ull << below(random, 64);
    switch (below(random, 6)) {
    case 0:
        return 0;
    case 1:
        return UINT64_MAX - below(random, 3);
    case 2:
        return power - 1;
    case 3:
        return power + 1;
    case 4:
        return below(random, 300);
    default:
        return power;
    }
}

static size_t mutate(uint64_t *random, uint8_t *bytes, size_t length)
{
    size_t where = below(random, length), span = 1 + below(random, length < 64 ? length : 64);
    switch (below(random, 9)) {
    case 0:
        if (length)
            bytes[where] ^= (uint8_t)(1u << below(random, 8));
        break;
    case 1:
        if (length)
            bytes[where] = (uint8_t)fuzz_random(random);
        break;
    case 2:
    case 3: {
        size_t width = (size_t)1 << below(random, 4);
        uint64_t value = interesting(random);
        if (width <= length) /* half of the time where fields lie in our structs */
            memcpy(bytes + (below(random, 2) ? where % (length - width + 1) & ~(width - 1)
                                             : where % (length - width + 1)),
                   &value, width);
        break;
    }
    case 4: /* a little more or less than there was */
        if (length) {
            int change = (int)below(random, 9) - 4;
            bytes[where] = (uint8_t)(bytes[where] + change);
        }
        break;
    case 5: /* cut a piece out */
        if (length > span) {
            where = below(random, length - span);
            memmove(bytes + where, bytes + where + span, length - where - span);
            length -= span;
        }
        break;
    case 6: /* repeat a piece */
        if (length >= span && length + span <= FUZZ_INPUT_MAX) {
            where = below(random, length - span + 1);
            memmove(bytes + where + span, bytes + where, length - where);
            length += span;
        }
        break;
    case 7: /* cut the end off */
        length = where;
        break;
    case 8: { /* go on with another seed */
        unsigned other = (unsigned)below(random, seed_count);
        size_t from = below(random, lengths[other]), room = FUZZ_INPUT_MAX - where;
        size_t more = lengths[other] - from < room ? lengths[other] - from : room;
        memcpy(bytes + where, seeds[other] + from, more);
        length = where + more;
        break;
    }
    }
    return length;
}

static void run(uint64_t number, uint8_t *work)
{
    at = number;
    uint64_t random = seed * 0x2545f4914f6cdd1dull + number;
    unsigned chosen = number < seed_count ? (unsigned)number : (unsigned)below(&random, seed_count);
    size_t length = lengths[chosen];
    memcpy(work, seeds[chosen], length);
    if (number >= seed_count)
        for (size_t left = 1 + below(&random, 6); left; left--)
            length = mutate(&random, work, length);
    /* Exactly as long as the input, so that a sanitizer sees a byte read too many. */
    uint8_t *exact cleanup_free = malloc(length ? length : 1);
    memcpy(exact, work, length);
    LLVMFuzzerTestOneInput(exact, length);
}

static int run_file(const char *path, uint8_t *work)
{
    FILE *file cleanup_fclose = fopen(path, "rbe");
    if (!file) {
        perror(path);
        return 1;
    }
    size_t length = fread(work, 1, FUZZ_INPUT_MAX, file);
    uint8_t *exact cleanup_free = malloc(length ? length : 1);
    memcpy(exact, work, length);
    LLVMFuzzerTestOneInput(exact, length);
    return 0;
}

static int write_seeds(const char *folder)
{
    for (unsigned i = 0; i < seed_count; i++) {
        char path[512];
        snprintf(path, sizeof path, "%s/seed-%03u", folder, i);
        FILE *file cleanup_fclose = fopen(path, "wbe");
        if (!file || fwrite(seeds[i], 1, lengths[i], file) != lengths[i]) {
            perror(path);
            return 1;
        }
    }
    return 0;
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"seed", required_argument, NULL, 's'},    {"runs", required_argument, NULL, 'r'},
        {"seconds", required_argument, NULL, 't'}, {"at", required_argument, NULL, 'a'},
        {"write", required_argument, NULL, 'w'},   {0},
    };
    uint64_t runs = 20000, only = UINT64_MAX, seconds = 3600;
    const char *folder = NULL;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 's':
            seed = strtoull(optarg, NULL, 0);
            break;
        case 'r':
            runs = strtoull(optarg, NULL, 0);
            break;
        case 't':
            seconds = strtoull(optarg, NULL, 0);
            break;
        case 'a':
            only = strtoull(optarg, NULL, 0);
            break;
        case 'w':
            folder = optarg;
            break;
        default:
            fprintf(stderr,
                    "usage: %s [--seed S] [--runs N] [--seconds N] [--at RUN] [--write FOLDER] [FILE...]\n",
                    argv[0]);
            return 2;
        }
    }
    uint8_t *work cleanup_free = malloc(FUZZ_INPUT_MAX);
    while (seed_count < SEEDS_MAX && (lengths[seed_count] = fuzz_seed(seed_count, work))) {
        seeds[seed_count] = malloc(lengths[seed_count]);
        memcpy(seeds[seed_count], work, lengths[seed_count]);
        seed_count++;
    }
    fuzz_require(seed_count > 0);
    if (folder)
        return write_seeds(folder);
    for (int i = optind; i < argc; i++)
        if (run_file(argv[i], work))
            return 1;
    if (optind < argc)
        return 0;

    if (__sanitizer_set_death_callback)
        __sanitizer_set_death_callback(say_where);
    const int deadly[] = {SIGABRT, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    for (size_t i = 0; i < array_length(deadly); i++)
        if (!__sanitizer_set_death_callback || deadly[i] == SIGABRT)
            signal(deadly[i], on_signal);

    uint64_t done = 0, end = clock_now_ns() + seconds * NS_PER_S;
    if (only != UINT64_MAX)
        run(only, work);
    else
        for (; done < seed_count + runs && clock_now_ns() < end; done++)
            run(done, work);
    printf("%u seeds, %llu runs, seed %llu\n", seed_count, (unsigned long long)done,
           (unsigned long long)seed);
    for (unsigned i = 0; i < seed_count; i++)
        free(seeds[i]);
    return 0;
}
