/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tls_gcm.h"

#include "base/log.h"
#include "base/scope.h"

#include <openssl/core_dispatch.h>
#include <openssl/core_names.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <openssl/provider.h>

#include <cpuid.h>
#include <intel-ipsec-mb.h>
#include <pthread.h>
#include <stdalign.h>
#include <stdlib.h>
#include <string.h>

/*
 * Theory of operation
 *
 * An OpenSSL provider (provider(7)) of two ciphers. It is asked as TLS asks, a record at a time:
 *
 *     key, once ─► nonce ─► header (additional data) ─► record, in place ─► tag ─► nonce ...
 *
 * and refuses what TLS never asks for: other lengths of nonce and tag, additional data of many pieces.
 *
 * It lives in a library context of its own, since two providers of one cipher in one context are told apart
 * by properties only, and not everybody asks with some. What sessions need besides, OpenSSL's default
 * provider gives in the same context.
 *
 * Before the first use it must agree with OpenSSL's own on records of many lengths, and refuse a record that
 * was touched. The library's functions that are called here keep no state of their own, so that threads share
 * one table of them.
 */

#define PROVIDER     "understudy-gcm"
#define NONCE_BYTES  12
#define TAG_BYTES    16
#define HEADER_BYTES 64 /* additional data: TLS 1.3 has 5 bytes of it (RFC 8446, 5.2) */
#define WANTED_CPU   (IMB_FEATURE_VAES | IMB_FEATURE_VPCLMULQDQ | IMB_FEATURE_AVX512_SKX)

static IMB_MGR *functions;

struct gcm {
    alignas(64) struct gcm_key_data key;
    struct gcm_context_data state;
    size_t key_bytes; /* 16 or 32 */
    uint8_t nonce[NONCE_BYTES], header[HEADER_BYTES], tag[TAG_BYTES];
    size_t header_bytes;
    bool encrypts, has_key, has_nonce, has_tag, begun;
};

static void *gcm_new(size_t key_bytes)
{
    struct gcm *gcm = aligned_alloc(alignof(struct gcm), sizeof *gcm);
    if (gcm)
        *gcm = (struct gcm){.key_bytes = key_bytes};
    return gcm;
}

static void *gcm_new_128(void *provider)
{
    (void)provider;
    return gcm_new(16);
}

static void *gcm_new_256(void *provider)
{
    (void)provider;
    return gcm_new(32);
}

static void gcm_free(void *ctx)
{
    if (ctx)
        OPENSSL_cleanse(ctx, sizeof(struct gcm));
    free(ctx);
}

static int gcm_set_params(void *ctx, const OSSL_PARAM params[])
{
    struct gcm *gcm = ctx;
    const OSSL_PARAM *param = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_IVLEN);
    size_t bytes;
    if (param && (!OSSL_PARAM_get_size_t(param, &bytes) || bytes != NONCE_BYTES))
        return 0;
    param = OSSL_PARAM_locate_const(params, OSSL_CIPHER_PARAM_AEAD_TAG);
    if (!param)
        return 1;
    if (param->data_type != OSSL_PARAM_OCTET_STRING || param->data_size != TAG_BYTES)
        return 0;
    if (param->data) {
        if (gcm->encrypts)
            return 0;
        memcpy(gcm->tag, param->data, TAG_BYTES);
        gcm->has_tag = true;
    }
    return 1;
}

static int gcm_init(struct gcm *gcm, bool encrypts, const unsigned char *key, size_t key_bytes,
                    const unsigned char *nonce, size_t nonce_bytes, const OSSL_PARAM params[])
{
    gcm->encrypts = encrypts;
    gcm->begun = gcm->has_tag = false;
    gcm->header_bytes = 0;
    if (nonce) {
        if (nonce_bytes != NONCE_BYTES)
            return 0;
        memcpy(gcm->nonce, nonce, NONCE_BYTES);
        gcm->has_nonce = true;
    }
    if (key) {
        if (key_bytes != gcm->key_bytes)
            return 0;
        if (key_bytes == 16)
            IMB_AES128_GCM_PRE(functions, key, &gcm->key);
        else
            IMB_AES256_GCM_PRE(functions, key, &gcm->key);
        gcm->has_key = true;
    }
    return !params || gcm_set_params(gcm, params);
}

