/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/scope.h"
#include "bench/bench.h"
#include "bench/data.h"
#include "bench/noise.h"
#include "bench/options.h"
#include "bench/sparkline.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <lz4.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

/* The benchmark itself: that it runs, carries what it says, and refuses nonsense. Never how fast. */

static int parse(struct bench_options *options, char *option, char *value)
{
    char *argv[] = {(char[]){"replicate"}, option, value, NULL};
    return bench_options_parse(value ? 3 : 2, argv, options);
}

static void options_are_checked(void **state)
{
    (void)state;
    struct bench_options options = {.lanes = 77};
    const char *bad[][2] = {{"--size", "0"},
                            {"--size", "12Q"},
                            {"--size", "-1"},
                            {"--size", "2T"},
                            {"--size", "99999999999999999999"},
                            {"--lanes", "0"},
                            {"--lanes", "17"},
                            {"--lanes", "2x"},
                            {"--data", "none"},
                            {"--compression", "zstd"},
                            {"--vms", "0"},
                            {"--vms", "17"},
                            {"--rounds", "0"},
                            {"--epochs", "-1"},
                            {"--epoch-size", "1"}};
    for (unsigned i = 0; i < array_length(bad); i++) {
        assert_int_equal(parse(&options, (char *)bad[i][0], (char *)bad[i][1]), -EINVAL);
        assert_text_has(bad[i][0], bad[i][1]);
        assert_int_equal(options.lanes, 77);
    }
    assert_int_equal(parse(&options, (char[]){"extra"}, NULL), -EINVAL);
    assert_int_equal(parse(&options, (char[]){"--size"}, (char[]){"3M"}), 0);
    assert_int_equal(options.size_bytes, 3u << 20);
    assert_int_equal(options.epoch_bytes, 3u << 20); /* no more than there is */
    assert_int_equal(options.lanes, 2);
    assert_int_equal(options.vms, 1);
    assert_null(options.json);
    assert_int_equal(parse(&options, (char[]){"--json"}, NULL), 0);
    assert_string_equal(options.json, "-");
    assert_int_equal(parse(&options, (char[]){"--json"}, (char[]){"out.json"}), 0);
    assert_string_equal(options.json, "out.json");
    assert_int_equal(parse(&options, (char[]){"--json"}, (char[]){"-"}), 0);
    assert_string_equal(options.json, "-");
    assert_int_equal(parse(&options, (char[]){"--json=out.json"}, (char[]){"--lanes=3"}), 0);
    assert_string_equal(options.json, "out.json");
    assert_int_equal(options.lanes, 3);
}

/* The same samples as in tests/bench/test_figures.py. */
static void sparklines_go_from_least_to_most(void **state)
{
    (void)state;
    char line[3 * 5 + 1];
    sparkline((const double[]){1, 2, 3, 4, 8}, 5, line);
    assert_string_equal(line, "▁▂▃▄█");
    sparkline((const double[]){7, 7}, 2, line);
    assert_string_equal(line, "▄▄");
    sparkline(NULL, 0, line);
    assert_string_equal(line, "");
}

static void noise_has_bounds(void **state)
{
    (void)state;
    struct noise *noise = malloc(sizeof *noise);
    assert_int_equal(noise_measure(noise), 0);
    assert_true(noise->threads >= 1);
    assert_true(noise->seconds >= 0.2);
    assert_true(noise->stolen_share >= 0 && noise->stolen_share < 1);
    assert_int_equal(noise->late.count, 100 * noise->threads);
    free(noise);
}

static double lz4_share(enum data_kind kind)
{
    size_t bytes = 4u << 20, room = (size_t)LZ4_compressBound((int)bytes);
    char *from = malloc(bytes), *to = malloc(room);
    data_fill(from, bytes, kind, 3);
    int out = LZ4_compress_default(from, to, (int)bytes, (int)room);
    free(from);
    free(to);
    return (double)out / (double)bytes;
}

static void data_are_what_their_names_say(void **state)
{
    (void)state;
    assert_true(lz4_share(DATA_RANDOM) > 1);
    assert_true(lz4_share(DATA_ZERO) < 0.01);
    assert_true(lz4_share(DATA_TEXT) > 0.3 && lz4_share(DATA_TEXT) < 0.7);
    assert_true(lz4_share(DATA_MIXED) > 0.35 && lz4_share(DATA_MIXED) < 0.65);
}

/* Run it with standard output in a file, and read that as JSON. */
static json_t *run_json(char **argv, int argc)
{
    FILE *output = tmpfile();
    assert_non_null(output);
    fflush(stdout);
    int saved = dup(STDOUT_FILENO);
    dup2(fileno(output), STDOUT_FILENO);
    int code = command_bench(argc, argv);
    fflush(stdout);
    dup2(saved, STDOUT_FILENO);
    close(saved);
    assert_int_equal(code, 0);
    rewind(output);
    json_error_t error;
    json_t *json = json_loadf(output, 0, &error);
    assert_non_null(json);
    fclose(output);
    return json;
}

static json_int_t integer(json_t *json, const char *object, const char *key)
{
    json_t *value = json_object_get(json_object_get(json, object), key);
    assert_true(json_is_integer(value));
    return json_integer_value(value);
}

