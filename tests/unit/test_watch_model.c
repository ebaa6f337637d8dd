/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"
#include "tests/unit/watch_kit.h"

#include "base/clock.h"
#include "base/scope.h"
#include "replicator/scope_json.h"
#include "watch/layout.h"

#include <math.h>

/* What `understudy top` knows and shows, without daemons and without a terminal. */

#define S NS_PER_S

static struct model *model;
static struct find_list list;
static struct screen screen;

static int setup(void **state)
{
    (void)state;
    model = model_new();
    memset(&list, 0, sizeof list);
    return model ? 0 : -1;
}

static int teardown(void **state)
{
    (void)state;
    model_free(model);
    return 0;
}

static void found(uint64_t now_ns, unsigned count, ...)
{
    va_list names;
    va_start(names, count);
    list.count = count;
    for (unsigned i = 0; i < count; i++)
        snprintf(list.paths[i], FIND_PATH_MAX, "/run/%s", va_arg(names, const char *));
    va_end(names);
    assert_int_equal(model_found(model, &list, now_ns), 0);
}

/* Takes over `status`. */
static void answered(const char *name, json_t *status, uint64_t now_ns)
{
    struct sample sample;
    char path[FIND_PATH_MAX];
    snprintf(path, sizeof path, "/run/%s", name);
    assert_int_equal(sample_parse(status, &sample), 0);
    model_tell(model,
               &(struct collect_answer){
                   .path = path, .outcome = COLLECT_ANSWERED, .sample = &sample, .status = status},
               now_ns);
    json_decref(status);
}

static void failed(const char *name, enum collect_outcome outcome, const char *why, uint64_t now_ns)
{
    char path[FIND_PATH_MAX];
    snprintf(path, sizeof path, "/run/%s", name);
    model_tell(model, &(struct collect_answer){.path = path, .outcome = outcome, .why = why}, now_ns);
}

static const char *row_text(int row)
{
    static char text[3 * SCREEN_COLUMNS_MAX + 1];
    screen_text(&screen, row, text, sizeof text);
    return text;
}

static bool shows(const char *part)
{
    for (int row = 0; row < screen.rows; row++)
        if (strstr(row_text(row), part))
            return true;
    return false;
}

static void draw(uint64_t now_ns, int rows, int columns)
{
    const struct layout_view view = {.clock = "12:34:56", .place = "/run/us", .note = "", .now_ns = now_ns};
    layout_draw(&screen, model, &view, rows, columns);
}

/* --- the model --- */

static void test_daemons_come_and_go(void **state)
{
    (void)state;
    found(1 * S, 2, "b.sock", "a.sock");
    assert_int_equal(model->count, 2);
    assert_string_equal(model_word(model->machines[0]), "ASKED");
    assert_string_equal(model_name(model->machines[0]), "a.sock");
    answered("a.sock", kit_status("web", "alpha", "protected"), 2 * S);
    failed("b.sock", COLLECT_ABSENT, "no daemon answers there", 2 * S);
    answered("c.sock", kit_status("other", "alpha", "protected"), 2 * S); /* of nobody who was asked */
    assert_int_equal(model->count, 2);
    assert_string_equal(model_name(model->machines[0]), "b.sock");
    assert_string_equal(model_word(model->machines[0]), "GONE");
    assert_string_equal(model_word(model->machines[1]), "PROTECTED");

    /* A stale socket is shown as long as it lies there. */
    found(1000 * S, 2, "a.sock", "b.sock");
    assert_int_equal(model->count, 2);
    /* One that is away is forgotten after a minute; until then it is known what it was. */
    found(1001 * S, 1, "b.sock");
    assert_int_equal(model->count, 2);
    assert_string_equal(model_name(model->machines[1]), "web");
    assert_string_equal(model_word(model->machines[1]), "GONE");
    assert_float_equal(model_word_s(model->machines[1], 1031 * S), 30, 1e-9);
    found(1001 * S + MODEL_KEEP_NS - 1, 1, "b.sock");
    assert_int_equal(model->count, 2);
    found(1001 * S + MODEL_KEEP_NS, 1, "b.sock");
    assert_int_equal(model->count, 1);
    /* Back again. */
    found(1100 * S, 2, "a.sock", "b.sock");
    answered("a.sock", kit_status("web", "alpha", "copying"), 1101 * S);
    assert_string_equal(model_word(model->machines[1]), "DEGRADED");
}

