/* SPDX-License-Identifier: Apache-2.0 */
#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/command.h"
#include "watch/layout.h"
#include "watch/options.h"
#include "watch/terminal.h"
#include "watch/watch.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <time.h>

/*
 * The loop sleeps on the terminal and on the daemons' answers, never for one of them: a daemon that hangs
 * costs a line on the screen.
 */

#define ONCE_COLUMNS 160 /* of a plain frame, whoever reads it: room for all columns */

struct top {
    struct watch_options options;
    struct find_list list;
    struct collect *collect;
    struct model *model;
    struct screen *screen;
    char note[ERROR_TEXT_MAX];
};

static volatile sig_atomic_t ended;

static void on_signal(int number)
{
    (void)number;
    ended = 1;
}

static void on_answer(void *ctx, const struct collect_answer *answer)
{
    struct top *top = ctx;
    if (!top->model->paused)
        model_tell(top->model, answer, clock_now_ns());
}

/* Daemons come and go: look for them anew each time. Configurations are read once. */
static int look(struct top *top)
{
    if (!top->options.config_count) {
        int r = find_sockets(top->options.run_dir, &top->list);
        top->note[0] = 0;
        if (r < 0)
            snprintf(top->note, sizeof top->note, "%s", error_text());
        else if (top->list.more)
            snprintf(top->note, sizeof top->note, "more than %d daemons", FIND_MAX);
    }
    return model_found(top->model, &top->list, clock_now_ns());
}

static void view_now(const struct top *top, char clock[16], struct layout_view *ret_view)
{
    time_t now = time(NULL);
    struct tm local;
    localtime_r(&now, &local);
    strftime(clock, 16, "%H:%M:%S", &local);
    *ret_view = (struct layout_view){.clock = clock,
                                     .place = top->options.config_count ? "these configurations"
                                                                        : top->options.run_dir,
                                     .note = top->note,
                                     .now_ns = clock_now_ns()};
}

/* --- one frame --- */

/* From the first row with text to the last. */
static void print_screen(const struct screen *screen)
{
    char text[3 * SCREEN_COLUMNS_MAX + 1];
    int blank = -1;
    for (int row = 0; row < screen->rows; row++) {
        screen_text(screen, row, text, sizeof text);
        if (!text[0]) {
            blank += blank >= 0;
            continue;
        }
        for (; blank > 0; blank--)
            putchar('\n');
        blank = 0;
        puts(text);
    }
}

static int print_json(const struct top *top)
{
    char text[32];
    time_t now = time(NULL);
    struct tm utc;
    json_t *all = model_json(top->model, clock_now_ns());
    if (!all) {
        error_set(-ENOMEM, "out of memory");
        return command_fail("top", EXIT_FAILED);
    }
    gmtime_r(&now, &utc);
    strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%SZ", &utc);
    json_object_set_new(all, "time", json_string(text));
    command_print_json(all);
    json_decref(all);
    return EXIT_OK;
}

/* Rates need two answers. */
static int once(struct top *top)
{
    unsigned live = 0;
    for (int i = 0; i < 2; i++) {
        struct timespec interval = {.tv_sec = (time_t)(top->options.interval_ns / NS_PER_S),
                                    .tv_nsec = (long)(top->options.interval_ns % NS_PER_S)};
        if (i && top->model->count)
            nanosleep(&interval, NULL);
        if (look(top) < 0)
            return command_fail("top", EXIT_FAILED);
        collect_all(top->collect, &top->list);
    }
    for (unsigned i = 0; i < top->model->count; i++)
        live += top->model->machines[i]->link == MODEL_LIVE;
    int code = EXIT_OK;
    if (top->options.json) {
        code = print_json(top);
    } else {
        struct layout_view view;
        char clock[16];
        view_now(top, clock, &view);
        layout_overview(top->screen, top->model, &view, ONCE_COLUMNS);
        print_screen(top->screen);
        for (unsigned i = 0; i < top->model->count; i++) {
            layout_machine(top->screen, top->model, i, &view, ONCE_COLUMNS);
            putchar('\n');
            print_screen(top->screen);
        }
    }
    return code != EXIT_OK ? code : live ? EXIT_OK : EXIT_ABSENT;
}

/* --- live --- */

