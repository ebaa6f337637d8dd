/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/terminal.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <langinfo.h>
#include <locale.h>
#include <ncurses.h>
#include <poll.h>
#include <string.h>

enum pair { PAIR_GOOD = 1, PAIR_WARN, PAIR_BAD, PAIR_GOOD_BAND, PAIR_WARN_BAND, PAIR_BAD_BAND };

static SCREEN *terminal;
static chtype attributes[SCREEN_STYLES];

bool terminal_is_utf8(void)
{
    setlocale(LC_CTYPE, "");
    return !strcmp(nl_langinfo(CODESET), "UTF-8");
}

/* Without colours the words say it, and what is bad stands out all the same. */
static void choose_attributes(void)
{
    static const chtype plain[SCREEN_STYLES] = {
        [SCREEN_DIM] = A_DIM,
        [SCREEN_BOLD] = A_BOLD,
        [SCREEN_BAR] = A_REVERSE,
        [SCREEN_PICK] = A_REVERSE,
        [SCREEN_WARN] = A_BOLD,
        [SCREEN_BAD] = A_BOLD | A_UNDERLINE,
        [SCREEN_GOOD_BAND] = A_REVERSE,
        [SCREEN_WARN_BAND] = A_REVERSE,
        [SCREEN_BAD_BAND] = A_REVERSE | A_BOLD,
        [SCREEN_DIM_BAND] = A_REVERSE,
    };
    memcpy(attributes, plain, sizeof attributes);
    if (!has_colors() || start_color() == ERR)
        return;
    use_default_colors();
    init_pair(PAIR_GOOD, COLOR_GREEN, -1);
    init_pair(PAIR_WARN, COLOR_YELLOW, -1);
    init_pair(PAIR_BAD, COLOR_RED, -1);
    init_pair(PAIR_GOOD_BAND, COLOR_BLACK, COLOR_GREEN);
    init_pair(PAIR_WARN_BAND, COLOR_BLACK, COLOR_YELLOW);
    init_pair(PAIR_BAD_BAND, COLOR_WHITE, COLOR_RED);
    attributes[SCREEN_GOOD] = COLOR_PAIR(PAIR_GOOD);
    attributes[SCREEN_WARN] = COLOR_PAIR(PAIR_WARN);
    attributes[SCREEN_BAD] = COLOR_PAIR(PAIR_BAD) | A_BOLD;
    attributes[SCREEN_GOOD_BAND] = COLOR_PAIR(PAIR_GOOD_BAND);
    attributes[SCREEN_WARN_BAND] = COLOR_PAIR(PAIR_WARN_BAND);
    attributes[SCREEN_BAD_BAND] = COLOR_PAIR(PAIR_BAD_BAND) | A_BOLD;
}

int terminal_open(void)
{
    if (!isatty(STDIN_FILENO) || !isatty(STDOUT_FILENO))
        return error_set(-ENOTTY, "standard %s is no terminal; --once and --json need none",
                         isatty(STDIN_FILENO) ? "output" : "input");
    const char *name = getenv("TERM");
    terminal = newterm(NULL, stdout, stdin);
    if (!terminal)
        return error_set(-ENODEV, "the terminal '%s' (TERM) is not known here; --once and --json need none",
                         name ? name : "");
    set_term(terminal);
    set_escdelay(25);
    cbreak();
    noecho();
    nodelay(stdscr, true);
    keypad(stdscr, true);
    curs_set(0);
    choose_attributes();
    return 0;
}

void terminal_close(void)
{
    if (!terminal)
        return;
    endwin();
    delscreen(terminal);
    terminal = NULL;
}

void terminal_size(int *ret_rows, int *ret_columns)
{
    getmaxyx(stdscr, *ret_rows, *ret_columns);
}

void terminal_show(const struct screen *screen)
{
    erase();
    for (int row = 0; row < screen->rows; row++)
        for (int column = 0; column < screen->columns; column++) {
            const struct screen_cell *cell = &screen->cells[row][column];
            attrset((attr_t)attributes[cell->style]);
            mvaddstr(row, column, cell->glyph);
        }
    attrset(A_NORMAL);
    refresh();
}

enum terminal_key terminal_key(void)
{
    static const struct {
        int code;
        enum terminal_key key;
    } keys[] = {{'q', TERMINAL_QUIT},
                {'k', TERMINAL_UP},
                {KEY_UP, TERMINAL_UP},
                {'j', TERMINAL_DOWN},
                {KEY_DOWN, TERMINAL_DOWN},
                {KEY_PPAGE, TERMINAL_PAGE_UP},
                {KEY_NPAGE, TERMINAL_PAGE_DOWN},
                {KEY_HOME, TERMINAL_FIRST},
                {KEY_END, TERMINAL_LAST},
                {'s', TERMINAL_SORT},
                {'p', TERMINAL_PAUSE},
                {' ', TERMINAL_PAUSE},
                {'h', TERMINAL_HELP},
                {'?', TERMINAL_HELP},
                {KEY_RESIZE, TERMINAL_RESIZED}};
    struct pollfd input = {.fd = STDIN_FILENO, .events = POLLIN};
    int code = getch();
    if (code == ERR) /* input at its end reads as nothing, again and again */
        return poll(&input, 1, 0) > 0 && (input.revents & (POLLHUP | POLLERR)) ? TERMINAL_GONE
                                                                               : TERMINAL_NONE;
    for (size_t i = 0; i < array_length(keys); i++)
        if (keys[i].code == code)
            return keys[i].key;
    return TERMINAL_OTHER;
}
