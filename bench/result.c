/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/result.h"

#include "base/error.h"

#include <errno.h>
#include <string.h>
#include <time.h>

#define SCHEMA "understudy-bench/1"

static json_t *numbers(const double *values, unsigned count)
{
    json_t *array = json_array();
    for (unsigned i = 0; i < count; i++)
        if (json_array_append_new(array, json_real(values[i])) < 0) {
            json_decref(array);
            return NULL;
        }
    return array;
}

static void append(struct result *result, const char *list, json_t *value)
{
    if (json_array_append_new(json_object_get(result->root, list), value) < 0)
        result->failed = true;
}

void result_begin(struct result *result, const char *subcommand, json_t *options, json_t *environment,
                  double seconds)
{
    char began[32];
    time_t when = time(NULL) - (time_t)seconds;
    struct tm broken;
    strftime(began, sizeof began, "%Y-%m-%dT%H:%M:%SZ", gmtime_r(&when, &broken));
    result->root = json_pack("{s:s, s:{s:s, s:s}, s:s, s:s, s:f, s:o, s:o, s:[], s:[], s:[], s:[]}", "schema",
                             SCHEMA, "tool", "name", "understudy", "version", UNDERSTUDY_VERSION,
                             "subcommand", subcommand, "began", began, "seconds", seconds, "options", options,
                             "environment", environment, "figures", "ratios", "histograms", "timelines");
    result->failed = !result->root;
}

void result_figure(struct result *result, const struct result_figure *figure)
{
    append(result, "figures",
           json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:o}", "name", figure->name, "title", figure->title,
                     "unit", figure->unit, "better", figure->better, "group", figure->group, "who",
                     figure->who, "samples", numbers(figure->samples, figure->count)));
}

void result_ratio(struct result *result, const char *of, const char *to, const char *title,
                  const double *samples, unsigned count)
{
    append(result, "ratios",
           json_pack("{s:s, s:s, s:s, s:s, s:s, s:o}", "of", of, "to", to, "title", title, "better",
                     RESULT_HIGHER, "who", "ceiling", "samples", numbers(samples, count)));
}

void result_histogram(struct result *result, const char *name, const char *title,
                      const struct histogram *histogram)
{
    if (!histogram->count)
        return;
    json_t *buckets = json_array();
    for (unsigned bucket = 0; bucket < HISTOGRAM_BUCKETS; bucket++)
        if (histogram->buckets[bucket] &&
            json_array_append_new(buckets, json_pack("[f, I]", (double)histogram_bucket_top(bucket) / 1e6,
                                                     (json_int_t)histogram->buckets[bucket])) < 0)
            result->failed = true;
    append(result, "histograms",
           json_pack("{s:s, s:s, s:s, s:s, s:I, s:f, s:f, s:f, s:f, s:f, s:o}", "name", name, "title", title,
                     "unit", "ms", "better", RESULT_LOWER, "count", (json_int_t)histogram->count, "min",
                     (double)histogram->min / 1e6, "p50", (double)histogram_percentile(histogram, 50) / 1e6,
                     "p90", (double)histogram_percentile(histogram, 90) / 1e6, "p99",
                     (double)histogram_percentile(histogram, 99) / 1e6, "max", (double)histogram->max / 1e6,
                     "buckets", buckets));
}

int result_check(const struct result *result)
{
    return result->failed ? error_errno(-ENOMEM, "result") : 0;
}
