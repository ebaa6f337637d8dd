/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/layout.h"

#include "base/scope.h"

#include <ctype.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/*
 * Theory of operation. From top to bottom:
 *
 *     title
 *     head of the table
 *     machines, one a row               as many as leave room for what follows; the page with the selected
 * one band, three rows                  the selected machine in one word, in colour why, and what it is about
 *     facts, in columns
 *     pauses as bars                    what is left, at most BARS_MAX rows
 *     keys
 *
 * Where the screen is too low for the selected machine, there is the table alone.
 */
#define BAND_ROWS 3
#define BARS_MIN  2
#define BARS_MAX  8
#define FACTS_MAX 14

static enum screen_style colour(const struct model_machine *machine)
{
    if (machine->link == MODEL_ASKED)
        return SCREEN_DIM;
    if (machine->link != MODEL_LIVE)
        return SCREEN_BAD;
    switch (machine->sample.protection) {
    case SAMPLE_IS_PROTECTED:
        return SCREEN_GOOD;
    case SAMPLE_IS_DEGRADED:
        return SCREEN_WARN;
    case SAMPLE_IS_UNPROTECTED:
        return SCREEN_BAD;
    case SAMPLE_IS_AWAY:
        break;
    }
    return SCREEN_DIM;
}

static enum screen_style band_colour(enum screen_style style)
{
    return style == SCREEN_GOOD   ? SCREEN_GOOD_BAND
           : style == SCREEN_WARN ? SCREEN_WARN_BAND
           : style == SCREEN_BAD  ? SCREEN_BAD_BAND
                                  : SCREEN_DIM_BAND;
}

/* --- numbers --- */

static const char *three_digits(char to[LAYOUT_TEXT_MAX], double value, const char *unit)
{
    /* By what it will be after rounding: 9.996 is "10.0", not "10.00". */
    int decimals = value < 9.995 ? 2 : value < 99.95 ? 1 : 0;
    snprintf(to, LAYOUT_TEXT_MAX, "%.*f %s", decimals, value, unit);
    return to;
}

const char *layout_duration(char to[LAYOUT_TEXT_MAX], double seconds)
{
    if (!(seconds >= 0))
        snprintf(to, LAYOUT_TEXT_MAX, "-");
    else if (seconds < 0.0009995)
        snprintf(to, LAYOUT_TEXT_MAX, "%.0f us", seconds * 1e6);
    else if (seconds < 0.9995)
        three_digits(to, seconds * 1000, "ms");
    else if (seconds < 120)
        three_digits(to, seconds, "s");
    else if (seconds < 7200)
        snprintf(to, LAYOUT_TEXT_MAX, "%.0f min", seconds / 60);
    else if (seconds < 172800)
        snprintf(to, LAYOUT_TEXT_MAX, "%.0f h", seconds / 3600);
    else
        snprintf(to, LAYOUT_TEXT_MAX, "%.0f d", fmin(seconds / 86400, 99999));
    return to;
}

const char *layout_bytes(char to[LAYOUT_TEXT_MAX], double bytes)
{
    static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB"};
    unsigned unit = 0;
    if (!(bytes >= 0)) {
        snprintf(to, LAYOUT_TEXT_MAX, "-");
        return to;
    }
    while (bytes >= 999.5 && unit + 1 < array_length(units)) {
        bytes /= 1024;
        unit++;
    }
    if (unit == 0)
        snprintf(to, LAYOUT_TEXT_MAX, "%.0f B", bytes);
    else
        three_digits(to, fmin(bytes, 9999), units[unit]);
    return to;
}

static void count_text(char *to, size_t room, double value)
{
    if (value >= 0)
        snprintf(to, room, "%.0f", value);
    else
        snprintf(to, room, "-");
}

/* --- bars --- */

