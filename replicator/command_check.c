/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/arbiter.h"
#include "vmm/qemu/qemu.h"

#include <errno.h>
#include <string.h>
#include <sys/stat.h>

static const char *const verdicts[] = {
    [QEMU_FINDING_OK] = "ok", [QEMU_FINDING_WARNING] = "warning", [QEMU_FINDING_REFUSED] = "refused"};

struct subject {
    char qmp_path[256];
    struct config *config; /* a bare socket or domain has none */
    struct qemu_domain domain;
    bool libvirt; /* `domain` is what is meant */
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
        ret_subject->libvirt = true;
        return 0;
    }
    if (r == 0)
        r = config_load(path, line->host, &ret_subject->config);
    if (r < 0)
        return r;
    const struct config *config = ret_subject->config;
    ret_subject->libvirt = config_domain(config, &ret_subject->domain);
    ret_subject->domain.machine = NULL; /* looking leaves no mark */
    if (!ret_subject->libvirt)
        snprintf(ret_subject->qmp_path, sizeof ret_subject->qmp_path, "%s", config->self.qmp);
    return 0;
}

/* Of a machine with an arbiter: is it there, and what does it say? */
static bool find_arbiter(const struct config *config, struct qemu_finding *ret_finding)
{
    struct arbiter *arbiter;
    uint64_t generation;
    char owner[ARBITER_OWNER_MAX];
    if (!config || !strcmp(config->arbiter, "none"))
        return false;
    *ret_finding = (struct qemu_finding){.verdict = QEMU_FINDING_OK, .subject = "arbiter"};
    int r = arbiter_open(&arbiter, config->arbiter, &config->etcd, config->uuid, config->self.name);
    if (r == 0) {
        r = arbiter_read(arbiter, &generation, owner);
        arbiter_close(arbiter);
    }
    if (r < 0) {
        ret_finding->verdict = QEMU_FINDING_WARNING;
        snprintf(ret_finding->text, sizeof ret_finding->text, "nobody can go on alone from here: %s",
                 error_text());
    } else if (generation) {
        snprintf(ret_finding->text, sizeof ret_finding->text, "%s: generation %llu, of %s", config->arbiter,
                 (unsigned long long)generation, owner);
    } else {
        snprintf(ret_finding->text, sizeof ret_finding->text, "%s: can be asked; nobody had to yet",
                 config->arbiter);
    }
    return true;
}

static json_t *tell(const struct qemu_finding *finding, bool json)
{
    if (!json)
        printf("%-8s %-24s %s\n", verdicts[finding->verdict], finding->subject, finding->text);
    return json_pack("{s:s, s:s, s:s}", "verdict", verdicts[finding->verdict], "subject", finding->subject,
                     "text", finding->text);
}

int command_check(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy check QMP-SOCKET|CONFIG|DOMAIN [--host NAME] [--json]\n\n"
        "Say whether a running QEMU can be protected, and what stands in the way; the guest is not touched.\n"
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
    const char *const *shared_disks =
        subject.config ? (const char *const *)subject.config->shared_disks : NULL;
    r = subject.libvirt ? qemu_preflight_domain(&subject.domain, shared_disks, &findings, &count)
                        : qemu_preflight(subject.qmp_path, shared_disks, &findings, &count);
    if (r < 0) {
        fprintf(stderr, "understudy check: %s\n", error_text());
        config_free(subject.config);
        return EXIT_FAILED;
    }
    json_t *list = json_array();
    bool refused = false;
    for (size_t i = 0; i < count; i++) {
        refused |= findings[i].verdict == QEMU_FINDING_REFUSED;
        json_array_append_new(list, tell(&findings[i], line.json));
    }
    struct qemu_finding arbiter;
    if (find_arbiter(subject.config, &arbiter))
        json_array_append_new(list, tell(&arbiter, line.json));
    config_free(subject.config);
    json_t *object = json_pack("{s:b, s:o}", "protectable", !refused, "findings", list);
    if (line.json)
        command_print_json(object);
    json_decref(object);
    return refused ? EXIT_REFUSED : EXIT_OK;
}
