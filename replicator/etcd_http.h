/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ETCD_HTTP_H
#define UNDERSTUDY_REPLICATOR_ETCD_HTTP_H

#include "replicator/etcd.h"

#include <stddef.h>

/* One HTTP client for etcd's gateway, over libcurl. For one thread at a time. */
struct etcd_http;

#define ETCD_ANSWER_MAX 65536

struct etcd_answer {
    long status; /* HTTP */
    size_t length;
    char bytes[ETCD_ANSWER_MAX];
};

/* Reads no file; the CA, certificate and key are read with each connection, so a renewed one is used. */
int etcd_http_new(struct etcd_http **ret_http, const struct etcd_config *config);
void etcd_http_free(struct etcd_http *http);

/*
 * POST `body` to `endpoint``path` ("/v3/kv/range"); `token` may be NULL. Blocks for at most `timeout_ms`, for
 * connecting half of that. Follows no redirection and no proxy. Any HTTP status is success here. -ETIMEDOUT,
 * -EMSGSIZE (more than ETCD_ANSWER_MAX), -ECONNREFUSED (nobody there, so nothing was sent), -EPROTO (TLS: who
 * is there is not trusted, or does not trust us), -EIO. The words name the endpoint.
 */
int etcd_http_post(struct etcd_http *http, const char *endpoint, const char *path, const char *body,
                   const char *token, unsigned timeout_ms, struct etcd_answer *ret_answer);

#endif