/* False: end. */
static bool take_keys(struct top *top)
{
    static const enum model_key meanings[] = {
        [TERMINAL_UP] = MODEL_UP,           [TERMINAL_DOWN] = MODEL_DOWN,
        [TERMINAL_PAGE_UP] = MODEL_PAGE_UP, [TERMINAL_PAGE_DOWN] = MODEL_PAGE_DOWN,
        [TERMINAL_FIRST] = MODEL_FIRST,     [TERMINAL_LAST] = MODEL_LAST,
        [TERMINAL_SORT] = MODEL_SORT,       [TERMINAL_PAUSE] = MODEL_PAUSE,
        [TERMINAL_HELP] = MODEL_HELP};
    for (enum terminal_key key; (key = terminal_key()) != TERMINAL_NONE;) {
        if (key == TERMINAL_QUIT || key == TERMINAL_GONE)
            return false;
        if (key >= TERMINAL_UP && key <= TERMINAL_HELP)
            model_press(top->model, meanings[key]);
    }
    return true;
}

static void draw(struct top *top, uint64_t *frozen_ns)
{
    struct layout_view view;
    char clock[16];
    int rows, columns;
    view_now(top, clock, &view);
    if (!top->model->paused)
        *frozen_ns = view.now_ns;
    view.now_ns = *frozen_ns;
    terminal_size(&rows, &columns);
    layout_draw(top->screen, top->model, &view, rows, columns);
    terminal_show(top->screen);
}

static void sleep_until(const struct top *top, uint64_t until_ns, const sigset_t *mask)
{
    uint64_t now = clock_now_ns(), late = collect_deadline_ns(top->collect);
    until_ns = late < until_ns ? late : until_ns;
    uint64_t wait = until_ns > now ? until_ns - now : 0;
    struct timespec timeout = {.tv_sec = (time_t)(wait / NS_PER_S), .tv_nsec = (long)(wait % NS_PER_S)};
    struct pollfd fds[] = {{.fd = STDIN_FILENO, .events = POLLIN},
                           {.fd = collect_fd(top->collect), .events = POLLIN}};
    ppoll(fds, array_length(fds), &timeout, mask);
}

static int live(struct top *top)
{
    /* Signals come while we sleep, and only then, so that none is missed before a sleep. */
    struct sigaction action = {.sa_handler = on_signal};
    sigset_t blocked, before;
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGWINCH);
    for (size_t i = 0; i < array_length(numbers); i++) {
        sigaddset(&blocked, numbers[i]);
        sigaction(numbers[i], &action, NULL);
    }
    sigprocmask(SIG_BLOCK, &blocked, &before);
    int r = terminal_open();
    if (r < 0)
        return command_fail("top", EXIT_USAGE);
    uint64_t next_ns = 0, frozen_ns = 0;
    while (!ended && take_keys(top)) {
        uint64_t now = clock_now_ns();
        if (now >= next_ns) {
            next_ns = now + top->options.interval_ns;
            if (!top->model->paused && (r = look(top)) < 0)
                break;
            for (unsigned i = 0; !top->model->paused && i < top->list.count; i++)
                collect_ask(top->collect, top->list.paths[i], now);
        }
        draw(top, &frozen_ns);
        sleep_until(top, next_ns, &before);
        collect_step(top->collect, clock_now_ns());
    }
    terminal_close();
    return r < 0 ? command_fail("top", EXIT_FAILED) : EXIT_OK;
}

int command_top(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy top [CONFIG...] [--host NAME] [--run-dir DIR] [--interval TIME] [--timeout TIME]\n"
        "                      [--once] [--json]\n\n"
        "All machines that daemons of this host protect, or stand by for, live. Without CONFIG: every daemon "
        "whose\n"
        "control socket is in DIR. Keys: h shows them. Exit code 3 (--once, --json): no daemon answers.\n\n"
        "  --run-dir DIR     where the sockets are (default " FIND_RUN_DIR ")\n"
        "  --interval TIME   ask so often (default 1s; 100ms to 60s)\n"
        "  --timeout TIME    a daemon that has not answered then is shown as such (default 1s; 10ms to 60s)\n"
        "  --once            print one frame as text: needs no terminal, takes one interval\n"
        "  --json            the same as one JSON object\n";
    struct top top = {0};
    int code = watch_options_parse(argc, argv, "ojirht", &top.options);
    if (code != EXIT_OK)
        return code;
    if (top.options.help) {
        fputs(help, stdout);
        return EXIT_OK;
    }
    if (watch_options_find(&top.options, &top.list) < 0)
        return command_fail(argv[0], EXIT_USAGE);
    top.model = model_new();
    top.screen = calloc(1, sizeof *top.screen);
    if (!top.model || !top.screen) {
        error_set(-ENOMEM, "out of memory");
        code = command_fail(argv[0], EXIT_FAILED);
    } else if (collect_new(&top.collect, top.options.limit_ms, on_answer, &top) < 0) {
        code = command_fail(argv[0], EXIT_FAILED);
    } else {
        top.screen->ascii = !terminal_is_utf8();
        code = top.options.once || top.options.json ? once(&top) : live(&top);
    }
    collect_free(top.collect);
    model_free(top.model);
    free(top.screen);
    return code;
}
