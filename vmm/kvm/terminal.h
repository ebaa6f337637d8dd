/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_KVM_TERMINAL_H
#define UNDERSTUDY_VMM_KVM_TERMINAL_H

/*
 * Where a guest's console is on the host, by one word of the command line:
 *
 *     stdio   standard output; standard input too, if it is a terminal
 *     pty     a new pseudo terminal, whose path is told on standard error
 *     PATH    a file, that is appended to; a FIFO; a terminal, which is read as well
 */
struct terminal {
    int in, out; /* may be the same; in is -1 where nothing comes in */
    int other;   /* the user's end of a pty: without one open, ours would fail */
};
#define TERMINAL_NONE ((struct terminal){-1, -1, -1})

/* `what` names it in messages. */
int terminal_open(struct terminal *terminal, const char *what, const char *where);
void terminal_close(struct terminal *terminal);

#endif