static void test_silence(void **state)
{
    (void)state;
    found(1 * S, 1, "a.sock");
    answered("a.sock", kit_status("web", "alpha", "protected"), 2 * S);
    assert_float_equal(model_commit_age_s(model->machines[0], 5 * S), 0.0085, 1e-9);
    failed("a.sock", COLLECT_SILENT, "gave no answer within 1000 ms", 4 * S);
    failed("a.sock", COLLECT_SILENT, "gave no answer within 1000 ms", 6 * S);
    const struct model_machine *machine = model->machines[0];
    assert_string_equal(model_word(machine), "NO ANSWER");
    assert_float_equal(model_word_s(machine, 7 * S), 3, 1e-9); /* since the first of them */
    assert_float_equal(model_commit_age_s(machine, 7 * S), 5.0085, 1e-9);
    assert_string_equal(model_why(machine), "gave no answer within 1000 ms");
    answered("a.sock", kit_status("web", "alpha", "protected"), 8 * S);
    assert_string_equal(model_word(machine), "PROTECTED");
    assert_string_equal(model_why(machine), "");
    failed("a.sock", COLLECT_BROKEN, "answered nonsense", 9 * S);
    assert_string_equal(model_word(machine), "BROKEN");
}

static json_t *later(const char *state, double wire, double guest, double pauses, double pause_ms)
{
    json_t *status = kit_status("web", "alpha", state);
    kit_set(status, NULL, "wire_bytes", json_real(wire));
    kit_set(status, "bytes", "guest", json_real(guest));
    kit_set(status, "pause_ms", "count", json_real(pauses));
    kit_set(status, "pause_ms", "sum", json_real(pause_ms));
    json_object_del(json_object_get(status, "pause_ms"), "buckets");
    return status;
}

static void test_rates(void **state)
{
    (void)state;
    found(1 * S, 1, "a.sock");
    answered("a.sock", later("protected", 1000, 5000, 100, 200), 2 * S);
    const struct model_machine *machine = model->machines[0];
    assert_true(isnan(machine->wire_bytes_per_s) && isnan(machine->dirty_bytes_per_s));
    answered("a.sock", later("protected", 3000, 9000, 110, 230), 4 * S);
    assert_float_equal(machine->wire_bytes_per_s, 1000, 1e-9);
    assert_float_equal(machine->dirty_bytes_per_s, 2000, 1e-9);
    assert_int_equal(machine->past_count, 1);
    assert_float_equal(machine->past[0], 0.003, 1e-12);
    /* No checkpoint: no pause. */
    answered("a.sock", later("protected", 3000, 9000, 110, 230), 5 * S);
    assert_int_equal(machine->past_count, 2);
    assert_true(isnan(machine->past[1]));
    /* A copy is not what the guest writes. */
    answered("a.sock", later("copying", 9000, 99000, 110, 230), 6 * S);
    assert_float_equal(machine->wire_bytes_per_s, 6000, 1e-9);
    assert_true(isnan(machine->dirty_bytes_per_s));
    /* Another engine counts from 0. */
    answered("a.sock", later("protected", 10, 10, 1, 3), 7 * S);
    assert_true(isnan(machine->wire_bytes_per_s) && isnan(machine->dirty_bytes_per_s));
    assert_true(isnan(machine->past[3]));
    for (unsigned i = 0; i < 2 * MODEL_PAST; i++)
        answered("a.sock", later("protected", 10, 10, 1 + i, 3 + 2 * i), (8 + i) * S);
    assert_int_equal(machine->past_count, MODEL_PAST);
    assert_float_equal(machine->past[MODEL_PAST - 1], 0.002, 1e-12);
}

/* The answers may come twice within the clock's grain. */
static void test_no_time(void **state)
{
    (void)state;
    found(1 * S, 1, "a.sock");
    answered("a.sock", later("protected", 1000, 5000, 100, 200), 2 * S);
    answered("a.sock", later("protected", 3000, 9000, 110, 230), 2 * S);
    assert_true(isnan(model->machines[0]->wire_bytes_per_s));
}

