/* SPDX-License-Identifier: Apache-2.0 */
#include "base/error.h"
#include "replicator/command.h"
#include "replicator/control.h"

#include <errno.h>
#include <string.h>

struct printer {
    bool json;
    bool stopped; /* the latest event was the engine's orderly end */
    bool refused;
};

static void print_line(const json_t *e)
{
    if (!strcmp(words(e, "event"), "dropped")) {
        printf("(%.0f events were lost: this reader was too slow)\n", number(e, "count"));
        return;
    }
    printf("%s %s on %s, %s: %s (generation %.0f, checkpoint %.0f)%s%s\n", words(e, "time"), words(e, "vm"),
           words(e, "host"), words(e, "role"), words(e, "event"), number(e, "generation"),
           number(e, "committed_epoch"), words(e, "reason")[0] ? ": " : "", words(e, "reason"));
}

/* As control_follow takes it: other than 0 ends the reading. */
static int on_line(void *ctx, json_t *object)
{
    struct printer *printer = ctx;
    const char *refusal = json_string_value(json_object_get(object, "error"));
    if (refusal) {
        fprintf(stderr, "understudy events: %s\n", refusal);
        printer->refused = true;
        return 1;
    }
    printer->stopped = !strcmp(words(object, "event"), "stopped");
    if (printer->json) {
        json_dumpf(object, stdout, JSON_COMPACT | JSON_REAL_PRECISION(15));
        putchar('\n');
    } else {
        print_line(object);
    }
    /* At once, each of them: a pipe would keep them back. */
    return fflush(stdout) ? error_errno(-errno, "standard output") : 0;
}

int command_events(int argc, char **argv)
{
    static const char help[] = "Usage: understudy events CONFIG [--host NAME] [--follow] [--json]\n\n"
                               "What happened to the machine since the daemon of this host started, one line "
                               "each: the latest 256 events.\n"
                               "Exit code 3: no daemon is running.\n\n"
                               "  --follow   go on with what happens; ends with the daemon: exit code 0 "
                               "after an orderly end, else 1\n";
    struct command_line line;
    struct config *config;
    char path[256];
    int code;
    if (!command_begin(argc, argv, "hjF", help, &line, &config, &code))
        return code;
    int r = config_file(config, config->self.run_dir, "sock", path, sizeof path);
    config_free(config);
    if (r < 0)
        return command_fail(argv[0], EXIT_USAGE);
    struct printer printer = {.json = line.json};
    json_t *request = json_pack("{s:s, s:b}", "command", "events", "follow", line.follow);
    r = control_follow(path, request, line.follow ? 0 : COMMAND_CALL_MS, on_line, &printer);
    if (printer.refused)
        return EXIT_REFUSED;
    if (r < 0)
        return command_fail(argv[0], r == -ENOENT || r == -ECONNREFUSED ? EXIT_ABSENT : EXIT_FAILED);
    if (line.follow && !printer.stopped) {
        fprintf(stderr, "understudy events: the daemon at '%s' ended\n", path);
        return EXIT_FAILED;
    }
    return EXIT_OK;
}
