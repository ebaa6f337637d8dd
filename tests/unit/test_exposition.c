/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"
#include "tests/unit/watch_kit.h"

#include "base/scope.h"
#include "replicator/scope_json.h"
#include "watch/exposition.h"

#include <ctype.h>

/* Prometheus' text format: what is written, and that no daemon can spoil it. */

static struct exposition all;

/* Takes over `status`. */
static void add(const char *socket, json_t *status)
{
    struct exposition_daemon *daemon = &all.daemons[all.count++];
    memset(daemon, 0, sizeof *daemon);
    snprintf(daemon->socket, sizeof daemon->socket, "%s", socket);
    daemon->up = status && sample_parse(status, &daemon->sample) == 0;
    json_decref(status);
}

static int setup(void **state)
{
    (void)state;
    all.count = 0;
    all.seconds = 0.25;
    return 0;
}

#define assert_has(text, part)                                                                               \
    do {                                                                                                     \
        if (!strstr(text, part))                                                                             \
            fail_msg("lacks '%s'", part);                                                                    \
    } while (0)

/* name{label="value",...} number: what stands before the number is one series. Returns its length, 0:
 * malformed. */
static size_t series_length(const char *line)
{
    const char *at = line;
    while (islower((unsigned char)*at) || isdigit((unsigned char)*at) || *at == '_')
        at++;
    if (at == line)
        return 0;
    if (*at == '{') {
        do {
            at++;
            const char *label = at;
            while (islower((unsigned char)*at) || *at == '_')
                at++;
            if (at == label || at[0] != '=' || at[1] != '"')
                return 0;
            for (at += 2; *at != '"'; at++) {
                if (*at < ' ' || *at > '~' || (*at == '\\' && !strchr("\\\"n", at[1])))
                    return 0;
                at += *at == '\\';
            }
            at++;
        } while (*at == ',');
        if (*at++ != '}')
            return 0;
    }
    char *end;
    strtod(at, &end);
    return *at == ' ' && isdigit((unsigned char)at[1]) && !*end ? (size_t)(at - line) : 0;
}

/* Every line is well formed, every series comes once, and behind the TYPE of its name. Returns how many there
 * are. */
static unsigned lint(const char *text)
{
    static char lines[4000][600];
    unsigned count = 0;
    char copy[65536 * 4], type[100] = "", *rest = copy;
    assert_true(strlen(text) < sizeof copy && text[strlen(text) - 1] == '\n');
    strcpy(copy, text);
    for (char *line; (line = strsep(&rest, "\n")) && rest;) {
        char kind[16];
        if (sscanf(line, "# TYPE %99s %15s", type, kind) == 2 || !strncmp(line, "# HELP ", 7))
            continue;
        size_t length = series_length(line);
        if (!length)
            fail_msg("malformed: %s", line);
        if (strncmp(line, type, strlen(type)) != 0)
            fail_msg("not behind its TYPE: %s", line);
        snprintf(lines[count], sizeof lines[0], "%.*s", (int)length, line);
        for (unsigned i = 0; i < count; i++)
            if (!strcmp(lines[i], lines[count]))
                fail_msg("twice: %s", lines[i]);
        assert_true(++count < array_length(lines));
    }
    return count;
}

static void test_a_page(void **state)
{
    (void)state;
    add("web.alpha.sock", kit_status("web", "alpha", "protected"));
    add("db.alpha.sock", NULL);
    char *text cleanup_free = exposition_write(&all);
    assert_true(lint(text) > 20);
    assert_has(text, "understudy_daemon_up{socket=\"web.alpha.sock\"} 1\n");
    assert_has(text, "understudy_daemon_up{socket=\"db.alpha.sock\"} 0\n");
    assert_has(text, "understudy_collect_seconds 0.25\n");
#define LABELS "machine=\"web\",host=\"alpha\",role=\"primary\",peer=\"beta\""
    assert_has(text, "# TYPE understudy_protected gauge\nunderstudy_protected{" LABELS "} 1\n");
    assert_has(text, "understudy_state{" LABELS ",state=\"protected\",protection=\"PROTECTED\"} 1\n");
    assert_has(text, "# TYPE understudy_wire_bytes_total counter\nunderstudy_wire_bytes_total{" LABELS
                     "} 1000000\n");
    assert_has(text, "understudy_commit_age_seconds{" LABELS "} 0.0085\n");
    assert_has(text, "understudy_pages_total{" LABELS ",encoding=\"zero\"} 7\n"
                     "understudy_pages_total{" LABELS ",encoding=\"raw\"} 9\n");
    assert_has(text, "# TYPE understudy_pause_seconds histogram\n"
                     "understudy_pause_seconds_bucket{" LABELS ",le=\"0.002\"} 60\n"
                     "understudy_pause_seconds_bucket{" LABELS ",le=\"0.005\"} 100\n"
                     "understudy_pause_seconds_bucket{" LABELS ",le=\"+Inf\"} 100\n"
                     "understudy_pause_seconds_sum{" LABELS "} 0.21\n"
                     "understudy_pause_seconds_count{" LABELS "} 100\n");
    /* What was not told is not made up. */
    assert_null(strstr(text, "understudy_unprotected_seconds{"));
    assert_null(strstr(text, "understudy_takeover_seconds{"));
}

