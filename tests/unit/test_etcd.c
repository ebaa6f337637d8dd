/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/etcd_http.h"
#include "replicator/etcd_message.h"
#include "tests/unit/arbiter_kit.h"
#include "tests/unit/fake_etcd.h"

#include "base/clock.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>

#define WAIT_MS  1500
#define SHORT_MS 700 /* where something hangs */

static struct fake_store store;
static struct fake_etcd server, second;
static char *endpoints[3], password_path[] = "/tmp/test_etcd.XXXXXX";
static char prefix[] = "/us", user[] = "us";
static struct etcd_config config;

static void test_one_wins(void **state)
{
    (void)state;
    check_one_wins();
    assert_int_equal(store.swaps, 5);
}

/* Every fault at every request of a swap, answered wrongly once. Whatever is said to alpha: if alpha is told
 * that it won, beta cannot win; and when all is well again somebody holds the register, and one only. */
static void test_every_fault_once(void **state)
{
    (void)state;
    for (enum fake_fault fault = FAKE_CLOSE; fault < FAKE_FAULTS; fault++)
        for (unsigned at = 0; at < 3; at++) {
            uint64_t now;
            unsigned swaps = store.swaps;
            store.revision = 0;
            fake_strike(&server, fault, at, 1);
            int r = swap(alpha, 1, 2, &now);
            fake_strike(&server, FAKE_NONE, 0, 0);
            /* The second pass reads back what the first left unclear. */
            if (r != ARBITER_RESULT_WON)
                print_error("fault %d at %u: %d: %s\n", fault, at, r, error_text());
            assert_int_equal(r, ARBITER_RESULT_WON);
            /* A swap whose answer was lost was done, and is left behind by the next. */
            assert_true(now == 2 || now == 3);
            assert_int_equal(store.swaps, swaps + now - 1);
            assert_int_equal(swap(beta, 1, 2, &now), ARBITER_RESULT_LOST);
        }
}

/* The same, for as long as we ask: never won, and said why. */
static void test_every_fault_for_long(void **state)
{
    (void)state;
    static const struct {
        enum fake_fault fault;
        int code;
        const char *text;
    } cases[] = {
        {FAKE_CLOSE, -EIO, "Empty reply"},
        {FAKE_LOSE_ANSWER, -EIO, "Empty reply"},
        {FAKE_HANG, -ETIMEDOUT, "timed out"},
        {FAKE_DO_AND_HANG, -ETIMEDOUT, "timed out"},
        {FAKE_CUT_ANSWER, -EIO, "bytes remaining"},
        {FAKE_NO_JSON, -EBADMSG, "not JSON"},
        {FAKE_OTHER_JSON, -EBADMSG, "no header"},
        {FAKE_TOO_LONG, -EMSGSIZE, "more than 65536 bytes"},
        {FAKE_HTTP_500, -EIO, "HTTP status 500: etcdserver: no leader"},
        {FAKE_HTTP_403, -EACCES, "HTTP status 403: etcdserver: permission? denied"},
        {FAKE_DO_AND_503, -EIO, "HTTP status 503"},
        {FAKE_REDIRECT, -EIO, "HTTP status 307"},
    };
    for (unsigned at = 0; at < 2; at++)
        for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
            uint64_t now, began = clock_now_ns();
            store.revision = 0;
            fake_strike(&server, cases[i].fault, at, 1000);
            alpha->timeout_ms = SHORT_MS;
            int r = swap(alpha, 1, 2, &now);
            alpha->timeout_ms = WAIT_MS;
            /* What took effect though no answer came is found by the read, if reads are answered: only the
             * first request of the first pass was good. */
            assert_int_equal(r, cases[i].code);
            assert_text_has(server.url, cases[i].text);
            assert_int_equal(now, 99);
            assert_true(clock_now_ns() - began < 5 * NS_PER_S);
            fake_strike(&server, FAKE_NONE, 0, 0);
            /* Unclear, then clear: either of them, but one. */
            bool took_effect = store.revision != 0;
            assert_int_equal(swap(beta, 1, 2, &now), took_effect ? ARBITER_RESULT_LOST : ARBITER_RESULT_WON);
            assert_int_equal(swap(alpha, 1, 2, &now), took_effect ? ARBITER_RESULT_WON : ARBITER_RESULT_LOST);
        }
}

/* base64 of {"uuid": "01020300-0000-0000-0000-000000000000", "generation": 2, "owner": "beta"} and others. */
static const char *other_value;

