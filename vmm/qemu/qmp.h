/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_QEMU_QMP_H
#define UNDERSTUDY_VMM_QEMU_QMP_H

#include <jansson.h>
#include <stdbool.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * A QMP client: one connection to one QEMU monitor over a UNIX socket, or through libvirt (libvirt.h). Used
 * by one thread.
 *
 * QEMU executes the commands of a monitor one after another and answers in that order, so a command may be
 * sent while an earlier one still runs (qmp_send twice, then qmp_wait twice).
 *
 * "oob" is not negotiated: nothing here needs it. When it was, QEMU 7.2 crashed in malloc() or lost a mirror
 * in four of some thirty runs of the disks' tests; a cause of that was found since which is not oob's
 * (mirror.c), and it was not tried again.
 */
struct qmp;

/* Connect, wait for the greeting, negotiate. `timeout_ms` bounds all of it. A monitor serves one client at a
 * time and keeps the next one waiting without a greeting: that is -EBUSY. -ENOENT and -ECONNREFUSED: no QEMU
 * there; -EPROTO: what answers is not QMP. */
int qmp_open(struct qmp **ret_qmp, const char *path, uint32_t timeout_ms);

/* The same over a stream that is open already, whose other end speaks QMP and says in its greeting which
 * process QEMU is ("pid"), or sends {"failure":{"errno":N,"text":"..."}} instead, which becomes ours. Takes
 * `fd` in any case. `child`: a process that serves the other end and ends after it is closed, which
 * qmp_close() waits for; 0: none. `name` is for messages. */
int qmp_open_stream(struct qmp **ret_qmp, int fd, pid_t child, const char *name, uint32_t timeout_ms);

/* Takes NULL. QEMU drops file descriptors of "getfd" that nobody fetched. */
void qmp_close(struct qmp *qmp);

/* The socket: readable when an event has come. Owned by the client. */
int qmp_fd(const struct qmp *qmp);

/* The process that listens on the socket (SO_PEERCRED), or that the greeting named. */
pid_t qmp_pid(const struct qmp *qmp);

/* "7.2.22" and the distributor's words ("Debian 1:7.2+..."), from the greeting. Valid until qmp_close. */
const char *qmp_version(const struct qmp *qmp);
const char *qmp_package(const struct qmp *qmp);

/* Called for each event, from within qmp_wait, qmp_call and qmp_drain; must not send commands. `data` may be
 * NULL. Events that come while no function is set are dropped. */
typedef void qmp_event_fn(void *ctx, const char *event, const json_t *data);
void qmp_on_event(struct qmp *qmp, qmp_event_fn *fn, void *ctx);

/* Take in what QEMU has sent, without waiting. -ECONNRESET when it has hung up. */
int qmp_drain(struct qmp *qmp);

/*
 * Run one command. `format` and what follows make the arguments, as json_pack() takes them ("{s:s}",
 * "fdname", name); NULL: none. The variants with `fd` hand a descriptor over (SCM_RIGHTS; it stays ours too);
 * -1: none. `ret_result` takes a new reference; NULL: not wanted.
 *
 * -EREMOTEIO: QEMU answered with an error (its words are in error_text()); -ENOSYS: it does not know the
 * command; -ETIMEDOUT: no answer in time (a late one is dropped when it comes; the command may still take
 * effect); -ECONNRESET: it hung up; -EPROTO, -EMSGSIZE: what came is not QMP.
 */
int qmp_call(struct qmp *qmp, uint32_t timeout_ms, json_t **ret_result, const char *command,
             const char *format, ...);
int qmp_call_fd(struct qmp *qmp, uint32_t timeout_ms, json_t **ret_result, int fd, const char *command,
                const char *format, ...);

/* The two halves of a call. Commands are waited for in the order of sending. */
int qmp_send(struct qmp *qmp, uint64_t *ret_id, int fd, const char *command, const char *format, ...);
int qmp_wait(struct qmp *qmp, uint32_t timeout_ms, uint64_t id, json_t **ret_result);

/*
 * Give QEMU all of a command but its last byte; the next command, if it is this very one, costs that byte
 * alone, and if it is another, calls this one off. QEMU takes its monitor's input byte by byte with seven
 * system calls for each (QEMU 7.2: monitor_can_read() says 1), so that a long command takes a millisecond to
 * be read, which is not to be in a pause. QEMU does not execute what was begun by a client that is gone.
 * While another one is primed, nothing happens. Nothing is promised, so nothing fails here: the next command
 * says what was wrong.
 */
void qmp_prime(struct qmp *qmp, const char *command, const char *format, ...);

/* Run a command of the human monitor; `ret_text` is the caller's to free. */
int qmp_human(struct qmp *qmp, uint32_t timeout_ms, const char *command_line, char **ret_text);

#endif