double layout_bars(struct screen *screen, int row, int column, int rows, int width,
                   const struct model_machine *machine)
{
    static const char *const blocks[] = {" ", "▁", "▂", "▃", "▄", "▅", "▆", "▇", "█"};
    static const char *const letters[] = {" ", ".", ".", ":", ":", "+", "+", "#", "#"};
    const char *const *glyphs = screen->ascii ? letters : blocks;
    int shown = (int)machine->past_count < width ? (int)machine->past_count : width;
    const double *past = machine->past + machine->past_count - shown;
    double most = NAN;
    for (int i = 0; i < shown; i++)
        most = fmax(most, past[i]); /* passes over NAN */
    for (int i = 0; i < shown; i++) {
        int at = column + width - shown + i;
        if (isnan(past[i])) {
            screen_glyph(screen, row + rows - 1, at, SCREEN_DIM, screen->ascii ? "_" : "·");
            continue;
        }
        int eighths = most > 0 ? (int)ceil(past[i] / most * rows * 8) : 1;
        for (int level = 0; level < rows; level++) {
            int part = eighths - level * 8;
            part = part < 0 ? 0 : part > 8 ? 8 : part;
            if (part)
                screen_glyph(screen, row + rows - 1 - level, at, SCREEN_GOOD, glyphs[part]);
        }
    }
    return most;
}

/* --- the table --- */

struct column {
    const char *title;
    int width; /* negative: to the left */
    void (*text)(char *to, size_t room, const struct model_machine *machine, uint64_t now_ns);
    int rank; /* who comes in first when there is not room for all */
};

#define TEXT_OF(name)                                                                                        \
    static void name(char *to, size_t room, const struct model_machine *machine, uint64_t now_ns)

static void duration_text(char *to, size_t room, double seconds)
{
    char text[LAYOUT_TEXT_MAX];
    snprintf(to, room, "%s", layout_duration(text, seconds));
}

static void bytes_text(char *to, size_t room, double bytes)
{
    char text[LAYOUT_TEXT_MAX];
    snprintf(to, room, "%s", layout_bytes(text, bytes));
}

TEXT_OF(name_text)
{
    (void)now_ns;
    snprintf(to, room, "%s", model_name(machine));
}

TEXT_OF(word_text)
{
    (void)now_ns;
    snprintf(to, room, "%s", model_word(machine));
}

TEXT_OF(for_text)
{
    duration_text(to, room, model_word_s(machine, now_ns));
}

TEXT_OF(host_text)
{
    (void)now_ns;
    snprintf(to, room, "%s", machine->sample.host);
}

TEXT_OF(peer_text)
{
    (void)now_ns;
    snprintf(to, room, "%s", machine->sample.peer);
}

TEXT_OF(role_text)
{
    (void)now_ns;
    snprintf(to, room, "%s", machine->sample.role);
}

TEXT_OF(generation_text)
{
    (void)now_ns;
    count_text(to, room, machine->sample.values[SAMPLE_GENERATION]);
}

TEXT_OF(epoch_text)
{
    (void)now_ns;
    count_text(to, room, machine->sample.values[SAMPLE_COMMITTED_EPOCH]);
}

TEXT_OF(age_text)
{
    duration_text(to, room, model_commit_age_s(machine, now_ns));
}

static double of(const struct sample_times *times, double value)
{
    return times->told && times->count > 0 ? value : NAN;
}

TEXT_OF(p50_text)
{
    (void)now_ns;
    duration_text(to, room, of(&machine->sample.pause, machine->sample.pause.p50_s));
}

TEXT_OF(p99_text)
{
    (void)now_ns;
    duration_text(to, room, of(&machine->sample.pause, machine->sample.pause.p99_s));
}

TEXT_OF(dirty_text)
{
    (void)now_ns;
    bytes_text(to, room, machine->dirty_bytes_per_s);
}

TEXT_OF(wire_text)
{
    (void)now_ns;
    bytes_text(to, room, machine->wire_bytes_per_s);
}

TEXT_OF(delay_text)
{
    (void)now_ns;
    duration_text(to, room, of(&machine->sample.output_delay, machine->sample.output_delay.p99_s));
}

TEXT_OF(held_text)
{
    (void)now_ns;
    bool gated = strcmp(machine->sample.gate, "none") != 0;
    bytes_text(to, room, gated ? machine->sample.values[SAMPLE_OUTPUT_HELD_BYTES] : NAN);
}

static const struct column columns_all[] = {
    {"MACHINE", -12, name_text, 0}, {"PROTECTION", -11, word_text, 1}, {"FOR", 7, for_text, 14},
    {"HOST", -8, host_text, 12},    {"ROLE", -7, role_text, 2},        {"PEER", -8, peer_text, 13},
    {"GEN", 4, generation_text, 6}, {"EPOCH", 8, epoch_text, 4},       {"AGE", 7, age_text, 3},
    {"PAUSE50", 7, p50_text, 7},    {"PAUSE99", 7, p99_text, 5},       {"DIRTY/s", 8, dirty_text, 8},
    {"WIRE/s", 8, wire_text, 9},    {"DELAY99", 7, delay_text, 10},    {"HELD", 8, held_text, 11},
};
#define COLUMNS (int)array_length(columns_all)

