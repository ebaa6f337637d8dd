/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tls_internal.h"

#include "base/error.h"
#include "base/scope.h"
#include "transport/tls_gcm.h"

#include <openssl/err.h>
#include <openssl/x509v3.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

struct tls_context {
    SSL_CTX *ctx;
    char *peer_name;
    const char *why_not_gcm; /* "": its sessions use tls_gcm.h */
};

static void scope_store(X509_STORE **store)
{
    X509_STORE_free(*store);
}

void tls_context_free(struct tls_context *context)
{
    if (!context)
        return;
    SSL_CTX_free(context->ctx);
    free(context->peer_name);
    free(context);
}

static void scope_context(struct tls_context **context)
{
    tls_context_free(*context);
}

static int set_policy(SSL_CTX *ctx)
{
    if (!SSL_CTX_set_min_proto_version(ctx, TLS1_3_VERSION) ||
        !SSL_CTX_set_max_proto_version(ctx, TLS1_3_VERSION) ||
        /* 128 bits first: a third faster than 256, and the lanes are bound by it */
        !SSL_CTX_set_ciphersuites(ctx, "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384") ||
        !SSL_CTX_set1_groups_list(ctx, "X25519:P-256:P-384") || !SSL_CTX_set_num_tickets(ctx, 0) ||
        !SSL_CTX_set_max_early_data(ctx, 0) || !SSL_CTX_set_recv_max_early_data(ctx, 0))
        return tls_library_failure("set the TLS policy");
    SSL_CTX_set_security_level(ctx, 2);
    SSL_CTX_set_options(ctx, SSL_OP_NO_TICKET | SSL_OP_NO_RENEGOTIATION | SSL_OP_NO_COMPRESSION);
    SSL_CTX_set_session_cache_mode(ctx, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_verify(ctx, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT, NULL);
    return 0;
}

int tls_context_new(struct tls_context **ret_context, const struct tls_files *files)
{
    int r = tls_check_name(files->peer_name);
    if (r < 0)
        return error_add(r, "name of the peer");
    X509_STORE *store cleanup(scope_store) = NULL;
    struct tls_chain chain cleanup(tls_chain_clear) = {0};
    EVP_PKEY *key cleanup(tls_scope_key) = NULL;
    if ((r = tls_read_ca(files->ca, &store, NULL)) < 0 ||
        (r = tls_read_chain(files->certificate, &chain)) < 0 || (r = tls_read_key(files->key, &key)) < 0 ||
        (r = tls_check_chain(files->certificate, &chain, store, files->ca)) < 0)
        return r;
    if (X509_check_private_key(chain.leaf, key) != 1) {
        ERR_clear_error();
        return error_set(-EINVAL, "private key '%s' does not fit certificate '%s'", files->key,
                         files->certificate);
    }

    struct tls_context *context cleanup(scope_context) = calloc(1, sizeof *context);
    if (!context || !(context->peer_name = strdup(files->peer_name)))
        return error_set(-ENOMEM, "TLS context: out of memory");
    context->why_not_gcm = "the configuration says so";
    const struct tls_gcm *gcm = files->aes == TLS_AES_AUTO ? tls_gcm_get(&context->why_not_gcm) : NULL;
    if (gcm)
        context->why_not_gcm = "";
    context->ctx =
        gcm ? SSL_CTX_new_ex(gcm->library, gcm->properties, TLS_method()) : SSL_CTX_new(TLS_method());
    if (!context->ctx)
        return tls_library_failure("TLS context");
    if ((r = set_policy(context->ctx)) < 0)
        return r;
    SSL_CTX_set1_cert_store(context->ctx, store);
    if (SSL_CTX_use_certificate(context->ctx, chain.leaf) != 1)
        return tls_library_failure("use certificate '%s'", files->certificate);
    if (SSL_CTX_use_PrivateKey(context->ctx, key) != 1)
        return tls_library_failure("use private key '%s'", files->key);
    if (!SSL_CTX_set1_chain(context->ctx, chain.rest))
        return tls_library_failure("use certificate '%s'", files->certificate);
    *ret_context = take_ptr(context);
    return 0;
}

const char *tls_context_aes(const struct tls_context *context, const char **ret_why)
{
    *ret_why = context->why_not_gcm;
    return *context->why_not_gcm ? "OpenSSL" : "IPsec-MB";
}

SSL *tls_session_new(struct tls_context *context, bool server, bool ktls)
{
    SSL *ssl = SSL_new(context->ctx);
    if (!ssl)
        return NULL;
    SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT);
    if (!SSL_set1_host(ssl, context->peer_name) ||
        (!server && !SSL_set_tlsext_host_name(ssl, context->peer_name))) {
        SSL_free(ssl);
        return NULL;
    }
    if (ktls)
        SSL_set_options(ssl, SSL_OP_ENABLE_KTLS);
    if (server)
        SSL_set_accept_state(ssl);
    else
        SSL_set_connect_state(ssl);
    return ssl;
}

