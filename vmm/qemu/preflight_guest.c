/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What in a guest stands against tracking its memory from outside, or against saving its devices. Tracking
 * sees every write that goes through QEMU's own page tables. It does not see writers with another way to the
 * pages: another process that maps them (vhost-user, ivshmem), a device behind an IOMMU (VFIO, vDPA, the nvme
 * block driver), a kernel thread with pages pinned for good (vhost-scsi).
 */
#include "vmm/qemu/preflight.h"

#include "vmm/qemu/disks.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMAND_MS 10000

static const char *const mend_device = "take the device out of the guest";

static const struct {
    const char *prefix; /* of the QOM type */
    const char *why;
} refused_types[] = {
    {"vfio-", "a device that the host gave away writes to the guest's memory unseen"},
    {"x-vfio-", "a device in another process writes to the guest's memory unseen"},
    {"x-pci-proxy-dev", "a device in another process writes to the guest's memory unseen"},
    {"vhost-user-", "another process writes to the guest's memory unseen"},
    {"vhost-scsi", "the host's kernel writes to pinned guest memory unseen"},
    {"vhost-vdpa-", "a device of the host writes to the guest's memory unseen"},
    {"ivshmem", "other processes write to the shared memory unseen"},
};

static const struct {
    const char *kind; /* as "info network" prints it, "type=..." */
    const char *why;
} refused_networks[] = {
    {"vhost-user", "another process writes to the guest's memory unseen"},
    {"vhost-vdpa", "a device of the host writes to the guest's memory unseen"},
};

static const struct {
    const char *driver; /* of the block layer */
    const char *why;
} refused_disks[] = {
    {"nvme", "the nvme:// driver's device writes to the guest's memory unseen; use the host's kernel driver"},
    {"virtio-blk-vfio-pci", "the device writes to the guest's memory unseen"},
    {"virtio-blk-vhost-user", "another process writes to the guest's memory unseen"},
    {"virtio-blk-vhost-vdpa", "the device writes to the guest's memory unseen"},
};

static int refuse(struct preflight *preflight, const char *subject, const char *why, const char *mend)
{
    return preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, subject, "%s; %s", why, mend);
}

static bool flag(struct qmp *qmp, const char *path, const char *property)
{
    json_t *value = NULL;
    if (qmp_call(qmp, COMMAND_MS, &value, "qom-get", "{s:s, s:s}", "path", path, "property", property) < 0)
        return false;
    bool set = json_is_true(value);
    json_decref(value);
    return set;
}

static int look_at_device(struct preflight *preflight, struct qmp *qmp, const char *path, const char *type,
                          bool discards_seen)
{
    const char *name = strrchr(path, '/') + 1;
    char subject[64];
    snprintf(subject, sizeof subject, "device %.24s (%.24s)", name, type);
    for (size_t i = 0; i < array_length(refused_types); i++)
        if (strncmp(type, refused_types[i].prefix, strlen(refused_types[i].prefix)) == 0)
            return refuse(preflight, subject, refused_types[i].why, mend_device);
    if (strncmp(type, "virtio-mem", 10) == 0 && !discards_seen)
        return refuse(preflight, subject,
                      "it discards memory, which the kernel does not report for this kind of memory",
                      mend_device);
    if (strncmp(type, "virtio-balloon", 14) == 0 && !discards_seen && flag(qmp, path, "free-page-reporting"))
        return refuse(preflight, subject,
                      "free page reporting discards memory, which this kernel does not report",
                      "set free-page-reporting=off");
    if (strncmp(type, "virtio-balloon", 14) == 0 && !discards_seen)
        return preflight_add(
            preflight, 0, QEMU_FINDING_WARNING, subject,
            "pages that it takes from the guest are not reported; a verification finds them to "
            "differ, though the guest does not rely on them");
    if (strncmp(type, "vhost-vsock", 11) == 0)
        return preflight_add(preflight, 0, QEMU_FINDING_WARNING, subject,
                             "its connections break at a takeover");
    return 0;
}

static int look_at_devices(struct preflight *preflight, struct qmp *qmp, bool discards_seen)
{
    static const char *const containers[] = {"/machine/peripheral", "/machine/peripheral-anon",
                                             "/machine/unattached"};
    for (size_t i = 0; i < array_length(containers); i++) {
        json_t *children = NULL;
        int r = qmp_call(qmp, COMMAND_MS, &children, "qom-list", "{s:s}", "path", containers[i]);
        if (r < 0)
            return error_add(r, "%s", containers[i]);
        size_t j;
        json_t *child;
        json_array_foreach (children, j, child) {
            const char *name = json_string_value(json_object_get(child, "name"));
            const char *type = json_string_value(json_object_get(child, "type"));
            if (!name || !type || strncmp(type, "child<", 6) != 0)
                continue;
            char path[256], bare[128];
            snprintf(path, sizeof path, "%s/%s", containers[i], name);
            snprintf(bare, sizeof bare, "%s", type + 6);
            bare[strcspn(bare, ">")] = '\0';
            r = look_at_device(preflight, qmp, path, bare, discards_seen);
            if (r < 0)
                break;
        }
        json_decref(children);
        if (r < 0)
            return r;
    }
    return 0;
}

