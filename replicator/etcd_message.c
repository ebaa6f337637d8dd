/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/etcd_message.h"

#include "base/error.h"
#include "replicator/scope_json.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <openssl/evp.h>
#include <string.h>

#define KEY_MAX    512 /* bytes of a key */
#define BASE64_MAX ((KEY_MAX + 2) / 3 * 4 + 1)

static_assert(ETCD_VALUE_MAX <= KEY_MAX, "BASE64_MAX bounds keys and values");

/* --- requests --- */

static int encode(const char *text, char ret_base64[BASE64_MAX])
{
    size_t length = strlen(text);
    if (length > KEY_MAX)
        return error_set(-EINVAL, "etcd: a key or value of %zu bytes", length);
    EVP_EncodeBlock((unsigned char *)ret_base64, (const unsigned char *)text, (int)length);
    return 0;
}

/* Takes the reference to `root`, which may be NULL. */
static int print(json_t *root, char **ret_body)
{
    json_t *owned cleanup_json = root;
    char *body = owned ? json_dumps(owned, JSON_COMPACT) : NULL;
    if (!body)
        return error_set(-ENOMEM, "etcd: request: no memory, or not UTF-8");
    *ret_body = body;
    return 0;
}

int etcd_print_range(const char *key, char **ret_body)
{
    char key64[BASE64_MAX];
    int r = encode(key, key64);
    return r < 0 ? r : print(json_pack("{s:s}", "key", key64), ret_body);
}

int etcd_print_swap(const char *key, int64_t mod_revision, const char *value, char **ret_body)
{
    char key64[BASE64_MAX], value64[BASE64_MAX], revision[24];
    int r = encode(key, key64);
    if (r == 0)
        r = encode(value, value64);
    if (r < 0)
        return r;
    snprintf(revision, sizeof revision, "%lld", (long long)mod_revision);
    return print(json_pack("{s:[{s:s, s:s, s:s, s:s}], s:[{s:{s:s, s:s}}], s:[{s:{s:s}}]}", "compare", "key",
                           key64, "target", "MOD", "result", "EQUAL", "mod_revision", revision, "success",
                           "request_put", "key", key64, "value", value64, "failure", "request_range", "key",
                           key64),
                 ret_body);
}

int etcd_print_authenticate(const char *user, const char *password, char **ret_body)
{
    return print(json_pack("{s:s, s:s}", "name", user, "password", password), ret_body);
}

/* --- answers --- */

static int bad(const char *what)
{
    return error_set(-EBADMSG, "the answer is not etcd's: %s", what);
}

static json_t *load(const char *bytes, size_t length)
{
    json_error_t error;
    json_t *root = json_loadb(bytes, length, JSON_REJECT_DUPLICATES, &error);
    if (!root)
        error_set(-EBADMSG, "the answer is not JSON: %s", error.text);
    return root;
}

/* Left out: 0. */
static int get_number(const json_t *object, const char *name, uint64_t most, uint64_t *ret_number)
{
    const json_t *member = json_object_get(object, name);
    const char *digits = json_string_value(member);
    uint64_t number = 0;
    if (!member) {
        *ret_number = 0;
        return 0;
    }
    if (!digits || !digits[0])
        return bad(name);
    for (; *digits; digits++) {
        if (!isdigit((unsigned char)*digits) || __builtin_mul_overflow(number, (uint64_t)10, &number) ||
            __builtin_add_overflow(number, (uint64_t)(*digits - '0'), &number) || number > most)
            return bad(name);
    }
    *ret_number = number;
    return 0;
}

/* The bytes of member `name`; left out: none. */
static int get_bytes(const json_t *object, const char *name, char *to, size_t room, size_t *ret_length)
{
    const json_t *member = json_object_get(object, name);
    const char *text = member ? json_string_value(member) : "";
    unsigned char decoded[BASE64_MAX];
    size_t length = text ? strlen(text) : 0;
    if (!text || length % 4 || length >= BASE64_MAX)
        return bad(name);
    size_t padding = length && text[length - 1] == '=' ? 1 + (text[length - 2] == '=') : 0;
    /* EVP_DecodeBlock forgives white space, and pads with zeros. */
    for (size_t i = 0; i < length - padding; i++)
        if (!isalnum((unsigned char)text[i]) && text[i] != '+' && text[i] != '/')
            return bad(name);
    int got = length ? EVP_DecodeBlock(decoded, (const unsigned char *)text, (int)length) : 0;
    if (got < 0 || (size_t)got < padding || (size_t)got - padding > room)
        return bad(name);
    *ret_length = (size_t)got - padding;
    memcpy(to, decoded, *ret_length);
    return 0;
}

