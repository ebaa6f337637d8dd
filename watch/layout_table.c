/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/layout_internal.h"

#include "base/scope.h"

#include <stdio.h>
#include <string.h>

/* The table: one machine a row, and as many columns as fit. */

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
    layout_count(to, room, machine->sample.values[SAMPLE_GENERATION]);
}

TEXT_OF(epoch_text)
{
    (void)now_ns;
    layout_count(to, room, machine->sample.values[SAMPLE_COMMITTED_EPOCH]);
}

TEXT_OF(age_text)
{
    duration_text(to, room, model_commit_age_s(machine, now_ns));
}

TEXT_OF(p50_text)
{
    (void)now_ns;
    duration_text(to, room, layout_of(&machine->sample.pause, machine->sample.pause.p50_s));
}

TEXT_OF(p99_text)
{
    (void)now_ns;
    duration_text(to, room, layout_of(&machine->sample.pause, machine->sample.pause.p99_s));
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
    duration_text(to, room, layout_of(&machine->sample.output_delay, machine->sample.output_delay.p99_s));
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

#define NAME_LONGER_MAX 16
#define BARS_WIDTH_MIN  10

static int column_of_rank(int rank)
{
    int i = 0;
    while (columns_all[i].rank != rank) /* each rank is there */
        i++;
    return i;
}

/* What a screen of this width shows. */
struct plan {
    int widths[COLUMNS]; /* as column.width; 0: not shown */
    int bars_at;         /* 0: no bars */
};

/* Columns come in by rank while they fit; what is left over goes to long names, then to bars. */
static struct plan make_plan(int room)
{
    struct plan plan = {0};
    int used = 1, rank = 0;
    for (; rank < COLUMNS; rank++) {
        int i = column_of_rank(rank), width = 1 + abs(columns_all[i].width);
        if (used + width > room)
            return plan;
        plan.widths[i] = columns_all[i].width;
        used += width;
    }
    int spare = room - used - 1 - BARS_WIDTH_MIN;
    if (spare < 0)
        return plan;
    int longer = spare < NAME_LONGER_MAX ? spare : NAME_LONGER_MAX;
    plan.widths[0] -= longer;
    plan.bars_at = used + longer + 1;
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
        enum screen_style style = column->text == word_text ? layout_colour(machine) : SCREEN_PLAIN;
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
        screen_band(screen, row, word_at, (int)strlen(model_word(machine)), layout_band_colour(machine));
    }
}

unsigned layout_first(const struct model *model, int rows)
{
    unsigned page = rows > 0 ? (unsigned)rows : 1;
    return model->selected / page * page;
}

void layout_table(struct screen *screen, const struct model *model, const struct layout_view *view, int row,
                  int rows, bool picks)
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
    unsigned first = layout_first(model, rows);
    for (unsigned i = first; i < model->count && i < first + (unsigned)rows; i++)
        draw_row(screen, row + 1 + (int)(i - first), model->machines[i], picks && i == model->selected, &plan,
                 view->now_ns);
    if (!model->count)
        screen_put(screen, row + 2, 2, SCREEN_PLAIN, "no daemon in %s%s%s", view->place,
                   view->note[0] ? ": " : "", view->note);
}
