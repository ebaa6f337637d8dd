/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/control.h"
#include "replicator/daemon.h"

#include <errno.h>
#include <string.h>

#define CALL_MS     5000
#define TAKEOVER_MS 60000
#define VERIFY_MS   600000

int command_parse(int argc, char **argv, const char *accepted, struct command_line *ret_line)
{
    static const struct option options[] = {
        {"host", required_argument, NULL, 'h'},  {"json", no_argument, NULL, 'j'},
        {"force", no_argument, NULL, 'f'},       {"probe", required_argument, NULL, 'p'},
        {"slice", required_argument, NULL, 's'}, {"log-level", required_argument, NULL, 'l'},
        {"help", no_argument, NULL, '?' + 256},  {0}};
    static const char *const levels[] = {
        [3] = "error", [4] = "warning", [5] = "notice", [6] = "info", [7] = "debug"};
    struct command_line line = {.log_level = LOG_LEVEL_INFO};
    optind = 1;
    for (int option; (option = getopt_long(argc, argv, "", options, NULL)) != -1;) {
        if (option == '?')
            return EXIT_USAGE;
        if (option < 256 && !strchr(accepted, option)) {
            fprintf(stderr, "understudy %s: option %s does not belong to this command\n", argv[0],
                    argv[optind - 1]);
            return EXIT_USAGE;
        }
        switch (option) {
        case 'h':
            line.host = optarg;
            break;
        case 'j':
            line.json = true;
            break;
        case 'f':
            line.force = true;
            break;
        case 'p':
            line.probe = optarg;
            break;
        case 's':
            line.slice = optarg;
            break;
        case 'l':
            line.log_level = 0;
            for (int i = LOG_LEVEL_ERROR; i <= LOG_LEVEL_DEBUG; i++)
                if (!strcmp(optarg, levels[i]))
                    line.log_level = i;
            if (!line.log_level) {
                fprintf(stderr,
                        "understudy %s: --log-level %s: allowed are error, warning, notice, info, debug\n",
                        argv[0], optarg);
                return EXIT_USAGE;
            }
            break;
        default:
            line.help = true;
        }
    }
    if (!line.help && optind != argc - 1) {
        fprintf(stderr, "understudy %s: one argument expected, %d given (see --help)\n", argv[0],
                argc - optind);
        return EXIT_USAGE;
    }
    line.config = argv[optind];
    *ret_line = line;
    return EXIT_OK;
}

void command_print_json(const json_t *object)
{
    json_dumpf(object, stdout, JSON_INDENT(2) | JSON_REAL_PRECISION(6));
    putchar('\n');
}

static int fail(const char *command, int code)
{
    fprintf(stderr, "understudy %s: %s\n", command, error_text());
    return code;
}

/* Parse, handle --help, load the configuration. False: exit with *ret_exit. */
static bool begin(int argc, char **argv, const char *accepted, const char *help, struct command_line *line,
                  struct config **ret_config, int *ret_exit)
{
    char path[512];
    *ret_exit = command_parse(argc, argv, accepted, line);
    if (*ret_exit != EXIT_OK)
        return false;
    if (line->help) {
        fputs(help, stdout);
        return false;
    }
    log_set_level((enum log_level)line->log_level);
    if (config_path(line->config, path, sizeof path) < 0 || config_load(path, line->host, ret_config) < 0) {
        *ret_exit = fail(argv[0], EXIT_USAGE);
        return false;
    }
    return true;
}

/* --- daemons --- */

static int end_of_daemon(const char *command, int r)
{
    if (r == 0)
        return EXIT_OK;
    if (r > 0) /* the machine said why already */
        return EXIT_FAILED;
    return fail(command, r == -EOPNOTSUPP || r == -EBUSY ? EXIT_REFUSED : EXIT_FAILED);
}

static int run_daemon(int argc, char **argv, const char *help, int (*daemon)(struct config *config))
{
    struct command_line line;
    struct config *config;
    int code;
    if (!begin(argc, argv, "hpl", help, &line, &config, &code))
        return code;
    if (line.probe) {
        free(config->probe_block);
        config->probe_block = NULL;
        if (config_probe_parse(line.probe, &config->probe_block, &config->probe_offset) < 0) {
            config_free(config);
            return fail(argv[0], EXIT_USAGE);
        }
    }
    code = end_of_daemon(argv[0], daemon(config));
    config_free(config);
    return code;
}

int command_protect(int argc, char **argv)
{
    return run_daemon(
        argc, argv,
        "Usage: understudy protect CONFIG [--host NAME] [--probe BLOCK:OFFSET] [--log-level LEVEL]\n\n"
        "Attach to the QEMU that runs on this host and keep a standby of it on the peer host. Runs in the "
        "foreground\n"
        "until stopped; the guest goes on, unprotected, when it ends.\n\n"
        "  CONFIG        a name (web: /etc/understudy/web.ini) or a path\n"
        "  --host NAME   which [host] of the configuration we are (default: this machine's host name)\n"
        "  --probe B:O   report the guest's 8 bytes at offset O of RAM block B with every checkpoint\n",
        daemon_protect);
}