static int gcm_encrypt_init(void *ctx, const unsigned char *key, size_t key_bytes, const unsigned char *nonce,
                            size_t nonce_bytes, const OSSL_PARAM params[])
{
    return gcm_init(ctx, true, key, key_bytes, nonce, nonce_bytes, params);
}

static int gcm_decrypt_init(void *ctx, const unsigned char *key, size_t key_bytes, const unsigned char *nonce,
                            size_t nonce_bytes, const OSSL_PARAM params[])
{
    return gcm_init(ctx, false, key, key_bytes, nonce, nonce_bytes, params);
}

/* The first byte of a record, or its end, is there. A nonce serves one record. */
static bool begin(struct gcm *gcm)
{
    if (gcm->begun)
        return true;
    if (!gcm->has_key || !gcm->has_nonce)
        return false;
    if (gcm->key_bytes == 16)
        IMB_AES128_GCM_INIT(functions, &gcm->key, &gcm->state, gcm->nonce, gcm->header, gcm->header_bytes);
    else
        IMB_AES256_GCM_INIT(functions, &gcm->key, &gcm->state, gcm->nonce, gcm->header, gcm->header_bytes);
    gcm->has_nonce = false;
    gcm->begun = true;
    return true;
}

static int take_header(struct gcm *gcm, const unsigned char *in, size_t bytes)
{
    if (gcm->begun || bytes > HEADER_BYTES - gcm->header_bytes)
        return 0;
    memcpy(gcm->header + gcm->header_bytes, in, bytes);
    gcm->header_bytes += bytes;
    return 1;
}

static int gcm_update(void *ctx, unsigned char *out, size_t *ret_bytes, size_t room, const unsigned char *in,
                      size_t bytes)
{
    struct gcm *gcm = ctx;
    *ret_bytes = bytes;
    if (!out)
        return take_header(gcm, in, bytes);
    if (bytes > room || !begin(gcm))
        return 0;
    if (gcm->key_bytes == 16 && gcm->encrypts)
        IMB_AES128_GCM_ENC_UPDATE(functions, &gcm->key, &gcm->state, out, in, bytes);
    else if (gcm->key_bytes == 16)
        IMB_AES128_GCM_DEC_UPDATE(functions, &gcm->key, &gcm->state, out, in, bytes);
    else if (gcm->encrypts)
        IMB_AES256_GCM_ENC_UPDATE(functions, &gcm->key, &gcm->state, out, in, bytes);
    else
        IMB_AES256_GCM_DEC_UPDATE(functions, &gcm->key, &gcm->state, out, in, bytes);
    return 1;
}

static int gcm_final(void *ctx, unsigned char *out, size_t *ret_bytes, size_t room)
{
    struct gcm *gcm = ctx;
    uint8_t tag[TAG_BYTES];
    (void)out;
    (void)room;
    *ret_bytes = 0;
    if ((!gcm->encrypts && !gcm->has_tag) || !begin(gcm))
        return 0;
    if (gcm->key_bytes == 16 && gcm->encrypts)
        IMB_AES128_GCM_ENC_FINALIZE(functions, &gcm->key, &gcm->state, tag, TAG_BYTES);
    else if (gcm->key_bytes == 16)
        IMB_AES128_GCM_DEC_FINALIZE(functions, &gcm->key, &gcm->state, tag, TAG_BYTES);
    else if (gcm->encrypts)
        IMB_AES256_GCM_ENC_FINALIZE(functions, &gcm->key, &gcm->state, tag, TAG_BYTES);
    else
        IMB_AES256_GCM_DEC_FINALIZE(functions, &gcm->key, &gcm->state, tag, TAG_BYTES);
    gcm->begun = false;
    gcm->header_bytes = 0;
    if (!gcm->encrypts)
        return CRYPTO_memcmp(tag, gcm->tag, TAG_BYTES) == 0;
    memcpy(gcm->tag, tag, TAG_BYTES);
    gcm->has_tag = true;
    return 1;
}

static int put_size(OSSL_PARAM params[], const char *name, size_t size)
{
    OSSL_PARAM *param = OSSL_PARAM_locate(params, name);
    return !param || OSSL_PARAM_set_size_t(param, size);
}

