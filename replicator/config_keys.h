/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_CONFIG_KEYS_H
#define UNDERSTUDY_REPLICATOR_CONFIG_KEYS_H

#include "replicator/config.h"

/* The keys of the configuration file and what their values mean. Internal to config.c. */

#define CONFIG_HOST_NAME_MAX 40 /* inih keeps 49 characters of "host NAME" */

/* Sets what `to` points to. The error text says what is allowed. */
typedef int (*config_parser)(const char *value, void *to, uint64_t low, uint64_t high);

struct config_key {
    const char *name;
    size_t offset; /* in struct config or struct config_host */
    config_parser parser;
    uint64_t low, high;
    bool required;
};

extern const struct config_key config_vm_keys[], config_host_keys[];
extern const size_t config_vm_key_count, config_host_key_count;

int config_parse_host_name(const char *value, char ret_name[CONFIG_NAME_MAX]);
int config_set_text(char **to, const char *value);

/* Of the whole file: what arbiter, etcd-... and fence say must fit together. -EINVAL with the reason. */
int config_arbiter_check(const struct config *config, const struct config_host *one,
                         const struct config_host *two);

#endif
