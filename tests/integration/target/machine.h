/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_TARGET_MACHINE_H
#define UNDERSTUDY_TESTS_TARGET_MACHINE_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/* One host's half of a test: a directory of sockets and logs, and the command line of its QEMU. */
struct machine {
    char directory[64];
    char qmp[96], serial[96], log[96], pid_file[96];
    char *argv[48];
    unsigned argc;
    pid_t pid; /* of a QEMU that machine_start() started; 0: none */
};

struct machine_kind {
    const char *machine; /* "q35", "pc", "microvm" */
    bool shared;         /* RAM in a memfd */
    unsigned megabytes, cpus;
    const char *append; /* the guest's parameters */
};

/* Where the guest's image is; makes it first. NULL, with `ret_why`, when it cannot be made. */
const char *machine_image(const char **ret_why);

void machine_init(struct machine *machine, const char *image, const struct machine_kind *kind);
void machine_arg(struct machine *machine, const char *text);
/* Run the command line as it is, as an administrator would start a guest. */
void machine_start(struct machine *machine);
/* Kill it, and remove the directory. Takes one that was never initialised (all zero). */
void machine_free(struct machine *machine);

/* Wait until the guest printed a line that begins with `word` (after `from` bytes of output), and return what
 * follows the word. The result is valid until the next call. Fails the test after `seconds`. */
const char *machine_await(const struct machine *machine, const char *word, unsigned from, unsigned seconds);
/* Bytes of output so far. */
unsigned machine_printed(const struct machine *machine);

#endif
