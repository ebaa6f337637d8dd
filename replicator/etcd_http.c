/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/etcd_http.h"

#include "base/error.h"
#include "base/scope.h"
#include "replicator/etcd_message.h"

#include <curl/curl.h>
#include <errno.h>
#include <string.h>

struct etcd_http {
    CURL *curl;
    const struct etcd_config *config;
    struct etcd_answer *answer; /* of the request under way */
    bool too_long;
    char why[CURL_ERROR_SIZE];
};

static size_t take_bytes(char *bytes, size_t size, size_t count, void *ctx)
{
    struct etcd_http *http = ctx;
    size_t length = size * count; /* size is 1 (CURLOPT_WRITEFUNCTION) */
    if (length > sizeof http->answer->bytes - http->answer->length) {
        http->too_long = true;
        return CURL_WRITEFUNC_ERROR;
    }
    memcpy(http->answer->bytes + http->answer->length, bytes, length);
    http->answer->length += length;
    return length;
}

static void scope_list(struct curl_slist **list)
{
    curl_slist_free_all(*list);
}

static CURLcode set_lasting(struct etcd_http *http)
{
    const struct etcd_config *config = http->config;
    CURL *curl = http->curl;
    CURLcode code;
    if ((code = curl_easy_setopt(curl, CURLOPT_NOSIGNAL, 1L)) || /* we are one of several threads */
        (code = curl_easy_setopt(curl, CURLOPT_ERRORBUFFER, http->why)) ||
        (code = curl_easy_setopt(curl, CURLOPT_WRITEFUNCTION, take_bytes)) ||
        (code = curl_easy_setopt(curl, CURLOPT_WRITEDATA, http)) ||
        (code = curl_easy_setopt(curl, CURLOPT_PROTOCOLS_STR, "http,https")) ||
        (code = curl_easy_setopt(curl, CURLOPT_PROXY, "")) || /* nor that of the environment */
        (code = curl_easy_setopt(curl, CURLOPT_FOLLOWLOCATION, 0L)) ||
        (code = curl_easy_setopt(curl, CURLOPT_SSLVERSION, (long)CURL_SSLVERSION_TLSv1_2)) ||
        (code = curl_easy_setopt(curl, CURLOPT_SSL_VERIFYPEER, 1L)) ||
        (code = curl_easy_setopt(curl, CURLOPT_SSL_VERIFYHOST, 2L)) ||
        (code = curl_easy_setopt(curl, CURLOPT_CAPATH, NULL))) /* etcd's own CA, and no other */
        return code;
    if (config->ca && (code = curl_easy_setopt(curl, CURLOPT_CAINFO, config->ca)))
        return code;
    if (config->certificate && ((code = curl_easy_setopt(curl, CURLOPT_SSLCERT, config->certificate)) ||
                                (code = curl_easy_setopt(curl, CURLOPT_SSLKEY, config->key))))
        return code;
    return CURLE_OK;
}

int etcd_http_new(struct etcd_http **ret_http, const struct etcd_config *config)
{
    struct etcd_http *http = calloc(1, sizeof *http);
    if (!http)
        return error_errno(-ENOMEM, "etcd");
    http->config = config;
    CURLcode code = curl_global_init(CURL_GLOBAL_DEFAULT); /* counts, and locks since 7.84 */
    if (code == CURLE_OK) {
        http->curl = curl_easy_init();
        code = http->curl ? set_lasting(http) : CURLE_OUT_OF_MEMORY;
        if (code != CURLE_OK) {
            curl_easy_cleanup(http->curl);
            curl_global_cleanup();
        }
    }
    if (code != CURLE_OK) {
        free(http);
        return error_set(-EIO, "etcd: libcurl: %s", curl_easy_strerror(code));
    }
    *ret_http = http;
    return 0;
}

void etcd_http_free(struct etcd_http *http)
{
    if (!http)
        return;
    curl_easy_cleanup(http->curl);
    curl_global_cleanup();
    free(http);
}

static int add_header(struct curl_slist **list, const char *line)
{
    struct curl_slist *longer = curl_slist_append(*list, line);
    if (!longer)
        return error_errno(-ENOMEM, "etcd");
    *list = longer;
    return 0;
}

static CURLcode set_request(struct etcd_http *http, const char *url, const char *body,
                            struct curl_slist *headers, unsigned timeout_ms)
{
    CURL *curl = http->curl;
    CURLcode code;
    if ((code = curl_easy_setopt(curl, CURLOPT_URL, url)) ||
        (code = curl_easy_setopt(curl, CURLOPT_HTTPHEADER, headers)) ||
        (code = curl_easy_setopt(curl, CURLOPT_POSTFIELDSIZE, (long)strlen(body))) ||
        (code = curl_easy_setopt(curl, CURLOPT_POSTFIELDS, body)) ||
        (code = curl_easy_setopt(curl, CURLOPT_CONNECTTIMEOUT_MS, (long)(timeout_ms / 2 + 1))) ||
        (code = curl_easy_setopt(curl, CURLOPT_TIMEOUT_MS, (long)(timeout_ms + 1)))) /* 0 would be: none */
        return code;
    return CURLE_OK;
}

static int error_of(CURLcode code)
{
    switch (code) {
    case CURLE_OPERATION_TIMEDOUT:
        return -ETIMEDOUT;
    case CURLE_COULDNT_CONNECT:
    case CURLE_COULDNT_RESOLVE_HOST:
        return -ECONNREFUSED;
    case CURLE_SSL_CONNECT_ERROR:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_PEER_FAILED_VERIFICATION:
        return -EPROTO;
    default:
        return -EIO;
    }
}

int etcd_http_post(struct etcd_http *http, const char *endpoint, const char *path, const char *body,
                   const char *token, unsigned timeout_ms, struct etcd_answer *ret_answer)
{
    char url[512], line[ETCD_TOKEN_MAX + 32];
    struct curl_slist *headers cleanup(scope_list) = NULL;
    size_t length = strlen(endpoint);
    while (length && endpoint[length - 1] == '/')
        length--;
    if (snprintf(url, sizeof url, "%.*s%s", (int)length, endpoint, path) >= (int)sizeof url)
        return error_set(-EINVAL, "etcd %.60s: the address is too long", endpoint);
    int r = add_header(&headers, "Content-Type: application/json");
    if (r == 0)
        r = add_header(&headers, "Expect:"); /* no second round trip */
    if (r == 0 && token) {
        snprintf(line, sizeof line, "Authorization: %s", token);
        r = add_header(&headers, line);
    }
    if (r < 0)
        return r;
    ret_answer->length = 0;
    ret_answer->status = 0;
    http->answer = ret_answer;
    http->too_long = false;
    http->why[0] = 0;
    CURLcode code = set_request(http, url, body, headers, timeout_ms);
    if (code == CURLE_OK)
        code = curl_easy_perform(http->curl);
    if (code == CURLE_OK)
        code = curl_easy_getinfo(http->curl, CURLINFO_RESPONSE_CODE, &ret_answer->status);
    http->answer = NULL;
    curl_easy_setopt(http->curl, CURLOPT_HTTPHEADER, NULL);
    if (code == CURLE_OK)
        return 0;
    if (http->too_long)
        return error_set(-EMSGSIZE, "etcd %s: the answer has more than %d bytes", url, ETCD_ANSWER_MAX);
    return error_set(error_of(code), "etcd %s: %s", url, http->why[0] ? http->why : curl_easy_strerror(code));
}
