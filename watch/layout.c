/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/layout_internal.h"

#include "base/scope.h"

#include <stdio.h>
#include <string.h>

/*
 * Theory of operation. From top to bottom:
 *
 *     title
 *     head of the table
 *     machines, one a row       as many as leave room for the rest; the page that has the selected one
 *
 *     band, three rows          the selected machine in one word, in colour
 *     why
 *     facts, in columns
 *
 *     pauses as bars            what is left, at most BARS_MAX rows
 *     keys
 *
 * On a screen that is too low for all, bars go first; then there is the table alone.
 */

static void draw_title(struct screen *screen, const struct model *model, const struct layout_view *view)
{
    unsigned bad = 0, warn = 0;
    for (unsigned i = 0; i < model->count; i++) {
        enum screen_style style = layout_colour(model->machines[i]);
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
    int large = LAYOUT_BAND_ROWS + 1 + layout_fact_rows(LAYOUT_FACTS_MAX - 1, columns) + 1,
        table = room - large - 1 - LAYOUT_BARS_MIN;
    if (table < least)
        table = room - large; /* without bars */
    if (table < least)
        table = room;
    int taken = (int)model->count < table ? (int)model->count : table;
    layout_table(screen, model, view, 1, table, true);
    if (model->count && table < room)
        layout_large(screen, 2 + taken + 1, rows - 1 - (2 + taken + 1), model->machines[model->selected],
                     view->now_ns);
    /* Last, since facts may have come down to its row. */
    draw_keys(screen, layout_first(model, table), (unsigned)taken, model->count);
}

void layout_overview(struct screen *screen, const struct model *model, const struct layout_view *view,
                     int columns)
{
    int rows = 2 + (int)model->count + 2;
    screen_clear(screen, rows, columns);
    draw_title(screen, model, view);
    layout_table(screen, model, view, 1, (int)model->count, false);
}

void layout_machine(struct screen *screen, const struct model *model, unsigned index,
                    const struct layout_view *view, int columns)
{
    int rows = LAYOUT_BAND_ROWS + 1 + layout_fact_rows(LAYOUT_FACTS_MAX, columns) + 1;
    screen_clear(screen, rows, columns);
    layout_large(screen, 0, rows, model->machines[index], view->now_ns);
}
