/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_TLS_H
#define UNDERSTUDY_TRANSPORT_TLS_H

#include <stdbool.h>

/*
 * TLS policy (RFC 8446): version 1.3 only, both sides show an X.509 certificate that the one configured CA
 * signed, and the peer's certificate carries the one DNS name (subjectAltName, RFC 6125, no wildcards) that
 * the configuration names. AES-GCM suites only. No session tickets, no resumption, no early data, no
 * renegotiation, no compression.
 */
struct tls_context;

/* Who encrypts the records. */
enum tls_aes {
    TLS_AES_AUTO,    /* the faster (tls_gcm.h) */
    TLS_AES_OPENSSL, /* OpenSSL's default provider */
};

struct tls_files {
    const char *ca;          /* PEM, one or more CA certificates */
    const char *certificate; /* PEM, own chain */
    const char *key;         /* PEM, own private key; refused when others may read it */
    const char *peer_name;   /* the name that the peer must prove */
    enum tls_aes aes;
};

/* Load and check the files (the key fits the certificate, the certificate is valid now and signed by the CA).
 * The error text names the file. One context serves both directions. Thread-safe once made. */
int tls_context_new(struct tls_context **ret_context, const struct tls_files *files);
/* Who encrypts the records of its sessions: "OpenSSL" or "IPsec-MB"; and why not the latter, "" where it
 * does. */
const char *tls_context_aes(const struct tls_context *context, const char **ret_why);
void tls_context_free(struct tls_context *context);

#endif
