/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/vmm.h"

#include "base/scope.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The lines of a text, sorted. A peer wrote one of them: nothing here is worse than n log n. */
struct lines {
    char *text;
    char **items;
    size_t count;
};

static void lines_free(struct lines *lines)
{
    free(lines->items);
    free(lines->text);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static bool split(struct lines *lines, const char *text)
{
    size_t most = 1;
    for (const char *at = text; *at; at++)
        most += *at == '\n';
    lines->text = strdup(text);
    lines->items = calloc(most, sizeof *lines->items);
    if (!lines->text || !lines->items)
        return false;
    char *save = NULL;
    for (char *line = strtok_r(lines->text, "\n", &save); line; line = strtok_r(NULL, "\n", &save))
        lines->items[lines->count++] = line;
    qsort(lines->items, lines->count, sizeof lines->items[0], compare);
    return true;
}

char *vmm_description_diff(const struct vmm_description *source, const struct vmm_description *target)
{
    struct lines ours cleanup(lines_free) = {0}, theirs cleanup(lines_free) = {0};
    char *text = NULL;
    size_t bytes = 0, i = 0, j = 0, shown = 0;
    if (!split(&theirs, source->text) || !split(&ours, target->text))
        return NULL;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return NULL;
    while ((i < theirs.count || j < ours.count) && shown < VMM_DIFF_LINES) {
        int order = i == theirs.count ? 1 : j == ours.count ? -1 : strcmp(theirs.items[i], ours.items[j]);
        if (order)
            shown += fprintf(out, "%c%.*s\n", order < 0 ? '-' : '+', VMM_DIFF_COLUMNS,
                             order < 0 ? theirs.items[i] : ours.items[j]) > 0;
        i += order <= 0;
        j += order >= 0;
    }
    if (fclose(out) != 0) {
        free(text);
        return NULL;
    }
    for (char *at = text; *at; at++) /* it goes to terminals */
        if (((unsigned char)*at < ' ' && *at != '\n') || *at == 0x7f)
            *at = '?';
    return text;
}
