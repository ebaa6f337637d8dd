/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/arbiter_backend.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/config.h"
#include "replicator/scope_json.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

size_t arbiter_record_print(const struct arbiter *arbiter, uint64_t generation,
                            char ret_text[ARBITER_RECORD_MAX])
{
    return (size_t)snprintf(ret_text, ARBITER_RECORD_MAX,
                            "{\"uuid\": \"%s\", \"generation\": %llu, \"owner\": \"%s\"}", arbiter->uuid,
                            (unsigned long long)generation, arbiter->owner);
}

int arbiter_record_parse(const struct arbiter *arbiter, const char *text, size_t length,
                         struct arbiter_record *ret_record)
{
    json_error_t error;
    const char *uuid, *owner;
    json_int_t generation;
    json_t *root cleanup_json = json_loadb(text, length, JSON_REJECT_DUPLICATES, &error);
    if (!root || json_unpack_ex(root, &error, JSON_STRICT, "{s:s, s:I, s:s}", "uuid", &uuid, "generation",
                                &generation, "owner", &owner) < 0)
        return error_set(-EBADMSG, "damaged: %s", error.text);
    if (generation < 1 || strlen(owner) >= sizeof ret_record->owner)
        return error_set(-EBADMSG, "damaged: generation %lld", (long long)generation);
    if (strcmp(uuid, arbiter->uuid) != 0)
        return error_set(-EBADMSG, "the register of machine %.40s, not of %s", uuid, arbiter->uuid);
    ret_record->generation = (uint64_t)generation;
    strcpy(ret_record->owner, owner);
    return 0;
}

bool arbiter_is_free(const struct arbiter *arbiter, const struct arbiter_record *record, uint64_t from)
{
    return record->generation <= from || strcmp(record->owner, arbiter->owner) == 0;
}

uint64_t arbiter_next(const struct arbiter_record *record, uint64_t to)
{
    return record->generation < to ? to : record->generation + 1;
}

static int none_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    (void)arbiter;
    (void)from;
    *ret_generation = to;
    return ARBITER_RESULT_WON;
}

static int none_read(struct arbiter *arbiter, struct arbiter_record *ret_record)
{
    (void)arbiter;
    *ret_record = (struct arbiter_record){0};
    return 0;
}

static void none_close(struct arbiter *arbiter)
{
    free(arbiter);
}

static int none_open(struct arbiter **ret_arbiter)
{
    static const struct arbiter_ops ops = {none_swap, none_read, none_close};
    struct arbiter *arbiter = calloc(1, sizeof *arbiter);
    if (!arbiter)
        return error_errno(-ENOMEM, "arbiter");
    arbiter->ops = &ops;
    *ret_arbiter = arbiter;
    return 0;
}

int arbiter_open(struct arbiter **ret_arbiter, const char *specification, const struct etcd_config *etcd,
                 const uint8_t vm_uuid[16], const char *owner)
{
    struct arbiter *arbiter;
    int r;
    if (!owner[0] || strlen(owner) >= ARBITER_OWNER_MAX || strpbrk(owner, "\"\\"))
        return error_set(-EINVAL, "arbiter: '%.80s' cannot be an owner's name", owner);
    if (!strcmp(specification, "none"))
        r = none_open(&arbiter);
    else if (!strncmp(specification, "file:/", 6))
        r = arbiter_file_open(&arbiter, specification + 5);
    else if (!strcmp(specification, "etcd") && etcd)
        r = arbiter_etcd_open(&arbiter, etcd);
    else
        r = error_set(-EINVAL, "arbiter '%.100s' is neither none, file:/PATH nor etcd", specification);
    if (r < 0)
        return r;
    config_uuid_print(vm_uuid, arbiter->uuid);
    strcpy(arbiter->owner, owner);
    *ret_arbiter = arbiter;
    return 0;
}

void arbiter_close(struct arbiter *arbiter)
{
    if (arbiter)
        arbiter->ops->close(arbiter);
}

int arbiter_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    if (to <= from || to > INT64_MAX)
        return error_set(-EINVAL, "arbiter: from generation %llu to %llu", (unsigned long long)from,
                         (unsigned long long)to);
    return arbiter->ops->swap(arbiter, from, to, ret_generation);
}

int arbiter_read(struct arbiter *arbiter, uint64_t *ret_generation, char ret_owner[ARBITER_OWNER_MAX])
{
    struct arbiter_record record;
    int r = arbiter->ops->read(arbiter, &record);
    if (r < 0)
        return r;
    *ret_generation = record.generation;
    strcpy(ret_owner, record.owner);
    return 0;
}
