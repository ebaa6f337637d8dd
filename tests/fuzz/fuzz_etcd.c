/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/scope.h"
#include "replicator/arbiter_backend.h"
#include "replicator/etcd_message.h"

#include <ctype.h>
#include <string.h>

/*
 * Whatever sits at etcd's address. Properties: nothing is set by an answer that is refused; a key that is
 * said to exist has a revision, a value within its bounds, and comes from a named cluster; "swapped" needs
 * the word true; a token fits a header's line, a refusal a terminal's.
 *
 * Input: the answer's bytes.
 */

static const char key[] = "/understudy/01020300-0000-0000-0000-000000000000";
#define KEY64 "L3VuZGVyc3R1ZHkvMDEwMjAzMDAtMDAwMC0wMDAwLTAwMDAtMDAwMDAwMDAwMDAw"

static const char *const seeds[] = {
    "{\"header\":{\"cluster_id\":\"14841639068965178418\",\"revision\":\"4\"}}",
    "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"" KEY64
    "\",\"create_revision\":\"2\",\"mod_revision\":"
    "\"9\",\"value\":"
    "\"eyJ1dWlkIjogIjAxMDIwMzAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCIsICJnZW5lcmF0aW9uIjogMiwg"
    "Im93bmVyIjogImJldGEifQ==\"}],\"count\":\"1\"}",
    "{\"header\":{\"cluster_id\":\"1\"},\"succeeded\":true,\"responses\":[{\"response_put\":{\"header\":{}}}]"
    "}",
    "{\"header\":{\"cluster_id\":\"1\"},\"responses\":[{\"response_range\":{\"kvs\":[{\"key\":\"" KEY64 "\","
    "\"mod_revision\":\"9\",\"value\":\"aGVq\"}],\"count\":\"1\"}}]}",
    "{\"header\":{\"cluster_id\":\"1\"},\"token\":\"AbCdEf.12\"}",
    "{\"error\":\"etcdserver: invalid auth token\",\"message\":\"etcdserver: \\u001b[0m\",\"code\":16}",
};

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    if (index >= array_length(seeds))
        return 0;
    size_t length = strlen(seeds[index]);
    memcpy(to, seeds[index], length);
    return length;
}

static void check_key(const struct etcd_key *found)
{
    const struct arbiter arbiter = {.uuid = "01020300-0000-0000-0000-000000000000", .owner = "alpha"};
    struct arbiter_record record = {0};
    fuzz_require(found->cluster != 0);
    fuzz_require(found->mod_revision >= 0 && found->length <= sizeof found->value);
    fuzz_require(found->mod_revision || !found->length);
    if (arbiter_record_parse(&arbiter, found->value, found->length, &record) < 0) {
        fuzz_require(!record.generation);
        return;
    }
    fuzz_require(record.generation >= 1 && memchr(record.owner, 0, sizeof record.owner));
    fuzz_require(arbiter_is_free(&arbiter, &record, record.generation));
    fuzz_require(arbiter_next(&record, record.generation) == record.generation + 1);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    const char *bytes = (const char *)data;
    struct etcd_key found = {.length = 4242};
    if (etcd_parse_range(bytes, size, key, &found) == 0)
        check_key(&found);
    else
        fuzz_require(found.length == 4242 && !found.cluster);

    struct etcd_key after = {.length = 4242};
    bool swapped = false;
    if (etcd_parse_swap(bytes, size, key, &swapped, &after) == 0) {
        check_key(&after);
        fuzz_require(!swapped || (size >= 4 && memmem(bytes, size, "true", 4)));
    } else {
        fuzz_require(after.length == 4242 && !after.cluster && !swapped);
    }

    char token[ETCD_TOKEN_MAX] = "", why[40];
    if (etcd_parse_token(bytes, size, token) == 0)
        fuzz_require(token[0]);
    for (const char *at = token; *at; at++)
        fuzz_require(isgraph((unsigned char)*at));
    etcd_parse_refusal(bytes, size, why, sizeof why);
    for (const char *at = why; *at; at++)
        fuzz_require(isprint((unsigned char)*at));
    return 0;
}