static void test_order_and_selection(void **state)
{
    (void)state;
    found(1 * S, 3, "a.sock", "b.sock", "c.sock");
    answered("a.sock", kit_status("one", "alpha", "protected"), 2 * S);
    answered("b.sock", kit_status("three", "alpha", "disconnected"), 2 * S);
    answered("c.sock", kit_status("two", "alpha", "copying"), 2 * S);
    assert_string_equal(model_name(model->machines[1]), "three");
    model_press(model, MODEL_DOWN); /* three */
    model_press(model, MODEL_SORT); /* by urgency: three, two, one */
    assert_int_equal(model->sort, MODEL_BY_PROTECTION);
    assert_int_equal(model->selected, 0);
    assert_string_equal(model_name(model->machines[1]), "two");
    answered("b.sock", kit_status("three", "alpha", "protected"), 3 * S); /* two, one, three */
    assert_int_equal(model->selected, 2);
    assert_string_equal(model_name(model->machines[2]), "three");
    model_press(model, MODEL_DOWN);
    assert_int_equal(model->selected, 2);
    model_press(model, MODEL_PAGE_UP);
    assert_int_equal(model->selected, 0);
    model_press(model, MODEL_UP);
    assert_int_equal(model->selected, 0);
    model_press(model, MODEL_PAGE_DOWN);
    assert_int_equal(model->selected, 2);
    model_press(model, MODEL_FIRST);
    model_press(model, MODEL_LAST);
    assert_int_equal(model->selected, 2);
    for (unsigned i = 1; i < MODEL_SORTS; i++)
        model_press(model, MODEL_SORT);
    assert_int_equal(model->sort, MODEL_BY_NAME);
    /* The selected one is forgotten. */
    found(10 * S, 1, "a.sock");
    found(10 * S + MODEL_KEEP_NS, 1, "a.sock");
    assert_int_equal(model->count, 1);
    assert_int_equal(model->selected, 0);
    found(200 * S, 0);
    found(200 * S + MODEL_KEEP_NS, 0);
    assert_int_equal(model->count, 0);
    for (enum model_key key = MODEL_UP; key <= MODEL_HELP; key++)
        model_press(model, key);
    assert_int_equal(model->selected, 0);
}

static void test_json(void **state)
{
    (void)state;
    found(1 * S, 2, "a.sock", "b.sock");
    answered("a.sock", later("protected", 1000, 5000, 100, 200), 2 * S);
    answered("a.sock", later("protected", 3000, 9000, 110, 230), 4 * S);
    failed("b.sock", COLLECT_SILENT, "hangs", 4 * S);
    json_t *all cleanup_json = model_json(model, 5 * S);
    assert_non_null(all);
    const json_t *machines = json_object_get(all, "machines");
    assert_int_equal(json_array_size(machines), 2);
    const json_t *silent = json_array_get(machines, 0), *live = json_array_get(machines, 1);
    assert_string_equal(json_string_value(json_object_get(silent, "daemon")), "silent");
    assert_string_equal(json_string_value(json_object_get(silent, "why")), "hangs");
    assert_true(json_is_null(json_object_get(silent, "status")));
    assert_string_equal(json_string_value(json_object_get(live, "protection")), "PROTECTED");
    assert_float_equal(json_number_value(json_object_get(live, "wire_bytes_per_s")), 1000, 1e-9);
    assert_string_equal(json_string_value(json_object_get(json_object_get(live, "status"), "vm")), "web");
}

/* --- numbers --- */

static void test_numbers(void **state)
{
    (void)state;
    static const struct {
        double value;
        const char *duration, *bytes;
    } cases[] = {
        {NAN, "-", "-"},
        {-1, "-", "-"},
        {0, "0 us", "0 B"},
        {0.000138, "138 us", "0 B"},
        {0.0009996, "1.00 ms", "0 B"},
        {0.00465, "4.65 ms", "0 B"},
        {0.9996, "1.00 s", "1 B"},
        {9.999, "10.0 s", "10 B"},
        {119, "119 s", "119 B"},
        {125, "2 min", "125 B"},
        {999.6, "17 min", "0.98 KiB"},
        {7300, "2 h", "7.13 KiB"},
        {200000, "2 d", "195 KiB"},
        {3565158.4, "41 d", "3.40 MiB"},
        {1e300, "99999 d", "9999 PiB"},
    };
    for (unsigned i = 0; i < array_length(cases); i++) {
        char text[LAYOUT_TEXT_MAX];
        assert_string_equal(layout_duration(text, cases[i].value), cases[i].duration);
        assert_string_equal(layout_bytes(text, cases[i].value), cases[i].bytes);
    }
    for (double value = 1e-7; value < 1e17; value *= 1.001) {
        char text[LAYOUT_TEXT_MAX];
        assert_true(value > 1e9 || strlen(layout_duration(text, value)) <= 7);
        assert_true(strlen(layout_bytes(text, value)) <= 8);
    }
}

