/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/model.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define PAGE 10

struct model *model_new(void)
{
    return calloc(1, sizeof(struct model));
}

static void machine_free(struct model_machine *machine)
{
    json_decref(machine->status);
    free(machine);
}

void model_free(struct model *model)
{
    for (unsigned i = 0; model && i < model->count; i++)
        machine_free(model->machines[i]);
    free(model);
}

/* --- order --- */

/* What needs somebody's eyes most comes first. */
static int urgency(const struct model_machine *machine)
{
    if (machine->link != MODEL_LIVE)
        return machine->link == MODEL_ASKED ? 5 : 1;
    switch (machine->sample.protection) {
    case SAMPLE_IS_UNPROTECTED:
        return 0;
    case SAMPLE_IS_DEGRADED:
        return 2;
    case SAMPLE_IS_PROTECTED:
        return 3;
    case SAMPLE_IS_AWAY:
        break;
    }
    return 4;
}

/* By what the table shows; what is not known comes last. */
static double weight(const struct model_machine *machine, enum model_sort sort)
{
    double value = NAN;
    if (sort == MODEL_BY_PROTECTION)
        return -urgency(machine);
    if (machine->told && machine->link == MODEL_LIVE)
        value = sort == MODEL_BY_PAUSE && machine->sample.pause.told ? machine->sample.pause.p99_s
                : sort == MODEL_BY_DIRTY                             ? machine->dirty_bytes_per_s
                : sort == MODEL_BY_WIRE                              ? machine->wire_bytes_per_s
                                                                     : NAN;
    return value >= 0 ? value : -1;
}

static int compare(const void *left, const void *right, void *model)
{
    const struct model_machine *a = *(struct model_machine *const *)left;
    const struct model_machine *b = *(struct model_machine *const *)right;
    enum model_sort sort = ((struct model *)model)->sort;
    double difference = sort == MODEL_BY_NAME ? 0 : weight(b, sort) - weight(a, sort);
    if (difference > 0 || difference < 0)
        return difference > 0 ? 1 : -1;
    int names = strcmp(model_name(a), model_name(b));
    return names ? names : strcmp(a->path, b->path);
}

/* The selection stays with its machine; with the first row, as long as nobody has chosen one. */
static void order(struct model *model)
{
    const struct model_machine *selected =
        model->count && model->chosen ? model->machines[model->selected] : NULL;
    qsort_r(model->machines, model->count, sizeof model->machines[0], compare, model);
    for (unsigned i = 0; i < model->count; i++)
        if (model->machines[i] == selected)
            model->selected = i;
}

/* --- what comes --- */

static void set_link(struct model_machine *machine, enum model_link link, const char *why, uint64_t now_ns)
{
    if (machine->link != link)
        machine->link_since_ns = now_ns;
    machine->link = link;
    snprintf(machine->why, sizeof machine->why, "%s", why);
}

static bool listed(const struct find_list *list, const char *path)
{
    for (unsigned i = 0; i < list->count; i++)
        if (!strcmp(list->paths[i], path))
            return true;
    return false;
}

static struct model_machine *find(const struct model *model, const char *path)
{
    for (unsigned i = 0; i < model->count; i++)
        if (!strcmp(model->machines[i]->path, path))
            return model->machines[i];
    return NULL;
}

static void forget(struct model *model, unsigned index)
{
    machine_free(model->machines[index]);
    model->count--;
    memmove(&model->machines[index], &model->machines[index + 1],
            (model->count - index) * sizeof model->machines[0]);
    if (model->selected > index || (model->selected == model->count && model->selected))
        model->selected--;
}

