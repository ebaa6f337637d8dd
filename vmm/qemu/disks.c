/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/disks.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define COMMAND_MS 10000

/* "/machine/peripheral/ID" or deeper, for an id; else the path itself. */
static bool named(const char *path, const char *name)
{
    static const char container[] = "/machine/peripheral/";
    if (!strcmp(name, "*") || !strcmp(name, path))
        return true;
    if (strncmp(path, container, sizeof container - 1) != 0)
        return false;
    size_t length = strlen(name);
    const char *id = path + sizeof container - 1;
    return !strncmp(id, name, length) && (id[length] == 0 || id[length] == '/');
}

static bool declared(const char *path, const char *const *shared)
{
    for (; shared && *shared; shared++)
        if (named(path, *shared))
            return true;
    return false;
}

/* The device's own word that others write there too. Its front may hide the property one step down. */
static bool share_rw(struct qmp *qmp, const char *path)
{
    char device[256];
    snprintf(device, sizeof device, "%s", path);
    for (int i = 0; i < 2; i++) {
        json_t *value = NULL;
        if (qmp_call(qmp, COMMAND_MS, &value, "qom-get", "{s:s, s:s}", "path", device, "property",
                     "share-rw") == 0) {
            bool set = json_is_true(value);
            json_decref(value);
            return set;
        }
        char *slash = strrchr(device, '/');
        if (!slash || slash == device)
            break;
        *slash = 0;
    }
    return false;
}

static bool busy(const json_t *jobs, const char *device, const char *node)
{
    size_t i;
    json_t *job;
    json_array_foreach (jobs, i, job) {
        const char *id = json_string_value(json_object_get(job, "device"));
        if (id && strncmp(id, "understudy-", 11) != 0 && (!strcmp(id, device) || !strcmp(id, node)))
            return true;
    }
    return false;
}

static int compare(const void *a, const void *b)
{
    return strcmp(((const struct qemu_disk *)a)->shown.name, ((const struct qemu_disk *)b)->shown.name);
}

/* Returns 1 when the entry is no disk of ours: no medium, nothing the guest sees, or flash, which is memory.
 */
static int look_at(struct qmp *qmp, const json_t *entry, const json_t *jobs, const char *const *shared,
                   struct qemu_disk *ret_disk)
{
    const json_t *inserted = json_object_get(entry, "inserted");
    const char *path = json_string_value(json_object_get(entry, "qdev"));
    const char *device = json_string_value(json_object_get(entry, "device"));
    const char *node = json_string_value(json_object_get(inserted, "node-name"));
    json_int_t bytes =
        json_integer_value(json_object_get(json_object_get(inserted, "image"), "virtual-size"));
    if (!inserted || !path || !*path || !node || strstr(path, ".flash"))
        return 1;
    struct qemu_disk disk = {.kind = DISK_REPLICATED};
    if (snprintf(disk.shown.name, sizeof disk.shown.name, "%s", path) >= (int)sizeof disk.shown.name ||
        snprintf(disk.node, sizeof disk.node, "%s", node) >= (int)sizeof disk.node)
        return error_set(-EOPNOTSUPP, "disk %s: its name is too long", path);
    disk.shown.bytes = (uint64_t)bytes;
    disk.busy = busy(jobs, device ? device : "", node);
    if (json_is_true(json_object_get(inserted, "ro")))
        disk.kind = DISK_READ_ONLY;
    else if (declared(path, shared))
        disk.kind = DISK_SHARED;
    else if (share_rw(qmp, path))
        disk.kind = DISK_UNDECLARED;
    else if (bytes <= 0 || bytes % VMM_DISK_SECTOR)
        return error_set(-EOPNOTSUPP, "disk %s: %lld bytes are no whole number of sectors", path,
                         (long long)bytes);
    *ret_disk = disk;
    return 0;
}

int disks_find(struct qmp *qmp, const char *const *shared, struct qemu_disks *ret_disks)
{
    json_t *entries = NULL, *jobs = NULL;
    struct qemu_disks *disks cleanup_free = calloc(1, sizeof *disks);
    if (!disks)
        return error_set(-ENOMEM, "disks: no memory");
    int r = qmp_call(qmp, COMMAND_MS, &entries, "query-block", NULL);
    if (r == 0)
        r = qmp_call(qmp, COMMAND_MS, &jobs, "query-block-jobs", NULL);
    size_t i;
    json_t *entry;
    json_array_foreach (entries, i, entry) {
        struct qemu_disk disk;
        if (r < 0)
            break;
        r = look_at(qmp, entry, jobs, shared, &disk);
        if (r > 0)
            r = 0;
        else if (r == 0 && disks->all_count == VMM_DISKS_MAX)
            r = error_set(-EOPNOTSUPP, "the guest has more than %d disks", VMM_DISKS_MAX);
        else if (r == 0)
            disks->all[disks->all_count++] = disk;
    }
    json_decref(entries);
    json_decref(jobs);
    if (r < 0)
        return r;
    qsort(disks->all, disks->all_count, sizeof disks->all[0], compare);
    for (i = 0; i < disks->all_count; i++) {
        if (disks->all[i].kind != DISK_REPLICATED)
            continue;
        disks->shown[disks->count] = disks->all[i].shown;
        memcpy(disks->nodes[disks->count++], disks->all[i].node, DISK_NODE_MAX);
    }
    *ret_disks = *disks;
    return 0;
}

void disks_describe(const struct qemu_disks *disks, FILE *to)
{
    static const char *const words[] = {[DISK_REPLICATED] = "disk",
                                        [DISK_READ_ONLY] = "read-only-disk",
                                        [DISK_SHARED] = "shared-disk",
                                        [DISK_UNDECLARED] = "shared-disk"};
    for (size_t i = 0; i < disks->all_count; i++)
        fprintf(to, "%s %s %" PRIu64 "\n", words[disks->all[i].kind], disks->all[i].shown.name,
                disks->all[i].shown.bytes);
}