/* QMP has no list of network backends; the human monitor has: "NAME: index=0,type=tap,..." */
static int look_at_network(struct preflight *preflight, struct qmp *qmp)
{
    char *text cleanup_free = NULL;
    int r = qmp_human(qmp, COMMAND_MS, "info network", &text);
    if (r < 0)
        return r;
    char *save = NULL;
    for (char *line = strtok_r(text, "\r\n", &save); line && r == 0; line = strtok_r(NULL, "\r\n", &save)) {
        const char *type = strstr(line, "type=");
        if (!type)
            continue;
        size_t length = strcspn(type + 5, ",");
        for (size_t i = 0; i < array_length(refused_networks); i++) {
            if (length != strlen(refused_networks[i].kind) ||
                strncmp(type + 5, refused_networks[i].kind, length) != 0)
                continue;
            char subject[64];
            snprintf(subject, sizeof subject, "network %.40s", line + strspn(line, " \\"));
            subject[8 + strcspn(subject + 8, ":")] = '\0';
            r = refuse(preflight, subject, refused_networks[i].why, "use a tap device");
        }
    }
    return r;
}

static int look_at_disks(struct preflight *preflight, struct qmp *qmp)
{
    json_t *nodes = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &nodes, "query-named-block-nodes", "{s:b}", "flat", 1);
    if (r < 0)
        return r;
    size_t i;
    json_t *node;
    json_array_foreach (nodes, i, node) {
        const char *driver = json_string_value(json_object_get(node, "drv"));
        const char *name = json_string_value(json_object_get(node, "node-name"));
        for (size_t j = 0; driver && j < array_length(refused_disks) && r == 0; j++) {
            if (strcmp(driver, refused_disks[j].driver) != 0)
                continue;
            char subject[64];
            snprintf(subject, sizeof subject, "disk %.40s (%.12s)", name ? name : "", driver);
            r = preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, subject, "%s",
                              refused_disks[j].why);
        }
    }
    json_decref(nodes);
    return r;
}

/* Is there a controller whose requests run in a thread of their own? */
static bool has_iothread(struct qmp *qmp)
{
    static const char *const containers[] = {"/machine/peripheral", "/machine/peripheral-anon"};
    bool found = false;
    for (size_t i = 0; i < array_length(containers); i++) {
        json_t *children = NULL, *child;
        size_t j;
        if (qmp_call(qmp, COMMAND_MS, &children, "qom-list", "{s:s}", "path", containers[i]) < 0)
            continue;
        json_array_foreach (children, j, child) {
            const char *name = json_string_value(json_object_get(child, "name"));
            char path[256];
            json_t *thread = NULL;
            snprintf(path, sizeof path, "%s/%s", containers[i], name ? name : "");
            if (qmp_call(qmp, COMMAND_MS, &thread, "qom-get", "{s:s, s:s}", "path", path, "property",
                         "iothread") < 0)
                continue;
            const char *link = json_string_value(thread);
            found |= link && *link;
            json_decref(thread);
        }
        json_decref(children);
    }
    return found;
}

