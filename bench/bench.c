/* SPDX-License-Identifier: Apache-2.0 */
#include "bench/bench.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static void usage(FILE *to)
{
    fputs("Usage: understudy bench replicate [OPTIONS]\n"
          "       understudy bench protect [OPTIONS]\n"
          "       understudy bench migrate [OPTIONS]\n\n"
          "  replicate  carry memory through the whole pipeline between two processes on this machine, and\n"
          "             measure the ceiling (read, AES-GCM, loopback TCP, AES-GCM, write) in the same run\n"
          "  protect    run Redis in a guest, unprotected and protected, and measure it from outside; needs "
          "root\n"
          "  migrate    move a guest with this engine and with QEMU's own migration: time, downtime, bytes; "
          "needs root\n\n"
          "understudy bench WHAT --help lists the options.\n",
          to);
}

int command_bench(int argc, char **argv)
{
    if (argc >= 2 && !strcmp(argv[1], "replicate"))
        return bench_replicate(argc - 1, argv + 1);
    if (argc >= 2 && (!strcmp(argv[1], "protect") || !strcmp(argv[1], "migrate")))
        return bench_script(argv[1], argc - 1, argv + 1);
    bool help = argc >= 2 && !strcmp(argv[1], "--help");
    usage(help ? stdout : stderr);
    return help ? 0 : 2;
}