#define NAME_MAX_WIDTH 28
#define BARS_WIDTH_MIN 10

/* What a screen of this width shows. */
struct plan {
    int widths[COLUMNS]; /* as column.width; 0: not shown */
    int bars_at;         /* 0: no bars */
};

/* Columns come in by rank while they fit; what is left over goes to long names, then to bars. */
static struct plan make_plan(int room)
{
    struct plan plan = {0};
    int used = 1, in = 0;
    for (bool fits = true; fits && in < COLUMNS; in += fits)
        for (int i = 0; i < COLUMNS; i++)
            if (columns_all[i].rank == in) {
                fits = used + 1 + abs(columns_all[i].width) <= room;
                plan.widths[i] = fits ? columns_all[i].width : 0;
                used += fits ? 1 + abs(columns_all[i].width) : 0;
            }
    int spare = in == COLUMNS ? room - used - BARS_WIDTH_MIN - 1 : 0;
    if (spare >= 0 && in == COLUMNS) {
        int longer =
            spare < NAME_MAX_WIDTH + columns_all[0].width ? spare : NAME_MAX_WIDTH + columns_all[0].width;
        plan.widths[0] -= longer;
        plan.bars_at = used + longer;
    }
    return plan;
}

static void draw_row(struct screen *screen, int row, const struct model_machine *machine, bool picked,
                     const struct plan *plan, uint64_t now_ns)
{
    int at = 1, word_at = 0;
    for (int i = 0; i < COLUMNS; i++) {
        const struct column *column = &columns_all[i];
        char text[SAMPLE_NAME_MAX + FIND_PATH_MAX];
        if (!plan->widths[i])
            continue;
        if (column->text == word_text)
            word_at = at;
        enum screen_style style = column->text == word_text ? colour(machine) : SCREEN_PLAIN;
        /* Of a daemon that does not answer only what it is called is still true. */
        if (machine->link != MODEL_LIVE && column->rank > 1 && column->text != for_text)
            style = SCREEN_DIM;
        column->text(text, sizeof text, machine, now_ns);
        screen_field(screen, row, at, plan->widths[i], style, text);
        at += abs(plan->widths[i]) + 1;
    }
    if (plan->bars_at && machine->link == MODEL_LIVE && machine->sample.pause.told)
        layout_bars(screen, row, plan->bars_at, 1, screen->columns - plan->bars_at - 1, machine);
    if (picked) {
        screen_put(screen, row, 0, SCREEN_PICK, ">");
        screen_band(screen, row, 0, at, SCREEN_PICK);
        screen_band(screen, row, word_at, (int)strlen(model_word(machine)), band_colour(colour(machine)));
    }
}

/* The first of the machines that are shown in so many rows: of the page with the selected one. */
static unsigned first_shown(const struct model *model, int rows)
{
    unsigned page = rows > 0 ? (unsigned)rows : 1;
    return model->selected / page * page;
}

static void draw_table(struct screen *screen, const struct model *model, const struct layout_view *view,
                       int row, int rows, bool picks)
{
    struct plan plan = make_plan(screen->columns);
    int at = 1;
    for (int i = 0; i < COLUMNS; i++)
        if (plan.widths[i]) {
            screen_field(screen, row, at, plan.widths[i], SCREEN_BOLD, columns_all[i].title);
            at += abs(plan.widths[i]) + 1;
        }
    if (plan.bars_at)
        screen_put(screen, row, plan.bars_at, SCREEN_BOLD, "PAUSES");
    unsigned first = first_shown(model, rows);
    for (unsigned i = first; i < model->count && i < first + (unsigned)rows; i++)
        draw_row(screen, row + 1 + (int)(i - first), model->machines[i], picks && i == model->selected, &plan,
                 view->now_ns);
    if (!model->count)
        screen_put(screen, row + 2, 2, SCREEN_PLAIN, "no daemon in %s%s%s", view->place,
                   view->note[0] ? ": " : "", view->note);
}

