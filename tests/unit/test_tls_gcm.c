/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"
#include "transport/tls_gcm.h"

#include <openssl/evp.h>
#include <openssl/provider.h>
#include <string.h>

/* AES-GCM for records, used as OpenSSL's TLS uses it, beside OpenSSL's own. */

#define LONGEST 16640

static const struct tls_gcm *gcm;
static const char *why;

#define NEEDS_GCM()                                                                                          \
    do {                                                                                                     \
        if (!gcm) {                                                                                          \
            print_message("%s\n", why);                                                                      \
            skip();                                                                                          \
        }                                                                                                    \
    } while (0)

static uint64_t noise = 1;

static void fill(uint8_t *bytes, size_t length)
{
    for (size_t i = 0; i < length; i++) {
        noise = noise * 6364136223846793005u + 1442695040888963407u;
        bytes[i] = (uint8_t)(noise >> 56);
    }
}

static int below(int bound)
{
    noise = noise * 6364136223846793005u + 1442695040888963407u;
    return (int)((noise >> 33) % (uint64_t)bound);
}

static EVP_CIPHER_CTX *cipher(bool ours, const char *name, const uint8_t *key)
{
    EVP_CIPHER *fetched =
        ours ? EVP_CIPHER_fetch(gcm->library, name, gcm->properties) : EVP_CIPHER_fetch(NULL, name, NULL);
    assert_non_null(fetched);
    assert_string_equal(OSSL_PROVIDER_get0_name(EVP_CIPHER_get0_provider(fetched)),
                        ours ? "understudy-gcm" : "default");
    assert_int_equal(EVP_CIPHER_get_mode(fetched), EVP_CIPH_GCM_MODE);
    assert_int_equal(EVP_CIPHER_get_iv_length(fetched), 12);
    EVP_CIPHER_CTX *ctx = EVP_CIPHER_CTX_new();
    assert_int_equal(EVP_CipherInit_ex(ctx, fetched, NULL, NULL, NULL, 1), 1);
    assert_int_equal(EVP_CipherInit_ex(ctx, NULL, NULL, key, NULL, -1), 1);
    EVP_CIPHER_free(fetched);
    return ctx;
}

/* `pieces`: in how many updates. */
static bool record(EVP_CIPHER_CTX *ctx, bool encrypts, const uint8_t *nonce, const uint8_t *header,
                   int header_bytes, uint8_t *bytes, int length, int pieces, uint8_t *tag)
{
    int put, done = 0;
    assert_int_equal(EVP_CipherInit_ex(ctx, NULL, NULL, NULL, nonce, encrypts), 1);
    if (!encrypts)
        assert_int_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, 16, tag), 1);
    assert_int_equal(EVP_CipherUpdate(ctx, NULL, &put, header, header_bytes), 1);
    for (int i = 0; i < pieces; i++) {
        int part = i == pieces - 1 ? length - done : length / pieces;
        assert_int_equal(EVP_CipherUpdate(ctx, bytes + done, &put, bytes + done, part), 1);
        done += put;
    }
    if (EVP_CipherFinal_ex(ctx, bytes + done, &put) != 1)
        return false;
    assert_int_equal(done + put, length);
    if (encrypts)
        assert_int_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag), 1);
    return true;
}

static void agrees_with_openssl(void **state)
{
    (void)state;
    NEEDS_GCM();
    static uint8_t plain[LONGEST], ours[LONGEST], theirs[LONGEST];
    uint8_t key[32], nonce[12], header[64], tags[2][16];
    for (unsigned round = 0; round < 200; round++) {
        const char *name = round % 2 ? "AES-256-GCM" : "AES-128-GCM";
        int length = below(LONGEST + 1), header_bytes = 1 + below(64);
        fill(key, sizeof key);
        fill(header, sizeof header);
        fill(plain, (size_t)length);
        EVP_CIPHER_CTX *a = cipher(true, name, key), *b = cipher(false, name, key);
        for (unsigned i = 0; i < 3; i++) { /* one key, several records */
            fill(nonce, sizeof nonce);
            memcpy(ours, plain, (size_t)length);
            memcpy(theirs, plain, (size_t)length);
            assert_true(record(a, true, nonce, header, header_bytes, ours, length, 1 + (int)i, tags[0]));
            assert_true(record(b, true, nonce, header, header_bytes, theirs, length, 1, tags[1]));
            assert_memory_equal(ours, theirs, (size_t)length);
            assert_memory_equal(tags[0], tags[1], 16);
            assert_true(record(a, false, nonce, header, header_bytes, theirs, length, 1 + (int)i, tags[1]));
            assert_memory_equal(theirs, plain, (size_t)length);
        }
        EVP_CIPHER_CTX_free(a);
        EVP_CIPHER_CTX_free(b);
    }
}