int model_found(struct model *model, const struct find_list *list, uint64_t now_ns)
{
    for (unsigned i = 0; i < model->count;) {
        struct model_machine *machine = model->machines[i];
        if (!listed(list, machine->path)) {
            if (machine->link == MODEL_GONE && now_ns - machine->link_since_ns >= MODEL_KEEP_NS) {
                forget(model, i);
                continue;
            }
            set_link(machine, MODEL_GONE, "its daemon has ended", now_ns);
        }
        i++;
    }
    for (unsigned i = 0; i < list->count; i++) {
        if (find(model, list->paths[i]) || model->count == FIND_MAX)
            continue;
        struct model_machine *machine = calloc(1, sizeof *machine);
        if (!machine)
            return error_set(-ENOMEM, "top: out of memory");
        snprintf(machine->path, sizeof machine->path, "%s", list->paths[i]);
        machine->link_since_ns = now_ns;
        machine->dirty_bytes_per_s = machine->wire_bytes_per_s = NAN;
        for (unsigned value = 0; value < SAMPLE_VALUES; value++)
            machine->sample.values[value] = NAN;
        model->machines[model->count++] = machine;
    }
    order(model);
    return 0;
}

/* Of a counter: one that runs backwards is another engine's. */
static double rate(const struct sample *before, const struct sample *after, enum sample_value value,
                   double seconds)
{
    double more = after->values[value] - before->values[value];
    return more >= 0 && seconds > 0 ? more / seconds : NAN;
}

static void push_pause(struct model_machine *machine, const struct sample_times *before,
                       const struct sample_times *after)
{
    double count = after->count - before->count, sum = after->sum_s - before->sum_s;
    double mean = before->told && after->told && count > 0 && sum >= 0 ? sum / count : NAN;
    if (machine->past_count == MODEL_PAST)
        memmove(machine->past, machine->past + 1, --machine->past_count * sizeof machine->past[0]);
    machine->past[machine->past_count++] = mean;
}

static void take_answer(struct model_machine *machine, const struct collect_answer *answer, uint64_t now_ns)
{
    const struct sample *after = answer->sample, *before = &machine->sample;
    if (machine->told) {
        double seconds = (double)(now_ns - machine->told_ns) / NS_PER_S;
        bool both = before->protection == SAMPLE_IS_PROTECTED && after->protection == SAMPLE_IS_PROTECTED;
        machine->wire_bytes_per_s = rate(before, after, SAMPLE_WIRE_BYTES, seconds);
        /* What is sent while a copy is made says nothing about what the guest writes. */
        machine->dirty_bytes_per_s = both ? rate(before, after, SAMPLE_GUEST_BYTES, seconds) : NAN;
        push_pause(machine, &before->pause, &after->pause);
    }
    machine->sample = *after;
    machine->told = true;
    machine->told_ns = now_ns;
    json_decref(machine->status);
    machine->status = json_incref(answer->status);
    set_link(machine, MODEL_LIVE, "", now_ns);
}

void model_tell(struct model *model, const struct collect_answer *answer, uint64_t now_ns)
{
    struct model_machine *machine = find(model, answer->path);
    if (!machine)
        return;
    switch (answer->outcome) {
    case COLLECT_ANSWERED:
        take_answer(machine, answer, now_ns);
        break;
    case COLLECT_ABSENT:
        set_link(machine, MODEL_GONE, answer->why, now_ns);
        break;
    case COLLECT_SILENT:
        set_link(machine, MODEL_SILENT, answer->why, now_ns);
        break;
    case COLLECT_BROKEN:
        set_link(machine, MODEL_BROKEN, answer->why, now_ns);
        break;
    }
    order(model);
}

void model_press(struct model *model, enum model_key key)
{
    unsigned last = model->count ? model->count - 1 : 0;
    model->chosen = model->chosen || key <= MODEL_LAST;
    unsigned step = key == MODEL_PAGE_UP || key == MODEL_PAGE_DOWN ? PAGE : 1;
    switch (key) {
    case MODEL_UP:
    case MODEL_PAGE_UP:
        model->selected -= model->selected < step ? model->selected : step;
        break;
    case MODEL_DOWN:
    case MODEL_PAGE_DOWN:
        model->selected = model->selected + step > last ? last : model->selected + step;
        break;
    case MODEL_FIRST:
        model->selected = 0;
        break;
    case MODEL_LAST:
        model->selected = last;
        break;
    case MODEL_SORT:
        model->sort = (model->sort + 1) % MODEL_SORTS;
        order(model);
        break;
    case MODEL_PAUSE:
        model->paused = !model->paused;
        break;
    case MODEL_HELP:
        model->help = !model->help;
        break;
    }
}

