/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_LAYOUT_H
#define UNDERSTUDY_WATCH_LAYOUT_H

#include "watch/model.h"
#include "watch/screen.h"

/* What `understudy top` shows, as a screen. Pure. */

struct layout_view {
    const char *clock; /* the time of day */
    const char *place; /* where daemons are looked for */
    const char *note;  /* what is wrong with that; "": nothing */
    uint64_t now_ns;
};

#define LAYOUT_ROWS_MIN    8
#define LAYOUT_COLUMNS_MIN 40

/* The whole screen: title, table, the selected machine at large, keys. */
void layout_draw(struct screen *screen, const struct model *model, const struct layout_view *view, int rows,
                 int columns);

/* For one plain frame: title and table of all machines; then one machine at large. */
void layout_overview(struct screen *screen, const struct model *model, const struct layout_view *view,
                     int columns);
void layout_machine(struct screen *screen, const struct model *model, unsigned index,
                    const struct layout_view *view, int columns);

/* Three digits and a unit, at most 8 columns: "4.65 ms", "12 min"; "3.40 MiB". "-" for NAN. */
#define LAYOUT_TEXT_MAX 16
const char *layout_duration(char to[LAYOUT_TEXT_MAX], double seconds);
const char *layout_bytes(char to[LAYOUT_TEXT_MAX], double bytes);

/* The latest pauses of `machine`, the newest to the right, as bars that are `rows` high at the largest of
 * them. Returns that one in seconds; NAN: no pause is known. */
double layout_bars(struct screen *screen, int row, int column, int rows, int width,
                   const struct model_machine *machine);

#endif