static void draw_title(struct screen *screen, const struct model *model, const struct layout_view *view)
{
    unsigned bad = 0, warn = 0;
    for (unsigned i = 0; i < model->count; i++) {
        enum screen_style style = colour(model->machines[i]);
        bad += style == SCREEN_BAD;
        warn += style == SCREEN_WARN;
    }
    screen_band(screen, 0, 0, screen->columns, SCREEN_BAR);
    int at = screen_put(screen, 0, 1, SCREEN_BAR, "understudy top  %u machine%s, by %s", model->count,
                        model->count == 1 ? "" : "s", model_sort_name(model->sort));
    if (model->paused)
        at = screen_put(screen, 0, at, SCREEN_WARN_BAND, "  PAUSED ");
    if (bad)
        at = screen_put(screen, 0, at + 1, SCREEN_BAD_BAND, " %u want%s help ", bad, bad == 1 ? "s" : "");
    if (warn)
        at = screen_put(screen, 0, at + 1, SCREEN_WARN_BAND, " %u degraded ", warn);
    if (model->count && view->note[0])
        screen_put(screen, 0, at + 1, SCREEN_BAD_BAND, " %s ", view->note);
    screen_field(screen, 0, screen->columns - 10, 9, SCREEN_BAR, view->clock);
}

/* --- one machine at large --- */

struct facts {
    unsigned count;
    struct {
        const char *label;
        char text[80];
    } items[FACTS_MAX];
};

static void add_fact(struct facts *facts, const char *label, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

static void add_fact(struct facts *facts, const char *label, const char *format, ...)
{
    va_list arguments;
    if (facts->count == FACTS_MAX)
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
             layout_duration(a, of(&s->output_delay, s->output_delay.p50_s)),
             layout_duration(b, of(&s->output_delay, s->output_delay.p99_s)));
}