/* --- what is said --- */

const char *model_name(const struct model_machine *machine)
{
    return machine->told ? machine->sample.machine : find_name(machine->path);
}

const char *model_word(const struct model_machine *machine)
{
    static const char *const words[] = {[MODEL_ASKED] = "ASKED",
                                        [MODEL_SILENT] = "NO ANSWER",
                                        [MODEL_BROKEN] = "BROKEN",
                                        [MODEL_GONE] = "GONE"};
    return machine->link == MODEL_LIVE ? sample_protection_name(machine->sample.protection)
                                       : words[machine->link];
}

double model_word_s(const struct model_machine *machine, uint64_t now_ns)
{
    if (machine->link != MODEL_LIVE)
        return (double)(now_ns - machine->link_since_ns) / NS_PER_S;
    const struct sample *sample = &machine->sample;
    bool lacks = sample->protection == SAMPLE_IS_UNPROTECTED || sample->protection == SAMPLE_IS_DEGRADED;
    enum sample_value value =
        lacks && sample_told(sample, SAMPLE_UNPROTECTED_S) ? SAMPLE_UNPROTECTED_S : SAMPLE_SINCE_S;
    return sample->values[value] + (double)(now_ns - machine->told_ns) / NS_PER_S;
}

const char *model_why(const struct model_machine *machine)
{
    return machine->link == MODEL_LIVE ? machine->sample.reason : machine->why;
}

double model_commit_age_s(const struct model_machine *machine, uint64_t now_ns)
{
    if (!machine->told)
        return NAN;
    /* Of a daemon that answers: as it said. Of another the checkpoint grows old meanwhile, for all we know.
     */
    double since = machine->link == MODEL_LIVE ? 0 : (double)(now_ns - machine->told_ns) / NS_PER_S;
    return machine->sample.values[SAMPLE_COMMIT_AGE_S] + since;
}

const char *model_sort_name(enum model_sort sort)
{
    static const char *const names[MODEL_SORTS] = {[MODEL_BY_NAME] = "name",
                                                   [MODEL_BY_PROTECTION] = "urgency",
                                                   [MODEL_BY_PAUSE] = "pause p99",
                                                   [MODEL_BY_DIRTY] = "dirty rate",
                                                   [MODEL_BY_WIRE] = "wire rate"};
    return names[sort];
}

static json_t *real(double value)
{
    return value >= 0 ? json_real(value) : json_null();
}

json_t *model_json(const struct model *model, uint64_t now_ns)
{
    static const char *const links[] = {[MODEL_ASKED] = "asked",
                                        [MODEL_LIVE] = "live",
                                        [MODEL_SILENT] = "silent",
                                        [MODEL_BROKEN] = "broken",
                                        [MODEL_GONE] = "gone"};
    json_t *machines = json_array();
    for (unsigned i = 0; i < model->count; i++) {
        const struct model_machine *machine = model->machines[i];
        bool live = machine->link == MODEL_LIVE;
        json_array_append_new(
            machines, json_pack("{s:s, s:s, s:s, s:s, s:o, s:o, s:o, s:o}", "socket", machine->path, "daemon",
                                links[machine->link], "why", model_why(machine), "protection",
                                live ? sample_protection_name(machine->sample.protection) : "", "for_s",
                                real(model_word_s(machine, now_ns)), "dirty_bytes_per_s",
                                real(live ? machine->dirty_bytes_per_s : NAN), "wire_bytes_per_s",
                                real(live ? machine->wire_bytes_per_s : NAN), "status",
                                live ? json_incref(machine->status) : json_null()));
    }
    return json_pack("{s:o}", "machines", machines);
}
