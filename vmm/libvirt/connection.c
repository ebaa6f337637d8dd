/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <stdio.h>
#include <string.h>

#define RETRY_MS   100
#define GIVE_UP_NS (60 * NS_PER_S) /* for an engine that is gone */

int connection_error(int code, const char *what, const struct bridge *bridge)
{
    const char *words = virGetLastErrorMessage();
    return error_set(code, "libvirt %s: %s: %s", bridge->uri, what, words ? words : "(no words)");
}

static void on_timer(int timer, void *opaque)
{
    (void)timer;
    *(bool *)opaque = true;
}

bool connection_run(struct bridge *bridge, int ms, bool (*done)(const struct bridge *bridge))
{
    bool late = false;
    int timer = virEventAddTimeout(ms, on_timer, &late, NULL);
    while (!late && !(done && done(bridge)))
        if (virEventRunDefaultImpl() < 0)
            break;
    if (timer >= 0)
        virEventRemoveTimeout(timer);
    return done && done(bridge);
}

static void on_close(virConnectPtr connection, int reason, void *opaque)
{
    struct bridge *bridge = opaque;
    (void)reason;
    if (connection == bridge->connection)
        bridge->lost = true;
}

void connection_close(struct bridge *bridge)
{
    if (bridge->domain)
        virDomainFree(bridge->domain);
    if (bridge->connection) {
        virConnectUnregisterCloseCallback(bridge->connection, on_close);
        virConnectClose(bridge->connection);
    }
    bridge->domain = NULL;
    bridge->connection = NULL;
}

static int find_domain(struct bridge *bridge)
{
    unsigned char raw[VIR_UUID_BUFLEN];
    const char *wanted = bridge->uuid[0] ? bridge->uuid : bridge->name;
    bridge->domain = virDomainLookupByUUIDString(bridge->connection, wanted);
    if (!bridge->domain && !bridge->uuid[0])
        bridge->domain = virDomainLookupByName(bridge->connection, wanted);
    if (!bridge->domain)
        return connection_error(virGetLastErrorCode() == VIR_ERR_NO_DOMAIN ? -ENOENT : -EIO, wanted, bridge);
    if (virDomainGetUUID(bridge->domain, raw) < 0 || virDomainGetUUIDString(bridge->domain, bridge->uuid) < 0)
        return connection_error(-EIO, wanted, bridge);
    return 0;
}

int connection_open(struct bridge *bridge)
{
    bridge->connection = virConnectOpen(bridge->uri);
    if (!bridge->connection)
        return connection_error(-ECONNREFUSED, "connect", bridge);
    bridge->lost = false;
    if (virConnectRegisterCloseCallback(bridge->connection, on_close, bridge, NULL) < 0)
        return connection_error(-EIO, "watch the connection", bridge);
    return find_domain(bridge);
}

int connection_watch(struct bridge *bridge)
{
    virConnectPtr connection = bridge->connection;
    if (virConnectDomainQemuMonitorEventRegister(connection, bridge->domain, NULL, monitor_on_event, bridge,
                                                 NULL, 0) < 0 ||
        virConnectDomainEventRegisterAny(connection, bridge->domain, VIR_DOMAIN_EVENT_ID_LIFECYCLE,
                                         VIR_DOMAIN_EVENT_CALLBACK(monitor_on_lifecycle), bridge, NULL) < 0)
        return connection_error(-EIO, "events of the domain", bridge);
    return 0;
}

/* -EAGAIN: not yet; -ESRCH: the domain is gone, or this is another life of it. */
static int once_more(struct bridge *bridge)
{
    connection_close(bridge);
    int r = connection_open(bridge);
    if (r < 0)
        return r == -ENOENT ? -ESRCH : -EAGAIN;
    if (virDomainGetID(bridge->domain) != (unsigned)bridge->id)
        return -ESRCH;
    r = connection_watch(bridge);
    if (r == 0)
        r = monitor_catch_up(bridge);
    if (r == 0)
        r = fdsets_restore(bridge);
    return r == 0 || r == -ESRCH ? r : -EAGAIN;
}

bool connection_again(struct bridge *bridge)
{
    uint64_t since = clock_now_ns();
    fprintf(stderr, "libvirt %s: the connection is lost; connecting again\n", bridge->uri);
    while (!bridge->ended) {
        if (bridge->hung_up && (!engine_has_line(bridge) || clock_now_ns() - since > GIVE_UP_NS)) {
            bridge->ended = true; /* nobody is left to serve */
            return false;
        }
        int r = once_more(bridge);
        if (r == 0) {
            fprintf(stderr, "libvirt %s: connected again\n", bridge->uri);
            return true;
        }
        if (r == -ESRCH) {
            bridge->ended = true;
            if (bridge->domain && domain_ended_in_order(bridge))
                engine_tell_event(bridge, "SHUTDOWN", NULL);
            return false;
        }
        connection_run(bridge, RETRY_MS, NULL);
    }
    return false;
}