static void replicates_and_reports(void **state)
{
    (void)state;
    char *argv[] = {(char[]){"bench"},           (char[]){"replicate"},
                    (char[]){"--size=8M"},       (char[]){"--lanes=4"},
                    (char[]){"--rounds=2"},      (char[]){"--epochs=3"},
                    (char[]){"--epoch-size=1M"}, (char[]){"--data=random"},
                    (char[]){"--json"},          NULL};
    json_t *json = run_json(argv, array_length(argv) - 1);
    assert_int_equal(integer(json, "ceiling", "guest_bytes"), 8 << 20);
    assert_int_equal(integer(json, "ceiling", "wire_bytes"), (8 << 20) + 512 * 16);
    assert_int_equal(integer(json, "first_copy", "guest_bytes"), 8 << 20);
    assert_in_range(integer(json, "first_copy", "wire_bytes"), 8 << 20, 9 << 20);
    assert_int_equal(integer(json, "epochs", "guest_bytes"), 3 << 20);
    assert_true(json_is_true(json_object_get(json, "memory_verified")));
    assert_string_equal(json_string_value(json_object_get(json, "tls")), "TLSv1.3 TLS_AES_128_GCM_SHA256");
    json_t *rounds = json_object_get(json_object_get(json, "epochs"), "gb_per_s_rounds");
    assert_int_equal(json_array_size(rounds), 2);
    json_decref(json);
}

static const json_t *find(json_t *json, const char *list, const char *key, const char *name)
{
    json_t *array = json_object_get(json, list);
    for (size_t i = 0; i < json_array_size(array); i++) {
        const json_t *one = json_array_get(array, i);
        if (!strcmp(json_string_value(json_object_get(one, key)), name))
            return one;
    }
    fail_msg("no %s in %s", name, list);
    return NULL;
}

/* Two guests at once carry twice as much, and nothing of the samples is lost. */
static void several_guests_are_added_up(void **state)
{
    (void)state;
    char *argv[] = {(char[]){"bench"},      (char[]){"replicate"},
                    (char[]){"--size=4M"},  (char[]){"--vms=2"},
                    (char[]){"--rounds=3"}, (char[]){"--epochs=5"},
                    (char[]){"--lanes=1"},  (char[]){"--epoch-size=1M"},
                    (char[]){"--json"},     NULL};
    json_t *json = run_json(argv, array_length(argv) - 1);
    assert_int_equal(integer(json, "ceiling", "guest_bytes"), 8 << 20);
    assert_int_equal(integer(json, "ceiling", "wire_bytes"), (8 << 20) + 512 * 16);
    assert_int_equal(integer(json, "epochs", "guest_bytes"), 2 * 5 << 20);
    assert_string_equal(json_string_value(json_object_get(json, "schema")), "understudy-bench/1");
    const json_t *figure = find(json, "figures", "name", "epochs.throughput");
    assert_int_equal(json_array_size(json_object_get(figure, "samples")), 3);
    const json_t *ratio = find(json, "ratios", "of", "first_copy.throughput");
    assert_int_equal(json_array_size(json_object_get(ratio, "samples")), 3);
    const json_t *pauses = find(json, "histograms", "name", "epochs.pause");
    assert_int_equal(json_integer_value(json_object_get(pauses, "count")), 2 * 3 * 5);
    json_int_t counted = 0;
    json_t *buckets = json_object_get(pauses, "buckets");
    for (size_t i = 0; i < json_array_size(buckets); i++)
        counted += json_integer_value(json_array_get(json_array_get(buckets, i), 1));
    assert_int_equal(counted, 2 * 3 * 5);
    json_t *noise = json_object_get(json_object_get(json, "environment"), "noise");
    assert_non_null(json_object_get(noise, "before"));
    assert_non_null(json_object_get(noise, "after"));
    json_decref(json);
}

/* 8 bytes in each of the same pages: whole pages of noise, and changes of them. */
static void changes_take_little(void **state)
{
    (void)state;
    char *argv[] = {(char[]){"bench"},
                    (char[]){"replicate"},
                    (char[]){"--size=8M"},
                    (char[]){"--rounds=1"},
                    (char[]){"--epochs=4"},
                    (char[]){"--epoch-size=2M"},
                    (char[]){"--data=random"},
                    (char[]){"--pattern=sparse"},
                    (char[]){"--compression=lz4"},
                    (char[]){"--json"},
                    NULL};
    json_t *json = run_json(argv, array_length(argv) - 1);
    assert_true(json_is_true(json_object_get(json, "memory_verified")));
    assert_int_equal(integer(json, "changes", "guest_bytes"), 8 << 20);
    assert_in_range(integer(json, "epochs", "wire_bytes"), 8 << 20, 9 << 20);
    /* A checkpoint's device state is in both. */
    assert_in_range(integer(json, "changes", "wire_bytes"), 2048 * 20, 2048 * 100 + (1 << 20));
    json_t *pages = json_object_get(json_object_get(json, "changes"), "pages");
    assert_int_equal(json_integer_value(json_object_get(pages, "delta")), 2048);
    json_decref(json);
}

static void zero_memory_takes_next_to_nothing(void **state)
{
    (void)state;
    char *argv[] = {
        (char[]){"bench"},      (char[]){"replicate"},   (char[]){"--size=16M"}, (char[]){"--rounds=1"},
        (char[]){"--epochs=0"}, (char[]){"--data=zero"}, (char[]){"--json"},     NULL};
    json_t *json = run_json(argv, array_length(argv) - 1);
    /* Device state, handshakes and the tables of runs. */
    assert_true(integer(json, "first_copy", "wire_bytes") < 256 << 10);
    assert_null(json_object_get(json, "epochs"));
    json_decref(json);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(options_are_checked),    cmocka_unit_test(data_are_what_their_names_say),
        cmocka_unit_test(replicates_and_reports), cmocka_unit_test(sparklines_go_from_least_to_most),
        cmocka_unit_test(noise_has_bounds),       cmocka_unit_test(several_guests_are_added_up),
        cmocka_unit_test(changes_take_little),    cmocka_unit_test(zero_memory_takes_next_to_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
