/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/qemu/qemu.h"

#include <string.h>
#include <sys/stat.h>

static const char *const verdicts[] = {
    [QEMU_FINDING_OK] = "ok", [QEMU_FINDING_WARNING] = "warning", [QEMU_FINDING_REFUSED] = "refused"};

/* The argument is a QMP socket, or a configuration whose host has one. */
static int socket_of(const struct command_line *line, char *ret_path, size_t room)
{
    struct stat status;
    char path[512];
    struct config *config;
    if (stat(line->config, &status) == 0 && S_ISSOCK(status.st_mode)) {
        snprintf(ret_path, room, "%s", line->config);
        return 0;
    }
    int r = config_path(line->config, path, sizeof path);
    if (r == 0)
        r = config_load(path, line->host, &config);
    if (r < 0)
        return r;
    snprintf(ret_path, room, "%s", config->self.qmp);
    config_free(config);
    return 0;
}

int command_check(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy check QMP-SOCKET|CONFIG [--host NAME] [--json]\n\n"
        "Say whether a running QEMU can be protected, and what stands in the way; the guest is not touched.\n"
        "Exit code 4: something refuses.\n";
    struct command_line line;
    char path[256];
    int code = command_parse(argc, argv, "hj", &line);
    if (code != EXIT_OK)
        return code;
    if (line.help) {
        fputs(help, stdout);
        return EXIT_OK;
    }
    cleanup_free struct qemu_finding *findings = NULL;
    size_t count = 0;
    int r = socket_of(&line, path, sizeof path);
    if (r < 0) {
        fprintf(stderr, "understudy check: %s\n", error_text());
        return EXIT_USAGE;
    }
    r = qemu_preflight(path, &findings, &count);
    if (r < 0) {
        fprintf(stderr, "understudy check: %s\n", error_text());
        return EXIT_FAILED;
    }
    json_t *list = json_array();
    bool refused = false;
    for (size_t i = 0; i < count; i++) {
        refused |= findings[i].verdict == QEMU_FINDING_REFUSED;
        json_array_append_new(list, json_pack("{s:s, s:s, s:s}", "verdict", verdicts[findings[i].verdict],
                                              "subject", findings[i].subject, "text", findings[i].text));
        if (!line.json)
            printf("%-8s %-24s %s\n", verdicts[findings[i].verdict], findings[i].subject, findings[i].text);
    }
    json_t *object = json_pack("{s:b, s:o}", "protectable", !refused, "findings", list);
    if (line.json)
        command_print_json(object);
    json_decref(object);
    return refused ? EXIT_REFUSED : EXIT_OK;
}
