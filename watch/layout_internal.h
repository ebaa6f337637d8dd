/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_LAYOUT_INTERNAL_H
#define UNDERSTUDY_WATCH_LAYOUT_INTERNAL_H

#include "watch/layout.h"

#include <math.h>

/* The parts of the screen, shared by watch/layout*.c. */

#define LAYOUT_BAND_ROWS 3
#define LAYOUT_BARS_MIN  2
#define LAYOUT_FACTS_MAX 14

/* What is good, what wants eyes, what wants help: of the machine, or of its daemon. */
enum screen_style layout_colour(const struct model_machine *machine);
/* The same as a ground to write on. */
enum screen_style layout_band_colour(const struct model_machine *machine);

/* A whole number, "-" for NAN. */
void layout_count(char *to, size_t room, double value);

/* A value of `times`, NAN while nothing was measured. */
static inline double layout_of(const struct sample_times *times, double value)
{
    return times->told && times->count > 0 ? value : NAN;
}

/* layout_table.c: head and machines in 1 + `rows` rows; `picks`: the selected one is marked. */
void layout_table(struct screen *screen, const struct model *model, const struct layout_view *view, int row,
                  int rows, bool picks);
/* The first machine that is shown in so many rows: of the page with the selected one. */
unsigned layout_first(const struct model *model, int rows);

/* layout_large.c: one machine in `rows` rows from `row` on. */
void layout_large(struct screen *screen, int row, int rows, const struct model_machine *machine,
                  uint64_t now_ns);
/* Rows that so many facts take. */
int layout_fact_rows(unsigned count, int columns);

#endif