/* --- the screen --- */

static void populate(unsigned count)
{
    static const char *const states[] = {"protected", "copying", "disconnected", "moved"};
    list.count = count;
    for (unsigned i = 0; i < count; i++)
        snprintf(list.paths[i], FIND_PATH_MAX, "/run/m%03u.sock", i);
    assert_int_equal(model_found(model, &list, 1 * S), 0);
    for (unsigned i = 0; i < count; i++) {
        char name[16], path[24];
        snprintf(name, sizeof name, "m%03u", i);
        snprintf(path, sizeof path, "%s.sock", name);
        answered(path, kit_status(name, "alpha", states[i % 4]), 2 * S);
    }
}

static void test_a_screen(void **state)
{
    (void)state;
    populate(4);
    answered("m000.sock", later("protected", 1000000, 5000, 100, 200), 3 * S);
    answered("m000.sock", later("protected", 1000000 + 4 * 1048576, 5000, 110, 230), 5 * S);
    draw(5 * S, 24, 80);
    assert_non_null(strstr(row_text(0), "4 machines, by name"));
    assert_non_null(strstr(row_text(0), "1 wants help"));
    assert_non_null(strstr(row_text(0), "1 degraded"));
    assert_non_null(strstr(row_text(0), "12:34:56"));
    /* By name: m001, m002, m003, web. The first row is selected, whoever comes to it, until somebody chooses.
     */
    assert_int_equal(row_text(2)[0], '>');
    assert_non_null(strstr(row_text(2), "m001         DEGRADED"));
    assert_non_null(strstr(row_text(4), "AWAY"));
    assert_true(shows("D E G R A D E D"));
    assert_true(shows("m001 on alpha, primary"));
    assert_true(shows("the link is down"));
    model_press(model, MODEL_LAST);
    draw(5 * S, 24, 80);
    assert_true(shows("P R O T E C T E D"));
    assert_true(shows("4711, 8.50 ms old"));
    assert_true(shows("p50 2.00 ms, p99 4.00 ms"));
    assert_true(shows("held by nfqueue"));
    assert_true(shows("2.93 KiB, 2 frames"));
    assert_true(shows("2.00 MiB/s"));
    assert_true(shows("█"));
    assert_non_null(strstr(row_text(23), "q quit"));
    assert_null(strstr(row_text(23), " of ")); /* all are there */
    draw(5 * S, 50, 160);
    assert_non_null(strstr(row_text(1), "DIRTY/s"));
    assert_non_null(strstr(row_text(1), "PAUSES"));
    assert_non_null(strstr(row_text(5), "45.0 ms"));
    model_press(model, MODEL_HELP);
    draw(5 * S, 24, 80);
    assert_true(shows("nobody could go on with the guest"));
    for (int row = 2; row < 23; row++) /* nothing is cut */
        assert_true(strlen(row_text(row)) < 80);
}

static void test_a_dead_daemon_on_screen(void **state)
{
    (void)state;
    populate(1);
    failed("m000.sock", COLLECT_SILENT, "gave no answer within 1000 ms", 3 * S);
    draw(10 * S, 24, 80);
    assert_true(shows("N O   A N S W E R"));
    assert_true(shows("gave no answer within 1000 ms"));
    assert_non_null(strstr(row_text(2), "8.01 s")); /* the age grows */
    assert_non_null(strstr(row_text(0), "1 wants help"));
}

static void test_nothing_there(void **state)
{
    (void)state;
    draw(1 * S, 24, 80);
    assert_true(shows("no daemon in /run/us"));
}

static void test_many_machines(void **state)
{
    (void)state;
    char name[16];
    populate(FIND_MAX);
    for (unsigned i = 0; i < FIND_MAX; i++) {
        draw(3 * S, 24, 80);
        snprintf(name, sizeof name, ">m%03u", i);
        assert_true(shows(name));
        assert_non_null(strstr(row_text(23), " of 256"));
        model_press(model, MODEL_DOWN);
    }
    /* One plain frame has them all. */
    const struct layout_view view = {.clock = "", .place = "", .note = "", .now_ns = 3 * S};
    layout_overview(&screen, model, &view, 160);
    assert_true(shows(" m000 ") && shows(" m255 "));
}