static void somebody_else(struct fake_store *at, unsigned request)
{
    if (request != 1)
        return;
    at->revision += 3;
    snprintf(at->value, sizeof at->value, "%s", other_value);
}

static void encode_value(const char *text, char *to)
{
    char *body;
    assert_int_equal(etcd_print_range(text, &body), 0);
    sscanf(body, "{\"key\":\"%699[^\"]", to);
    free(body);
}

/* The key changes between our read and our transaction: the wrong revision. */
static void test_race(void **state)
{
    (void)state;
    static const struct {
        const char *value;
        int result;
        uint64_t now;
    } cases[] = {
        {"{\"uuid\":\"01020300-0000-0000-0000-000000000000\",\"generation\":2,\"owner\":\"beta\"}",
         ARBITER_RESULT_LOST, 2},
        {"{\"uuid\":\"01020300-0000-0000-0000-000000000000\",\"generation\":2,\"owner\":\"alpha\"}",
         ARBITER_RESULT_WON, 3}, /* our own transaction of before, late */
        {"{\"uuid\":\"01020300-0000-0000-0000-000000000000\",\"generation\":1,\"owner\":\"beta\"}",
         ARBITER_RESULT_WON, 2}, /* nothing is taken from us: again */
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        uint64_t now;
        char encoded[700];
        encode_value(cases[i].value, encoded);
        other_value = encoded;
        store.revision = 0;
        fake_strike(&server, FAKE_NONE, 0, 0);
        server.before = somebody_else;
        assert_int_equal(swap(alpha, 1, 2, &now), cases[i].result);
        server.before = NULL;
        assert_int_equal(now, cases[i].now);
    }
}

static void test_damage(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "", "x", "{\"generation\": 2}",
        "{\"uuid\":\"01020300-0000-0000-0000-000000000000\",\"generation\":-2,\"owner\":\"beta\"}",
        "{\"uuid\":\"99020300-0000-0000-0000-000000000000\",\"generation\":1,\"owner\":\"beta\"}"};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        uint64_t now;
        store.revision = 4;
        encode_value(bad[i], store.value);
        if (!bad[i][0])
            store.value[0] = 0;
        assert_int_equal(swap(alpha, 1, 2, &now), -EBADMSG);
        assert_text_has("key /us/01020300-0000-0000-0000-000000000000");
        assert_int_equal(store.revision, 4);
    }
}

/* One member of two is dead, hangs or lies: the other is asked, at once or in time. */
static void test_next_endpoint(void **state)
{
    (void)state;
    static const enum fake_fault faults[] = {FAKE_CLOSE, FAKE_HANG, FAKE_LOSE_ANSWER, FAKE_HTTP_500};
    uint64_t now, generation = 1;
    assert_int_equal(fake_start(&second, &store), 0);
    endpoints[1] = second.url;
    for (unsigned i = 0; i < sizeof faults / sizeof *faults; i++) {
        struct arbiter *both;
        assert_int_equal(arbiter_open(&both, "etcd", &config, uuid, "alpha"), 0);
        fake_strike(&server, faults[i], i == 2, 1000);
        for (unsigned k = 0; k < 2; k++, generation = now) {
            assert_int_equal(swap(both, generation, generation + 1, &now), ARBITER_RESULT_WON);
            assert_true(now > generation);
        }
        arbiter_close(both);
    }
    fake_stop(&second);
    /* Nobody listens at one. */
    struct arbiter *both;
    assert_int_equal(arbiter_open(&both, "etcd", &config, uuid, "alpha"), 0);
    fake_strike(&server, FAKE_NONE, 0, 0);
    assert_int_equal(swap(both, generation, generation + 1, &now), ARBITER_RESULT_WON);
    fake_strike(&server, FAKE_CLOSE, 0, 1000);
    assert_int_equal(swap(both, generation + 1, generation + 2, &now), -ECONNREFUSED);
    assert_text_has(second.url);
    char owner[ARBITER_OWNER_MAX];
    assert_int_equal(arbiter_read(both, &now, owner), -ECONNREFUSED);
    assert_int_equal(now, 99);
    fake_strike(&server, FAKE_NONE, 0, 0);
    check_read(both, generation + 1, "alpha");
    arbiter_close(both);
}

/* Two clusters would be two registers. */
static void test_other_cluster(void **state)
{
    (void)state;
    uint64_t now;
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    fake_strike(&server, FAKE_OTHER_CLUSTER, 0, 1000);
    assert_int_equal(swap(alpha, 2, 3, &now), -EBADMSG);
    assert_text_has("cluster 63, not 11 as before");
    fake_strike(&server, FAKE_OTHER_CLUSTER, 1, 1000); /* and so does its "succeeded" */
    assert_int_equal(swap(alpha, 2, 3, &now), -EBADMSG);
}

