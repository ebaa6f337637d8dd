/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_MODEL_H
#define UNDERSTUDY_WATCH_MODEL_H

#include "watch/collect.h"

/*
 * What `understudy top` knows: the machines of this host, what their daemons said last, and what follows from
 * two answers (rates, the pauses of each interval). Pure: answers and times are handed in, layout.h makes
 * lines of it.
 */

#define MODEL_PAST    240            /* intervals whose pauses are remembered */
#define MODEL_KEEP_NS 60000000000ull /* how long a daemon that went is shown */

enum model_link {
    MODEL_ASKED, /* never told of yet */
    MODEL_LIVE,
    MODEL_SILENT,
    MODEL_BROKEN,
    MODEL_GONE,
};

struct model_machine {
    char path[FIND_PATH_MAX];
    enum model_link link;
    uint64_t link_since_ns;
    char why[200]; /* of a link that is not live */

    bool told; /* the rest holds: an answer came once, at told_ns */
    struct sample sample;
    uint64_t told_ns;
    json_t *status;
    double dirty_bytes_per_s, wire_bytes_per_s; /* between the last two answers; NAN: not known */
    double past[MODEL_PAST]; /* mean pause of each interval in seconds, the latest last; NAN: no checkpoint */
    unsigned past_count;
};

enum model_sort {
    MODEL_BY_NAME,
    MODEL_BY_PROTECTION,
    MODEL_BY_PAUSE,
    MODEL_BY_DIRTY,
    MODEL_BY_WIRE,
    MODEL_SORTS
};

enum model_key {
    MODEL_UP,
    MODEL_DOWN,
    MODEL_PAGE_UP,
    MODEL_PAGE_DOWN,
    MODEL_FIRST,
    MODEL_LAST, /* the last that selects */
    MODEL_SORT,
    MODEL_PAUSE,
    MODEL_HELP,
};

struct model {
    struct model_machine *machines[FIND_MAX]; /* in the order in which they are shown */
    unsigned count, selected;
    bool chosen; /* by a key */
    enum model_sort sort;
    bool paused; /* what comes is not shown: the owner asks nobody meanwhile */
    bool help;
};

struct model *model_new(void); /* NULL: out of memory */
void model_free(struct model *model);

/* These are there now: new ones come in, others are gone, and are forgotten after MODEL_KEEP_NS. -ENOMEM. */
int model_found(struct model *model, const struct find_list *list, uint64_t now_ns);
/* Of a machine that is not known: nothing happens. */
void model_tell(struct model *model, const struct collect_answer *answer, uint64_t now_ns);
void model_press(struct model *model, enum model_key key);

/* What is said of a machine in one word: its protection, or what is wrong with its daemon. */
const char *model_word(const struct model_machine *machine);
/* Since when that is so, in seconds; NAN: not known. */
double model_word_s(const struct model_machine *machine, uint64_t now_ns);
/* Why, "" where there is nothing to say. */
const char *model_why(const struct model_machine *machine);
/* The newest checkpoint's age now, in seconds; NAN: there is none. */
double model_commit_age_s(const struct model_machine *machine, uint64_t now_ns);
/* Its name, or that of its socket while nobody has answered there. */
const char *model_name(const struct model_machine *machine);

const char *model_sort_name(enum model_sort sort);

/* Everything, for programs: an object of its own, the caller's. docs/man/understudy.1.scd describes it. */
json_t *model_json(const struct model *model, uint64_t now_ns);

#endif
