/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_FAKE_ETCD_H
#define UNDERSTUDY_TESTS_UNIT_FAKE_ETCD_H

#include <arpa/inet.h>
#include <jansson.h>
#include <poll.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * One key of an etcd behind its JSON gateway, and every way in which it may fail to answer. Several servers
 * may share one `store`, as members of a cluster do. A request is a connection.
 */

struct fake_store {
    pthread_mutex_t lock;
    int64_t revision; /* 0: no key */
    char value[700];  /* base64 */
    const char *cluster;
    bool auth;
    unsigned token;  /* the valid one */
    unsigned swaps;  /* transactions that took effect */
    char body[2048]; /* the latest request */
};

enum fake_fault {
    FAKE_NONE,
    FAKE_CLOSE,         /* hangs up without a word, nothing done */
    FAKE_LOSE_ANSWER,   /* done, then hangs up */
    FAKE_HANG,          /* no word until the client gives up, nothing done */
    FAKE_DO_AND_HANG,   /* done, no word */
    FAKE_CUT_ANSWER,    /* done, half of the answer */
    FAKE_NO_JSON,       /* done; the body is not JSON */
    FAKE_OTHER_JSON,    /* done; JSON, of something else */
    FAKE_TOO_LONG,      /* done; more than anybody wants */
    FAKE_HTTP_500,      /* nothing done */
    FAKE_HTTP_403,      /* nothing done */
    FAKE_DO_AND_503,    /* done: a proxy that lost patience */
    FAKE_REDIRECT,      /* nothing done */
    FAKE_OTHER_CLUSTER, /* nothing done; another cluster, with no such key */
    FAKE_FAULTS,
};

struct fake_etcd {
    struct fake_store *store;
    int listener;
    char url[40];
    pthread_t thread;
    atomic_bool ending;
    atomic_uint requests; /* so far */
    atomic_uint fault; /* enum fake_fault: strikes request `fault_from` and the `fault_count` - 1 after it */
    atomic_uint fault_from, fault_count;
    void (*_Atomic before)(struct fake_store *store, unsigned request); /* somebody else acts */
};

static int fake_read(int fd, char *to, size_t room, char **ret_body)
{
    size_t length = 0;
    for (;;) {
        ssize_t got = recv(fd, to + length, room - 1 - length, 0);
        if (got <= 0)
            return -1;
        length += (size_t)got;
        to[length] = 0;
        char *end = strstr(to, "\r\n\r\n");
        const char *field = strstr(to, "Content-Length: ");
        if (!end || !field)
            continue;
        *ret_body = end + 4;
        if (length - (size_t)(*ret_body - to) >= strtoul(field + 16, NULL, 10))
            return 0;
    }
}

static void fake_reply(int fd, int status, const char *body, size_t cut)
{
    char text[4096];
    int length =
        snprintf(text, sizeof text,
                 "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nLocation: http://127.0.0.1:1/\r\n"
                 "Content-Length: %zu\r\nConnection: close\r\n\r\n%s",
                 status, strlen(body), body);
    send(fd, text, (size_t)length - cut, MSG_NOSIGNAL);
}

static void fake_print_key(const struct fake_store *store, const char *key, char *to, size_t room)
{
    if (!store->revision)
        snprintf(to, room, "\"header\":{\"cluster_id\":\"%s\"}", store->cluster);
    else
        snprintf(to, room,
                 "\"header\":{\"cluster_id\":\"%s\"},\"kvs\":[{\"key\":\"%s\",\"create_revision\":\"1\","
                 "\"mod_revision\":\"%lld\",\"version\":\"1\",\"value\":\"%s\"}],\"count\":\"1\"",
                 store->cluster, key, (long long)store->revision, store->value);
}

static void fake_swap(struct fake_store *store, json_t *root, char *to, size_t room)
{
    const char *revision = "", *key = "", *value = "", *again = "", *target = "", *result = "";
    char range[1200];
    if (json_unpack(root, "{s:[{s:s, s:s, s:s, s:s}], s:[{s:{s:s, s:s}}], s:[{s:{s:s}}]}", "compare", "key",
                    &key, "target", &target, "result", &result, "mod_revision", &revision, "success",
                    "request_put", "key", &key, "value", &value, "failure", "request_range", "key",
                    &again) < 0)
        abort();
    if (strcmp(target, "MOD") != 0 || strcmp(result, "EQUAL") != 0)
        abort();
    if (atoll(revision) == store->revision) {
        store->revision += 5;
        store->swaps++;
        snprintf(store->value, sizeof store->value, "%s", value);
        snprintf(to, room,
                 "{\"header\":{\"cluster_id\":\"%s\"},\"succeeded\":true,\"responses\":"
                 "[{\"response_put\":{\"header\":{\"revision\":\"7\"}}}]}",
                 store->cluster);
        return;
    }
    fake_print_key(store, again, range, sizeof range);
    snprintf(to, room, "{\"header\":{\"cluster_id\":\"%s\"},\"responses\":[{\"response_range\":{%s}}]}",
             store->cluster, range);
}

