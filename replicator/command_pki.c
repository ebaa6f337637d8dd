/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/scope.h"
#include "transport/pki.h"

#include <dirent.h>
#include <errno.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

static const char help[] =
    "Usage: understudy pki init DIR [--name NAME] [--days N]\n"
    "       understudy pki host DIR NAME [--days N]\n"
    "       understudy pki check DIR [--json]\n"
    "       understudy pki check --ca FILE --cert FILE --key FILE [--peer NAME] [--json]\n\n"
    "A small certificate authority for the two hosts. `init` makes DIR/ca.pem and DIR/ca.key; `host` makes "
    "DIR/NAME.pem and\n"
    "DIR/NAME.key for the host of that name; `check` says whether the files fit together and how long they "
    "hold. Copy\n"
    "ca.pem and a host's two files to that host, and keep ca.key away from both.\n";

struct pki_line {
    const char *name, *ca, *certificate, *key, *peer;
    unsigned days;
    bool json, help;
};

static int parse(int argc, char **argv, struct pki_line *line)
{
    static const struct option options[] = {{"name", required_argument, NULL, 'n'},
                                            {"days", required_argument, NULL, 'd'},
                                            {"ca", required_argument, NULL, 'a'},
                                            {"cert", required_argument, NULL, 'c'},
                                            {"key", required_argument, NULL, 'k'},
                                            {"peer", required_argument, NULL, 'p'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"help", no_argument, NULL, 'h'},
                                            {0}};
    char *end;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        switch (option) {
        case 'n':
            line->name = optarg;
            break;
        case 'd':
            line->days = (unsigned)strtoul(optarg, &end, 10);
            if (*end || line->days == 0 || line->days > PKI_DAYS_MAX) {
                fprintf(stderr, "understudy pki: --days %s: allowed are 1 to %d\n", optarg, PKI_DAYS_MAX);
                return EXIT_USAGE;
            }
            break;
        case 'a':
            line->ca = optarg;
            break;
        case 'c':
            line->certificate = optarg;
            break;
        case 'k':
            line->key = optarg;
            break;
        case 'p':
            line->peer = optarg;
            break;
        case 'j':
            line->json = true;
            break;
        case 'h':
            line->help = true;
            break;
        default:
            return EXIT_USAGE;
        }
    }
    return EXIT_OK;
}

static int fail(void)
{
    fprintf(stderr, "understudy pki: %s\n", error_text());
    return EXIT_FAILED;
}

static bool path_in(char *to, size_t room, const char *directory, const char *name, const char *suffix)
{
    if (snprintf(to, room, "%s/%s%s", directory, name, suffix) < (int)room)
        return true;
    fprintf(stderr, "understudy pki: '%s/%s%s': path too long\n", directory, name, suffix);
    return false;
}

static int init(const struct pki_line *line, const char *directory)
{
    char ca[512], key[512];
    if (!path_in(ca, sizeof ca, directory, "ca", ".pem") ||
        !path_in(key, sizeof key, directory, "ca", ".key"))
        return EXIT_USAGE;
    if (mkdir(directory, 0755) < 0 && errno != EEXIST) {
        error_errno(-errno, "make directory '%s'", directory);
        return fail();
    }
    struct pki_request request = {.name = line->name ? line->name : "Understudy CA", .days = line->days};
    if (pki_make_ca(&request, ca, key) < 0)
        return fail();
    printf("%s and %s made\n", ca, key);
    return EXIT_OK;
}

static int host(const struct pki_line *line, const char *directory, const char *name)
{
    char ca[512], ca_key[512], certificate[512], key[512];
    if (strchr(name, '/') || !strcmp(name, "ca")) {
        fprintf(stderr, "understudy pki: '%s' cannot be a host's name\n", name);
        return EXIT_USAGE;
    }
    if (!path_in(ca, sizeof ca, directory, "ca", ".pem") ||
        !path_in(ca_key, sizeof ca_key, directory, "ca", ".key") ||
        !path_in(certificate, sizeof certificate, directory, name, ".pem") ||
        !path_in(key, sizeof key, directory, name, ".key"))
        return EXIT_USAGE;
    struct pki_request request = {.name = name, .days = line->days};
    if (pki_make_host(&request, ca, ca_key, certificate, key) < 0)
        return fail();
    printf("%s and %s made\n", certificate, key);
    return EXIT_OK;
}

