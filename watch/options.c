/* SPDX-License-Identifier: Apache-2.0 */
#include "watch/options.h"

#include "base/clock.h"
#include "base/error.h"
#include "replicator/command.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define INTERVAL_MIN_NS (100 * NS_PER_MS)
#define INTERVAL_MAX_NS (60 * NS_PER_S)
#define LIMIT_MIN_NS    (10 * NS_PER_MS)
#define LIMIT_MAX_NS    (60 * NS_PER_S)

/* As in a configuration: "500ms", "2s". */
static int duration(const char *command, const char *option, const char *text, uint64_t low_ns,
                    uint64_t high_ns, uint64_t *ret_ns)
{
    uint64_t ns;
    if (config_duration_parse(text, &ns) < 0) {
        fprintf(stderr, "understudy %s: %s: %s\n", command, option, error_text());
        return EXIT_USAGE;
    }
    if (ns < low_ns || ns > high_ns) {
        fprintf(stderr, "understudy %s: %s %s: allowed are %llums to %llus\n", command, option, text,
                (unsigned long long)(low_ns / NS_PER_MS), (unsigned long long)(high_ns / NS_PER_S));
        return EXIT_USAGE;
    }
    *ret_ns = ns;
    return EXIT_OK;
}

int watch_options_parse(int argc, char **argv, const char *accepted, struct watch_options *ret_options)
{
    static const struct option known[] = {{"once", no_argument, NULL, 'o'},
                                          {"json", no_argument, NULL, 'j'},
                                          {"interval", required_argument, NULL, 'i'},
                                          {"listen", required_argument, NULL, 'L'},
                                          {"run-dir", required_argument, NULL, 'r'},
                                          {"host", required_argument, NULL, 'h'},
                                          {"timeout", required_argument, NULL, 't'},
                                          {"help", no_argument, NULL, '?' + 256},
                                          {0}};
    struct watch_options options = {.run_dir = FIND_RUN_DIR, .interval_ns = NS_PER_S, .limit_ms = 1000};
    uint64_t limit_ns;
    int code = EXIT_OK;
    optind = 1;
    for (int option; code == EXIT_OK && (option = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        if (option == '?')
            return EXIT_USAGE;
        if (option < 256 && !strchr(accepted, option)) {
            fprintf(stderr, "understudy %s: option %s does not belong to this command\n", argv[0],
                    argv[optind - 1]);
            return EXIT_USAGE;
        }
        switch (option) {
        case 'o':
            options.once = true;
            break;
        case 'j':
            options.json = true;
            break;
        case 'i':
            code = duration(argv[0], "--interval", optarg, INTERVAL_MIN_NS, INTERVAL_MAX_NS,
                            &options.interval_ns);
            break;
        case 'L':
            options.listen = optarg;
            break;
        case 'r':
            options.run_dir = optarg;
            break;
        case 'h':
            options.host = optarg;
            break;
        case 't':
            code = duration(argv[0], "--timeout", optarg, LIMIT_MIN_NS, LIMIT_MAX_NS, &limit_ns);
            if (code == EXIT_OK)
                options.limit_ms = (unsigned)(limit_ns / NS_PER_MS);
            break;
        default:
            options.help = true;
        }
    }
    options.configs = argv + optind;
    options.config_count = (unsigned)(argc - optind);
    if (code == EXIT_OK)
        *ret_options = options;
    return code;
}

int watch_options_find(const struct watch_options *options, struct find_list *ret_list)
{
    return options->config_count
               ? find_configured(options->configs, options->config_count, options->host, ret_list)
               : find_sockets(options->run_dir, ret_list);
}
