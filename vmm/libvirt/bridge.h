/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_VMM_LIBVIRT_BRIDGE_H
#define UNDERSTUDY_VMM_LIBVIRT_BRIDGE_H

#include <jansson.h>
#include <libvirt/libvirt.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/*
 * The program understudy-libvirt: the monitor of a domain of libvirt's, spoken to as if it were a QMP socket.
 *
 * Theory of operation
 *
 *     engine ──socket pair── understudy-libvirt ──RPC── libvirtd ──its monitor── QEMU
 *        └── guard ──┘
 *
 * To the engine this is QEMU's monitor: a greeting, commands with descriptors, answers in order, events. A
 * process of its own, because it must outlive an engine that is killed while it holds the guest: the guard
 * (vmm/qemu/guard.h) then says "cont" on the engine's end of the pair, and here is who hears it. Also, a mark
 * in the domain's metadata that says who protects it has to go when the engine does, however that ends.
 *
 * Two things hold for a QMP connection and do not for libvirt, and the engine relies on both:
 *
 * Order. QEMU's STOP stands before the answer to the "stop" that caused it. Through libvirtd events and
 * answers come from different threads. So the answer to "stop" and "cont" is kept back until their event has
 * passed, or cannot come any more: an event that libvirtd had when it answered has left it before it answers
 * a second call made afterwards.
 *
 * Hanging up. A QMP connection that ends means that QEMU ended. libvirtd may be restarted and QEMU lives on:
 * then we connect again, tell the engine of what changed meanwhile (STOP, RESUME) and repeat the command that
 * was under way if that does no harm. The engine sees an answer that took long. Our end of the pair closes
 * only when libvirt says that the domain is gone (or QEMU's process ended and libvirt says nothing), and
 * before that the engine gets a SHUTDOWN if it went on purpose: destroyed, shut down, saved, migrated away.
 *
 * One thread, which alternates between libvirt's event loop and the engine's commands.
 */

#define FDSETS_MAX 8

struct bridge_fdset {
    json_int_t id;
    char *word; /* NULL: none */
    int fd;
};

struct bridge {
    /* as wanted */
    const char *uri, *name;     /* name or UUID of the domain */
    const char *machine, *peer; /* what the mark says; machine NULL: no mark */
    bool start;                 /* create the domain, waiting; end it unless it was let run */

    /* libvirt */
    virConnectPtr connection;
    virDomainPtr domain;
    char uuid[VIR_UUID_STRING_BUFLEN];
    int id; /* of this life of the domain */
    pid_t pid;
    int process;  /* pidfd of it; -1: none */
    bool lost;    /* libvirtd hung up */
    bool ended;   /* the domain is gone, or everybody who could want something of it */
    bool let_run; /* a domain that we created may run: it is not ours to end any more */
    bool marked;

    /* what the engine knows */
    bool stopped;            /* the latest of STOP and RESUME that it was told */
    bool loaded;             /* it was told that the incoming migration is complete */
    unsigned changes;        /* how often it was told of one of these */
    unsigned changes_before; /* ... when the command under way was sent */
    json_t *shutdown;        /* QEMU's SHUTDOWN, which is told when the domain is gone */

    struct bridge_fdset fdsets[FDSETS_MAX]; /* that the engine gave QEMU */

    /* the engine's end */
    int engine, passed; /* descriptor that came with the next command; -1: none */
    char *buffer;
    size_t used, room;
    bool hung_up;
};

/* engine.c: the engine's end of the pair. */

/* Watch it. */
int engine_open(struct bridge *bridge);
/* One line without its end, or NULL while there is none. The caller frees it. */
char *engine_line(struct bridge *bridge);
bool engine_has_line(const struct bridge *bridge);
/* Send an object as a line; takes the reference. An engine that is gone is no error: its guard may be there.
 */
void engine_tell(struct bridge *bridge, json_t *object);
void engine_tell_event(struct bridge *bridge, const char *event, json_t *data);

/* connection.c: libvirtd. */

/* Run libvirt's event loop until `done` (NULL: never) or for `ms`. True: done. */
bool connection_run(struct bridge *bridge, int ms, bool (*done)(const struct bridge *bridge));
/* Connect and find the domain. -ECONNREFUSED, -ENOENT. */
int connection_open(struct bridge *bridge);
void connection_close(struct bridge *bridge);
/* Be told of events. After the domain is known to be active. */
int connection_watch(struct bridge *bridge);
/* After libvirtd hung up: again, until it is back; false: the domain is gone, or the engine is and nothing is
 * left to do. */
bool connection_again(struct bridge *bridge);
/* The latest failure of libvirt's, as one of ours: `what` and libvirt's words in error_text(). */
int connection_error(int code, const char *what, const struct bridge *bridge);

/* domain.c: the domain's life. */

/* The domain runs: -ESRCH if not. */
int domain_find_running(struct bridge *bridge);
/* Create it from its persistent definition, paused, waiting for an incoming migration. -EBUSY: it runs. */
int domain_start(struct bridge *bridge);
/* Find its process: bridge->pid. */
int domain_find_process(struct bridge *bridge);
/* Say in its metadata who protects it. A failure is only said. */
void domain_mark(struct bridge *bridge, const char *role);
void domain_unmark(struct bridge *bridge);
/* Was it ended on purpose, as far as libvirt knows? */
bool domain_ended_in_order(struct bridge *bridge);
/* The definition with the arguments that make QEMU wait; NULL: `xml` is no domain's. The caller frees it. */
char *domain_waiting_xml(const char *xml);

/* monitor.c: commands and events. */

/* Run a command of our own. `*ret_result` is the caller's reference. */
int monitor_call(struct bridge *bridge, const char *text, int fd, json_t **ret_result);
/* Run one of the engine's and answer it. */
void monitor_serve(struct bridge *bridge, const char *line);
/* Tell the engine what is different from what it knows. */
int monitor_catch_up(struct bridge *bridge);
/* fdsets.c: what QEMU would lose with libvirtd. */

/* The engine's command went well. An fdset's descriptor is taken out of *fd. */
void fdsets_note(struct bridge *bridge, const char *name, const json_t *arguments, const json_t *result,
                 int *fd);
/* After a new connection. */
int fdsets_restore(struct bridge *bridge);
/* Forget them; take them out of QEMU, too. */
void fdsets_end(struct bridge *bridge, bool remove);

/* Watch QEMU's process: libvirt's word of its end may come late, or not while libvirtd is away. */
int monitor_watch_process(struct bridge *bridge);
/* libvirt's callbacks. */
void monitor_on_event(virConnectPtr connection, virDomainPtr domain, const char *event, long long seconds,
                      unsigned microseconds, const char *details, void *bridge);
int monitor_on_lifecycle(virConnectPtr connection, virDomainPtr domain, int event, int detail, void *bridge);

#endif
