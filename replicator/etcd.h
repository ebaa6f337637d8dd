/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ETCD_H
#define UNDERSTUDY_REPLICATOR_ETCD_H

#include <stdint.h>

/* How to reach the etcd cluster that is the arbiter (v3 API, JSON gateway, etcd 3.4 or newer). */
struct etcd_config {
    char **endpoints;           /* "https://HOST:PORT", NULL-terminated; "http://" to loopback only */
    char *prefix;               /* the register is the key PREFIX/UUID */
    char *ca;                   /* PEM; NULL only with http */
    char *certificate, *key;    /* ours, both or neither */
    char *user, *password_file; /* both or neither; the password is the file's first line */
    uint64_t timeout_ns;        /* for one decision, all endpoints together */
};

#define ETCD_ENDPOINTS_MAX 9

/* -EINVAL with the reason for a part that is missing, unsafe or makes no sense. Opens no file. */
int etcd_config_check(const struct etcd_config *config);

#endif
