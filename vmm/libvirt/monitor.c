/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <libvirt/libvirt-qemu.h>
#include <libvirt/virterror.h>
#include <stdlib.h>
#include <string.h>
#include <sys/pidfd.h>

#define EVENT_MS 20   /* an event is some 0.1 ms behind its answer; after this the sure way is gone */
#define WORD_MS  1000 /* from QEMU's end to libvirt's word of it */
#define GONE_MS  2000 /* from a failed command to either */

/* --- events --- */

static void note_event(struct bridge *bridge, const char *event, const json_t *data)
{
    if (strcmp(event, "STOP") == 0) {
        bridge->stopped = true;
        bridge->changes++;
    } else if (strcmp(event, "RESUME") == 0) {
        bridge->stopped = false;
        bridge->changes++;
        /* The machine goes on: libvirt made a reboot of what QEMU took for its end. */
        json_decref(bridge->shutdown);
        bridge->shutdown = NULL;
    } else if (strcmp(event, "MIGRATION") == 0) {
        const char *status = json_string_value(json_object_get(data, "status"));
        bridge->loaded |= status && strcmp(status, "completed") == 0;
    }
}

void monitor_on_event(virConnectPtr connection, virDomainPtr domain, const char *event, long long seconds,
                      unsigned microseconds, const char *details, void *opaque)
{
    struct bridge *bridge = opaque;
    (void)domain;
    (void)seconds;
    (void)microseconds;
    if (connection != bridge->connection || bridge->ended)
        return;
    json_t *data = details ? json_loads(details, 0, NULL) : NULL;
    if (strcmp(event, "SHUTDOWN") == 0) {
        json_decref(bridge->shutdown);
        bridge->shutdown = data ? json_incref(data) : json_object();
    } else {
        note_event(bridge, event, data);
        engine_tell_event(bridge, event, data);
    }
    json_decref(data);
}

/* Libvirt had its time to say why. A SHUTDOWN of QEMU's own tells enough. */
static void on_silence(int timer, void *opaque)
{
    struct bridge *bridge = opaque;
    virEventRemoveTimeout(timer);
    if (bridge->ended)
        return;
    bridge->ended = true;
    if (bridge->shutdown)
        engine_tell_event(bridge, "SHUTDOWN", bridge->shutdown);
}

static void on_exit_of_qemu(int watch, int fd, int events, void *opaque)
{
    (void)fd;
    (void)events;
    virEventRemoveHandle(watch);
    if (virEventAddTimeout(WORD_MS, on_silence, opaque, NULL) < 0)
        abort(); /* no memory; the engine sees us go */
}

int monitor_watch_process(struct bridge *bridge)
{
    bridge->process = pidfd_open(bridge->pid, 0);
    if (bridge->process < 0)
        return error_errno(-errno, "process %d", bridge->pid);
    if (virEventAddHandle(bridge->process, VIR_EVENT_HANDLE_READABLE, on_exit_of_qemu, bridge, NULL) < 0)
        return connection_error(-ENOMEM, "watch QEMU", bridge);
    return 0;
}

int monitor_on_lifecycle(virConnectPtr connection, virDomainPtr domain, int event, int detail, void *opaque)
{
    struct bridge *bridge = opaque;
    (void)domain;
    if (connection != bridge->connection || event != VIR_DOMAIN_EVENT_STOPPED || bridge->ended)
        return 0;
    bridge->ended = true;
    if (detail == VIR_DOMAIN_EVENT_STOPPED_CRASHED || detail == VIR_DOMAIN_EVENT_STOPPED_FAILED)
        return 0;
    engine_tell_event(bridge, "SHUTDOWN", bridge->shutdown);
    return 0;
}

/* --- commands --- */

/* -ECONNRESET: libvirtd hung up; -EREMOTEIO: libvirt refused, see error_text(). */
static int pass(struct bridge *bridge, const char *text, int fd, json_t **ret_reply)
{
    char *result = NULL;
    if (virDomainQemuMonitorCommandWithFiles(bridge->domain, text, fd >= 0, &fd, NULL, NULL, &result, 0) <
        0) {
        int r = connection_error(-EREMOTEIO, "monitor command", bridge);
        return bridge->lost || virConnectIsAlive(bridge->connection) != 1 ? -ECONNRESET : r;
    }
    *ret_reply = json_loads(result, 0, NULL);
    free(result);
    return *ret_reply ? 0 : error_set(-EREMOTEIO, "libvirt %s: an answer that is not JSON", bridge->uri);
}

int monitor_call(struct bridge *bridge, const char *text, int fd, json_t **ret_result)
{
    json_t *reply = NULL;
    int r = pass(bridge, text, fd, &reply);
    if (r < 0)
        return r;
    json_t *result = json_object_get(reply, "return");
    if (result && ret_result)
        *ret_result = json_incref(result);
    if (!result) {
        const char *words = json_string_value(json_object_get(json_object_get(reply, "error"), "desc"));
        r = error_set(-EREMOTEIO, "QEMU says: %s", words ? words : "(nothing)");
    }
    json_decref(reply);
    return r;
}