/* No size writes beyond the screen, and none is without its frame. */
static void test_any_size(void **state)
{
    (void)state;
    populate(5);
    for (int rows = -1; rows < 60; rows++)
        for (int columns = -1; columns < 200; columns += columns < 50 ? 1 : 7) {
            memset(&screen, 'Z', sizeof screen);
            screen.ascii = false;
            draw(3 * S, rows, columns);
            for (int row = 0; row < 60; row++)
                for (int column = 0; column < 200; column++)
                    assert_true((row < rows && column < columns) == (screen.cells[row][column].style != 'Z'));
            if (rows >= LAYOUT_ROWS_MIN && columns >= LAYOUT_COLUMNS_MIN)
                assert_true(shows("understudy top") && shows("q quit") && shows(">m000"));
        }
    draw(3 * S, 10000, 10000);
    assert_int_equal(screen.rows, SCREEN_ROWS_MAX);
    assert_int_equal(screen.columns, SCREEN_COLUMNS_MAX);
}

static void test_ascii(void **state)
{
    (void)state;
    populate(1);
    for (unsigned i = 0; i < 30; i++)
        answered("m000.sock", later("protected", 10, 10, 100 + i, 200 + i * i), (3 + i) * S);
    answered("m000.sock", later("protected", 10, 10, 129, 200 + 29 * 29), 40 * S); /* a gap */
    for (int ascii = 0; ascii < 2; ascii++) {
        bool other = false;
        screen.ascii = ascii;
        draw(40 * S, 30, 160);
        for (int row = 0; row < 30; row++)
            for (const char *at = row_text(row); *at; at++)
                other = other || *at < ' ' || *at > '~';
        assert_int_equal(other, !ascii);
        assert_true(ascii ? shows("#_") : shows("█·"));
    }
    screen.ascii = false;
}

static void test_bars(void **state)
{
    (void)state;
    static struct model_machine machine = {.past = {0.001, 0.002, NAN, 0.004, 0.0005}, .past_count = 5};
    screen_clear(&screen, 2, 6);
    assert_float_equal(layout_bars(&screen, 0, 0, 2, 6, &machine), 0.004, 1e-12);
    assert_string_equal(row_text(0), "    █");
    assert_string_equal(row_text(1), " ▄█·█▂");
    /* Only those that are shown have a say. */
    screen_clear(&screen, 1, 2);
    machine.past[0] = 7;
    assert_float_equal(layout_bars(&screen, 0, 0, 1, 2, &machine), 0.004, 1e-12);
    machine.past_count = 0;
    assert_true(isnan(layout_bars(&screen, 0, 0, 1, 2, &machine)));
}

static void test_hostile_texts(void **state)
{
    (void)state;
    char longer[300];
    memset(longer, 'y', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    found(1 * S, 1, "evil\x1b[31m.sock");
    draw(1 * S, 24, 80);
    assert_true(shows("evil?[31m.so ASKED"));
    assert_null(strchr(row_text(2), '0')); /* of nobody nothing is known */
    draw(1 * S, 24, 160);
    assert_true(shows("evil?[31m.sock ")); /* room for longer names */
    json_t *status = kit_status(longer, longer, "copying");
    kit_set(status, NULL, "reason", json_string("\x1b]0;title\x07"));
    kit_set(status, NULL, "generation", json_real(1e308));
    kit_set(status, NULL, "committed_epoch", json_real(1e308));
    answered("evil\x1b[31m.sock", status, 2 * S);
    draw(3 * S, 24, 80);
    assert_true(shows("?]0;title?"));
    for (int row = 0; row < 24; row++)
        assert_null(strchr(row_text(row), '\x1b'));
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)
    const struct CMUnitTest tests[] = {
        TEST(test_daemons_come_and_go),
        TEST(test_silence),
        TEST(test_rates),
        TEST(test_no_time),
        TEST(test_order_and_selection),
        TEST(test_json),
        TEST(test_numbers),
        TEST(test_a_screen),
        TEST(test_a_dead_daemon_on_screen),
        TEST(test_nothing_there),
        TEST(test_many_machines),
        TEST(test_any_size),
        TEST(test_ascii),
        TEST(test_bars),
        TEST(test_hostile_texts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
