/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/options.h"

#include "base/error.h"
#include "base/scope.h"
#include "bench/worker.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <getopt.h>
#include <string.h>

static const char *const compression_names[] = {
    [CHECKPOINT_COMPRESS_AUTO] = "auto",
    [CHECKPOINT_COMPRESS_NONE] = "none",
    [CHECKPOINT_COMPRESS_LZ4] = "lz4",
};

static const char *const pattern_names[] = {[BENCH_SPREAD] = "spread", [BENCH_SPARSE] = "sparse"};

unsigned bench_measures(const struct bench_options *options)
{
    if (!options->epochs)
        return MEASURE_EPOCHS;
    return options->pattern == BENCH_SPARSE ? MEASURE_COUNT : MEASURE_CHANGES;
}

const char *bench_pattern_name(enum bench_pattern pattern)
{
    return pattern_names[pattern];
}

const char *bench_compression_name(enum checkpoint_compression compression)
{
    return compression_names[compression];
}

static void help(void)
{
    puts("Usage: understudy bench replicate [OPTIONS]\n\n"
         "Two processes on this machine: one has a guest that is nothing but memory, the other receives it. "
         "Three\n"
         "things are measured in turn, several times, and their medians printed:\n\n"
         "  ceiling     read + AES-128-GCM + loopback TCP + AES-128-GCM + write, and nothing else\n"
         "  first copy  everything through checkpoint, TLS lanes and restore, straight into the target's "
         "memory\n"
         "  epochs      captures of dirty pages: staged, sent, staged again, verified, acknowledged, "
         "applied\n\n"
         "  --size BYTES         guest memory (default 1GiB)\n"
         "  --lanes N            TLS connections; the ceiling gets as many (default 2)\n"
         "  --data KIND          random, zero, text or mixed (default random)\n"
         "  --compression HOW    auto, none or lz4 (default auto)\n"
         "  --aes WHO            auto or openssl, of the ceiling, too: see understudy.ini(5) (default auto)\n"
         "  --epochs N           epochs in each round (default 16; 0: none)\n"
         "  --epoch-size BYTES   dirty memory of each epoch (default 64MiB)\n"
         "  --pattern WHERE      spread: every epoch writes other pages; sparse: 8 bytes in each of the same "
         "pages,\n"
         "                       sent whole and then, in a measurement of its own, as changes (default "
         "spread)\n"
         "  --rounds N           how often all is measured (default 5)\n"
         "  --vms N              guests at once, each between two processes of its own (default 1)\n"
         "  --json [OUT]         write the results as JSON to this file; without OUT, or -, to standard "
         "output\n"
         "                       instead of the table\n"
         "  --html OUT           write a page with plots to this file\n"
         "  --help               print this\n\n"
         "GB are 10^9 bytes of guest memory. CPU seconds are of both processes, all threads.");
}

static int parse_bytes(const char *name, const char *text, uint64_t min, uint64_t *ret_bytes)
{
    char *end;
    errno = 0;
    unsigned long long number = strtoull(text, &end, 10);
    unsigned shift = 0;
    if (*end) {
        const char *suffix = strchr("KMGT", *end);
        if (!suffix || (end[1] && strcmp(end + 1, "iB") != 0))
            return error_set(-EINVAL, "--%s: '%s' is no size (a number and KiB, MiB, GiB or TiB)", name,
                             text);
        shift = 10 * (unsigned)(suffix - "KMGT" + 1);
    }
    if (errno || end == text || text[0] == '-' || number > (1ull << 40) >> shift || number << shift < min)
        return error_set(-EINVAL, "--%s: '%s' is not between %llu bytes and 1T", name, text,
                         (unsigned long long)min);
    *ret_bytes = (number << shift) / VMM_PAGE_BYTES * VMM_PAGE_BYTES;
    return 0;
}

static int parse_number(const char *name, const char *text, unsigned min, unsigned max, unsigned *ret_number)
{
    char *end;
    errno = 0;
    unsigned long number = strtoul(text, &end, 10);
    if (errno || *end || end == text || text[0] == '-' || number < min || number > max)
        return error_set(-EINVAL, "--%s: '%s' is not a number from %u to %u", name, text, min, max);
    *ret_number = (unsigned)number;
    return 0;
}

