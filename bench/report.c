/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report.h"

#include "base/error.h"

#include <errno.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *const keys[MEASURE_COUNT] = {"ceiling", "first_copy", "epochs", "changes"};
static const char *const titles[MEASURE_COUNT] = {"ceiling", "first copy", "epochs", "changes"};

void report_add(struct report *report, const struct sample *primary, const struct sample *standby)
{
    struct report_row *row = &report->rows[primary->measure];
    unsigned i = row->count++;
    double gb = (double)primary->guest_bytes / 1e9;
    row->gb_per_s[i] = gb / ((double)primary->ns / 1e9);
    row->cpu_s_per_gb[i] = (double)(primary->cpu_ns + standby->cpu_ns) / 1e9 / gb;
    row->wire_bytes[i] = (double)primary->wire_bytes;
    row->pause_p50_ms[i] = (double)primary->pause_p50_ns / 1e6;
    row->pause_p99_ms[i] = (double)primary->pause_p99_ns / 1e6;
    row->pause_max_ms[i] = (double)primary->pause_max_ns / 1e6;
    row->primary = *primary;
    row->standby = *standby;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(const double *values, unsigned count)
{
    double sorted[BENCH_ROUNDS_MAX];
    if (!count)
        return 0;
    memcpy(sorted, values, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    return (sorted[(count - 1) / 2] + sorted[count / 2]) / 2;
}

/* Each round against the ceiling of the same round: what else the machine does then weighs on both. */
static double ratio(const struct report *report, const struct report_row *row)
{
    double ratios[BENCH_ROUNDS_MAX];
    for (unsigned i = 0; i < row->count; i++)
        ratios[i] = row->gb_per_s[i] / report->rows[MEASURE_CEILING].gb_per_s[i];
    return median(ratios, row->count);
}

static double wire_share(const struct report_row *row)
{
    return median(row->wire_bytes, row->count) / (double)row->primary.guest_bytes;
}

static void print_text(const struct report *report)
{
    const struct bench_options *options = report->options;
    printf("%.0f MiB of %s data, %u lanes, compression %s, %u rounds, %s\n\n",
           (double)options->size_bytes / 1048576, data_kind_name(options->data), options->lanes,
           bench_compression_name(options->compression), options->rounds,
           report->rows[MEASURE_FIRST_COPY].primary.tls);
    printf("%-12s %8s %10s %12s %13s\n", "", "GB/s", "of ceiling", "wire/guest", "CPU s per GB");
    for (unsigned i = 0; i < MEASURE_COUNT; i++) {
        const struct report_row *row = &report->rows[i];
        if (!row->count)
            continue;
        printf("%-12s %8.2f %8.0f %% %12.4f %13.2f\n", titles[i], median(row->gb_per_s, row->count),
               100 * ratio(report, row), wire_share(row), median(row->cpu_s_per_gb, row->count));
    }
    const struct report_row *epochs = &report->rows[MEASURE_EPOCHS];
    if (epochs->count)
        printf("\nEpochs of %.1f MiB: pause p50 %.2f ms, p99 %.2f ms, max %.2f ms\n",
               (double)options->epoch_bytes / 1048576, median(epochs->pause_p50_ms, epochs->count),
               median(epochs->pause_p99_ms, epochs->count), median(epochs->pause_max_ms, epochs->count));
    const struct report_row *changes = &report->rows[MEASURE_CHANGES];
    if (changes->count)
        printf(
            "The same pages of every epoch, 8 bytes in each: whole %.1f KiB an epoch, as changes %.1f KiB: a "
            "factor of %.1f\n",
            median(epochs->wire_bytes, epochs->count) / options->epochs / 1024,
            median(changes->wire_bytes, changes->count) / options->epochs / 1024,
            median(epochs->wire_bytes, epochs->count) / median(changes->wire_bytes, changes->count));
    puts("The memories of both sides were equal after every run.");
}

static json_t *numbers(const double *values, unsigned count)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(array, json_real(values[i]));
    return array;
}

static json_t *row_json(const struct report *report, unsigned measure)
{
    const struct report_row *row = &report->rows[measure];
    json_t *object = json_pack(
        "{s:f, s:o, s:f, s:f, s:I, s:I}", "gb_per_s", median(row->gb_per_s, row->count), "gb_per_s_rounds",
        numbers(row->gb_per_s, row->count), "cpu_s_per_gb", median(row->cpu_s_per_gb, row->count),
        "ratio_to_ceiling", ratio(report, row), "guest_bytes", (json_int_t)row->primary.guest_bytes,
        "wire_bytes", (json_int_t)median(row->wire_bytes, row->count));
    if (object && measure != MEASURE_CEILING)
        json_object_update_new(
            object,
            json_pack("{s:{s:I, s:I, s:I, s:I}, s:I, s:I}", "pages", "zero",
                      (json_int_t)row->primary.pages_zero, "raw", (json_int_t)row->primary.pages_raw, "lz4",
                      (json_int_t)row->primary.pages_lz4, "delta", (json_int_t)row->primary.pages_delta,
                      "primary_memory_bytes", (json_int_t)row->primary.memory_bytes, "standby_memory_bytes",
                      (json_int_t)row->standby.memory_bytes));
    if (object && measure >= MEASURE_EPOCHS)
        json_object_set_new(object, "pause_ms",
                            json_pack("{s:f, s:f, s:f}", "p50", median(row->pause_p50_ms, row->count), "p99",
                                      median(row->pause_p99_ms, row->count), "max",
                                      median(row->pause_max_ms, row->count)));
    return object;
}

static int print_json(const struct report *report)
{
    const struct bench_options *options = report->options;
    json_t *object = json_pack(
        "{s:I, s:I, s:i, s:i, s:i, s:s, s:s, s:s, s:s, s:b}", "size_bytes", (json_int_t)options->size_bytes,
        "epoch_bytes", (json_int_t)options->epoch_bytes, "epochs_per_round", (int)options->epochs, "lanes",
        (int)options->lanes, "rounds", (int)options->rounds, "data", data_kind_name(options->data), "pattern",
        bench_pattern_name(options->pattern), "compression", bench_compression_name(options->compression),
        "tls", report->rows[MEASURE_FIRST_COPY].primary.tls, "memory_verified", 1);
    for (unsigned i = 0; i < MEASURE_COUNT; i++)
        if (report->rows[i].count)
            json_object_set_new(object, keys[i], row_json(report, i));
    int r = object ? json_dumpf(object, stdout, JSON_INDENT(2)) : -1;
    json_decref(object);
    putchar('\n');
    return r < 0 ? error_set(-ENOMEM, "JSON") : 0;
}

int report_print(const struct report *report)
{
    if (report->options->json)
        return print_json(report);
    print_text(report);
    return 0;
}
