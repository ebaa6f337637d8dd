/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/scope.h"
#include "bench/bench.h"
#include "bench/data.h"
#include "bench/options.h"

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
        cmocka_unit_test(options_are_checked),
        cmocka_unit_test(data_are_what_their_names_say),
        cmocka_unit_test(replicates_and_reports),
        cmocka_unit_test(changes_take_little),
        cmocka_unit_test(zero_memory_takes_next_to_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
