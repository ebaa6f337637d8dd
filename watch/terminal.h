/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_TERMINAL_H
#define UNDERSTUDY_WATCH_TERMINAL_H

#include "watch/screen.h"

/* The terminal of this process, by ncurses. One at a time. */

enum terminal_key {
    TERMINAL_NONE, /* nothing was pressed */
    TERMINAL_OTHER,
    TERMINAL_QUIT,
    TERMINAL_UP,
    TERMINAL_DOWN,
    TERMINAL_PAGE_UP,
    TERMINAL_PAGE_DOWN,
    TERMINAL_FIRST,
    TERMINAL_LAST,
    TERMINAL_SORT,
    TERMINAL_PAUSE,
    TERMINAL_HELP,
    TERMINAL_RESIZED,
    TERMINAL_GONE, /* hung up */
};

/* Whether this process may write UTF-8. Sets the locale of characters from the environment. */
bool terminal_is_utf8(void);

/* -ENOTTY: input or output is no terminal; -ENODEV: one that terminfo does not know. */
int terminal_open(void);
void terminal_close(void);
void terminal_size(int *ret_rows, int *ret_columns);
void terminal_show(const struct screen *screen);
/* Does not wait: standard input says when there is something. */
enum terminal_key terminal_key(void);

#endif
