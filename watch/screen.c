/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/screen.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

void screen_clear(struct screen *screen, int rows, int columns)
{
    screen->rows = rows < 0 ? 0 : rows > SCREEN_ROWS_MAX ? SCREEN_ROWS_MAX : rows;
    screen->columns = columns < 0 ? 0 : columns > SCREEN_COLUMNS_MAX ? SCREEN_COLUMNS_MAX : columns;
    for (int row = 0; row < screen->rows; row++)
        for (int column = 0; column < screen->columns; column++)
            screen->cells[row][column] = (struct screen_cell){.glyph = " ", .style = SCREEN_PLAIN};
}

void screen_glyph(struct screen *screen, int row, int column, enum screen_style style, const char *glyph)
{
    if (row < 0 || row >= screen->rows || column < 0 || column >= screen->columns)
        return;
    snprintf(screen->cells[row][column].glyph, sizeof screen->cells[row][column].glyph, "%s", glyph);
    screen->cells[row][column].style = (unsigned char)style;
}

static void put_char(struct screen *screen, int row, int column, enum screen_style style, char c)
{
    screen_glyph(screen, row, column, style, (const char[]){c < ' ' || c > '~' ? '?' : c, 0});
}

int screen_put(struct screen *screen, int row, int column, enum screen_style style, const char *format, ...)
{
    char text[SCREEN_COLUMNS_MAX + 1];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (const char *at = text; *at; at++)
        put_char(screen, row, column++, style, *at);
    return column;
}

void screen_field(struct screen *screen, int row, int column, int width, enum screen_style style,
                  const char *text)
{
    int room = width < 0 ? -width : width, length = (int)strnlen(text, (size_t)room);
    int from = width < 0 ? column : column + room - length;
    for (int i = 0; i < length; i++)
        put_char(screen, row, from + i, style, text[i]);
}

void screen_band(struct screen *screen, int row, int column, int width, enum screen_style style)
{
    for (int i = 0; i < width; i++)
        if (row >= 0 && row < screen->rows && column + i >= 0 && column + i < screen->columns)
            screen->cells[row][column + i].style = (unsigned char)style;
}

void screen_text(const struct screen *screen, int row, char *ret_text, size_t room)
{
    size_t used = 0, end = 0;
    ret_text[0] = 0;
    for (int column = 0; column < screen->columns; column++) {
        const char *glyph = screen->cells[row][column].glyph;
        size_t length = strlen(glyph);
        if (used + length >= room)
            break;
        memcpy(ret_text + used, glyph, length);
        used += length;
        if (strcmp(glyph, " ") != 0)
            end = used;
    }
    ret_text[end] = 0;
}
