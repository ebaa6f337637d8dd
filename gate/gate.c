/* SPDX-License-Identifier: Apache-2.0 */
#include "gate/gate.h"
#include "base/error.h"
#include "base/scope.h"
#include "gate/gate_internal.h"
#include "gate/hold.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* A frame of the largest size has to fit, twice: events.full comes at half. */
#define HELD_BYTES_MIN (256u << 10)

const char *gate_kind_name(enum gate_kind kind)
{
    static const char *const names[] = {"auto", "plug", "nfqueue", "relay", "none", "vmm"};
    return (size_t)kind < array_length(names) ? names[kind] : "unknown";
}

/* "iff:\tNAME", as tun_chr_show_fdinfo() of the kernel writes it. */
static bool read_interface(int directory, const char *entry, char ret_name[16])
{
    int fd = openat(directory, entry, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    cleanup_fclose FILE *file = fdopen(fd, "re");
    if (!file) {
        close(fd);
        return false;
    }
    char line[256];
    while (fgets(line, sizeof line, file)) {
        char name[16];
        if (sscanf(line, "iff: %15s", name) == 1) {
            strcpy(ret_name, name);
            return true;
        }
    }
    return false;
}

int gate_find_taps(int pid, struct gate_port *ret_ports, unsigned room)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/fdinfo", pid);
    cleanup_closedir DIR *directory = opendir(path);
    if (!directory)
        return error_errno(-errno, "open '%s'", path);
    unsigned count = 0;
    struct dirent *entry;
    while (count < room && (entry = readdir(directory))) {
        char name[16];
        if (!isdigit((unsigned char)entry->d_name[0]) ||
            !read_interface(dirfd(directory), entry->d_name, name))
            continue;
        bool known = false; /* a tap with several queues is open several times */
        for (unsigned i = 0; i < count; i++)
            known |= !strcmp(ret_ports[i].tap, name);
        if (known)
            continue;
        memset(&ret_ports[count], 0, sizeof ret_ports[count]);
        strcpy(ret_ports[count++].tap, name);
    }
    return (int)count;
}

/* Names go into rules: what iptables (+) and nft (*, ") read as more than a name is not taken. */
static bool plain_name(const char *name, size_t room)
{
    size_t length = strnlen(name, room);
    if (length == 0 || length == room || !strcmp(name, ".") || !strcmp(name, ".."))
        return false;
    for (size_t i = 0; i < length; i++)
        if (!isalnum((unsigned char)name[i]) && !strchr("._-@", name[i]))
            return false;
    return true;
}

static int check_port(const struct gate_port *port)
{
    if (!plain_name(port->tap, sizeof port->tap))
        return error_set(-EINVAL, "gate: '%.15s' is no name of an interface (letters, digits, . _ - @)",
                         port->tap);
    if (port->guest_tap[0] && !plain_name(port->guest_tap, sizeof port->guest_tap))
        return error_set(-EINVAL, "gate: '%.15s' is no name of an interface (letters, digits, . _ - @)",
                         port->guest_tap);
    if (strnlen(port->guest_socket, sizeof port->guest_socket) == sizeof port->guest_socket ||
        strnlen(port->own_socket, sizeof port->own_socket) == sizeof port->own_socket)
        return error_set(-ENAMETOOLONG, "gate: path of a socket for '%s' is too long", port->tap);
    return 0;
}

static int check(const struct gate_config *config)
{
    if (config->port_count > GATE_PORTS_MAX)
        return error_set(-E2BIG, "gate: %u interfaces, at most %d are possible", config->port_count,
                         GATE_PORTS_MAX);
    for (unsigned i = 0; i < config->port_count; i++) {
        const struct gate_port *port = &config->ports[i];
        int rc = check_port(port);
        if (rc)
            return rc;
        for (unsigned j = 0; j < i; j++)
            if (!strcmp(config->ports[j].tap, port->tap))
                return error_set(-EINVAL, "gate: interface '%s' is named twice", port->tap);
    }
    if (config->kind != GATE_NONE && config->kind != GATE_AUTO && !config->port_count)
        return error_set(-EINVAL, "gate: %s without an interface", gate_kind_name(config->kind));
    if (config->port_count && config->kind != GATE_NONE && config->held_bytes_max < HELD_BYTES_MIN)
        return error_set(-EINVAL, "gate: a bound below %u bytes on held frames is too small", HELD_BYTES_MIN);
    return 0;
}

/* No gate */

static int none_epoch(struct gate *gate, uint64_t epoch)
{
    (void)gate, (void)epoch;
    return 0;
}