int command_standby(int argc, char **argv)
{
    return run_daemon(
        argc, argv,
        "Usage: understudy standby CONFIG [--host NAME] [--probe BLOCK:OFFSET] [--log-level LEVEL]\n\n"
        "Wait for the primary, keep a waiting QEMU filled with its last committed checkpoint, and take over "
        "by policy or\n"
        "by command. Runs in the foreground; a guest that was taken over goes on when it ends.\n",
        daemon_standby);
}

/* --- requests to a running daemon --- */

/* Returns an exit code; *ret_reply is set on EXIT_OK only. */
static int ask(const char *command, const struct config *config, json_t *request, unsigned timeout_ms,
               json_t **ret_reply)
{
    char path[256];
    json_t *reply;
    int r = config_file(config, config->self.run_dir, "sock", path, sizeof path);
    if (r < 0) {
        json_decref(request);
        return fail(command, EXIT_USAGE);
    }
    r = control_call(path, request, timeout_ms, &reply);
    if (r < 0)
        return fail(command, r == -ENOENT || r == -ECONNREFUSED ? EXIT_ABSENT : EXIT_FAILED);
    const char *refusal = json_string_value(json_object_get(reply, "error"));
    if (refusal) {
        fprintf(stderr, "understudy %s: %s\n", command, refusal);
        json_decref(reply);
        return EXIT_REFUSED;
    }
    *ret_reply = reply;
    return EXIT_OK;
}

static double number(const json_t *object, const char *outer, const char *key)
{
    return json_number_value(json_object_get(outer ? json_object_get(object, outer) : object, key));
}

static const char *words(const json_t *object, const char *key)
{
    const char *text = json_string_value(json_object_get(object, key));
    return text ? text : "";
}

static void print_status(const json_t *s)
{
    bool protected_now = json_is_true(json_object_get(s, "protected"));
    printf("%s on %s: %s, %s%s%s\n", words(s, "vm"), words(s, "host"), words(s, "role"),
           protected_now ? "PROTECTED" : words(s, "state"),
           words(s, "reason")[0] && !protected_now ? ": " : "", protected_now ? "" : words(s, "reason"));
    printf("  for            %.1f s\n", number(s, NULL, "since_s"));
    printf("  peer           %s at %s\n", words(json_object_get(s, "peer"), "name"),
           words(json_object_get(s, "peer"), "address"));
    printf("  generation     %.0f\n", number(s, NULL, "generation"));
    printf("  checkpoint     %.0f committed", number(s, NULL, "committed_epoch"));
    if (json_is_number(json_object_get(s, "commit_age_ms")))
        printf(", %.0f ms ago", number(s, NULL, "commit_age_ms"));
    printf("\n");
    if (json_object_get(s, "pause_ms")) {
        printf("  pause          p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", number(s, "pause_ms", "p50"),
               number(s, "pause_ms", "p99"), number(s, "pause_ms", "max"));
        printf("  dirty pages    p50 %.0f, max %.0f; every %.0f ms; %.1f checkpoints/s\n",
               number(s, "dirty_pages", "p50"), number(s, "dirty_pages", "max"),
               number(s, NULL, "interval_ms"), number(s, NULL, "checkpoints_per_s"));
        printf("  last copy      %.1f MiB in %.2f s\n", number(s, "initial_copy", "bytes") / 1048576,
               number(s, "initial_copy", "seconds"));
    }
    printf("  wire           %.1f MiB, %s, %.0f lanes%s\n", number(s, NULL, "wire_bytes") / 1048576,
           words(s, "tls")[0] ? words(s, "tls") : "not connected yet", number(s, NULL, "lanes"),
           json_is_true(json_object_get(s, "ktls")) ? ", kTLS" : "");
    printf("  memory         %.1f MiB engine, %.1f MiB resident, staging %.1f of %.1f MiB at most used\n",
           number(s, NULL, "memory_bytes") / 1048576, number(s, NULL, "rss_bytes") / 1048576,
           number(s, "staging", "used_peak_bytes") / 1048576,
           number(s, "staging", "configured_bytes") / 1048576);
    if (json_object_get(s, "takeover_ms"))
        printf("  takeover       %.1f ms from decision to running (load %.1f, run %.1f); silence before %.1f "
               "ms\n",
               number(s, "takeover_ms", "total"), number(s, "takeover_ms", "load"),
               number(s, "takeover_ms", "run"), number(s, "takeover_ms", "detect"));
}

int command_status(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy status CONFIG [--host NAME] [--json]\n\n"
        "What the daemon of this host says of the machine. Exit code 3: no daemon is running.\n";
    struct command_line line;
    struct config *config;
    json_t *reply;
    int code;
    if (!begin(argc, argv, "hj", help, &line, &config, &code))
        return code;
    code = ask(argv[0], config, json_pack("{s:s}", "command", "status"), CALL_MS, &reply);
    config_free(config);
    if (code != EXIT_OK)
        return code;
    if (line.json)
        command_print_json(reply);
    else
        print_status(reply);
    json_decref(reply);
    return EXIT_OK;
}

