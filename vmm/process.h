/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_PROCESS_H
#define UNDERSTUDY_VMM_PROCESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * The process of a guest (QEMU, our own VMM) that we launch: its start, its record in a pid file, its end. In
 * a session of its own, so that neither the terminal's signals nor the end of the engine reach it.
 */
struct process {
    pid_t child;      /* what was started; unreaped until process_release(), so that the number stays ours */
    int child_fd;     /* pidfd of it */
    pid_t pid;        /* the guest: the child, or a descendant if the command is a wrapper */
    int pid_fd;       /* pidfd of it, -1: not known yet */
    int log;          /* its output, readable */
    int64_t log_from; /* where the output of this process begins */
};
#define PROCESS_NONE ((struct process){.child_fd = -1, .pid_fd = -1, .log = -1})

/*
 * Start `argv` with `extra` (NULL-terminated, both) behind it; found through PATH, standard input /dev/null,
 * output to `log_path`, or for NULL to 64 KiB of memory that only serve process_explain().
 */
int process_start(struct process *process, char *const *argv, const char *const *extra, const char *log_path);

/* Name the guest among the processes that were started. -ESRCH: `pid` is none of them. */
int process_adopt(struct process *process, pid_t pid);

/* Only observe a process that somebody else starts and ends: process_end() does nothing to it. */
int process_follow(struct process *process, pid_t pid);

/* Has what was started (or the guest, once known) ended, now or within `ms`? */
bool process_wait(const struct process *process, int ms);

/* Put the last line of its output, if there is one, behind error_text(): its own words explain better than
 * ours why it failed. Returns `code`. */
int process_explain(const struct process *process, int code);

/* End the process and all that it started, by SIGTERM if it obeys within `grace_ms`, else by SIGKILL. */
void process_end(struct process *process, int grace_ms);

/* Forget the process; one that lives goes on. */
void process_release(struct process *process);

/* The same for good: end it first, or not (`grace_ms` < 0), and remove its record (NULL: there is none) once
 * it has ended. */
void process_leave(struct process *process, int grace_ms, const char *pid_path);

/*
 * The pid file: "PID STARTTIME waiting" or "PID STARTTIME running". The start time (field 22 of
 * /proc/PID/stat) tells the process from a later one of the same number.
 */
int process_record(const struct process *process, const char *pid_path, bool running); /* NULL: nowhere */

/* End the waiting process that a former engine recorded. -EBUSY: it is one that runs a guest. */
int process_end_recorded(const char *pid_path);

#endif