/* What an etcd that works does. The HTTP status. */
static int fake_do(struct fake_store *store, const char *request, const char *body, char *to, size_t room)
{
    char token[64], range[1200];
    json_t *root = json_loads(body, 0, NULL);
    int status = 200;
    snprintf(store->body, sizeof store->body, "%s", body);
    snprintf(token, sizeof token, "Authorization: token.%u\r\n", store->token);
    if (!strncmp(request, "POST /v3/auth/authenticate ", 27)) {
        const char *name = json_string_value(json_object_get(root, "name"));
        const char *password = json_string_value(json_object_get(root, "password"));
        bool right = name && password && !strcmp(name, "us") && !strcmp(password, "secret \"word\"");
        status = right ? 200 : 400;
        snprintf(to, room,
                 right ? "{\"header\":{\"cluster_id\":\"%s\"},\"token\":\"token.%u\"}"
                       : "{\"error\":\"etcdserver: authentication failed, invalid user ID or password\"}",
                 store->cluster, store->token);
    } else if (store->auth && !strstr(request, token)) {
        status = 401;
        snprintf(to, room, "{\"error\":\"etcdserver: invalid auth token\",\"code\":16}");
    } else if (!strncmp(request, "POST /v3/kv/range ", 18)) {
        fake_print_key(store, json_string_value(json_object_get(root, "key")), range, sizeof range);
        snprintf(to, room, "{%s}", range);
    } else if (!strncmp(request, "POST /v3/kv/txn ", 16)) {
        fake_swap(store, root, to, room);
    } else {
        status = 404;
        snprintf(to, room, "not found");
    }
    json_decref(root);
    return status;
}

static void fake_wait_for_close(int fd)
{
    char byte;
    while (recv(fd, &byte, 1, 0) > 0)
        ;
}

static void fake_long_answer(int fd)
{
    static const char head[] = "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n";
    char bytes[8192];
    memset(bytes, ' ', sizeof bytes);
    send(fd, head, sizeof head - 1, MSG_NOSIGNAL);
    for (int i = 0; i < 64 && send(fd, bytes, sizeof bytes, MSG_NOSIGNAL) > 0; i++)
        ;
}

static void fake_serve(struct fake_etcd *etcd, int fd)
{
    char request[8192], answer[2048] = "", *body;
    if (fake_read(fd, request, sizeof request, &body) < 0)
        return;
    unsigned number = atomic_fetch_add(&etcd->requests, 1);
    bool struck = number >= etcd->fault_from && number - etcd->fault_from < etcd->fault_count;
    enum fake_fault fault = struck ? etcd->fault : FAKE_NONE;
    bool does = fault != FAKE_CLOSE && fault != FAKE_HANG && fault != FAKE_HTTP_500 &&
                fault != FAKE_HTTP_403 && fault != FAKE_REDIRECT && fault != FAKE_OTHER_CLUSTER;
    int status = 200;
    pthread_mutex_lock(&etcd->store->lock);
    if (etcd->before)
        etcd->before(etcd->store, number);
    if (does)
        status = fake_do(etcd->store, request, body, answer, sizeof answer);
    pthread_mutex_unlock(&etcd->store->lock);
    switch (fault) {
    case FAKE_CLOSE:
    case FAKE_LOSE_ANSWER:
        return;
    case FAKE_HANG:
    case FAKE_DO_AND_HANG:
        fake_wait_for_close(fd);
        return;
    case FAKE_CUT_ANSWER:
        fake_reply(fd, status, answer, strlen(answer) / 2);
        return;
    case FAKE_NO_JSON:
        fake_reply(fd, 200, "<html>it works</html>", 0);
        return;
    case FAKE_OTHER_JSON:
        fake_reply(fd, 200, "{\"succeeded\":true,\"kvs\":7}", 0);
        return;
    case FAKE_TOO_LONG:
        fake_long_answer(fd);
        return;
    case FAKE_HTTP_500:
        fake_reply(fd, 500, "{\"error\":\"etcdserver: no leader\"}", 0);
        return;
    case FAKE_HTTP_403:
        fake_reply(fd, 403, "{\"error\":\"etcdserver: permission\\u0007 denied\"}", 0);
        return;
    case FAKE_DO_AND_503:
        fake_reply(fd, 503, "later", 0);
        return;
    case FAKE_REDIRECT:
        fake_reply(fd, 307, "", 0);
        return;
    case FAKE_OTHER_CLUSTER:
        fake_reply(
            fd, 200,
            "{\"header\":{\"cluster_id\":\"99\"},\"succeeded\":true,\"responses\":[{\"response_put\":{}}]}",
            0);
        return;
    default:
        fake_reply(fd, status, answer, 0);
        return;
    }
}

static void *fake_run(void *argument)
{
    struct fake_etcd *etcd = argument;
    while (!atomic_load(&etcd->ending)) {
        struct pollfd ready = {.fd = etcd->listener, .events = POLLIN};
        if (poll(&ready, 1, 20) <= 0)
            continue;
        int fd = accept(etcd->listener, NULL, NULL);
        if (fd < 0)
            continue;
        fake_serve(etcd, fd);
        /* To close before the rest is read would reset the connection under the answer. */
        shutdown(fd, SHUT_WR);
        fake_wait_for_close(fd);
        close(fd);
    }
    return NULL;
}

static int fake_start(struct fake_etcd *etcd, struct fake_store *store)
{
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    etcd->store = store;
    atomic_store(&etcd->ending, false);
    atomic_store(&etcd->requests, 0);
    etcd->listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (etcd->listener < 0 || bind(etcd->listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(etcd->listener, 8) < 0 ||
        getsockname(etcd->listener, (struct sockaddr *)&address, &length) < 0)
        return -1;
    snprintf(etcd->url, sizeof etcd->url, "http://127.0.0.1:%u", ntohs(address.sin_port));
    return pthread_create(&etcd->thread, NULL, fake_run, etcd);
}

static void fake_stop(struct fake_etcd *etcd)
{
    atomic_store(&etcd->ending, true);
    pthread_join(etcd->thread, NULL);
    close(etcd->listener);
}

/* Counted from the next request on. */
static inline void fake_strike(struct fake_etcd *etcd, enum fake_fault fault, unsigned from, unsigned count)
{
    atomic_store(&etcd->requests, 0);
    etcd->fault = fault;
    etcd->fault_from = from;
    etcd->fault_count = count;
}

#endif