static int parse_pattern(const char *text, enum bench_pattern *ret_pattern)
{
    for (unsigned i = 0; i < array_length(pattern_names); i++)
        if (!strcmp(text, pattern_names[i])) {
            *ret_pattern = (enum bench_pattern)i;
            return 0;
        }
    return error_set(-EINVAL, "--pattern: '%s' is not spread or sparse", text);
}

static int parse_compression(const char *text, enum checkpoint_compression *ret_compression)
{
    for (unsigned i = 0; i < array_length(compression_names); i++)
        if (!strcmp(text, compression_names[i])) {
            *ret_compression = (enum checkpoint_compression)i;
            return 0;
        }
    return error_set(-EINVAL, "--compression: '%s' is not auto, none or lz4", text);
}

static int parse_aes(const char *text, enum tls_aes *ret_aes)
{
    bool openssl = !strcmp(text, "openssl");
    if (!openssl && strcmp(text, "auto") != 0)
        return error_set(-EINVAL, "--aes: '%s' is not auto or openssl", text);
    *ret_aes = openssl ? TLS_AES_OPENSSL : TLS_AES_AUTO;
    return 0;
}

enum {
    SIZE = 256,
    LANES,
    DATA,
    COMPRESSION,
    AES,
    EPOCHS,
    EPOCH_SIZE,
    PATTERN,
    ROUNDS,
    VMS,
    JSON,
    HTML,
    HELP
};

static int parse_option(int option, const char *text, struct bench_options *options)
{
    switch (option) {
    case SIZE:
        return parse_bytes("size", text, 1 << 20, &options->size_bytes);
    case EPOCH_SIZE:
        return parse_bytes("epoch-size", text, VMM_PAGE_BYTES, &options->epoch_bytes);
    case LANES:
        return parse_number("lanes", text, 1, BENCH_LANES_MAX, &options->lanes);
    case EPOCHS:
        return parse_number("epochs", text, 0, BENCH_EPOCHS_MAX, &options->epochs);
    case ROUNDS:
        return parse_number("rounds", text, 1, BENCH_ROUNDS_MAX, &options->rounds);
    case DATA:
        return data_kind_parse(text, &options->data);
    case PATTERN:
        return parse_pattern(text, &options->pattern);
    case COMPRESSION:
        return parse_compression(text, &options->compression);
    case AES:
        return parse_aes(text, &options->aes);
    case VMS:
        return parse_number("vms", text, 1, BENCH_VMS_MAX, &options->vms);
    case JSON:
        options->json = text ? text : "-";
        return 0;
    case HTML:
        options->html = text;
        return 0;
    case HELP:
        help();
        return 1;
    }
    return error_set(-EINVAL, "see understudy bench replicate --help");
}

int bench_options_parse(int argc, char **argv, struct bench_options *ret_options)
{
    static const struct option longs[] = {
        {"size", required_argument, NULL, SIZE},
        {"lanes", required_argument, NULL, LANES},
        {"data", required_argument, NULL, DATA},
        {"compression", required_argument, NULL, COMPRESSION},
        {"aes", required_argument, NULL, AES},
        {"epochs", required_argument, NULL, EPOCHS},
        {"epoch-size", required_argument, NULL, EPOCH_SIZE},
        {"pattern", required_argument, NULL, PATTERN},
        {"rounds", required_argument, NULL, ROUNDS},
        {"vms", required_argument, NULL, VMS},
        {"json", optional_argument, NULL, JSON},
        {"html", required_argument, NULL, HTML},
        {"help", no_argument, NULL, HELP},
        {NULL, 0, NULL, 0},
    };
    struct bench_options options = {.size_bytes = 1ull << 30,
                                    .epoch_bytes = 64ull << 20,
                                    .lanes = 2,
                                    .epochs = 16,
                                    .rounds = 5,
                                    .vms = 1};
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, "", longs, NULL)) != -1;) {
        /* `--json OUT`, as the scripts take it: nothing here is no option but OUT. */
        const char *next = option == JSON && !optarg && optind < argc ? argv[optind] : NULL;
        if (next && (next[0] != '-' || !next[1]))
            optind++;
        else
            next = optarg;
        int r = parse_option(option, next, &options);
        if (r)
            return r;
    }
    if (optind < argc)
        return error_set(-EINVAL, "'%s' is not expected", argv[optind]);
    if (options.epoch_bytes > options.size_bytes)
        options.epoch_bytes = options.size_bytes;
    *ret_options = options;
    return 0;
}