int command_takeover(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy takeover CONFIG [--host NAME] [--force] [--json]\n\n"
        "Run the machine here, from the last committed checkpoint. For the standby. Returns when the guest "
        "runs.\n\n"
        "  --force   do not ask the arbiter: you have made sure that the machine runs nowhere else\n";
    struct command_line line;
    struct config *config;
    json_t *reply;
    int code;
    if (!begin(argc, argv, "hjf", help, &line, &config, &code))
        return code;
    code = ask(argv[0], config, json_pack("{s:s, s:b}", "command", "takeover", "force", line.force),
               TAKEOVER_MS, &reply);
    config_free(config);
    if (code != EXIT_OK)
        return code;
    if (line.json)
        command_print_json(reply);
    else
        printf("%s runs on %s from checkpoint %.0f, generation %.0f, %.1f ms after the decision\n",
               words(reply, "vm"), words(reply, "host"), number(reply, NULL, "committed_epoch"),
               number(reply, NULL, "generation"), number(reply, "takeover_ms", "total"));
    json_decref(reply);
    return EXIT_OK;
}

static int simple_request(int argc, char **argv, const char *help, const char *done)
{
    struct command_line line;
    struct config *config;
    json_t *reply;
    int code;
    if (!begin(argc, argv, "h", help, &line, &config, &code))
        return code;
    code = ask(argv[0], config, json_pack("{s:s}", "command", argv[0]), CALL_MS, &reply);
    config_free(config);
    if (code != EXIT_OK)
        return code;
    puts(done);
    json_decref(reply);
    return EXIT_OK;
}

int command_continue(int argc, char **argv)
{
    return simple_request(
        argc, argv,
        "Usage: understudy continue CONFIG [--host NAME]\n\n"
        "Let a guest run on that the primary holds because its standby is lost (standby-loss=stall).\n"
        "It is unprotected until the standby is back.\n",
        "the guest runs on, unprotected");
}

int command_stop(int argc, char **argv)
{
    return simple_request(
        argc, argv,
        "Usage: understudy stop CONFIG [--host NAME]\n\n"
        "End the daemon of this host in order. A guest that runs here goes on, unprotected; the other\n"
        "side is told and does not take over.\n",
        "stopping");
}

static void print_verify(const json_t *reply)
{
    size_t i, j;
    json_t *block, *page;
    json_array_foreach (json_object_get(reply, "blocks"), i, block) {
        printf("  %-32s %8.0f pages  %s", words(block, "name"), number(block, NULL, "pages"),
               number(block, NULL, "differing") > 0 ? "DIFFERS" : "equal");
        if (number(block, NULL, "differing") > 0) {
            printf(" in %.0f pages:", number(block, NULL, "differing"));
            json_array_foreach (json_object_get(block, "differing_pages"), j, page)
                printf(" %lld", (long long)json_integer_value(page));
        }
        putchar('\n');
    }
    printf("%s: %.0f pages compared at %.0f checkpoints, %.0f differ; longest pause %.1f ms\n",
           json_is_true(json_object_get(reply, "equal")) ? "equal" : "DIFFERENT",
           number(reply, NULL, "pages"), number(reply, NULL, "checkpoints"), number(reply, NULL, "differing"),
           number(reply, NULL, "pause_max_ms"));
}

int command_verify(int argc, char **argv)
{
    static const char help[] =
        "Usage: understudy verify CONFIG [--host NAME] [--slice SIZE] [--json]\n\n"
        "Compare all of the guest's memory with the standby's, block by block, each part at a checkpoint. "
        "For the primary.\n"
        "Exit code 5: they differ.\n\n"
        "  --slice SIZE   compare this much in the pause of one checkpoint (default 32MiB, at most 128MiB)\n";
    struct command_line line;
    struct config *config;
    json_t *reply;
    uint64_t slice = 0;
    int code;
    if (!begin(argc, argv, "hjs", help, &line, &config, &code))
        return code;
    if (line.slice && config_size_parse(line.slice, &slice) < 0) {
        config_free(config);
        return fail(argv[0], EXIT_USAGE);
    }
    code =
        ask(argv[0], config, json_pack("{s:s, s:I}", "command", "verify", "slice_bytes", (json_int_t)slice),
            VERIFY_MS, &reply);
    config_free(config);
    if (code != EXIT_OK)
        return code;
    bool equal = json_is_true(json_object_get(reply, "equal"));
    if (line.json)
        command_print_json(reply);
    else
        print_verify(reply);
    json_decref(reply);
    return equal ? EXIT_OK : EXIT_DIFFERS;
}

int command_fault_points(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "--help")) {
        puts("Usage: understudy fault-points\n\nThe names that UNDERSTUDY_FAULT knows "
             "(NAME[@N]=kill|stop|error|delay:MS), one a "
             "line.");
        return EXIT_OK;
    }
    for (unsigned i = 0; i < FAULT_COUNT; i++)
        puts(fault_name((enum fault_point)i));
    return EXIT_OK;
}