/* What becomes of each disk's content. */
static int look_at_contents(struct preflight *preflight, struct qmp *qmp, const char *const *shared)
{
    struct qemu_disks *disks cleanup_free = malloc(sizeof *disks);
    if (!disks)
        return error_set(-ENOMEM, "disks: no memory");
    int r = disks_find(qmp, shared, disks);
    if (r == 0 && disks->count && has_iothread(qmp))
        r = refuse(preflight, "iothread",
                   "QEMU 7.2 ends in an assertion, or hangs, when a disk in an iothread is mirrored over NBD",
                   "take iothread= from the disks' devices, or name the disks in shared-disks");
    for (size_t i = 0; r == 0 && i < disks->all_count; i++) {
        const struct qemu_disk *disk = &disks->all[i];
        const char *name = disk->shown.name;
        char subject[64];
        if (!strncmp(name, "/machine/", 9))
            name += 9;
        snprintf(subject, sizeof subject, "disk %.56s", name);
        if (disk->kind == DISK_REPLICATED && disk->busy)
            r = preflight_add(preflight, -EBUSY, QEMU_FINDING_REFUSED, subject,
                              "a block job of somebody else works on it; wait for its end, or cancel it");
        else if (disk->kind == DISK_REPLICATED)
            r = preflight_add(preflight, 0, QEMU_FINDING_OK, subject, "%.1f MiB, copied to the standby",
                              (double)disk->shown.bytes / 1048576);
        else if (disk->kind == DISK_READ_ONLY)
            r = preflight_add(preflight, 0, QEMU_FINDING_OK, subject,
                              "read-only, passed by: the standby has to have the same");
        else if (disk->kind == DISK_SHARED)
            r = preflight_add(
                preflight, 0, QEMU_FINDING_WARNING, subject,
                "declared as shared, not copied: after a takeover it may be newer than the guest's "
                "memory, and without fencing two guests may write to it");
        else
            r = refuse(preflight, subject, "its device allows other writers (share-rw)",
                       "name it in shared-disks if both hosts reach it");
    }
    return r;
}

static int look_at_migration(struct preflight *preflight, struct qmp *qmp)
{
    json_t *migration = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &migration, "query-migrate", NULL);
    if (r < 0)
        return r;
    size_t i;
    json_t *reason;
    json_array_foreach (json_object_get(migration, "blocked-reasons"), i, reason) {
        const char *text = json_string_value(reason);
        r = refuse(preflight, "migration blocker", text ? text : "(unnamed)",
                   "QEMU cannot save the devices of this guest");
        if (r < 0)
            break;
    }
    static const char *const busy[] = {
        "setup",  "cancelling",  "active", "postcopy-active", "postcopy-paused", "pre-switchover",
        "device", "wait-unplug", "colo",   "postcopy-recover"};
    const char *status = json_string_value(json_object_get(migration, "status"));
    for (size_t j = 0; status && r == 0 && j < array_length(busy); j++)
        if (strcmp(status, busy[j]) == 0)
            r = preflight_add(preflight, -EBUSY, QEMU_FINDING_REFUSED, "migration",
                              "a migration is under way (%s); wait for its end", status);
    json_decref(migration);
    return r;
}

static int look_at_run_state(struct preflight *preflight, struct qmp *qmp)
{
    json_t *answer = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &answer, "query-status", NULL);
    if (r < 0)
        return r;
    const char *status = json_string_value(json_object_get(answer, "status"));
    /* From the other states the guest does not go on by "cont", or is not whole. */
    static const char *const stopped[] = {"paused",   "prelaunch", "debug",
                                          "io-error", "watchdog",  "suspended"};
    if (status && strcmp(status, "running") == 0)
        r = preflight_add(preflight, 0, QEMU_FINDING_OK, "guest", "running");
    else {
        bool fit = false;
        for (size_t i = 0; status && i < array_length(stopped); i++)
            fit |= strcmp(status, stopped[i]) == 0;
        r = fit ? preflight_add(preflight, 0, QEMU_FINDING_WARNING, "guest",
                                "it is stopped (%s), and stays so unless an engine stopped it and died",
                                status)
                : preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, "guest",
                                "its state is \"%s\"; it must be running or paused", status ? status : "?");
    }
    json_decref(answer);
    return r;
}

static int look_at_target(struct preflight *preflight, struct qmp *qmp)
{
    json_t *answer = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &answer, "query-target", NULL);
    if (r < 0)
        return r;
    const char *arch = json_string_value(json_object_get(answer, "arch"));
    if (!arch || strcmp(arch, "x86_64") != 0)
        r = preflight_add(preflight, -EOPNOTSUPP, QEMU_FINDING_REFUSED, "architecture",
                          "the guest is %s; only x86_64 is supported", arch ? arch : "unknown");
    json_decref(answer);
    return r;
}

int preflight_guest(struct preflight *preflight, struct qmp *qmp, const char *const *shared_disks,
                    bool discards_seen)
{
    size_t before = preflight->count;
    int r = look_at_target(preflight, qmp);
    if (r == 0)
        r = look_at_migration(preflight, qmp);
    if (r == 0)
        r = look_at_devices(preflight, qmp, discards_seen);
    if (r == 0)
        r = look_at_network(preflight, qmp);
    if (r == 0)
        r = look_at_disks(preflight, qmp);
    if (r == 0)
        r = look_at_contents(preflight, qmp, shared_disks);
    if (r == 0 && preflight->count == before)
        r = preflight_add(preflight, 0, QEMU_FINDING_OK, "devices", "all can be saved and tracked");
    return r == 0 ? look_at_run_state(preflight, qmp) : r;
}
