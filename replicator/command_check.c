/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/guest_driver.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static const char *const verdicts[] = {
    [QEMU_FINDING_OK] = "ok", [QEMU_FINDING_WARNING] = "warning", [QEMU_FINDING_REFUSED] = "refused"};

struct subject {
    char qmp_path[256];
    struct config *config;     /* a bare socket or domain has none */
    struct qemu_domain domain; /* its name is set if that is what is meant */
};

/* The argument is a QMP socket, a configuration, or, where there is none of that name, libvirt's domain. */
static int find_subject(const struct command_line *line, struct subject *ret_subject)
{
    struct stat status;
    char path[512];
    if (stat(line->config, &status) == 0 && S_ISSOCK(status.st_mode)) {
        snprintf(ret_subject->qmp_path, sizeof ret_subject->qmp_path, "%s", line->config);
        return 0;
    }
    int r = config_path(line->config, path, sizeof path);
    if (r == 0 && !strchr(line->config, '/') && stat(path, &status) < 0 && errno == ENOENT) {
        ret_subject->domain = (struct qemu_domain){.name = line->config};
        return 0;
    }
    if (r == 0)
        r = config_load(path, line->host, &ret_subject->config);
    if (r < 0)
        return r;
    return 0;
}

int command_check(int argc, char **argv)
{
    static const char help[] = "Usage: understudy check QMP-SOCKET|CONFIG|DOMAIN [--host NAME] [--json]\n\n"
                               "Say whether a running guest can be protected, and what stands in the way; "
                               "the guest is not touched.\n"
                               "A name without a configuration is a domain of libvirt's (qemu:///system).\n"
                               "Exit code 4: something refuses.\n";
    struct command_line line;
    int code = command_parse(argc, argv, "hj", &line);
    if (code != EXIT_OK)
        return code;
    if (line.help) {
        fputs(help, stdout);
        return EXIT_OK;
    }
    cleanup_free struct qemu_finding *findings = NULL;
    size_t count = 0;
    struct subject subject = {0};
    int r = find_subject(&line, &subject);
    if (r < 0) {
        fprintf(stderr, "understudy check: %s\n", error_text());
        return EXIT_USAGE;
    }
    if (subject.config)
        r = guest_check(subject.config, &findings, &count);
    else if (subject.domain.name)
        r = qemu_preflight_domain(&subject.domain, NULL, &findings, &count);
    else
        r = qemu_preflight(subject.qmp_path, NULL, &findings, &count);
    config_free(subject.config);
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
