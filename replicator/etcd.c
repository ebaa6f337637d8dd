/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/etcd.h"

#include "base/error.h"
#include "base/scope.h"

#include <arpa/inet.h>
#include <curl/curl.h>
#include <errno.h>
#include <stdbool.h>
#include <stddef.h>
#include <string.h>

static void scope_url(CURLU **url)
{
    curl_url_cleanup(*url);
}

static void scope_part(char **part)
{
    curl_free(*part);
}

static bool is_loopback(const char *host)
{
    struct in_addr four;
    if (inet_pton(AF_INET, host, &four) == 1)
        return ntohl(four.s_addr) >> 24 == 127;
    return !strcmp(host, "localhost") || !strcmp(host, "[::1]");
}

/* Has a part that an endpoint may not have. */
static bool has_part(CURLU *url, CURLUPart part, const char *allowed)
{
    char *text cleanup(scope_part) = NULL;
    return curl_url_get(url, part, &text, 0) == CURLUE_OK && strcmp(text, allowed) != 0;
}

static int check_endpoint(const struct etcd_config *config, const char *endpoint)
{
    CURLU *url cleanup(scope_url) = curl_url();
    char *scheme cleanup(scope_part) = NULL, *host cleanup(scope_part) = NULL;
    if (!url)
        return error_errno(-ENOMEM, "etcd");
    if (curl_url_set(url, CURLUPART_URL, endpoint, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_SCHEME, &scheme, 0) != CURLUE_OK ||
        curl_url_get(url, CURLUPART_HOST, &host, 0) != CURLUE_OK || strlen(endpoint) > 300 ||
        has_part(url, CURLUPART_PATH, "/") || has_part(url, CURLUPART_QUERY, "") ||
        has_part(url, CURLUPART_FRAGMENT, "") || has_part(url, CURLUPART_USER, ""))
        return error_set(-EINVAL, "etcd-endpoints: '%.100s' is not https://HOST:PORT", endpoint);
    if (!strcmp(scheme, "https"))
        return config->ca
                   ? 0
                   : error_set(-EINVAL,
                               "etcd-endpoints: %s needs etcd-ca, the CA that vouches for etcd's members",
                               endpoint);
    if (strcmp(scheme, "http") != 0)
        return error_set(-EINVAL, "etcd-endpoints: '%.100s' is not https://HOST:PORT", endpoint);
    if (!is_loopback(host))
        return error_set(-EINVAL,
                         "etcd-endpoints: %s: plain http is refused but for a loopback address, for whoever "
                         "is on the way could decide who runs the guest; use https",
                         endpoint);
    return 0;
}

int etcd_config_check(const struct etcd_config *config)
{
    unsigned count = 0;
    int r = 0;
    for (; config->endpoints && config->endpoints[count] && r == 0; count++)
        r = check_endpoint(config, config->endpoints[count]);
    if (r < 0)
        return r;
    if (!count || count > ETCD_ENDPOINTS_MAX)
        return error_set(-EINVAL, "arbiter = etcd needs etcd-endpoints, 1 to %d of them", ETCD_ENDPOINTS_MAX);
    if (!config->prefix || config->prefix[0] != '/' || strlen(config->prefix) > 255)
        return error_set(-EINVAL, "etcd-prefix must begin with '/' and have at most 255 characters");
    if (!config->certificate != !config->key)
        return error_set(-EINVAL, "etcd-%s is given without etcd-%s", config->key ? "key" : "certificate",
                         config->key ? "certificate" : "key");
    if (!config->user != !config->password_file)
        return error_set(-EINVAL, "etcd-%s is given without etcd-%s", config->user ? "user" : "password-file",
                         config->user ? "password-file" : "user");
    return 0;
}
