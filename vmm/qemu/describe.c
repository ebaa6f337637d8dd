/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/describe.h"

#include "base/error.h"
#include "base/scope.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define COMMAND_MS  10000
#define DEVICES_MAX 1024

struct lines {
    char *items[DEVICES_MAX];
    size_t count;
};

static void lines_free(struct lines *lines)
{
    for (size_t i = 0; i < lines->count; i++)
        free(lines->items[i]);
}

static int compare(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* A property's value as text; empty when there is no such property. */
static int property(struct qmp *qmp, const char *path, const char *name, char *to, size_t room)
{
    json_t *value = NULL;
    to[0] = '\0';
    int r = qmp_call(qmp, COMMAND_MS, &value, "qom-get", "{s:s, s:s}", "path", path, "property", name);
    if (r == -EREMOTEIO)
        return 0;
    if (r < 0)
        return r;
    if (json_is_string(value))
        snprintf(to, room, "%s", json_string_value(value));
    json_decref(value);
    return 0;
}

/* "child<virtio-blk-pci>" -> "virtio-blk-pci"; false for what is no device. */
static bool device_type(const char *type, char *to, size_t room)
{
    static const char *const others[] = {"memory-region", "irq", "container"};
    size_t length = strlen(type);
    if (strncmp(type, "child<", 6) != 0 || type[length - 1] != '>')
        return false;
    int put = snprintf(to, room, "%.*s", (int)(length - 7), type + 6);
    if (put < 0 || (size_t)put >= room)
        return false;
    for (size_t i = 0; i < array_length(others); i++)
        if (strcmp(to, others[i]) == 0)
            return false;
    return true;
}

/* The devices in one container. Those that the command line names also tell where they sit; the machine's own
 * follow from its type. */
static int list_devices(struct qmp *qmp, const char *container, bool located, struct lines *lines)
{
    json_t *children = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &children, "qom-list", "{s:s}", "path", container);
    if (r < 0)
        return error_add(r, "%s", container);
    size_t i;
    json_t *child;
    json_array_foreach (children, i, child) {
        const char *name = json_string_value(json_object_get(child, "name"));
        const char *full = json_string_value(json_object_get(child, "type"));
        char type[128], path[256], bus[256] = "", address[32] = "";
        if (!name || !full || !device_type(full, type, sizeof type))
            continue;
        snprintf(path, sizeof path, "%s/%s", container, name);
        if (located) {
            r = property(qmp, path, "parent_bus", bus, sizeof bus);
            if (r == 0)
                r = property(qmp, path, "legacy-addr", address, sizeof address);
            if (r < 0)
                break;
        }
        if (lines->count == DEVICES_MAX) {
            r = error_set(-EOPNOTSUPP, "more than %d devices", DEVICES_MAX);
            break;
        }
        if (asprintf(&lines->items[lines->count], "device %s %s%s%s%s%s\n", path, type, *bus ? " on " : "",
                     bus, *address ? " at " : "", address) < 0) {
            r = error_set(-ENOMEM, "description: no memory");
            break;
        }
        lines->count++;
    }
    json_decref(children);
    return r;
}

int describe_machine(struct qmp *qmp, char **ret_name)
{
    static const char suffix[] = "-machine";
    char type[256];
    int r = property(qmp, "/machine", "type", type, sizeof type);
    if (r < 0)
        return r;
    size_t length = strlen(type);
    if (length < sizeof suffix || strcmp(type + length - (sizeof suffix - 1), suffix) != 0)
        return error_set(-EPROTO, "machine type \"%s\" is not understood", type);
    char *name = strndup(type, length - (sizeof suffix - 1));
    if (!name)
        return error_set(-ENOMEM, "machine type: no memory");
    *ret_name = name;
    return 0;
}

static int describe_cpus(struct qmp *qmp, char *type, size_t room, size_t *ret_count)
{
    json_t *cpus = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &cpus, "query-cpus-fast", NULL);
    if (r < 0)
        return r;
    const char *path = json_string_value(json_object_get(json_array_get(cpus, 0), "qom-path"));
    r = path ? property(qmp, path, "type", type, room) : error_set(-EPROTO, "query-cpus-fast: no CPU");
    if (r == 0)
        *ret_count = json_array_size(cpus);
    json_decref(cpus);
    return r;
}

/* What the CPU says of itself, word for word: two models of one type differ in nothing else. */
static int describe_features(struct qmp *qmp, FILE *out)
{
    json_t *words = NULL, *word;
    int r = qmp_call(qmp, COMMAND_MS, &words, "qom-get", "{s:s, s:s}", "path",
                     "/machine/unattached/device[0]", "property", "feature-words");
    if (r == -EREMOTEIO) /* not an x86 CPU, or not the first device */
        return 0;
    if (r < 0)
        return r;
    size_t i;
    json_array_foreach (words, i, word) {
        json_int_t eax = 0, ecx = 0, features = 0;
        const char *name = "";
        if (json_unpack(word, "{s:I, s?I, s:s, s:I}", "cpuid-input-eax", &eax, "cpuid-input-ecx", &ecx,
                        "cpuid-register", &name, "features", &features) == 0 &&
            features)
            fprintf(out, "cpuid %08llx.%llx %s %08llx\n", eax, ecx, name, features);
    }
    json_decref(words);
    return 0;
}

int describe_guest(struct qmp *qmp, const struct qemu_disks *disks, char **ret_text)
{
    char *machine cleanup_free = NULL, cpu[128];
    size_t cpus = 0;
    int r = describe_machine(qmp, &machine);
    if (r == 0)
        r = describe_cpus(qmp, cpu, sizeof cpu, &cpus);
    if (r < 0)
        return r;
    struct lines lines cleanup(lines_free) = {.count = 0};
    static const struct {
        const char *path;
        bool located;
    } containers[] = {
        {"/machine/peripheral", true}, {"/machine/peripheral-anon", true}, {"/machine/unattached", false}};
    for (size_t i = 0; i < array_length(containers); i++) {
        r = list_devices(qmp, containers[i].path, containers[i].located, &lines);
        if (r < 0)
            return r;
    }
    /* qom-list gives the order of a hash table. */
    qsort(lines.items, lines.count, sizeof lines.items[0], compare);

    char *text = NULL;
    size_t bytes = 0;
    FILE *out = open_memstream(&text, &bytes);
    if (!out)
        return error_set(-ENOMEM, "description: no memory");
    fprintf(out, "driver qemu\nversion %s (%s)\nmachine %s\ncpu %s\nsmp %zu\n", qmp_version(qmp),
            qmp_package(qmp), machine, cpu, cpus);
    r = describe_features(qmp, out);
    for (size_t i = 0; i < lines.count; i++)
        fputs(lines.items[i], out);
    disks_describe(disks, out);
    bool failed = ferror(out);
    if (fclose(out) != 0 || failed || r < 0) {
        free(text);
        return r < 0 ? r : error_set(-ENOMEM, "description: no memory");
    }
    *ret_text = text;
    return 0;
}