/* The alerts that speak of the certificate we showed (RFC 8446, 6.2). */
static bool about_our_certificate(int alert)
{
    switch (alert) {
    case SSL_AD_BAD_CERTIFICATE:
    case SSL_AD_UNSUPPORTED_CERTIFICATE:
    case SSL_AD_CERTIFICATE_REVOKED:
    case SSL_AD_CERTIFICATE_EXPIRED:
    case SSL_AD_CERTIFICATE_UNKNOWN:
    case SSL_AD_UNKNOWN_CA:
    case SSL_AD_ACCESS_DENIED:
    case SSL_AD_CERTIFICATE_REQUIRED:
        return true;
    }
    return false;
}

int tls_failure(SSL *ssl, int ssl_error)
{
    if (ssl_error == SSL_ERROR_ZERO_RETURN) {
        ERR_clear_error();
        return error_set(-ESHUTDOWN, "the peer closed the connection in order");
    }
    unsigned long error = ERR_peek_error();
    int reason = ERR_GET_LIB(error) == ERR_LIB_SSL ? ERR_GET_REASON(error) : 0;
    if (reason > SSL_AD_REASON_OFFSET && reason <= SSL_AD_REASON_OFFSET + 255) {
        int alert = reason - SSL_AD_REASON_OFFSET;
        const char *text = SSL_alert_desc_string_long(alert);
        ERR_clear_error();
        if (about_our_certificate(alert))
            return error_set(-EACCES, "the peer rejected our certificate: %s", text);
        if (alert == SSL_AD_PROTOCOL_VERSION)
            return error_set(-EPROTONOSUPPORT, "the peer does not speak TLS 1.3");
        return error_set(-EPROTO, "the peer reported a TLS failure: %s", text);
    }
    switch (reason) {
    case SSL_R_CERTIFICATE_VERIFY_FAILED: {
        long result = SSL_get_verify_result(ssl);
        ERR_clear_error();
        if (result == X509_V_ERR_HOSTNAME_MISMATCH)
            return error_set(-EACCES, "the peer's certificate does not carry the name '%s'",
                             SSL_get0_param(ssl) ? X509_VERIFY_PARAM_get0_host(SSL_get0_param(ssl), 0) : "?");
        return error_set(-EACCES, "the peer's certificate is refused: %s",
                         X509_verify_cert_error_string(result));
    }
    case SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE:
        ERR_clear_error();
        return error_set(-EACCES, "the peer showed no certificate");
    case SSL_R_UNSUPPORTED_PROTOCOL:
    case SSL_R_WRONG_SSL_VERSION:
        ERR_clear_error();
        return error_set(-EPROTONOSUPPORT, "the peer does not speak TLS 1.3");
    case SSL_R_UNEXPECTED_EOF_WHILE_READING:
        ERR_clear_error();
        return error_set(-ECONNRESET, "the peer closed the connection without a word");
    }
    return tls_library_failure("TLS");
}
