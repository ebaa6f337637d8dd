/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/layout_internal.h"

#include "base/scope.h"

#include <stdio.h>

/* How single things look: colours, numbers, bars. */

enum screen_style layout_colour(const struct model_machine *machine)
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

enum screen_style layout_band_colour(const struct model_machine *machine)
{
    enum screen_style style = layout_colour(machine);
    return style == SCREEN_GOOD   ? SCREEN_GOOD_BAND
           : style == SCREEN_WARN ? SCREEN_WARN_BAND
           : style == SCREEN_BAD  ? SCREEN_BAD_BAND
                                  : SCREEN_DIM_BAND;
}

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

void layout_count(char *to, size_t room, double value)
{
    if (value >= 0)
        snprintf(to, room, "%.0f", value);
    else
        snprintf(to, room, "-");
}

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
