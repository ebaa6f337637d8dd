/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/arbiter_backend.h"

#include "base/clock.h"
#include "base/error.h"
#include "base/scope.h"
#include "replicator/etcd_http.h"
#include "replicator/etcd_message.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

/*
 * Theory of operation
 *
 * The register is one key. To swap it is to read it (a linearizable read: a quorum agrees), to judge what it
 * holds, and to put ours in one transaction that compares the key's mod_revision with the one just read.
 *
 *     read ─► ours? won     taken? lost     free ─► txn(mod_revision == read) ─► succeeded: won
 *                                             ▲                └► failed: carries the key as it is now
 *                                             └──────────────────────────────┘
 *
 * An answer that does not come leaves two possibilities open, and a third: the transaction may still be under
 * way, and take effect after we have given up. All three end the same way: the next attempt, at this endpoint
 * or another, begins with a read. If it took effect the key holds our name and `to`, which nobody but us
 * writes and we only to win: ours. If it did not, and another's came first, its mod_revision does not fit any
 * more and it never will. "Taken" is therefore certain whenever it is read, "won" only by an answer that says
 * so, and everything else is a negative errno: not won.
 *
 * Two endpoints of different clusters would be two registers, and so two winners: the cluster's number, which
 * every answer carries, must stay what it was in the first.
 */

#define PASSES         2   /* over all endpoints: the second reads back what the first left unclear */
#define SHARE_LEAST_MS 300 /* below this an endpoint is not given a fair chance */
#define BETWEEN_NS     (20 * NS_PER_MS)
#define SWAPS_MAX      4 /* transactions that lost a race to a change that takes nothing from us */
#define PASSWORD_MAX   256
#define KEY_ROOM       (256 + 40)

struct etcd_arbiter {
    struct arbiter arbiter;
    const struct etcd_config *config;
    struct etcd_http *http;
    struct etcd_answer answer; /* the latest */
    unsigned endpoint_count;
    unsigned next;    /* the endpoint that answered last */
    uint64_t cluster; /* 0: not known yet */
    bool has_token;
    char token[ETCD_TOKEN_MAX];
};

/* One attempt at one endpoint. */
struct attempt {
    struct etcd_arbiter *etcd;
    const char *endpoint;
    uint64_t by_ns;
    char key[KEY_ROOM];
};

static int read_password(const struct etcd_config *config, char ret_password[PASSWORD_MAX])
{
    struct stat status;
    const char *path = config->password_file;
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0 || fstat(fd, &status) < 0)
        return error_errno(-errno, "etcd-password-file %s", path);
    if (!S_ISREG(status.st_mode))
        return error_set(-EINVAL, "etcd-password-file %s: not a file", path);
    if (status.st_mode & (S_IRWXG | S_IRWXO))
        return error_set(-EINVAL, "etcd-password-file %s: mode %04o lets others at it; chmod 600", path,
                         status.st_mode & 07777);
    ssize_t length = read(fd, ret_password, PASSWORD_MAX);
    if (length < 0)
        return error_errno(-errno, "etcd-password-file %s: read", path);
    if (length == PASSWORD_MAX)
        return error_set(-EINVAL, "etcd-password-file %s: more than %d bytes", path, PASSWORD_MAX - 1);
    ret_password[length] = 0;
    ret_password[strcspn(ret_password, "\r\n")] = 0;
    if (!ret_password[0])
        return error_set(-EINVAL, "etcd-password-file %s: its first line is empty", path);
    return 0;
}

static int post(struct attempt *attempt, const char *path, const char *body, const char *token)
{
    uint64_t now = clock_now_ns();
    if (now >= attempt->by_ns)
        return error_set(-ETIMEDOUT, "etcd %s%s: no time is left", attempt->endpoint, path);
    return etcd_http_post(attempt->etcd->http, attempt->endpoint, path, body, token,
                          (unsigned)((attempt->by_ns - now) / NS_PER_MS) + 1, &attempt->etcd->answer);
}

static int check_status(const struct attempt *attempt, const char *path)
{
    const struct etcd_answer *answer = &attempt->etcd->answer;
    char why[160];
    if (answer->status == 200)
        return 0;
    etcd_parse_refusal(answer->bytes, answer->length, why, sizeof why);
    return error_set(answer->status >= 400 && answer->status < 500 ? -EACCES : -EIO,
                     "etcd %s%s: HTTP status %ld%s%s", attempt->endpoint, path, answer->status,
                     why[0] ? ": " : "", why);
}

