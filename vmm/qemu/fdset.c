/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/qemu/fdset.h"

#include <string.h>

#define COMMAND_MS 10000

int fdset_add(struct qmp *qmp, int fd, const char *word, int64_t *ret_id)
{
    json_t *added = NULL;
    int r = qmp_call_fd(qmp, COMMAND_MS, &added, fd, "add-fd", "{s:s}", "opaque", word);
    if (r < 0)
        return r;
    *ret_id = json_integer_value(json_object_get(added, "fdset-id"));
    json_decref(added);
    return 0;
}

int fdset_remove(struct qmp *qmp, int64_t id)
{
    return qmp_call(qmp, COMMAND_MS, NULL, "remove-fd", "{s:I}", "fdset-id", (json_int_t)id);
}

/* Calls remove-fd for each set with the word, if asked to. */
static int walk(struct qmp *qmp, const char *word, bool remove, bool *ret_found)
{
    json_t *sets = NULL;
    int r = qmp_call(qmp, COMMAND_MS, &sets, "query-fdsets", NULL);
    if (r < 0)
        return r;
    bool found = false;
    size_t i;
    json_t *set;
    json_array_foreach (sets, i, set) {
        json_t *first = json_array_get(json_object_get(set, "fds"), 0);
        const char *opaque = json_string_value(json_object_get(first, "opaque"));
        if (!opaque || strcmp(opaque, word) != 0)
            continue;
        found = true;
        if (remove && (r = fdset_remove(qmp, json_integer_value(json_object_get(set, "fdset-id")))) < 0)
            break;
    }
    json_decref(sets);
    if (r == 0)
        *ret_found = found;
    return r;
}

int fdset_find(struct qmp *qmp, const char *word, bool *ret_found)
{
    return walk(qmp, word, false, ret_found);
}

int fdset_remove_all(struct qmp *qmp, const char *word)
{
    bool found;
    return walk(qmp, word, true, &found);
}
