/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/protect.h"

#include "base/error.h"
#include "base/log.h"
#include "base/scope.h"
#include "replicator/guest_driver.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The primary's gate: who calls it, and when.
 *
 *     guest's thread   mark(e) within the pause of capture e; pass, in line behind the rounds before it
 *     main thread      release(e) when the standby has acknowledged e; shut when the guest runs elsewhere
 *     gate's thread    says that output waits, or that no more can be held: an event for the role machine
 */

static void output_event(struct protect *protect, bool urgent)
{
    struct role_event event = {.type = EVENT_OUTPUT, .urgent = urgent};
    hub_event_later(&protect->hub, &protect_ops, &event);
}

static void on_waiting(void *ctx)
{
    output_event(ctx, false);
}

static void on_full(void *ctx)
{
    output_event(ctx, true);
}

struct gate_note {
    struct note note;
    char text[ERROR_TEXT_MAX];
};

/* Without its gate the engine cannot keep its promise; one that starts anew can. */
static void deliver_failed(struct note *note, void *daemon)
{
    struct protect *protect = daemon;
    hub_fail(&protect->hub, ((struct gate_note *)note)->text);
}

static void on_failed(void *ctx, const char *text)
{
    struct protect *protect = ctx;
    struct gate_note *note = calloc(1, sizeof *note);
    if (!note)
        abort();
    note->note.deliver = deliver_failed;
    snprintf(note->text, sizeof note->text, "net gate: %s", text);
    note_post(protect->hub.notes, note);
}

/* Does the guest have a network at all? Its devices are in the description. */
static bool has_network(const struct protect *protect)
{
    static const char *const types[] = {"virtio-net", "e1000", "rtl8139", "vmxnet3",
                                        "ne2k",       "pcnet", "usb-net"};
    for (size_t i = 0; i < array_length(types); i++)
        if (strstr(protect->description.text, types[i]))
            return true;
    return false;
}

static int ports(const struct protect *protect, struct gate_config *wanted)
{
    const struct config *config = protect->hub.config;
    if (config->self.relay_count && (wanted->kind == GATE_AUTO || wanted->kind == GATE_RELAY)) {
        wanted->kind = GATE_RELAY;
        wanted->port_count = config->self.relay_count;
        memcpy(wanted->ports, config->self.relays, sizeof wanted->ports);
        return 0;
    }
    if (wanted->kind == GATE_RELAY)
        return error_set(-EINVAL, "net-gate = relay needs the guest's interfaces: 'relay' in [host %s]",
                         config->self.name);
    if (wanted->kind == GATE_NONE)
        return 0;
    int found = gate_find_taps(guest_pid(protect->guest), wanted->ports, GATE_PORTS_MAX);
    if (found < 0)
        return found;
    wanted->port_count = (unsigned)found;
    if (!found && has_network(protect))
        log_warning("the guest has a network, but no tap: what it sends is not held (net gate none)");
    return 0;
}

static int open_at_taps(struct protect *protect, struct gate_config *wanted, const struct gate_events *events)
{
    int r = ports(protect, wanted);
    if (r < 0)
        return r;
    /* Nothing to hold is no reason to fail, whatever kind was asked for. */
    if (!wanted->port_count)
        wanted->kind = GATE_NONE;
    return gate_open(&protect->gate, wanted, events);
}

int protect_gate_open(struct protect *protect, bool was_here)
{
    const struct config *config = protect->hub.config;
    struct gate_config wanted = {
        .kind = config->gate, .failure = config->gate_failure, .held_bytes_max = config->gate_held_bytes};
    const struct gate_events events = {
        .waiting = on_waiting, .full = on_full, .failed = on_failed, .ctx = protect};
    wanted.opens_holding = was_here;
    int r = guest_gate_open(&protect->gate, protect->guest, config, &wanted, &events);
    if (r == 0)
        r = open_at_taps(protect, &wanted, &events);
    if (r < 0)
        return error_add(r, "net gate (net-gate = none does without)");
    if (was_here && (r = gate_mark_begin(protect->gate, 0)) == 0)
        r = gate_mark_end(protect->gate);
    if (r < 0)
        return error_add(r, "net gate");
    enum gate_kind kind = gate_kind_of(protect->gate);
    if (kind != GATE_NONE)
        log_notice("net gate: %s%s%s%s", gate_kind_name(kind), wanted.port_count ? " on " : "",
                   wanted.ports[0].tap, wanted.port_count > 1 ? " and others" : "");
    return 0;
}

void protect_gate_close(struct protect *protect)
{
    gate_close(protect->gate);
    protect->gate = NULL;
}

int protect_gate_mark_begin(void *daemon, uint64_t epoch)
{
    struct protect *protect = daemon;
    scope_lock(&protect->gate_lock);
    return gate_mark_begin(protect->gate, epoch);
}

int protect_gate_mark_end(void *daemon)
{
    struct protect *protect = daemon;
    scope_lock(&protect->gate_lock);
    return gate_mark_end(protect->gate);
}

bool protect_gate_holds(struct protect *protect)
{
    struct gate_stats stats;
    gate_get_stats(protect->gate, &stats);
    return stats.holding;
}

static void said(int r)
{
    if (r < 0)
        log_error("net gate: %s", error_text());
}

void protect_gate_release(struct protect *protect, uint64_t epoch)
{
    scope_lock(&protect->gate_lock);
    said(gate_release(protect->gate, epoch));
}

void protect_gate_pass(struct protect *protect)
{
    scope_lock(&protect->gate_lock);
    said(gate_pass(protect->gate));
}

void protect_gate_shut(struct protect *protect)
{
    scope_lock(&protect->gate_lock);
    said(gate_shut(protect->gate));
}
