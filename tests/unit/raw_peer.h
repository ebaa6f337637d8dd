/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_RAW_PEER_H
#define UNDERSTUDY_TESTS_UNIT_RAW_PEER_H

#include "tests/unit/certificates.h"

#include <openssl/err.h>
#include <openssl/ssl.h>
#include <sys/socket.h>
#include <sys/time.h>

/*
 * A peer that does what it likes: blocking TLS by plain OpenSSL, with any version and certificate, so that a
 * lane can be shown what no lane would send.
 */
struct raw {
    int fd;
    SSL_CTX *ctx;
    SSL *ssl;
};

/* `host` NULL: no certificate. Does not shake hands yet. `fd` is taken over. */
static inline void raw_open(struct raw *raw, const struct certificates *set, int fd, const char *host,
                            int version)
{
    struct timeval patience = {20, 0};
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience);
    raw->fd = fd;
    raw->ctx = SSL_CTX_new(TLS_method());
    SSL_CTX_set_min_proto_version(raw->ctx, version);
    SSL_CTX_set_max_proto_version(raw->ctx, version);
    SSL_CTX_set_num_tickets(raw->ctx, 0);
    if (host &&
        (SSL_CTX_use_certificate_file(raw->ctx, certificates_path(set, host, "crt"), SSL_FILETYPE_PEM) != 1 ||
         SSL_CTX_use_PrivateKey_file(raw->ctx, certificates_path(set, host, "key"), SSL_FILETYPE_PEM) != 1))
        exit(1);
    /* Asked for, never judged: a server that does not ask is refused by nobody. */
    SSL_CTX_load_verify_locations(raw->ctx, certificates_path(set, "ca", "crt"), NULL);
    raw->ssl = SSL_new(raw->ctx);
    SSL_set_fd(raw->ssl, fd);
}

static inline int raw_connect(const struct sockaddr_storage *address, socklen_t length)
{
    int fd = socket(address->ss_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || connect(fd, (const struct sockaddr *)address, length) < 0)
        exit(1);
    return fd;
}

static inline void raw_close(struct raw *raw)
{
    SSL_free(raw->ssl);
    SSL_CTX_free(raw->ctx);
    if (raw->fd >= 0)
        close(raw->fd);
    raw->fd = -1;
    ERR_clear_error();
}

#endif