static int none_call(struct gate *gate)
{
    (void)gate;
    return 0;
}

static void none_stats(struct gate *gate, struct gate_stats *ret_stats)
{
    (void)gate;
    memset(ret_stats, 0, sizeof *ret_stats);
    histogram_reset(&ret_stats->delay_us);
}

static void none_close(struct gate *gate)
{
    free(gate);
}

static const struct gate_ops none_ops = {
    .mark_begin = none_epoch,
    .mark_end = none_call,
    .release = none_epoch,
    .pass = none_call,
    .shut = none_call,
    .get_stats = none_stats,
    .close = none_close,
};

static int none_open(struct gate **ret_gate, const struct gate_config *config)
{
    struct gate *gate = calloc(1, sizeof *gate);
    if (!gate)
        return error_set(-ENOMEM, "gate: no memory");
    gate->ops = &none_ops;
    gate->kind = GATE_NONE;
    gate->config = *config;
    *ret_gate = gate;
    return 0;
}

/* Choosing */

static int auto_open(struct gate **ret_gate, const struct gate_config *config,
                     const struct gate_events *events)
{
    if (!config->port_count)
        return none_open(ret_gate, config);
    if (config->ports[0].guest_tap[0] || config->ports[0].guest_socket[0])
        return relay_open(ret_gate, config, events);
    char why_not_plug[ERROR_TEXT_MAX] = "plug: it cannot fail open";
    if (config->failure == GATE_FAIL_CLOSED) {
        int rc = plug_open(ret_gate, config, events);
        if (rc != -EOPNOTSUPP)
            return rc;
        snprintf(why_not_plug, sizeof why_not_plug, "%s", error_text());
    }
    int rc = nfqueue_open(ret_gate, config, events);
    return rc == -EOPNOTSUPP ? error_add(rc, "%s; and", why_not_plug) : rc;
}

int gate_open(struct gate **ret_gate, const struct gate_config *config, const struct gate_events *events)
{
    int rc = check(config);
    if (rc)
        return rc;
    switch (config->kind) {
    case GATE_AUTO:
        return auto_open(ret_gate, config, events);
    case GATE_PLUG:
        return plug_open(ret_gate, config, events);
    case GATE_NFQUEUE:
        return nfqueue_open(ret_gate, config, events);
    case GATE_RELAY:
        return relay_open(ret_gate, config, events);
    case GATE_NONE:
        return none_open(ret_gate, config);
    case GATE_VMM:
        break;
    }
    return error_set(-EINVAL, "gate: %s is not opened here", gate_kind_name(config->kind));
}

/* Dispatch */

enum gate_kind gate_kind_of(const struct gate *gate)
{
    return gate->kind;
}

int gate_mark_begin(struct gate *gate, uint64_t epoch)
{
    return gate->ops->mark_begin(gate, epoch);
}

int gate_mark_end(struct gate *gate)
{
    return gate->ops->mark_end(gate);
}

int gate_release(struct gate *gate, uint64_t epoch)
{
    return gate->ops->release(gate, epoch);
}

int gate_pass(struct gate *gate)
{
    return gate->ops->pass(gate);
}

int gate_shut(struct gate *gate)
{
    return gate->ops->shut(gate);
}

void gate_get_stats(struct gate *gate, struct gate_stats *ret_stats)
{
    gate->ops->get_stats(gate, ret_stats);
}

void gate_close(struct gate *gate)
{
    if (gate)
        gate->ops->close(gate);
}

void gate_fail(struct gate *gate)
{
    if (!atomic_exchange(&gate->failed, true) && gate->events.failed)
        gate->events.failed(gate->events.ctx, error_text());
}

void gate_tell(struct gate *gate, unsigned hold_events)
{
    if ((hold_events & HOLD_WAITING) && gate->events.waiting)
        gate->events.waiting(gate->events.ctx);
    if ((hold_events & HOLD_FULL) && gate->events.full)
        gate->events.full(gate->events.ctx);
}

void gate_hold_stats(const struct hold *hold, struct gate_stats *ret_stats)
{
    *ret_stats = (struct gate_stats){
        .holding = !hold->passing && !hold->shut,
        .held_frames = hold_frames(hold),
        .held_bytes = hold->bytes,
        .held_bytes_peak = hold->bytes_peak,
        .frames_out = hold->frames_out,
        .bytes_out = hold->bytes_out,
        .dropped = hold->dropped,
        .delay_us = hold->delay_us,
    };
}
