/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/command.h"

#include "base/error.h"
#include "base/fault.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define TAKEOVER_MS 60000
#define VERIFY_MS   600000

static bool whole_number(const char *command, const char *option, unsigned long low, unsigned long high,
                         unsigned *ret_number)
{
    char *end;
    errno = 0;
    unsigned long value = strtoul(optarg, &end, 10);
    if (*optarg < '0' || *optarg > '9' || *end || errno || value < low || value > high) {
        fprintf(stderr, "understudy %s: %s %s: allowed are %lu to %lu\n", command, option, optarg, low, high);
        return false;
    }
    *ret_number = (unsigned)value;
    return true;
}

int command_parse(int argc, char **argv, const char *accepted, struct command_line *ret_line)
{
    static const struct option options[] = {{"host", required_argument, NULL, 'h'},
                                            {"json", no_argument, NULL, 'j'},
                                            {"force", no_argument, NULL, 'f'},
                                            {"probe", required_argument, NULL, 'p'},
                                            {"slice", required_argument, NULL, 's'},
                                            {"log-level", required_argument, NULL, 'l'},
                                            {"net-gate", required_argument, NULL, 'g'},
                                            {"max-downtime", required_argument, NULL, 'd'},
                                            {"timeout", required_argument, NULL, 't'},
                                            {"timeout-action", required_argument, NULL, 'a'},
                                            {"bandwidth", required_argument, NULL, 'b'},
                                            {"follow", no_argument, NULL, 'F'},
                                            {"swap", no_argument, NULL, 'S'},
                                            {"cold", no_argument, NULL, 'C'},
                                            {"help", no_argument, NULL, '?' + 256},
                                            {0}};
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
        case 'F':
            line.follow = true;
            break;
        case 'S':
        case 'C':
            if (line.left && (line.left[0] == 's') != (option == 'S')) {
                fprintf(stderr, "understudy %s: --swap and --cold exclude each other\n", argv[0]);
                return EXIT_USAGE;
            }
            line.left = option == 'S' ? "swap" : "cold";
            break;
        case 'p':
            line.probe = optarg;
            break;
        case 's':
            line.slice = optarg;
            break;
        case 'g':
            line.net_gate = optarg;
            break;
        case 'd':
            if (!whole_number(argv[0], "--max-downtime", 1, 600000, &line.max_downtime_ms))
                return EXIT_USAGE;
            break;
        case 't':
            if (!whole_number(argv[0], "--timeout", 0, 604800, &line.timeout_s))
                return EXIT_USAGE;
            break;
        case 'a':
            line.switchover_at_timeout = !strcmp(optarg, "switchover");
            line.throttle_at_timeout = !strcmp(optarg, "throttle");
            if (!line.switchover_at_timeout && !line.throttle_at_timeout && strcmp(optarg, "abort") != 0) {
                fprintf(stderr,
                        "understudy %s: --timeout-action %s: allowed are abort, switchover and throttle\n",
                        argv[0], optarg);
                return EXIT_USAGE;
            }
            break;
        case 'b':
            if (config_rate_parse(optarg, &line.bandwidth) < 0) {
                fprintf(stderr, "understudy %s: --bandwidth: %s\n", argv[0], error_text());
                return EXIT_USAGE;
            }
            line.bandwidth_given = true;
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

int command_fail(const char *command, int code)
{
    fprintf(stderr, "understudy %s: %s\n", command, error_text());
    return code;
}

bool command_begin(int argc, char **argv, const char *accepted, const char *help, struct command_line *line,
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
        *ret_exit = command_fail(argv[0], EXIT_USAGE);
        return false;
    }
    return true;
}

/* --- requests to a running daemon --- */

int command_ask(const char *command, const struct config *config, json_t *request, unsigned timeout_ms,
                json_t **ret_reply)
{
    char path[256];
    json_t *reply;
    int r = config_file(config, config->self.run_dir, "sock", path, sizeof path);
    if (r < 0) {
        json_decref(request);
        return command_fail(command, EXIT_USAGE);
    }
    r = control_call(path, request, timeout_ms, &reply);
    if (r < 0)
        return command_fail(command, r == -ENOENT || r == -ECONNREFUSED ? EXIT_ABSENT : EXIT_FAILED);
    const char *refusal = json_string_value(json_object_get(reply, "error"));
    if (refusal) {
        fprintf(stderr, "understudy %s: %s\n", command, refusal);
        json_decref(reply);
        return EXIT_REFUSED;
    }
    *ret_reply = reply;
    return EXIT_OK;
}