static void test_nobody(void **state)
{
    (void)state;
    char *text cleanup_free = exposition_write(&all);
    assert_int_equal(lint(text), 1);
}

static void test_labels(void **state)
{
    (void)state;
    static const struct {
        const char *text, *label;
    } cases[] = {
        {"", ""},
        {"web", "web"},
        {"a\"b\\c", "a\\\"b\\\\c"},
        {"a\nb", "a%0Ab"},
        {"100%", "100%25"},
        {"\xc3\xa9\xff", "%C3%A9%FF"},
        {"a=b,{c}", "a=b,{c}"},
    };
    for (unsigned i = 0; i < array_length(cases); i++) {
        char label[EXPOSITION_LABEL_ROOM(16)];
        exposition_label(cases[i].text, label);
        assert_string_equal(label, cases[i].label);
    }
    /* The longest takes all the room. */
    char text[17], label[EXPOSITION_LABEL_ROOM(16)];
    memset(text, '\x01', 16);
    text[16] = 0;
    exposition_label(text, label);
    assert_int_equal(strlen(label) + 1, sizeof label);
}

static void test_hostile_daemons(void **state)
{
    (void)state;
    char longer[300], socket[FIND_PATH_MAX];
    memset(longer, '"', sizeof longer - 1);
    longer[sizeof longer - 1] = 0;
    memset(socket, '%', sizeof socket - 1);
    socket[sizeof socket - 1] = 0;
    json_t *status = kit_status("x\"} 1\nunderstudy_protected{machine=\"web", longer, "protected");
    kit_set(status, "peer", "name", json_string("\\"));
    kit_set(status, NULL, "role", json_string("\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\"\""));
    kit_set(status, NULL, "state", json_string(longer));
    kit_set(status, NULL, "generation", json_real(1e308));
    kit_set(status, NULL, "epoch", json_integer(INT64_MAX));
    add(socket, status);
    add("a\n\"\\\xff.sock", kit_status("web", "alpha", "protected"));
    char *text cleanup_free = exposition_write(&all);
    lint(text);
    assert_has(text, "{machine=\"x\\\"} 1?understudy_protected{machine=\\\"web\",");
    assert_has(text, "understudy_generation{machine=\"web\"");
    assert_has(text, "socket=\"a%0A\\\"\\\\%FF.sock\"");
}

/* One daemon cannot speak for another, nor make Prometheus refuse the page. */
static void test_twins(void **state)
{
    (void)state;
    add("a.sock", kit_status("web", "alpha", "protected"));
    add("b.sock", kit_status("web", "alpha", "disconnected"));
    add("c.sock", kit_status("web", "beta", "protected"));
    char *text cleanup_free = exposition_write(&all);
    lint(text);
    assert_has(text, "{socket=\"a.sock\"} 1\n");
    assert_has(text, "{socket=\"b.sock\"} 0\n");
    assert_has(text, "{socket=\"c.sock\"} 1\n");
    assert_has(text, "understudy_protected{" LABELS "} 1\n");
}

static void test_all_of_them(void **state)
{
    (void)state;
    for (unsigned i = 0; i < FIND_MAX; i++) {
        char name[16];
        snprintf(name, sizeof name, "m%u", i);
        add(name, kit_status(name, "alpha", "protected"));
    }
    char *text cleanup_free = exposition_write(&all);
    assert_has(text, "understudy_protected{machine=\"m255\"");
}

int main(void)
{
#define TEST(name) cmocka_unit_test_setup(name, setup)
    const struct CMUnitTest tests[] = {
        TEST(test_a_page),          TEST(test_nobody), TEST(test_labels),
        TEST(test_hostile_daemons), TEST(test_twins),  TEST(test_all_of_them),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