static int get_cluster(const json_t *root, uint64_t *ret_cluster)
{
    uint64_t cluster;
    const json_t *header = json_object_get(root, "header");
    if (!json_is_object(header))
        return bad("no header");
    int r = get_number(header, "cluster_id", UINT64_MAX, &cluster);
    if (r == 0 && !cluster)
        r = bad("no cluster_id");
    if (r == 0)
        *ret_cluster = cluster;
    return r;
}

/* `range` is a RangeResponse; it is about one key, so it has one entry or none. */
static int get_key(const json_t *range, const char *name, struct etcd_key *ret_key)
{
    const json_t *kvs = json_object_get(range, "kvs"), *kv = json_array_get(kvs, 0);
    struct etcd_key key = {.cluster = ret_key->cluster};
    uint64_t count, revision;
    char found[KEY_MAX];
    size_t length;
    int r = get_number(range, "count", INT64_MAX, &count);
    if (r < 0)
        return r;
    if ((kvs && !json_is_array(kvs)) || count > 1 || json_array_size(kvs) != count)
        return bad("kvs");
    if (!count) {
        *ret_key = key;
        return 0;
    }
    if (!json_is_object(kv))
        return bad("kvs");
    r = get_bytes(kv, "key", found, sizeof found, &length);
    if (r == 0 && (length != strlen(name) || memcmp(found, name, length) != 0))
        r = bad("another key");
    if (r == 0)
        r = get_number(kv, "mod_revision", INT64_MAX, &revision);
    if (r == 0 && !revision)
        r = bad("no mod_revision");
    if (r == 0)
        r = get_bytes(kv, "value", key.value, sizeof key.value, &key.length);
    if (r < 0)
        return r;
    key.mod_revision = (int64_t)revision;
    *ret_key = key;
    return 0;
}

int etcd_parse_range(const char *bytes, size_t length, const char *key, struct etcd_key *ret_key)
{
    struct etcd_key found = {0};
    json_t *root cleanup_json = load(bytes, length);
    if (!root)
        return -EBADMSG;
    int r = get_cluster(root, &found.cluster);
    if (r == 0)
        r = get_key(root, key, &found);
    if (r == 0)
        *ret_key = found;
    return r;
}

int etcd_parse_swap(const char *bytes, size_t length, const char *key, bool *ret_swapped,
                    struct etcd_key *ret_key)
{
    struct etcd_key found = {0};
    json_t *root cleanup_json = load(bytes, length);
    if (!root)
        return -EBADMSG;
    int r = get_cluster(root, &found.cluster);
    if (r < 0)
        return r;
    const json_t *succeeded = json_object_get(root, "succeeded");
    const json_t *responses = json_object_get(root, "responses");
    const json_t *response = json_array_get(responses, 0);
    bool swapped = json_is_true(succeeded);
    if (succeeded && !json_is_boolean(succeeded))
        return bad("succeeded");
    const json_t *part = json_object_get(response, swapped ? "response_put" : "response_range");
    if (json_array_size(responses) != 1 || !json_is_object(part))
        return bad("responses");
    if (!swapped)
        r = get_key(part, key, &found);
    if (r < 0)
        return r;
    *ret_swapped = swapped;
    *ret_key = found;
    return 0;
}

int etcd_parse_token(const char *bytes, size_t length, char ret_token[ETCD_TOKEN_MAX])
{
    json_t *root cleanup_json = load(bytes, length);
    if (!root)
        return -EBADMSG;
    const char *token = json_string_value(json_object_get(root, "token"));
    if (!token || !token[0] || strlen(token) >= ETCD_TOKEN_MAX)
        return bad("token");
    /* It becomes a header's line. */
    for (const char *at = token; *at; at++)
        if (!isgraph((unsigned char)*at))
            return bad("token");
    strcpy(ret_token, token);
    return 0;
}

void etcd_parse_refusal(const char *bytes, size_t length, char *ret_text, size_t room)
{
    json_t *root cleanup_json = json_loadb(bytes, length, 0, NULL);
    const char *text = json_string_value(json_object_get(root, "message"));
    if (!text)
        text = json_string_value(json_object_get(root, "error"));
    snprintf(ret_text, room, "%s", text ? text : "");
    for (char *at = ret_text; *at; at++)
        if (!isprint((unsigned char)*at))
            *at = '?';
}
