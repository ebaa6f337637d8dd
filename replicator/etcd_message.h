/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ETCD_MESSAGE_H
#define UNDERSTUDY_REPLICATOR_ETCD_MESSAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/*
 * Requests and answers of etcd's JSON gateway (etcd API v3, "gRPC gateway"; rpc.proto, kv.proto in proto3's
 * JSON mapping): 64-bit integers are strings, bytes are base64, and what has its zero value is left out.
 * Pure: no I/O. The answers' bytes may be anything.
 */

#define ETCD_VALUE_MAX 512
#define ETCD_TOKEN_MAX 1024

/* The state of the one key that was asked for. */
struct etcd_key {
    uint64_t cluster;     /* which cluster says so */
    int64_t mod_revision; /* 0: there is no such key */
    size_t length;
    char value[ETCD_VALUE_MAX];
};

/* A request's body, the caller's to free. -ENOMEM. */
int etcd_print_range(const char *key, char **ret_body);
/* Put `value` if the key's last change still is `mod_revision` (0: it does not exist), else read the key. */
int etcd_print_swap(const char *key, int64_t mod_revision, const char *value, char **ret_body);
int etcd_print_authenticate(const char *user, const char *password, char **ret_body);

/* -EBADMSG: no such answer, or not about `key`. */
int etcd_parse_range(const char *bytes, size_t length, const char *key, struct etcd_key *ret_key);
/* *ret_key is set unless *ret_swapped, but for `cluster`, which always is. */
int etcd_parse_swap(const char *bytes, size_t length, const char *key, bool *ret_swapped,
                    struct etcd_key *ret_key);
/* A token is printable ASCII without spaces. */
int etcd_parse_token(const char *bytes, size_t length, char ret_token[ETCD_TOKEN_MAX]);
/* What the answer to a refused request says, fit to be printed; "" when it says nothing. */
void etcd_parse_refusal(const char *bytes, size_t length, char *ret_text, size_t room);

#endif
