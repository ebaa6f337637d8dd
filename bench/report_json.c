/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/report.h"

#include "base/scope.h"
#include "bench/result.h"

#include <stddef.h>
#include <stdio.h>

/* The series of a row as figures "MEASURE.NAME", titled "measure: title". */
static const struct told_series {
    const char *name, *title, *group, *unit, *better;
    size_t offset;      /* of the series in the row */
    enum measure first; /* from here on it is measured */
} told[] = {
    {"throughput", "throughput", "throughput", "GB/s", RESULT_HIGHER, offsetof(struct report_row, gb_per_s),
     MEASURE_CEILING},
    {"cpu_primary", "processor time, primary", "processor time", "s/GB", RESULT_LOWER,
     offsetof(struct report_row, cpu_primary), MEASURE_CEILING},
    {"cpu_standby", "processor time, standby", "processor time", "s/GB", RESULT_LOWER,
     offsetof(struct report_row, cpu_standby), MEASURE_CEILING},
    {"wire", "bytes on the wire", "bytes on the wire", "B", RESULT_LOWER,
     offsetof(struct report_row, wire_bytes), MEASURE_CEILING},
    {"memory_primary", "memory of the engine, primary", "memory of the engine", "B", RESULT_LOWER,
     offsetof(struct report_row, primary_bytes), MEASURE_FIRST_COPY},
    {"memory_standby", "memory of the engine, standby", "memory of the engine", "B", RESULT_LOWER,
     offsetof(struct report_row, standby_bytes), MEASURE_FIRST_COPY},
    {"pause_p50", "pause, p50", "pause", "ms", RESULT_LOWER, offsetof(struct report_row, pause_p50_ms),
     MEASURE_EPOCHS},
    {"pause_p90", "pause, p90", "pause", "ms", RESULT_LOWER, offsetof(struct report_row, pause_p90_ms),
     MEASURE_EPOCHS},
    {"pause_p99", "pause, p99", "pause", "ms", RESULT_LOWER, offsetof(struct report_row, pause_p99_ms),
     MEASURE_EPOCHS},
    {"pause_max", "pause, longest", "pause", "ms", RESULT_LOWER, offsetof(struct report_row, pause_max_ms),
     MEASURE_EPOCHS},
};

static void add_figures(struct result *result, const struct report_row *row, unsigned measure)
{
    for (size_t i = 0; i < array_length(told); i++) {
        char name[64], title[96];
        if (measure < told[i].first)
            continue;
        snprintf(name, sizeof name, "%s.%s", report_keys[measure], told[i].name);
        snprintf(title, sizeof title, "%s: %s", report_titles[measure], told[i].title);
        const struct report_series *values = (const void *)((const char *)row + told[i].offset);
        result_figure(result, &(struct result_figure){.name = name,
                                                      .title = title,
                                                      .unit = told[i].unit,
                                                      .better = told[i].better,
                                                      .group = told[i].group,
                                                      .who = measure == MEASURE_CEILING ? "ceiling" : "ours",
                                                      .samples = values->values,
                                                      .count = row->count});
    }
}

static void add_row(struct result *result, const struct report *report, unsigned measure)
{
    const struct report_row *row = &report->rows[measure];
    char name[64], title[96];
    add_figures(result, row, measure);
    if (measure != MEASURE_CEILING) {
        struct report_series ratios;
        report_ratios(report, row, &ratios);
        snprintf(name, sizeof name, "%s.throughput", report_keys[measure]);
        snprintf(title, sizeof title, "%s, of the ceiling", report_titles[measure]);
        result_ratio(result, name, "ceiling.throughput", title, ratios.values, row->count);
    }
    snprintf(name, sizeof name, "%s.pause", report_keys[measure]);
    snprintf(title, sizeof title, "%s: pause of every capture", report_titles[measure]);
    if (measure >= MEASURE_EPOCHS)
        result_histogram(result, name, title, &row->pauses);
}

static json_t *rounds(const struct report_series *series, unsigned count)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        json_array_append_new(array, json_real(series->values[i]));
    return array;
}

/* The row in one object, which scripts have read since before there were figures. */
static json_t *row_json(const struct report *report, unsigned measure)
{
    const struct report_row *row = &report->rows[measure];
    struct report_series ratios;
    report_ratios(report, row, &ratios);
    json_t *object =
        json_pack("{s:f, s:o, s:f, s:f, s:I, s:I}", "gb_per_s", report_median(&row->gb_per_s, row->count),
                  "gb_per_s_rounds", rounds(&row->gb_per_s, row->count), "cpu_s_per_gb",
                  report_median(&row->cpu_s_per_gb, row->count), "ratio_to_ceiling",
                  report_median(&ratios, row->count), "guest_bytes", (json_int_t)row->latest.guest_bytes,
                  "wire_bytes", (json_int_t)report_median(&row->wire_bytes, row->count));
    if (object && measure != MEASURE_CEILING)
        json_object_update_new(
            object,
            json_pack("{s:{s:I, s:I, s:I, s:I}, s:I, s:I}", "pages", "zero",
                      (json_int_t)row->latest.pages_zero, "raw", (json_int_t)row->latest.pages_raw, "lz4",
                      (json_int_t)row->latest.pages_lz4, "delta", (json_int_t)row->latest.pages_delta,
                      "primary_memory_bytes", (json_int_t)report_median(&row->primary_bytes, row->count),
                      "standby_memory_bytes", (json_int_t)report_median(&row->standby_bytes, row->count)));
    if (object && measure >= MEASURE_EPOCHS)
        json_object_set_new(object, "pause_ms",
                            json_pack("{s:f, s:f, s:f}", "p50", report_median(&row->pause_p50_ms, row->count),
                                      "p99", report_median(&row->pause_p99_ms, row->count), "max",
                                      report_median(&row->pause_max_ms, row->count)));
    return object;
}

/* What makes two results comparable. */
static json_t *options_json(const struct bench_options *options)
{
    return json_pack("{s:I, s:I, s:i, s:i, s:i, s:i, s:s, s:s, s:s, s:s}", "size_bytes",
                     (json_int_t)options->size_bytes, "epoch_bytes", (json_int_t)options->epoch_bytes,
                     "epochs_per_round", (int)options->epochs, "lanes", (int)options->lanes, "rounds",
                     (int)options->rounds, "vms", (int)options->vms, "data", data_kind_name(options->data),
                     "pattern", bench_pattern_name(options->pattern), "compression",
                     bench_compression_name(options->compression), "aes",
                     options->aes == TLS_AES_OPENSSL ? "openssl" : "auto");
}

json_t *report_json(const struct report *report, json_t *environment, double seconds)
{
    struct result result;
    json_t *options = options_json(report->options);
    result_begin(&result, "replicate", json_deep_copy(options), environment, seconds);
    if (json_object_update_new(result.root, options) < 0 ||
        json_object_update_new(result.root,
                               json_pack("{s:s, s:b}", "tls", report->rows[MEASURE_FIRST_COPY].latest.tls,
                                         "memory_verified", 1)) < 0)
        result.failed = true;
    for (unsigned i = 0; i < MEASURE_COUNT; i++)
        if (report->rows[i].count) {
            add_row(&result, report, i);
            if (json_object_set_new(result.root, report_keys[i], row_json(report, i)) < 0)
                result.failed = true;
        }
    if (result_check(&result) < 0) {
        json_decref(result.root);
        return NULL;
    }
    return result.root;
}
