/* SPDX-License-Identifier: Apache-2.0 */
#include "guest.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    static struct options options;
    if (getpid() != 1) {
        if (argc != 4 || strcmp(argv[1], "disk") != 0) {
            fprintf(stderr, "usage: %s disk FILE BYTES    write a test disk (as process 1: run as a guest)\n",
                    argv[0]);
            return 2;
        }
        int code = disk_make(argv[2], strtoull(argv[3], NULL, 0));
        if (code)
            fprintf(stderr, "%s: %s\n", argv[2], strerror(-code));
        return code ? 1 : 0;
    }
    boot_mount();
    boot_options(&options, NULL);
    if (options.modules || options.disk[0])
        boot_modules();
    workload_start(&options);
    if (options.disk[0])
        disk_start(&options);
    say("ready writers %u pages %lu rate %lu", options.writers, options.bytes / PAGE_BYTES, options.rate);
    counter_run(&options, NULL);
}