int monitor_catch_up(struct bridge *bridge)
{
    json_t *answer = NULL;
    int r = monitor_call(bridge, "{\"execute\":\"query-status\"}", -1, &answer);
    if (r < 0)
        return r;
    const char *word = json_string_value(json_object_get(answer, "status"));
    bool stopped = !word || strcmp(word, "running") != 0;
    if (bridge->start && !bridge->loaded && word && strcmp(word, "inmigrate") != 0) {
        json_t *data = json_pack("{s:s}", "status", "completed");
        note_event(bridge, "MIGRATION", data);
        engine_tell_event(bridge, "MIGRATION", data);
        json_decref(data);
    }
    if (stopped != bridge->stopped) {
        note_event(bridge, stopped ? "STOP" : "RESUME", NULL);
        engine_tell_event(bridge, stopped ? "STOP" : "RESUME", NULL);
    }
    json_decref(answer);
    return 0;
}

/* What can be said a second time, when nobody knows whether the first was heard. */
static bool repeatable(const char *name)
{
    static const char *const names[] = {
        "stop", "cont", "getfd", "human-monitor-command", "announce-self", "migrate-set-capabilities"};
    if (strncmp(name, "query-", 6) == 0 || strncmp(name, "qom-", 4) == 0)
        return true;
    for (size_t i = 0; i < array_length(names); i++)
        if (strcmp(name, names[i]) == 0)
            return true;
    return false;
}

static bool gone(const struct bridge *bridge)
{
    return bridge->ended || bridge->lost;
}

static bool came(const struct bridge *bridge)
{
    return bridge->changes != bridge->changes_before || gone(bridge);
}

/* Behind "stop" and "cont": until the event that they cause has been told, or there is none. */
static void settle(struct bridge *bridge)
{
    unsigned long version;
    if (connection_run(bridge, EVENT_MS, came))
        return;
    for (int i = 0; i < 2; i++)
        virConnectGetLibVersion(bridge->connection, &version);
    connection_run(bridge, 1, came);
}

static json_t *refusal(const char *words)
{
    return json_pack("{s:{s:s, s:s}}", "error", "class", "GenericError", "desc", words);
}

/* The reply, or NULL when the domain is gone. */
static json_t *run(struct bridge *bridge, const char *name, const char *text, int fd)
{
    for (;;) {
        json_t *reply = NULL;
        int r = bridge->lost ? -ECONNRESET : pass(bridge, text, fd, &reply);
        if (r == 0)
            return reply;
        if (r != -ECONNRESET) {
            /* Is this about QEMU's end, of which libvirt is about to tell? */
            char words[ERROR_TEXT_MAX];
            snprintf(words, sizeof words, "%s", error_text());
            if (virGetLastErrorCode() != VIR_ERR_OPERATION_TIMEOUT)
                connection_run(bridge, GONE_MS, gone);
            return bridge->ended ? NULL : refusal(words);
        }
        bool known = bridge->lost; /* before the command was sent */
        if (!connection_again(bridge))
            return NULL;
        if (!known && !repeatable(name))
            return refusal("libvirtd was restarted during the command");
    }
}

static void before(struct bridge *bridge, const char *name)
{
    if (bridge->start && !bridge->let_run && strcmp(name, "cont") == 0) {
        bridge->let_run = true; /* from here on nobody throws the domain away, whatever comes */
        domain_mark(bridge, "active");
    } else if (!bridge->start && !bridge->marked && strcmp(name, "stop") == 0) {
        /* The first checkpoint. Not earlier: until here the engine may still find that it has to refuse. */
        domain_mark(bridge, "primary");
    }
}

void monitor_serve(struct bridge *bridge, const char *line)
{
    json_t *command = json_loads(line, 0, NULL), *id = json_object_get(command, "id");
    const char *name = json_string_value(json_object_get(command, "execute"));
    int fd cleanup_close = -1;
    json_incref(id);
    json_object_del(command, "id"); /* libvirt numbers them itself */
    json_t *reply = NULL;
    if (!name)
        reply = refusal("not a command");
    else if (strcmp(name, "qmp_capabilities") == 0)
        reply = json_pack("{s:{}}", "return");
    else {
        char *text cleanup_free = json_dumps(command, JSON_COMPACT);
        bool settles = strcmp(name, "stop") == 0 || strcmp(name, "cont") == 0;
        if (strcmp(name, "getfd") == 0 || strcmp(name, "add-fd") == 0)
            fd = take_fd(&bridge->passed);
        before(bridge, name);
        bridge->changes_before = bridge->changes;
        reply = text ? run(bridge, name, text, fd) : refusal("out of memory");
        json_t *result = json_object_get(reply, "return");
        if (result)
            fdsets_note(bridge, name, json_object_get(command, "arguments"), result, &fd);
        if (result && settles && !came(bridge))
            settle(bridge);
    }
    if (reply && id)
        json_object_set(reply, "id", id);
    else if (reply)
        json_object_del(reply, "id");
    if (reply)
        engine_tell(bridge, reply);
    json_decref(id);
    json_decref(command);
}