static int authenticate(struct attempt *attempt)
{
    static const char path[] = "/v3/auth/authenticate";
    struct etcd_arbiter *etcd = attempt->etcd;
    char password[PASSWORD_MAX], *body = NULL;
    etcd->has_token = false;
    int r = read_password(etcd->config, password);
    if (r == 0)
        r = etcd_print_authenticate(etcd->config->user, password, &body);
    OPENSSL_cleanse(password, sizeof password);
    if (r < 0)
        return r;
    r = post(attempt, path, body, NULL);
    OPENSSL_cleanse(body, strlen(body));
    free(body);
    if (r == 0)
        r = check_status(attempt, path);
    if (r < 0)
        return error_add(r, "as user %s", etcd->config->user);
    r = etcd_parse_token(etcd->answer.bytes, etcd->answer.length, etcd->token);
    if (r < 0)
        return error_add(r, "etcd %s%s", attempt->endpoint, path);
    etcd->has_token = true;
    return 0;
}

/* With a token where there is a user. One that is refused has expired, or users were changed since: get
 * another, once. */
static int request(struct attempt *attempt, const char *path, const char *body)
{
    struct etcd_arbiter *etcd = attempt->etcd;
    bool fresh = false;
    for (;;) {
        int r = 0;
        if (etcd->config->user && !etcd->has_token) {
            r = authenticate(attempt);
            fresh = true;
        }
        if (r == 0)
            r = post(attempt, path, body, etcd->has_token ? etcd->token : NULL);
        if (r < 0)
            return r;
        r = check_status(attempt, path);
        if (r != -EACCES || !etcd->has_token || fresh)
            return r;
        etcd->has_token = false;
    }
}

static int same_cluster(struct attempt *attempt, uint64_t cluster)
{
    struct etcd_arbiter *etcd = attempt->etcd;
    if (!etcd->cluster)
        etcd->cluster = cluster;
    if (etcd->cluster != cluster)
        return error_set(-EBADMSG, "etcd %s: cluster %llx, not %llx as before: etcd-endpoints is one cluster",
                         attempt->endpoint, (unsigned long long)cluster, (unsigned long long)etcd->cluster);
    return 0;
}

static int read_key(struct attempt *attempt, struct etcd_key *ret_key)
{
    static const char path[] = "/v3/kv/range";
    struct etcd_answer *answer = &attempt->etcd->answer;
    cleanup_free char *body = NULL;
    int r = etcd_print_range(attempt->key, &body);
    if (r == 0)
        r = request(attempt, path, body);
    if (r < 0)
        return r;
    r = etcd_parse_range(answer->bytes, answer->length, attempt->key, ret_key);
    return r < 0 ? error_add(r, "etcd %s%s", attempt->endpoint, path)
                 : same_cluster(attempt, ret_key->cluster);
}

/* `key`: as it was; as it is when it was not swapped. */
static int swap_key(struct attempt *attempt, uint64_t to, struct etcd_key *key, bool *ret_swapped)
{
    static const char path[] = "/v3/kv/txn";
    struct etcd_answer *answer = &attempt->etcd->answer;
    char value[ARBITER_RECORD_MAX];
    cleanup_free char *body = NULL;
    arbiter_record_print(&attempt->etcd->arbiter, to, value);
    int r = etcd_print_swap(attempt->key, key->mod_revision, value, &body);
    if (r == 0)
        r = request(attempt, path, body);
    if (r < 0)
        return r;
    r = etcd_parse_swap(answer->bytes, answer->length, attempt->key, ret_swapped, key);
    return r < 0 ? error_add(r, "etcd %s%s", attempt->endpoint, path) : same_cluster(attempt, key->cluster);
}

static int parse_key(const struct attempt *attempt, const struct etcd_key *key, struct arbiter_record *ret)
{
    *ret = (struct arbiter_record){0};
    if (!key->mod_revision)
        return 0;
    int r = arbiter_record_parse(&attempt->etcd->arbiter, key->value, key->length, ret);
    return r < 0 ? error_add(r, "etcd %s: key %s", attempt->endpoint, attempt->key) : 0;
}

/* What is asked of the cluster, and its answer. */
struct question {
    uint64_t from, to;
    uint64_t generation;          /* swap_at()'s answer */
    struct arbiter_record record; /* read_at()'s */
};

static int read_at(struct attempt *attempt, struct question *question)
{
    struct etcd_key key = {0};
    int r = read_key(attempt, &key);
    return r < 0 ? r : parse_key(attempt, &key, &question->record);
}

