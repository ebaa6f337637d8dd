/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report.h"

#include "base/error.h"
#include "base/scope.h"
#include "bench/sparkline.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

const char *const report_keys[MEASURE_COUNT] = {"ceiling", "first_copy", "epochs", "changes"};
const char *const report_titles[MEASURE_COUNT] = {"ceiling", "first copy", "epochs", "changes"};

/* What the primaries have in common (the measurement, the cipher) is the first one's. */
static void add_up(struct sample *sum, const struct sample *one)
{
    if (one->ns > sum->ns)
        sum->ns = one->ns;
    sum->cpu_ns += one->cpu_ns;
    sum->guest_bytes += one->guest_bytes;
    sum->wire_bytes += one->wire_bytes;
    sum->pages_zero += one->pages_zero;
    sum->pages_raw += one->pages_raw;
    sum->pages_lz4 += one->pages_lz4;
    sum->pages_delta += one->pages_delta;
    sum->memory_bytes += one->memory_bytes;
    histogram_merge(&sum->pauses, &one->pauses);
}

int report_add(struct report *report, const struct report_samples *samples, unsigned vms)
{
    cleanup_free struct report_samples *sum = malloc(sizeof *sum);
    if (!sum)
        return error_errno(-ENOMEM, "samples");
    *sum = samples[0];
    for (unsigned i = 1; i < vms; i++) {
        add_up(&sum->primary, &samples[i].primary);
        add_up(&sum->standby, &samples[i].standby);
    }
    struct report_row *row = &report->rows[sum->primary.measure];
    unsigned i = row->count++;
    double gb = (double)sum->primary.guest_bytes / 1e9;
    row->gb_per_s.values[i] = gb / ((double)sum->primary.ns / 1e9);
    row->cpu_primary.values[i] = (double)sum->primary.cpu_ns / 1e9 / gb;
    row->cpu_standby.values[i] = (double)sum->standby.cpu_ns / 1e9 / gb;
    row->cpu_s_per_gb.values[i] = row->cpu_primary.values[i] + row->cpu_standby.values[i];
    row->wire_bytes.values[i] = (double)sum->primary.wire_bytes;
    row->primary_bytes.values[i] = (double)sum->primary.memory_bytes;
    row->standby_bytes.values[i] = (double)sum->standby.memory_bytes;
    row->pause_p50_ms.values[i] = (double)histogram_percentile(&sum->primary.pauses, 50) / 1e6;
    row->pause_p90_ms.values[i] = (double)histogram_percentile(&sum->primary.pauses, 90) / 1e6;
    row->pause_p99_ms.values[i] = (double)histogram_percentile(&sum->primary.pauses, 99) / 1e6;
    row->pause_max_ms.values[i] = (double)sum->primary.pauses.max / 1e6;
    histogram_merge(&row->pauses, &sum->primary.pauses);
    row->latest = sum->primary;
    return 0;
}

static int compare(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

double report_median(const struct report_series *series, unsigned count)
{
    struct report_series sorted;
    if (!count)
        return 0;
    memcpy(sorted.values, series->values, count * sizeof *sorted.values);
    qsort(sorted.values, count, sizeof *sorted.values, compare);
    return (sorted.values[(count - 1) / 2] + sorted.values[count / 2]) / 2;
}

void report_ratios(const struct report *report, const struct report_row *row,
                   struct report_series *ret_ratios)
{
    for (unsigned i = 0; i < row->count; i++)
        ret_ratios->values[i] = row->gb_per_s.values[i] / report->rows[MEASURE_CEILING].gb_per_s.values[i];
}

static double wire_share(const struct report_row *row)
{
    return report_median(&row->wire_bytes, row->count) / (double)row->latest.guest_bytes;
}

static void print_row(const struct report *report, unsigned measure)
{
    const struct report_row *row = &report->rows[measure];
    struct report_series ratios;
    char line[3 * BENCH_ROUNDS_MAX + 1];
    report_ratios(report, row, &ratios);
    sparkline(row->gb_per_s.values, row->count, line);
    printf("%-12s %8.2f %8.0f %% %12.4f %9.2f %9.2f   %s\n", report_titles[measure],
           report_median(&row->gb_per_s, row->count), 100 * report_median(&ratios, row->count),
           wire_share(row), report_median(&row->cpu_primary, row->count),
           report_median(&row->cpu_standby, row->count), line);
}

static void print_changes(const struct report *report)
{
    const struct report_row *epochs = &report->rows[MEASURE_EPOCHS];
    const struct report_row *changes = &report->rows[MEASURE_CHANGES];
    double whole = report_median(&epochs->wire_bytes, epochs->count);
    double changed = report_median(&changes->wire_bytes, changes->count);
    unsigned captures = report->options->epochs * report->options->vms;
    printf("The same pages of every epoch, 8 bytes in each: whole %.1f KiB an epoch, as changes %.1f KiB: a "
           "factor of %.1f\n",
           whole / captures / 1024, changed / captures / 1024, whole / changed);
}

void report_print(const struct report *report)
{
    const struct bench_options *options = report->options;
    printf("%.0f MiB of %s data, %u lanes, compression %s, %u rounds, %s\n",
           (double)options->size_bytes / 1048576, data_kind_name(options->data), options->lanes,
           bench_compression_name(options->compression), options->rounds,
           report->rows[MEASURE_FIRST_COPY].latest.tls);
    if (options->vms > 1)
        printf(
            "%u guests at once, each of that size and with so many lanes; all figures are of all together\n",
            options->vms);
    printf("\n%-12s %8s %10s %12s %19s   %s\n", "", "GB/s", "of ceiling", "wire/guest", "CPU s/GB here there",
           "rounds");
    for (unsigned i = 0; i < MEASURE_COUNT; i++)
        if (report->rows[i].count)
            print_row(report, i);
    const struct report_row *epochs = &report->rows[MEASURE_EPOCHS];
    if (epochs->count)
        printf("\nEpochs of %.1f MiB: pause p50 %.2f ms, p99 %.2f ms, max %.2f ms\n",
               (double)options->epoch_bytes / 1048576, report_median(&epochs->pause_p50_ms, epochs->count),
               report_median(&epochs->pause_p99_ms, epochs->count),
               report_median(&epochs->pause_max_ms, epochs->count));
    if (report->rows[MEASURE_CHANGES].count)
        print_changes(report);
    puts("The memories of both sides were equal after every run.");
}