static void date(int64_t at, char text[32])
{
    time_t when = (time_t)at;
    struct tm parts;
    gmtime_r(&when, &parts);
    strftime(text, 32, "%Y-%m-%d %H:%M UTC", &parts);
}

/* Appends to `list`; returns whether the files are good. */
static bool check_one(const struct tls_files *files, const char *own_name, json_t *list)
{
    struct pki_report report = {0};
    int r = pki_check(files, own_name, &report);
    json_array_append_new(
        list, json_pack("{s:s, s:b, s:s, s:s, s:s, s:s, s:s, s:I, s:I}", "certificate", files->certificate,
                        "good", r == 0, "problem", r < 0 ? error_text() : "", "subject", report.subject,
                        "names", report.names, "ca", report.ca, "key", report.key, "not_after",
                        (json_int_t)report.not_after, "days_left", (json_int_t)report.days_left));
    return r == 0;
}

static bool check_directory(const char *directory, json_t *list)
{
    cleanup_closedir DIR *entries = opendir(directory);
    bool good = true;
    if (!entries) {
        fprintf(stderr, "understudy pki: '%s': %s\n", directory, strerror(errno));
        return false;
    }
    for (struct dirent *entry; (entry = readdir(entries));) {
        char name[256], ca[512], certificate[512], key[512];
        size_t length = strlen(entry->d_name);
        if (length < 5 || strcmp(entry->d_name + length - 4, ".pem") || !strcmp(entry->d_name, "ca.pem"))
            continue;
        snprintf(name, sizeof name, "%.*s", (int)length - 4, entry->d_name);
        if (!path_in(ca, sizeof ca, directory, "ca", ".pem") ||
            !path_in(certificate, sizeof certificate, directory, name, ".pem") ||
            !path_in(key, sizeof key, directory, name, ".key"))
            return false;
        struct tls_files files = {.ca = ca, .certificate = certificate, .key = key};
        good &= check_one(&files, name, list);
    }
    if (json_array_size(list) == 0) {
        fprintf(stderr, "understudy pki: '%s': no host's certificate there\n", directory);
        return false;
    }
    return good;
}

static int check(const struct pki_line *line, const char *directory)
{
    json_t *list = json_array(), *one;
    size_t i;
    bool good;
    if (directory) {
        good = check_directory(directory, list);
    } else {
        struct tls_files files = {line->ca, line->certificate, line->key, NULL};
        good = check_one(&files, line->peer, list);
    }
    if (line->json)
        command_print_json(list);
    json_array_foreach (list, i, one) {
        if (line->json)
            break;
        const char *problem = json_string_value(json_object_get(one, "problem"));
        char until[32];
        date(json_integer_value(json_object_get(one, "not_after")), until);
        if (problem[0])
            printf("BAD   %s\n", problem);
        else
            printf("good  %s: %s, names %s, %s, until %s (%lld days)\n",
                   json_string_value(json_object_get(one, "certificate")),
                   json_string_value(json_object_get(one, "subject")),
                   json_string_value(json_object_get(one, "names")),
                   json_string_value(json_object_get(one, "key")), until,
                   (long long)json_integer_value(json_object_get(one, "days_left")));
    }
    json_decref(list);
    return good ? EXIT_OK : EXIT_FAILED;
}

int command_pki(int argc, char **argv)
{
    struct pki_line line = {0};
    int code = parse(argc, argv, &line);
    if (code != EXIT_OK)
        return code;
    if (line.help) {
        fputs(help, stdout);
        return EXIT_OK;
    }
    const char *verb = optind < argc ? argv[optind] : "";
    int operands = argc - optind - 1;
    char **operand = argv + optind + 1;
    if (!strcmp(verb, "init") && operands == 1)
        return init(&line, operand[0]);
    if (!strcmp(verb, "host") && operands == 2)
        return host(&line, operand[0], operand[1]);
    if (!strcmp(verb, "check") && operands == 1)
        return check(&line, operand[0]);
    if (!strcmp(verb, "check") && operands == 0 && line.ca && line.certificate && line.key)
        return check(&line, NULL);
    fputs(help, stderr);
    return EXIT_USAGE;
}
