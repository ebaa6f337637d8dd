/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/layout_internal.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>

/* The selected machine: in one word and in colour, why, the facts, the pauses. */

#define BARS_MAX 8

struct facts {
    unsigned count;
    struct {
        const char *label;
        char text[80];
    } items[LAYOUT_FACTS_MAX];
};

static void add_fact(struct facts *facts, const char *label, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void add_fact(struct facts *facts, const char *label, const char *format, ...)
{
    va_list arguments;
    if (facts->count == LAYOUT_FACTS_MAX)
        return;
    facts->items[facts->count].label = label;
    va_start(arguments, format);
    vsnprintf(facts->items[facts->count++].text, sizeof facts->items[0].text, format, arguments);
    va_end(arguments);
}

static void gather_output(struct facts *facts, const struct sample *s)
{
    char a[LAYOUT_TEXT_MAX], b[LAYOUT_TEXT_MAX];
    bool holding = s->values[SAMPLE_OUTPUT_HOLDING] > 0;
    if (!s->gate[0])
        return;
    if (!strcmp(s->gate, "none")) {
        add_fact(facts, "output", "no gate");
        return;
    }
    add_fact(facts, "output", "%s by %s", holding ? "held" : "PASSES", s->gate);
    add_fact(facts, "held now", "%s, %.0f frames", layout_bytes(a, s->values[SAMPLE_OUTPUT_HELD_BYTES]),
             fmax(s->values[SAMPLE_OUTPUT_HELD_FRAMES], 0));
    add_fact(facts, "delay", "p50 %s, p99 %s",
             layout_duration(a, layout_of(&s->output_delay, s->output_delay.p50_s)),
             layout_duration(b, layout_of(&s->output_delay, s->output_delay.p99_s)));
}

static void gather(struct facts *facts, const struct model_machine *machine, uint64_t now_ns)
{
    const struct sample *s = &machine->sample;
    char a[LAYOUT_TEXT_MAX], b[LAYOUT_TEXT_MAX], number[32];
    layout_count(number, sizeof number, s->values[SAMPLE_GENERATION]);
    add_fact(facts, "generation", "%s", number);
    add_fact(facts, "peer", "%s", s->peer);
    double age_s = model_commit_age_s(machine, now_ns);
    layout_count(number, sizeof number, s->values[SAMPLE_COMMITTED_EPOCH]);
    if (age_s >= 0)
        add_fact(facts, "checkpoint", "%s, %s old", number, layout_duration(a, age_s));
    else
        add_fact(facts, "checkpoint", "none");
    add_fact(facts, "state", "%s", s->state);
    if (s->pause.told) {
        add_fact(facts, "pause", "p50 %s, p99 %s", layout_duration(a, layout_of(&s->pause, s->pause.p50_s)),
                 layout_duration(b, layout_of(&s->pause, s->pause.p99_s)));
        add_fact(facts, "interval", "%s", layout_duration(a, s->values[SAMPLE_INTERVAL_S]));
        add_fact(facts, "dirty", "%s/s", layout_bytes(a, machine->dirty_bytes_per_s));
    }
    add_fact(facts, "wire", "%s/s", layout_bytes(a, machine->wire_bytes_per_s));
    gather_output(facts, s);
    if (s->values[SAMPLE_DISKS] > 0)
        add_fact(facts, "disks", "%.0f, %s to copy", s->values[SAMPLE_DISKS],
                 layout_bytes(a, s->values[SAMPLE_DISK_PENDING_BYTES]));
    if (s->values[SAMPLE_JOURNAL_BYTES] > 0)
        add_fact(facts, "journal", "%s", layout_bytes(a, s->values[SAMPLE_JOURNAL_BYTES]));
    add_fact(facts, "memory", "%s resident", layout_bytes(a, s->values[SAMPLE_RSS_BYTES]));
    if (sample_told(s, SAMPLE_TAKEOVER_S))
        add_fact(facts, "takeover", "took %s", layout_duration(a, s->values[SAMPLE_TAKEOVER_S]));
}

static void draw_band(struct screen *screen, int row, const struct model_machine *machine, uint64_t now_ns)
{
    enum screen_style style = layout_band_colour(machine);
    char since[LAYOUT_TEXT_MAX];
    for (int i = 0; i < LAYOUT_BAND_ROWS; i++)
        screen_band(screen, row + i, 0, screen->columns, style);
    int at = 2;
    for (const char *letter = model_word(machine); *letter; letter++)
        at = screen_put(screen, row + 1, at, style, "%c ", *letter);
    layout_duration(since, model_word_s(machine, now_ns));
    at = screen_put(screen, row + 1, at, style, "  for %s", since);
    const struct sample *s = &machine->sample;
    char who[3 * SAMPLE_NAME_MAX];
    if (machine->told)
        snprintf(who, sizeof who, "%s on %s, %s", s->machine, s->host, s->role);
    else
        snprintf(who, sizeof who, "%s", model_name(machine));
    int room = screen->columns - at - 3;
    screen_field(screen, row + 1, at + 2, room > 0 ? room : 0, style, who);
}

static int fact_columns(int columns)
{
    return columns >= 120 ? 3 : columns >= 72 ? 2 : 1;
}

int layout_fact_rows(unsigned count, int columns)
{
    return ((int)count + fact_columns(columns) - 1) / fact_columns(columns);
}

void layout_large(struct screen *screen, int row, int rows, const struct model_machine *machine,
                  uint64_t now_ns)
{
    struct facts facts = {0};
    int columns = screen->columns, across = fact_columns(columns), end = row + rows;
    enum screen_style style = machine->link == MODEL_LIVE ? SCREEN_PLAIN : SCREEN_DIM;
    draw_band(screen, row, machine, now_ns);
    row += LAYOUT_BAND_ROWS;
    screen_put(screen, row++, 2, layout_colour(machine), "%s", model_why(machine));
    if (!machine->told)
        return;
    gather(&facts, machine, now_ns);
    int height = layout_fact_rows(facts.count, columns);
    for (unsigned i = 0; i < facts.count; i++) {
        int y = row + (int)i / across, x = 2 + (int)i % across * (columns / across);
        if (y >= end)
            return;
        screen_field(screen, y, x, -10, SCREEN_DIM, facts.items[i].label);
        screen_field(screen, y, x + 11, -(columns / across - 13), style, facts.items[i].text);
    }
    row += height + 1;
    int bars = end - row > BARS_MAX ? BARS_MAX : end - row;
    if (bars < LAYOUT_BARS_MIN || !machine->sample.pause.told)
        return;
    char text[LAYOUT_TEXT_MAX];
    double most = layout_bars(screen, row, 11, bars, columns - 13, machine);
    screen_field(screen, row, 2, -8, SCREEN_DIM, layout_duration(text, most));
    screen_field(screen, row + bars - 1, 2, -8, SCREEN_DIM, "pauses");
}