static double inner_number(const json_t *object, const char *outer, const char *key)
{
    return number(json_object_get(object, outer), key);
}

static void print_status(const json_t *s)
{
    bool protected_now = json_is_true(json_object_get(s, "protected"));
    printf("%s on %s: %s, %s%s%s\n", words(s, "vm"), words(s, "host"), words(s, "role"),
           protected_now ? "PROTECTED" : words(s, "state"),
           words(s, "reason")[0] && !protected_now ? ": " : "", protected_now ? "" : words(s, "reason"));
    printf("  for            %.1f s", number(s, "since_s"));
    if (!protected_now && json_is_number(json_object_get(s, "unprotected_s")))
        printf(", unprotected for %.1f s", number(s, "unprotected_s"));
    printf("\n");
    if (words(s, "home")[0])
        printf("  home           %s%s; reprotect = %s\n", words(s, "home"),
               strcmp(words(s, "home"), words(s, "host")) != 0 &&
                       json_is_true(json_object_get(s, "guest_here"))
                   ? ", from which the guest is away"
                   : "",
               words(s, "reprotect"));
    printf("  peer           %s at %s\n", words(json_object_get(s, "peer"), "name"),
           words(json_object_get(s, "peer"), "address"));
    printf("  generation     %.0f\n", number(s, "generation"));
    printf("  checkpoint     %.0f committed", number(s, "committed_epoch"));
    if (json_is_number(json_object_get(s, "commit_age_ms")))
        printf(", %.0f ms ago", number(s, "commit_age_ms"));
    printf("\n");
    if (json_object_get(s, "pause_ms")) {
        printf("  pause          p50 %.2f ms, p99 %.2f ms, max %.2f ms\n", inner_number(s, "pause_ms", "p50"),
               inner_number(s, "pause_ms", "p99"), inner_number(s, "pause_ms", "max"));
        printf("  dirty pages    p50 %.0f, max %.0f; every %.0f ms; %.1f checkpoints/s\n",
               inner_number(s, "dirty_pages", "p50"), inner_number(s, "dirty_pages", "max"),
               number(s, "interval_ms"), number(s, "checkpoints_per_s"));
        printf("  last copy      %.1f MiB in %.2f s, %.1f MiB known there\n",
               inner_number(s, "initial_copy", "bytes") / 1048576, inner_number(s, "initial_copy", "seconds"),
               inner_number(s, "initial_copy", "known_bytes") / 1048576);
    }
    printf("  wire           %.1f MiB, %s, AES by %s%s, %.0f lanes\n", number(s, "wire_bytes") / 1048576,
           words(s, "tls")[0] ? words(s, "tls") : "not connected yet", words(s, "aes"),
           json_is_true(json_object_get(s, "ktls")) ? " and, for what is sent, the kernel" : "",
           number(s, "lanes"));
    printf("  memory         %.1f MiB engine, %.1f MiB resident, staging %.1f of %.1f MiB at most used\n",
           number(s, "memory_bytes") / 1048576, number(s, "rss_bytes") / 1048576,
           inner_number(s, "staging", "used_peak_bytes") / 1048576,
           inner_number(s, "staging", "configured_bytes") / 1048576);
    if (inner_number(s, "disks", "count") > 0)
        printf("  disks          %.0f, %.1f MiB; %.1f MiB to copy, %.1f MiB copied, %.1f MiB written\n",
               inner_number(s, "disks", "count"), inner_number(s, "disks", "bytes") / 1048576,
               inner_number(s, "disks", "pending_bytes") / 1048576,
               inner_number(s, "disks", "copied_bytes") / 1048576,
               inner_number(s, "disks", "written_bytes") / 1048576);
    if (json_object_get(json_object_get(s, "disks"), "journal_bytes"))
        printf("  journal        %.1f MiB, %.1f MiB at most; %.1f MiB applied to the disks\n",
               inner_number(s, "disks", "journal_bytes") / 1048576,
               inner_number(s, "disks", "journal_peak_bytes") / 1048576,
               inner_number(s, "disks", "applied_bytes") / 1048576);
    const json_t *output = json_object_get(s, "output");
    if (output && strcmp(words(output, "gate"), "none") != 0)
        printf("  output         %s by %s: %.0f frames wait, %.1f KiB; delay p50 %.1f ms, p99 %.1f ms\n",
               json_is_true(json_object_get(output, "holding")) ? "held" : "PASSES", words(output, "gate"),
               number(output, "held_frames"), number(output, "held_bytes") / 1024,
               inner_number(output, "delay_ms", "p50"), inner_number(output, "delay_ms", "p99"));
    if (json_object_get(s, "takeover_ms"))
        printf("  takeover       %.1f ms from decision to running (load %.1f, run %.1f); silence before %.1f "
               "ms\n",
               inner_number(s, "takeover_ms", "total"), inner_number(s, "takeover_ms", "load"),
               inner_number(s, "takeover_ms", "run"), inner_number(s, "takeover_ms", "detect"));
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
    if (!command_begin(argc, argv, "hj", help, &line, &config, &code))
        return code;
    code = command_ask(argv[0], config, json_pack("{s:s}", "command", "status"), COMMAND_CALL_MS, &reply);
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
        "  --force   ask no arbiter and fence nobody: you have made sure that the machine runs nowhere "
        "else\n";
    struct command_line line;
    struct config *config;
    json_t *reply;
    int code;
    if (!command_begin(argc, argv, "hjf", help, &line, &config, &code))
        return code;
    code = command_ask(argv[0], config, json_pack("{s:s, s:b}", "command", "takeover", "force", line.force),
                       TAKEOVER_MS, &reply);
    config_free(config);
    if (code != EXIT_OK)
        return code;
    if (line.json)
        command_print_json(reply);
    else
        printf("%s runs on %s from checkpoint %.0f, generation %.0f, %.1f ms after the decision\n",
               words(reply, "vm"), words(reply, "host"), number(reply, "committed_epoch"),
               number(reply, "generation"), inner_number(reply, "takeover_ms", "total"));
    json_decref(reply);
    return EXIT_OK;
}

