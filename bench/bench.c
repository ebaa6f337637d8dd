/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include "base/scope.h"

#include <stdio.h>
#include <string.h>

/* Those without `run` are scripts. */
static const struct {
    const char *name, *what;
    int (*run)(int argc, char **argv);
    bool measures;
} words[] = {
    {"replicate", "carry memory through the whole pipeline between two processes, beside its ceiling",
     bench_replicate, true},
    {"scale", "the same with more lanes, more memory, more guests", NULL, true},
    {"protect", "a guest, Redis or bare, unprotected and protected, seen from outside (root)", NULL, true},
    {"migrate", "move a guest with this engine and with QEMU's own migration (root)", NULL, true},
    {"takeover", "kill the primary at random moments, again and again (root)", NULL, true},
    {"compare", "two results: what is better, what is worse, what cannot be told", NULL, false},
    {"report", "show a result, or make a page with plots of it", NULL, false},
    {"environment", "what results say of this machine, and how quiet it is", bench_environment, true},
};

static void usage(FILE *to)
{
    fputs("Usage: understudy bench WHAT [OPTIONS]\n\n", to);
    for (size_t i = 0; i < array_length(words); i++)
        fprintf(to, "  %-12s %s\n", words[i].name, words[i].what);
    fputs("\nAll that measure write --json and --html. understudy bench WHAT --help lists the options; see "
          "understudy-bench(1).\n",
          to);
}

int command_bench(int argc, char **argv)
{
    for (size_t i = 0; argc >= 2 && i < array_length(words); i++)
        if (!strcmp(argv[1], words[i].name))
            return words[i].run ? words[i].run(argc - 1, argv + 1)
                                : bench_script(words[i].name, words[i].measures, argc - 1, argv + 1);
    bool help = argc >= 2 && !strcmp(argv[1], "--help");
    usage(help ? stdout : stderr);
    return help ? 0 : 2;
}