static void write_password(const char *text, mode_t mode)
{
    int fd = open(password_path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    fchmod(fd, mode);
    close(fd);
}

static void test_authentication(void **state)
{
    (void)state;
    uint64_t now;
    struct arbiter *known;
    store.auth = true;
    assert_int_equal(swap(alpha, 1, 2, &now), -EACCES); /* no user */
    assert_text_has("invalid auth token");
    config.user = user;
    config.password_file = password_path;
    write_password("secret \"word\"\n", 0600);
    assert_int_equal(arbiter_open(&known, "etcd", &config, uuid, "alpha"), 0);
    fake_strike(&server, FAKE_NONE, 0, 0);
    assert_int_equal(swap(known, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(server.requests, 3); /* authenticate, range, txn */
    fake_strike(&server, FAKE_NONE, 0, 0);
    assert_int_equal(swap(known, 2, 3, &now), ARBITER_RESULT_WON);
    assert_int_equal(server.requests, 2);
    store.token++; /* expired */
    fake_strike(&server, FAKE_NONE, 0, 0);
    assert_int_equal(swap(known, 3, 4, &now), ARBITER_RESULT_WON);
    assert_int_equal(server.requests, 4);
    write_password("wrong\n", 0600);
    store.token++;
    assert_int_equal(swap(known, 4, 5, &now), -EACCES);
    assert_text_has("as user us", "authentication failed");
    write_password("secret \"word\"", 0600);
    assert_int_equal(swap(known, 4, 5, &now), ARBITER_RESULT_WON);
    arbiter_close(known);
    known = NULL;
    write_password("secret \"word\"", 0640);
    assert_int_equal(arbiter_open(&known, "etcd", &config, uuid, "alpha"), -EINVAL);
    assert_text_has(password_path, "chmod 600");
    write_password("\nx", 0600);
    assert_int_equal(arbiter_open(&known, "etcd", &config, uuid, "alpha"), -EINVAL);
    assert_text_has("first line is empty");
    assert_null(known);
}

static void test_configuration(void **state)
{
    (void)state;
    static char file[] = "/nonexistent/ca.pem";
    static const struct {
        const char *endpoint, *text;
        bool ca;
    } cases[] = {
        {"http://192.0.2.1:2379", "plain http is refused but for a loopback address", true},
        {"http://localhost.example.org:2379", "loopback", true},
        {"http://127.0.0.1.example.org:2379", "loopback", true},
        {"https://192.0.2.1:2379", "needs etcd-ca", false},
        {"192.0.2.1:2379", "not https://HOST:PORT", true},
        {"ftp://127.0.0.1/", "not https://HOST:PORT", true},
        {"https://a:b@192.0.2.1:2379", "not https://HOST:PORT", true},
        {"https://192.0.2.1:2379/v3", "not https://HOST:PORT", true},
        {"https://192.0.2.1:2379/?x=1", "not https://HOST:PORT", true},
        {"https://", "not https://HOST:PORT", true},
    };
    for (unsigned i = 0; i < sizeof cases / sizeof *cases; i++) {
        char *one[] = {(char *)(uintptr_t)cases[i].endpoint, NULL};
        config.endpoints = one;
        config.ca = cases[i].ca ? file : NULL;
        assert_int_equal(etcd_config_check(&config), -EINVAL);
        assert_text_has(cases[i].text);
    }
    static const char *const good[] = {"http://127.1.2.3:1", "http://[::1]:2379", "http://localhost:1/",
                                       "https://etcd.example.org"};
    for (unsigned i = 0; i < sizeof good / sizeof *good; i++) {
        char *one[] = {(char *)(uintptr_t)good[i], NULL};
        config.endpoints = one;
        config.ca = file;
        assert_int_equal(etcd_config_check(&config), 0);
    }
    struct arbiter *arbiter;
    config.endpoints = endpoints;
    assert_int_equal(arbiter_open(&arbiter, "etcd", &config, uuid, "alpha"), -ENOENT);
    assert_text_has("etcd-ca /nonexistent/ca.pem");
    config.key = file;
    assert_int_equal(etcd_config_check(&config), -EINVAL);
    assert_text_has("etcd-key is given without etcd-certificate");
    config.user = user;
    config.certificate = file;
    assert_int_equal(etcd_config_check(&config), -EINVAL);
    assert_text_has("etcd-user is given without etcd-password-file");
    config.endpoints = NULL;
    assert_int_equal(etcd_config_check(&config), -EINVAL);
    assert_text_has("needs etcd-endpoints");
}

static void test_answers(void **state)
{
    (void)state;
    static const char *const bad[] = {
        "",
        "{",
        "[]",
        "null",
        "{\"header\":{}}",
        "{\"header\":{\"cluster_id\":0}}",
        "{\"header\":{\"cluster_id\":\"18446744073709551616\"}}",
        "{\"header\":{\"cluster_id\":\"1\"},\"count\":\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"aw==\"}]}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"aw==\"}],\"count\":\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"eA==\",\"mod_revision\":\"1\"}],\"count\":"
        "\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"a===\",\"mod_revision\":\"1\"}],\"count\":"
        "\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"aw==\",\"mod_revision\":\"-1\"}],\"count\":"
        "\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"kvs\":[{\"key\":\"aw==\",\"mod_revision\":\"1\",\"value\":\" "
        "aw=\"}]"
        ",\"count\":\"1\"}",
        "{\"header\":{\"cluster_id\":\"1\"},\"header\":{\"cluster_id\":\"1\"}}"};
    struct etcd_key key = {.length = 77};
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(etcd_parse_range(bad[i], strlen(bad[i]), "k", &key), -EBADMSG);
        assert_int_equal(key.length, 77);
    }
    static const char good[] =
        "{\"header\":{\"cluster_id\":\"14841639068965178418\"},\"kvs\":[{\"key\":\"aw==\","
        "\"mod_revision\":\"9\",\"value\":\"aGVq\"}],\"count\":\"1\"}";
    assert_int_equal(etcd_parse_range(good, sizeof good - 1, "k", &key), 0);
    assert_int_equal(key.mod_revision, 9);
    assert_int_equal(key.length, 3);
    assert_memory_equal(key.value, "hej", 3);
    assert_true(key.cluster == 14841639068965178418u);
    static const char *const swaps[] = {
        "{\"header\":{\"cluster_id\":\"1\"},\"succeeded\":true}",
        "{\"header\":{\"cluster_id\":\"1\"},\"succeeded\":\"true\",\"responses\":[{\"response_put\":{}}]}",
        "{\"header\":{\"cluster_id\":\"1\"},\"succeeded\":true,\"responses\":[{\"response_range\":{}}]}",
        "{\"header\":{\"cluster_id\":\"1\"},\"responses\":[{\"response_put\":{}}]}",
        "{\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}"};
    for (unsigned i = 0; i < sizeof swaps / sizeof *swaps; i++) {
        bool swapped = false;
        assert_int_equal(etcd_parse_swap(swaps[i], strlen(swaps[i]), "k", &swapped, &key), -EBADMSG);
        assert_false(swapped);
    }
    static const char *const tokens[] = {"{}", "{\"token\":\"\"}", "{\"token\":\"a\\r\\nX: y\"}",
                                         "{\"token\":1}"};
    char token[ETCD_TOKEN_MAX];
    for (unsigned i = 0; i < sizeof tokens / sizeof *tokens; i++)
        assert_int_equal(etcd_parse_token(tokens[i], strlen(tokens[i]), token), -EBADMSG);
}

static int make(void **state)
{
    (void)state;
    store = (struct fake_store){.lock = PTHREAD_MUTEX_INITIALIZER, .cluster = "17", .token = 5};
    server = (struct fake_etcd){0};
    second = (struct fake_etcd){0};
    if (fake_start(&server, &store) != 0)
        return -1;
    endpoints[0] = server.url;
    endpoints[1] = NULL;
    config =
        (struct etcd_config){.endpoints = endpoints, .prefix = prefix, .timeout_ns = WAIT_MS * NS_PER_MS};
    return open_both("etcd", &config);
}

static int unmake(void **state)
{
    (void)state;
    close_both();
    fake_stop(&server);
    return 0;
}

#define unit(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
    const struct CMUnitTest tests[] = {
        unit(test_one_wins),      unit(test_every_fault_once), unit(test_every_fault_for_long),
        unit(test_race),          unit(test_damage),           unit(test_next_endpoint),
        unit(test_other_cluster), unit(test_authentication),   unit(test_configuration),
        unit(test_answers),
    };
    signal(SIGPIPE, SIG_IGN);
    int fd = mkstemp(password_path);
    if (fd < 0)
        return 1;
    close(fd);
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    unlink(password_path);
    return failed;
}