static int put_int(OSSL_PARAM params[], const char *name, int value)
{
    OSSL_PARAM *param = OSSL_PARAM_locate(params, name);
    return !param || OSSL_PARAM_set_int(param, value);
}

static int gcm_get_ctx_params(void *ctx, OSSL_PARAM params[])
{
    struct gcm *gcm = ctx;
    OSSL_PARAM *tag = OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_AEAD_TAG);
    if (tag && (!gcm->encrypts || !gcm->has_tag || tag->data_size != TAG_BYTES ||
                !OSSL_PARAM_set_octet_string(tag, gcm->tag, TAG_BYTES)))
        return 0;
    return put_size(params, OSSL_CIPHER_PARAM_KEYLEN, gcm->key_bytes) &&
           put_size(params, OSSL_CIPHER_PARAM_IVLEN, NONCE_BYTES) &&
           put_size(params, OSSL_CIPHER_PARAM_AEAD_TAGLEN, TAG_BYTES);
}

static int get_params(OSSL_PARAM params[], size_t key_bytes)
{
    return put_size(params, OSSL_CIPHER_PARAM_KEYLEN, key_bytes) &&
           put_size(params, OSSL_CIPHER_PARAM_IVLEN, NONCE_BYTES) &&
           put_size(params, OSSL_CIPHER_PARAM_BLOCK_SIZE, 1) && put_int(params, OSSL_CIPHER_PARAM_AEAD, 1) &&
           put_int(params, OSSL_CIPHER_PARAM_CUSTOM_IV, 1) &&
           (!OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_MODE) ||
            OSSL_PARAM_set_uint(OSSL_PARAM_locate(params, OSSL_CIPHER_PARAM_MODE), EVP_CIPH_GCM_MODE));
}

static int get_params_128(OSSL_PARAM params[])
{
    return get_params(params, 16);
}

static int get_params_256(OSSL_PARAM params[])
{
    return get_params(params, 32);
}

static const OSSL_PARAM *gettable_ctx_params(void *ctx, void *provider)
{
    static const OSSL_PARAM table[] = {
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_KEYLEN, NULL), OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
        OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_AEAD_TAGLEN, NULL),
        OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0), OSSL_PARAM_END};
    (void)ctx;
    (void)provider;
    return table;
}

static const OSSL_PARAM *settable_ctx_params(void *ctx, void *provider)
{
    static const OSSL_PARAM table[] = {OSSL_PARAM_size_t(OSSL_CIPHER_PARAM_IVLEN, NULL),
                                       OSSL_PARAM_octet_string(OSSL_CIPHER_PARAM_AEAD_TAG, NULL, 0),
                                       OSSL_PARAM_END};
    (void)ctx;
    (void)provider;
    return table;
}