static int swap_at(struct attempt *attempt, struct question *question)
{
    struct etcd_key key = {0};
    struct arbiter_record record;
    int r = read_key(attempt, &key);
    for (unsigned i = 0; r == 0 && i < SWAPS_MAX; i++) {
        bool swapped = false;
        r = parse_key(attempt, &key, &record);
        if (r < 0)
            return r;
        if (!arbiter_is_free(&attempt->etcd->arbiter, &record, question->from)) {
            question->generation = record.generation;
            return ARBITER_RESULT_LOST;
        }
        const uint64_t to = arbiter_next(&record, question->to);
        r = swap_key(attempt, to, &key, &swapped);
        if (r == 0 && swapped) {
            question->generation = to;
            return ARBITER_RESULT_WON;
        }
    }
    return r < 0 ? r
                 : error_set(-EAGAIN, "etcd %s: key %s changes again and again", attempt->endpoint,
                             attempt->key);
}

/* One endpoint after the other, until one answers. */
static int ask(struct etcd_arbiter *etcd, int (*at)(struct attempt *attempt, struct question *question),
               struct question *question)
{
    const struct arbiter *arbiter = &etcd->arbiter;
    const uint64_t by_ns = clock_now_ns() + arbiter->timeout_ms * NS_PER_MS;
    const unsigned attempts = PASSES * etcd->endpoint_count, first = etcd->next;
    int r = error_set(-ETIMEDOUT, "etcd: no time to ask");
    for (unsigned i = 0; i < attempts; i++) {
        if (i == etcd->endpoint_count)
            nanosleep(&(struct timespec){.tv_nsec = BETWEEN_NS}, NULL);
        uint64_t now = clock_now_ns();
        if (now >= by_ns)
            break;
        /* An endpoint that hangs must leave time for the others; what one does not use they have. */
        uint64_t share = (by_ns - now) / (attempts - i);
        if (share < SHARE_LEAST_MS * NS_PER_MS)
            share = SHARE_LEAST_MS * NS_PER_MS;
        struct attempt attempt = {.etcd = etcd, .by_ns = now + share < by_ns ? now + share : by_ns};
        unsigned index = (first + i) % etcd->endpoint_count;
        attempt.endpoint = etcd->config->endpoints[index];
        snprintf(attempt.key, sizeof attempt.key, "%s/%s", etcd->config->prefix, arbiter->uuid);
        r = at(&attempt, question);
        if (r >= 0) {
            etcd->next = index;
            return r;
        }
    }
    return r;
}

static int etcd_swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    struct question question = {.from = from, .to = to};
    int r = ask((struct etcd_arbiter *)arbiter, swap_at, &question);
    if (r >= 0)
        *ret_generation = question.generation;
    return r;
}

static int etcd_read(struct arbiter *arbiter, struct arbiter_record *ret_record)
{
    struct question question = {0};
    int r = ask((struct etcd_arbiter *)arbiter, read_at, &question);
    if (r >= 0)
        *ret_record = question.record;
    return r;
}

static void etcd_close(struct arbiter *arbiter)
{
    struct etcd_arbiter *etcd = (struct etcd_arbiter *)arbiter;
    etcd_http_free(etcd->http);
    OPENSSL_cleanse(etcd->token, sizeof etcd->token);
    free(etcd);
}

/* A file that is not there shall be known now, and not at the takeover. */
static int check_files(const struct etcd_config *config)
{
    const struct {
        const char *key, *path;
    } files[] = {
        {"etcd-ca", config->ca}, {"etcd-certificate", config->certificate}, {"etcd-key", config->key}};
    for (unsigned i = 0; i < array_length(files); i++)
        if (files[i].path && access(files[i].path, R_OK) < 0)
            return error_errno(-errno, "%s %s", files[i].key, files[i].path);
    if (!config->user)
        return 0;
    char password[PASSWORD_MAX];
    int r = read_password(config, password);
    OPENSSL_cleanse(password, sizeof password);
    return r;
}

int arbiter_etcd_open(struct arbiter **ret_arbiter, const struct etcd_config *config)
{
    static const struct arbiter_ops ops = {etcd_swap, etcd_read, etcd_close};
    int r = etcd_config_check(config);
    if (r == 0)
        r = check_files(config);
    if (r < 0)
        return r;
    struct etcd_arbiter *etcd = calloc(1, sizeof *etcd);
    if (!etcd)
        return error_errno(-ENOMEM, "arbiter");
    r = etcd_http_new(&etcd->http, config);
    if (r < 0) {
        free(etcd);
        return r;
    }
    etcd->arbiter.ops = &ops;
    etcd->arbiter.timeout_ms = (unsigned)(config->timeout_ns / NS_PER_MS);
    etcd->config = config;
    while (config->endpoints[etcd->endpoint_count])
        etcd->endpoint_count++;
    *ret_arbiter = &etcd->arbiter;
    return 0;
}
