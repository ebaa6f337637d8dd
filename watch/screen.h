/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_SCREEN_H
#define UNDERSTUDY_WATCH_SCREEN_H

#include <stdbool.h>
#include <stddef.h>

/*
 * A rectangle of characters with styles, which a terminal, a pipe or a test shows. What is written beyond an
 * edge is cut off there. Where no UTF-8 may be written (`ascii`), layout.c asks for other glyphs.
 */

enum screen_style {
    SCREEN_PLAIN,
    SCREEN_DIM,
    SCREEN_BOLD,
    SCREEN_BAR,  /* title and foot */
    SCREEN_PICK, /* the selected row */
    SCREEN_GOOD, /* text in the colour of each */
    SCREEN_WARN,
    SCREEN_BAD,
    SCREEN_GOOD_BAND, /* black on it */
    SCREEN_WARN_BAND,
    SCREEN_BAD_BAND,
    SCREEN_DIM_BAND,
    SCREEN_STYLES,
};

#define SCREEN_ROWS_MAX    300
#define SCREEN_COLUMNS_MAX 400

struct screen_cell {
    char glyph[4]; /* one column wide, NUL-terminated */
    unsigned char style;
};

struct screen {
    int rows, columns;
    bool ascii;
    struct screen_cell cells[SCREEN_ROWS_MAX][SCREEN_COLUMNS_MAX];
};

/* Spaces; sizes beyond the bounds are cut. */
void screen_clear(struct screen *screen, int rows, int columns);

/* Text of printable ASCII; anything else in it becomes '?'. Returns the column behind it. */
int screen_put(struct screen *screen, int row, int column, enum screen_style style, const char *format, ...)
    __attribute__((format(printf, 5, 6)));
/* The same in a field of `width` columns: to its right end, or (negative) to its left. Too long: cut. */
void screen_field(struct screen *screen, int row, int column, int width, enum screen_style style,
                  const char *text);
void screen_glyph(struct screen *screen, int row, int column, enum screen_style style, const char *glyph);
/* Style a part of a row, whatever stands there. */
void screen_band(struct screen *screen, int row, int column, int width, enum screen_style style);

/* The row as text without trailing spaces; `room` of 3 * SCREEN_COLUMNS_MAX + 1 is enough. */
void screen_text(const struct screen *screen, int row, char *ret_text, size_t room);

#endif