#define DISPATCH(bits)                                                                                       \
    {                                                                                                        \
        {OSSL_FUNC_CIPHER_NEWCTX, (void (*)(void))gcm_new_##bits},                                           \
            {OSSL_FUNC_CIPHER_FREECTX, (void (*)(void))gcm_free},                                            \
            {OSSL_FUNC_CIPHER_ENCRYPT_INIT, (void (*)(void))gcm_encrypt_init},                               \
            {OSSL_FUNC_CIPHER_DECRYPT_INIT, (void (*)(void))gcm_decrypt_init},                               \
            {OSSL_FUNC_CIPHER_UPDATE, (void (*)(void))gcm_update},                                           \
            {OSSL_FUNC_CIPHER_FINAL, (void (*)(void))gcm_final},                                             \
            {OSSL_FUNC_CIPHER_GET_PARAMS, (void (*)(void))get_params_##bits},                                \
            {OSSL_FUNC_CIPHER_GET_CTX_PARAMS, (void (*)(void))gcm_get_ctx_params},                           \
            {OSSL_FUNC_CIPHER_SET_CTX_PARAMS, (void (*)(void))gcm_set_params},                               \
            {OSSL_FUNC_CIPHER_GETTABLE_CTX_PARAMS, (void (*)(void))gettable_ctx_params},                     \
            {OSSL_FUNC_CIPHER_SETTABLE_CTX_PARAMS, (void (*)(void))settable_ctx_params},                     \
        {                                                                                                    \
            0, NULL                                                                                          \
        }                                                                                                    \
    }

static const OSSL_DISPATCH dispatch_128[] = DISPATCH(128), dispatch_256[] = DISPATCH(256);

/* The names that OpenSSL's default provider gives them: TLS asks by object identifier's name. */
static const OSSL_ALGORITHM ciphers[] = {
    {"AES-128-GCM:id-aes128-GCM:2.16.840.1.101.3.4.1.6", "provider=" PROVIDER, dispatch_128, NULL},
    {"AES-256-GCM:id-aes256-GCM:2.16.840.1.101.3.4.1.46", "provider=" PROVIDER, dispatch_256, NULL},
    {NULL, NULL, NULL, NULL},
};

static const OSSL_ALGORITHM *query(void *provider, int operation, int *no_cache)
{
    (void)provider;
    *no_cache = 0;
    return operation == OSSL_OP_CIPHER ? ciphers : NULL;
}

static int provider_init(const OSSL_CORE_HANDLE *handle, const OSSL_DISPATCH *core,
                         const OSSL_DISPATCH **ret_dispatch, void **ret_provider)
{
    static const OSSL_DISPATCH dispatch[] = {{OSSL_FUNC_PROVIDER_QUERY_OPERATION, (void (*)(void))query},
                                             {0, NULL}};
    (void)core;
    *ret_dispatch = dispatch;
    *ret_provider = (void *)handle; /* anything but NULL */
    return 1;
}

/* --- does it agree? --- */

static void scope_cipher(EVP_CIPHER **cipher)
{
    EVP_CIPHER_free(*cipher);
}

static void scope_cipher_ctx(EVP_CIPHER_CTX **ctx)
{
    EVP_CIPHER_CTX_free(*ctx);
}

/* One record, as TLS asks for it, in place. `tag` is made, or looked at. */
static bool record(EVP_CIPHER_CTX *ctx, bool encrypts, const uint8_t *nonce, uint8_t *bytes, int length,
                   uint8_t *tag)
{
    static const uint8_t header[] = {23, 3, 3, 64, 17};
    int put = 0, more = 0;
    return EVP_CipherInit_ex(ctx, NULL, NULL, NULL, nonce, encrypts) == 1 &&
           (encrypts || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, TAG_BYTES, tag) == 1) &&
           EVP_CipherUpdate(ctx, NULL, &put, header, sizeof header) == 1 &&
           EVP_CipherUpdate(ctx, bytes, &put, bytes, length) == 1 &&
           EVP_CipherFinal_ex(ctx, bytes + put, &more) == 1 && put + more == length &&
           (!encrypts || EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, TAG_BYTES, tag) == 1);
}

static EVP_CIPHER_CTX *keyed(OSSL_LIB_CTX *library, const char *name, const char *properties,
                             const uint8_t *key)
{
    EVP_CIPHER *cipher cleanup(scope_cipher) = EVP_CIPHER_fetch(library, name, properties);
    EVP_CIPHER_CTX *ctx cleanup(scope_cipher_ctx) = EVP_CIPHER_CTX_new();
    if (!cipher || !ctx || EVP_CipherInit_ex(ctx, cipher, NULL, NULL, NULL, 1) != 1 ||
        EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, NONCE_BYTES, NULL) != 1 ||
        EVP_CipherInit_ex(ctx, NULL, NULL, key, NULL, -1) != 1)
        return NULL;
    return take_ptr(ctx);
}

#define LONGEST 16385 /* a full record and its type (RFC 8446, 5.2) */

