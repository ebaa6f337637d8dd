/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "bench/bench.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/*
 * What is measured with whole guests is measured by scripts, which stand on the harness of the integration
 * tests; what is done with results is done by scripts, too. A program in its build folder uses the scripts of
 * the sources it was built from, and keeps the guest's images in that folder; an installed one uses the
 * scripts that were installed with it, and keeps images with the system's caches.
 */

#define CACHE "/var/cache/understudy"

static int own_path(char *ret_path, size_t room)
{
    ssize_t bytes = readlink("/proc/self/exe", ret_path, room - 1);
    if (bytes < 0)
        return -errno;
    ret_path[bytes] = '\0';
    return 0;
}

static bool is_in_build_folder(const char *program)
{
    char folder[PATH_MAX];
    return realpath(UNDERSTUDY_BUILD, folder) && !strncmp(program, folder, strlen(folder)) &&
           program[strlen(folder)] == '/';
}

static int find_script(const char *name, bool built_here, char *ret_path, size_t room)
{
    static const char *const folders[] = {UNDERSTUDY_LIBEXEC, UNDERSTUDY_SOURCE};
    for (size_t i = built_here; i < array_length(folders); i++)
        if (snprintf(ret_path, room, "%s/bench/%s.py", folders[i], name) < (int)room &&
            access(ret_path, R_OK) == 0)
            return 0;
    fprintf(stderr, "understudy bench %s: bench/%s.py is neither in %s nor in %s\n", name, name,
            UNDERSTUDY_LIBEXEC, UNDERSTUDY_SOURCE);
    return -ENOENT;
}

int bench_script(const char *name, bool measures, int argc, char **argv)
{
    char program[PATH_MAX], script[PATH_MAX];
    int r = own_path(program, sizeof program);
    if (r < 0) {
        fprintf(stderr, "understudy bench %s: /proc/self/exe: %s\n", name, strerror(-r));
        return 1;
    }
    bool built_here = is_in_build_folder(program);
    if (find_script(name, built_here, script, sizeof script) < 0)
        return 1;
    /* -B: nothing is compiled into folders that belong to an installation. The user's options come last and
     * win. */
    const char *const own[] = {
        "python3", "-B", script, "--understudy", program, "--build", built_here ? UNDERSTUDY_BUILD : CACHE};
    size_t count = measures ? array_length(own) : 3;
    cleanup_free const char **words = calloc(count + (size_t)argc, sizeof *words);
    if (!words) {
        fprintf(stderr, "understudy bench %s: %s\n", name, strerror(ENOMEM));
        return 1;
    }
    memcpy(words, own, count * sizeof *own);
    memcpy(words + count, argv + 1, (size_t)(argc - 1) * sizeof *words);
    execvp(words[0], (char *const *)words);
    fprintf(stderr, "understudy bench %s: python3: %s\n", name, strerror(errno));
    return 1;
}