static int simple_request(int argc, char **argv, const char *help, const char *done)
{
    struct command_line line;
    struct config *config;
    json_t *reply;
    int code;
    if (!command_begin(argc, argv, "h", help, &line, &config, &code))
        return code;
    code = command_ask(argv[0], config, json_pack("{s:s}", "command", argv[0]), COMMAND_CALL_MS, &reply);
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

int command_reprotect(int argc, char **argv)
{
    return simple_request(
        argc, argv,
        "Usage: understudy reprotect CONFIG [--host NAME]\n\n"
        "Change the role of this host's daemon now, after the guest has changed hosts: where it was taken "
        "over, "
        "protect\n"
        "it from here on; where it was left behind, stopped, be its standby (what was left is ended when its "
        "place "
        "is\n"
        "needed, and its disks become copies). With reprotect = auto the daemons do so by themselves.\n",
        "changing over");
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
        printf("  %-32s %8.0f pages  %s", words(block, "name"), number(block, "pages"),
               number(block, "differing") > 0 ? "DIFFERS" : "equal");
        if (number(block, "differing") > 0) {
            printf(" in %.0f pages:", number(block, "differing"));
            json_array_foreach (json_object_get(block, "differing_pages"), j, page)
                printf(" %lld", (long long)json_integer_value(page));
        }
        putchar('\n');
    }
    printf("%s: %.0f pages compared at %.0f checkpoints, %.0f differ; longest pause %.1f ms\n",
           json_is_true(json_object_get(reply, "equal")) ? "equal" : "DIFFERENT", number(reply, "pages"),
           number(reply, "checkpoints"), number(reply, "differing"), number(reply, "pause_max_ms"));
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
    if (!command_begin(argc, argv, "hjs", help, &line, &config, &code))
        return code;
    if (line.slice && config_size_parse(line.slice, &slice) < 0) {
        config_free(config);
        return command_fail(argv[0], EXIT_USAGE);
    }
    code = command_ask(argv[0], config,
                       json_pack("{s:s, s:I}", "command", "verify", "slice_bytes", (json_int_t)slice),
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