static bool agrees(OSSL_LIB_CTX *library, const char *name)
{
    static const int lengths[] = {0, 1, 15, 16, 17, 255, 256, 257, 4096, 5003, LONGEST};
    uint8_t key[32], nonce[NONCE_BYTES], ours[LONGEST], theirs[LONGEST], tags[2][TAG_BYTES];
    for (unsigned i = 0; i < sizeof key; i++)
        key[i] = (uint8_t)(i * 29 + 3);
    EVP_CIPHER_CTX *a cleanup(scope_cipher_ctx) = keyed(library, name, "provider=" PROVIDER, key),
                      *b cleanup(scope_cipher_ctx) = keyed(library, name, "provider=default", key);
    if (!a || !b)
        return false;
    for (unsigned i = 0; i < array_length(lengths); i++) {
        int length = lengths[i];
        memset(nonce, (int)i, sizeof nonce);
        for (int k = 0; k < length; k++)
            ours[k] = theirs[k] = (uint8_t)(k * 13 + length);
        if (!record(a, true, nonce, ours, length, tags[0]) ||
            !record(b, true, nonce, theirs, length, tags[1]) || memcmp(ours, theirs, (size_t)length) != 0 ||
            memcmp(tags[0], tags[1], TAG_BYTES) != 0)
            return false;
        /* A touched record must be refused; then the true one, read back by each other's hand. */
        ours[length / 2] ^= (uint8_t)(length > 0);
        tags[0][15] ^= (uint8_t)(length == 0);
        if (record(a, false, nonce, ours, length, tags[0]))
            return false;
        if (!record(a, false, nonce, theirs, length, tags[1]))
            return false;
        for (int k = 0; k < length; k++)
            if (theirs[k] != (uint8_t)(k * 13 + length))
                return false;
    }
    return true;
}

/* --- one for the process --- */

static struct tls_gcm gcm = {.properties = "?provider=" PROVIDER};
static const char *why_not;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* IPsec-MB looks at CPUID alone. Does the kernel keep the registers of AVX-512, too? (Intel's manual, volume
 * 1, 14.3 and 15.2: OSXSAVE; XCR0 bits 1 and 2, 5 to 7.) */
static bool kernel_keeps_registers(void)
{
    unsigned a, b, c, d, high;
    if (!__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_OSXSAVE))
        return false;
    __asm__("xgetbv" : "=a"(a), "=d"(high) : "c"(0));
    return (a & 0xe6) == 0xe6;
}

static const char *make(void)
{
    if (!kernel_keeps_registers())
        return "processor or kernel provide no AVX-512";
    functions = alloc_mb_mgr(0);
    if (!functions)
        return "IPsec-MB: out of memory";
    IMB_ARCH arch;
    init_mb_mgr_auto(functions, &arch);
    if (imb_get_errno(functions) != 0)
        return "IPsec-MB does not start on this processor";
    if ((functions->features & WANTED_CPU) != WANTED_CPU)
        return "the processor has no vector AES with AVX-512";
    gcm.library = OSSL_LIB_CTX_new();
    if (!gcm.library || !OSSL_PROVIDER_add_builtin(gcm.library, PROVIDER, provider_init) ||
        !OSSL_PROVIDER_load(gcm.library, "default") || !OSSL_PROVIDER_load(gcm.library, PROVIDER))
        return "OpenSSL does not take it as a provider";
    if (!agrees(gcm.library, "AES-128-GCM") || !agrees(gcm.library, "AES-256-GCM")) {
        log_warning("AES-GCM of IPsec-MB does not agree with OpenSSL's on this processor; it is not used");
        return "IPsec-MB does not agree with OpenSSL";
    }
    return NULL;
}

static void make_once(void)
{
    why_not = make();
    ERR_clear_error();
}

const struct tls_gcm *tls_gcm_get_always(const char **ret_why)
{
    pthread_once(&once, make_once);
    if (ret_why)
        *ret_why = why_not;
    return why_not ? NULL : &gcm;
}

/* Who is configured to use something else, FIPS above all, gets that. */
static bool default_is_asked(void)
{
    EVP_CIPHER *cipher cleanup(scope_cipher) = EVP_CIPHER_fetch(NULL, "AES-128-GCM", NULL);
    const OSSL_PROVIDER *provider = cipher ? EVP_CIPHER_get0_provider(cipher) : NULL;
    ERR_clear_error();
    return provider && !strcmp(OSSL_PROVIDER_get0_name(provider), "default");
}

const struct tls_gcm *tls_gcm_get(const char **ret_why)
{
    const char *why = NULL;
    if (OpenSSL_version_num() >= 0x30100000)
        why = "OpenSSL has such code itself";
    else if (!default_is_asked())
        why = "OpenSSL is configured to use another provider";
    if (!why)
        return tls_gcm_get_always(ret_why);
    if (ret_why)
        *ret_why = why;
    return NULL;
}
