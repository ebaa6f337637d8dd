/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/libvirt/bridge.h"

#include "base/scope.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/*
 * The engine's sets of descriptors in QEMU. QEMU drops them when its monitor's client goes, which over a QMP
 * socket is the engine, and here is libvirtd. So what the engine added has to come back after a restart of
 * libvirtd, and has to go when the engine is gone and the guest runs: otherwise the next engine would take a
 * stop of an administrator's for one of an engine that died (vmm/qemu/fdset.h). QEMU keeps the sets while the
 * guest is stopped, and then they are to stay.
 */

static bool pass_to_qemu(struct bridge *bridge, const char *command, json_t *arguments, int fd)
{
    json_t *object = json_pack("{s:s, s:o}", "execute", command, "arguments", arguments);
    char *text cleanup_free = object ? json_dumps(object, JSON_COMPACT) : NULL;
    json_decref(object);
    return text && monitor_call(bridge, text, fd, NULL) == 0;
}

static void drop(struct bridge_fdset *set)
{
    close(set->fd);
    free(set->word);
    *set = (struct bridge_fdset){.fd = -1};
}

void fdsets_note(struct bridge *bridge, const char *name, const json_t *arguments, const json_t *result,
                 int *fd)
{
    bool added = strcmp(name, "add-fd") == 0 && *fd >= 0;
    json_int_t id = json_integer_value(
        json_object_get(added ? result : arguments, "fdset-id")); /* of "remove-fd": an argument */
    if (!added && strcmp(name, "remove-fd") != 0)
        return;
    for (size_t i = 0; i < FDSETS_MAX; i++) {
        struct bridge_fdset *set = &bridge->fdsets[i];
        if (!added && set->word && set->id == id)
            drop(set);
        if (!added || set->word)
            continue;
        const char *word = json_string_value(json_object_get(arguments, "opaque"));
        *set = (struct bridge_fdset){.id = id, .word = strdup(word ? word : ""), .fd = take_fd(fd)};
        return;
    }
}

static bool is_there(const json_t *sets, json_int_t id)
{
    size_t i;
    json_t *set;
    json_array_foreach (sets, i, set)
        if (json_integer_value(json_object_get(set, "fdset-id")) == id)
            return true;
    return false;
}

int fdsets_restore(struct bridge *bridge)
{
    json_t *sets = NULL;
    int r = monitor_call(bridge, "{\"execute\":\"query-fdsets\"}", -1, &sets);
    for (size_t i = 0; i < FDSETS_MAX && r == 0; i++) {
        const struct bridge_fdset *set = &bridge->fdsets[i];
        if (!set->word || is_there(sets, set->id))
            continue;
        if (!pass_to_qemu(bridge, "add-fd", json_pack("{s:I, s:s}", "fdset-id", set->id, "opaque", set->word),
                          set->fd))
            fprintf(stderr, "libvirt %s: the descriptors of the engine could not be restored\n", bridge->uri);
    }
    json_decref(sets);
    return r;
}

void fdsets_end(struct bridge *bridge, bool remove)
{
    for (size_t i = 0; i < FDSETS_MAX; i++) {
        struct bridge_fdset *set = &bridge->fdsets[i];
        if (set->word && remove)
            pass_to_qemu(bridge, "remove-fd", json_pack("{s:I}", "fdset-id", set->id), -1);
        if (set->word)
            drop(set);
    }
}