static void gather(struct facts *facts, const struct model_machine *machine, uint64_t now_ns)
{
    const struct sample *s = &machine->sample;
    char a[LAYOUT_TEXT_MAX], b[LAYOUT_TEXT_MAX], number[32];
    count_text(number, sizeof number, s->values[SAMPLE_GENERATION]);
    add_fact(facts, "generation", "%s", number);
    add_fact(facts, "peer", "%s", s->peer);
    count_text(number, sizeof number, s->values[SAMPLE_COMMITTED_EPOCH]);
    add_fact(facts, "checkpoint", "%s, %s old", number,
             layout_duration(a, model_commit_age_s(machine, now_ns)));
    add_fact(facts, "state", "%s", s->state);
    if (s->pause.told) {
        add_fact(facts, "pause", "p50 %s, p99 %s", layout_duration(a, of(&s->pause, s->pause.p50_s)),
                 layout_duration(b, of(&s->pause, s->pause.p99_s)));
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
    enum screen_style style = band_colour(colour(machine));
    char since[LAYOUT_TEXT_MAX];
    for (int i = 0; i < BAND_ROWS; i++)
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

static int fact_rows(unsigned count, int columns)
{
    return ((int)count + fact_columns(columns) - 1) / fact_columns(columns);
}

/* In `rows` rows from `row` on. */
static void draw_machine(struct screen *screen, int row, int rows, const struct model_machine *machine,
                         uint64_t now_ns)
{
    struct facts facts = {0};
    int columns = screen->columns, across = fact_columns(columns), end = row + rows;
    enum screen_style style = machine->link == MODEL_LIVE ? SCREEN_PLAIN : SCREEN_DIM;
    draw_band(screen, row, machine, now_ns);
    row += BAND_ROWS;
    screen_put(screen, row++, 2, colour(machine), "%s", model_why(machine));
    if (!machine->told)
        return;
    gather(&facts, machine, now_ns);
    int height = fact_rows(facts.count, columns);
    for (unsigned i = 0; i < facts.count; i++) {
        int y = row + (int)i / across, x = 2 + (int)i % across * (columns / across);
        if (y >= end)
            return;
        screen_field(screen, y, x, -10, SCREEN_DIM, facts.items[i].label);
        screen_field(screen, y, x + 11, -(columns / across - 13), style, facts.items[i].text);
    }
    row += height + 1;
    int bars = end - row > BARS_MAX ? BARS_MAX : end - row;
    if (bars < BARS_MIN || !machine->sample.pause.told)
        return;
    char text[LAYOUT_TEXT_MAX];
    double most = layout_bars(screen, row, 11, bars, columns - 13, machine);
    screen_field(screen, row, 2, -8, SCREEN_DIM, layout_duration(text, most));
    screen_field(screen, row + bars - 1, 2, -8, SCREEN_DIM, "pauses");
}

/* --- the whole --- */

/* And which of the machines are shown, where that is not all: `shown` from `first` on. */
static void draw_keys(struct screen *screen, unsigned first, unsigned shown, unsigned count)
{
    int row = screen->rows - 1;
    char text[48] = "";
    for (int column = 0; column < screen->columns; column++)
        screen_put(screen, row, column, SCREEN_BAR, " ");
    screen_put(screen, row, 1, SCREEN_BAR, "q quit  up/down select  s sort  p pause  h help");
    if (shown < count)
        snprintf(text, sizeof text, "%u to %u of %u", first + 1,
                 first + shown < count ? first + shown : count, count);
    int width = (int)strlen(text);
    if (screen->columns > 50 + width)
        screen_field(screen, row, screen->columns - 1 - width, width, SCREEN_BAR, text);
}

static void draw_help(struct screen *screen)
{
    static const char *const lines[] = {
        "q               quit",
        "up, down, j, k  select a machine; also page up, page down, home, end",
        "s               sort by name, urgency, pause p99, dirty rate, wire rate",
        "p, space        stop here; go on",
        "h, ?            this, and back",
        "",
        "PROTECTED       the standby has a checkpoint and gets the next one",
        "DEGRADED        not so: a session is being set up, or a checkpoint stands",
        "UNPROTECTED     nobody could go on with the guest",
        "AWAY            the guest has left this host, or ended",
        "NO ANSWER       its daemon hangs; GONE: has ended; BROKEN: says nonsense",
        "",
        "EPOCH, AGE      the last checkpoint that the standby has; how old it is",
        "PAUSE50, 99     50 %, 99 % of all pauses of the engine are no longer",
        "PAUSES          mean of each interval, the latest at the right",
        "DIRTY/s         what the guest writes, in pages; WIRE/s: what lanes carry",
        "DELAY99, HELD   how long output waited for checkpoints; what waits now",
    };
    for (int i = 0; i < (int)array_length(lines); i++)
        screen_put(screen, 2 + i, 2, SCREEN_PLAIN, "%s", lines[i]);
}

void layout_draw(struct screen *screen, const struct model *model, const struct layout_view *view, int rows,
                 int columns)
{
    screen_clear(screen, rows, columns);
    if (rows < LAYOUT_ROWS_MIN || columns < LAYOUT_COLUMNS_MIN) {
        screen_put(screen, 0, 0, SCREEN_PLAIN, "at least %dx%d, please", LAYOUT_COLUMNS_MIN, LAYOUT_ROWS_MIN);
        return;
    }
    draw_title(screen, model, view);
    if (model->help) {
        draw_help(screen);
        draw_keys(screen, 0, model->count, model->count);
        return;
    }
    int room = rows - 3, least = model->count < 3 ? (int)model->count : 3;
    int large = BAND_ROWS + 1 + fact_rows(FACTS_MAX - 1, columns) + 1, table = room - large - 1 - BARS_MIN;
    if (table < least)
        table = room - large; /* without bars */
    if (table < least)
        table = room;
    int taken = (int)model->count < table ? (int)model->count : table;
    draw_table(screen, model, view, 1, table, true);
    if (model->count && table < room)
        draw_machine(screen, 2 + taken + 1, rows - 1 - (2 + taken + 1), model->machines[model->selected],
                     view->now_ns);
    /* Last, since facts may have come down to its row. */
    draw_keys(screen, first_shown(model, table), (unsigned)taken, model->count);
}

void layout_overview(struct screen *screen, const struct model *model, const struct layout_view *view,
                     int columns)
{
    int rows = 2 + (int)model->count + 2;
    screen_clear(screen, rows, columns);
    draw_title(screen, model, view);
    draw_table(screen, model, view, 1, (int)model->count, false);
}

void layout_machine(struct screen *screen, const struct model *model, unsigned index,
                    const struct layout_view *view, int columns)
{
    int rows = BAND_ROWS + 1 + fact_rows(FACTS_MAX, columns) + 1;
    screen_clear(screen, rows, columns);
    draw_machine(screen, 0, rows, model->machines[index], view->now_ns);
}