static void what_was_touched_is_refused(void **state)
{
    (void)state;
    NEEDS_GCM();
    const uint8_t key[16] = "a key, a key....";
    uint8_t bytes[300], sealed[300], nonce[12] = {7}, header[5] = {23, 3, 3, 1, 44}, tag[16];
    EVP_CIPHER_CTX *ctx = cipher(true, "AES-128-GCM", key);
    memset(sealed, 'x', sizeof sealed);
    assert_true(record(ctx, true, nonce, header, 5, sealed, sizeof sealed, 1, tag));
    for (unsigned bit = 0; bit < 8 * sizeof sealed; bit += 37) {
        memcpy(bytes, sealed, sizeof bytes);
        bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        assert_false(record(ctx, false, nonce, header, 5, bytes, sizeof bytes, 1, tag));
    }
    for (unsigned bit = 0; bit < 128; bit++) {
        uint8_t other[16];
        memcpy(other, tag, sizeof other);
        other[bit / 8] ^= (uint8_t)(1u << bit % 8);
        memcpy(bytes, sealed, sizeof bytes);
        assert_false(record(ctx, false, nonce, header, 5, bytes, sizeof bytes, 1, other));
    }
    memcpy(bytes, sealed, sizeof bytes);
    header[3] ^= 1;
    assert_false(record(ctx, false, nonce, header, 5, bytes, sizeof bytes, 1, tag));
    header[3] ^= 1;
    nonce[11] ^= 1;
    memcpy(bytes, sealed, sizeof bytes);
    assert_false(record(ctx, false, nonce, header, 5, bytes, sizeof bytes, 1, tag));
    nonce[11] ^= 1;
    memcpy(bytes, sealed, sizeof bytes);
    assert_true(record(ctx, false, nonce, header, 5, bytes, sizeof bytes, 1, tag));
    EVP_CIPHER_CTX_free(ctx);
}

static void what_tls_never_asks_is_refused(void **state)
{
    (void)state;
    NEEDS_GCM();
    const uint8_t key[16] = "another key.....", nonce[12] = {1};
    uint8_t bytes[100] = {0}, tag[16];
    int put;
    EVP_CIPHER_CTX *ctx = cipher(true, "AES-128-GCM", key);
    assert_int_not_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_IVLEN, 11, NULL), 1);
    assert_int_not_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_SET_TAG, 8, tag), 1);
    /* no nonce yet; the tag before there is one */
    assert_int_not_equal(EVP_CipherUpdate(ctx, bytes, &put, bytes, 16), 1);
    assert_int_not_equal(EVP_CIPHER_CTX_ctrl(ctx, EVP_CTRL_AEAD_GET_TAG, 16, tag), 1);
    assert_true(record(ctx, true, nonce, bytes, 5, bytes, 16, 1, tag));
    /* the same nonce again, by not saying one */
    assert_int_not_equal(EVP_CipherUpdate(ctx, bytes, &put, bytes, 16), 1);
    /* more additional data than any record has, and some behind the data */
    assert_int_equal(EVP_CipherInit_ex(ctx, NULL, NULL, NULL, nonce, 1), 1);
    assert_int_not_equal(EVP_CipherUpdate(ctx, NULL, &put, bytes, 65), 1);
    assert_int_equal(EVP_CipherUpdate(ctx, bytes, &put, bytes, 16), 1);
    assert_int_not_equal(EVP_CipherUpdate(ctx, NULL, &put, bytes, 5), 1);
    /* to decrypt, and no tag to look at */
    assert_int_equal(EVP_CipherInit_ex(ctx, NULL, NULL, NULL, nonce, 0), 1);
    assert_int_equal(EVP_CipherUpdate(ctx, bytes, &put, bytes, 16), 1);
    assert_int_not_equal(EVP_CipherFinal_ex(ctx, bytes, &put), 1);
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER *fetched = EVP_CIPHER_fetch(gcm->library, "AES-128-GCM", gcm->properties);
    ctx = EVP_CIPHER_CTX_new();
    assert_int_not_equal(EVP_CipherInit_ex(ctx, fetched, NULL, NULL, nonce, 1) == 1 &&
                             EVP_CipherUpdate(ctx, bytes, &put, bytes, 16) == 1,
                         1); /* no key */
    EVP_CIPHER_CTX_free(ctx);
    EVP_CIPHER_free(fetched);
}

int main(void)
{
    gcm = tls_gcm_get_always(&why);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_openssl),
        cmocka_unit_test(what_was_touched_is_refused),
        cmocka_unit_test(what_tls_never_asks_is_refused),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
