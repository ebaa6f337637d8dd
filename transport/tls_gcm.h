/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_TLS_GCM_H
#define UNDERSTUDY_TRANSPORT_TLS_GCM_H

#include <openssl/crypto.h>

#include <stdbool.h>

/*
 * AES-GCM for TLS records from Intel's IPsec-MB library, for processors with vector AES (VAES, VPCLMULQDQ and
 * AVX-512), which OpenSSL uses from 3.1 on. Below OpenSSL's TLS nothing else changes.
 */

struct tls_gcm {
    OSSL_LIB_CTX *library;  /* for SSL_CTX_new_ex(), with the default provider beside ours */
    const char *properties; /* the same */
};

/* Made, and compared with OpenSSL's own, at the first call; lives as long as the process. NULL, with a reason
 * in `*ret_why` where that is not NULL, when OpenSSL's own is as good or all there is. Thread-safe. */
const struct tls_gcm *tls_gcm_get(const char **ret_why);

/* As tls_gcm_get(), whatever OpenSSL's version is: for tests and measurements. */
const struct tls_gcm *tls_gcm_get_always(const char **ret_why);

#endif
