/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_OPTIONS_H
#define UNDERSTUDY_WATCH_OPTIONS_H

#include "watch/find.h"

#include <stdint.h>

/* The command lines of `top` and `metrics`. */

struct watch_options {
    bool help, once, json;
    const char *listen;  /* NULL: not given */
    const char *run_dir; /* where daemons are looked for, unless configurations are named */
    const char *host;
    uint64_t interval_ns;
    unsigned limit_ms; /* for a daemon's answer */
    char *const *configs;
    unsigned config_count;
};

/* `accepted`: letters of the options permitted: o(nce) j(son) i(nterval) L(isten) r(un-dir) h(ost) t(imeout).
 * Returns an exit code, having said why it is not EXIT_OK. */
int watch_options_parse(int argc, char **argv, const char *accepted, struct watch_options *ret_options);

/* The daemons that these options name. */
int watch_options_find(const struct watch_options *options, struct find_list *ret_list);

#endif
