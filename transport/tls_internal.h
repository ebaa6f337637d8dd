/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_TLS_INTERNAL_H
#define UNDERSTUDY_TRANSPORT_TLS_INTERNAL_H

#include "transport/tls.h"

#include <openssl/ssl.h>
#include <openssl/x509.h>

/* What the transport folder's own files share about TLS; nobody else includes this. */

/* A new session under the context's policy, with the peer's name pinned. NULL when out of memory. */
SSL *tls_session_new(struct tls_context *context, bool server, bool ktls);

/*
 * Turn the failure of an SSL call into a negative errno with words: call it at once after the call, with what
 * SSL_get_error() said. Certificate trouble is -EACCES, whichever side found it; a peer that speaks another
 * version is -EPROTONOSUPPORT; whatever else violates TLS is -EPROTO.
 */
int tls_failure(SSL *ssl, int ssl_error);

/* The text of the oldest error in OpenSSL's queue, and empty the queue. -EPROTO, or -ENOMEM. */
int tls_library_failure(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Scope cleanup. */
static inline void tls_scope_x509(X509 **certificate)
{
    X509_free(*certificate);
}
static inline void tls_scope_key(EVP_PKEY **key)
{
    EVP_PKEY_free(*key);
}
static inline void tls_scope_bio(BIO **bio)
{
    BIO_free_all(*bio);
}

/*
 * The files, read once and judged the same way by the lanes and by `understudy pki check`. Each returns 0 or
 * a negative errno whose text names the file.
 */
struct tls_chain {
    X509 *leaf;
    STACK_OF(X509) * rest; /* intermediate certificates, perhaps empty */
};
void tls_chain_clear(struct tls_chain *chain);

int tls_read_ca(const char *path, X509_STORE **ret_store, X509 **ret_first);
int tls_read_chain(const char *path, struct tls_chain *ret_chain);
int tls_read_key(const char *path, EVP_PKEY **ret_key);

/* The chain is signed by a CA of the store, valid now, and fit for both ends of a lane. */
int tls_check_chain(const char *path, const struct tls_chain *chain, X509_STORE *store, const char *ca_path);

/* A DNS name as the policy wants it: no wildcard, no leading dot (OpenSSL would take it for "any name
 * below"), no address, not empty (OpenSSL would check nothing). -EINVAL. */
int tls_check_name(const char *name);

#endif
