/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/tls_internal.h"

#include "base/error.h"
#include "base/scope.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

#define FILE_BYTES_MAX (1 << 20)

int tls_library_failure(const char *format, ...)
{
    char context[ERROR_TEXT_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(context, sizeof context, format, arguments);
    va_end(arguments);

    unsigned long error = ERR_get_error();
    ERR_clear_error();
    const char *reason = error ? ERR_reason_error_string(error) : NULL;
    int code = ERR_GET_REASON(error) == ERR_R_MALLOC_FAILURE ? -ENOMEM : -EPROTO;
    return error_set(code, "%s: %s", context, reason ? reason : "the TLS library gave no reason");
}

/* Without a callback OpenSSL would ask for a pass phrase on the terminal. */
static int no_pass_phrase(char *buffer, int size, int writing, void *ctx)
{
    (void)buffer;
    (void)size;
    (void)writing;
    (void)ctx;
    return -1;
}

/* The whole file in memory, so that what was checked (mode, size) is what is parsed. */
static int read_file(const char *path, bool private, BIO **ret_bio)
{
    cleanup_close int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY | O_NONBLOCK);
    if (fd < 0)
        return error_errno(-errno, "open '%s'", path);
    struct stat status;
    if (fstat(fd, &status) < 0)
        return error_errno(-errno, "stat '%s'", path);
    if (!S_ISREG(status.st_mode))
        return error_set(-EINVAL, "'%s' is not a regular file", path);
    if (status.st_size > FILE_BYTES_MAX)
        return error_set(-EFBIG, "'%s' has %lld bytes, more than %d", path, (long long)status.st_size,
                         FILE_BYTES_MAX);
    if (private && (status.st_mode & 077))
        return error_set(-EPERM, "private key '%s' has mode %04o: others may read it; make it 0600", path,
                         (unsigned)status.st_mode & 07777);

    BIO *bio cleanup(tls_scope_bio) = BIO_new(BIO_s_mem());
    if (!bio)
        return error_set(-ENOMEM, "read '%s': out of memory", path);
    /* The memory BIO gives an error, not "try again", at its end. */
    BIO_set_mem_eof_return(bio, 0);
    char chunk[4096];
    for (;;) {
        ssize_t length = read(fd, chunk, sizeof chunk);
        if (length < 0 && errno == EINTR)
            continue;
        if (length < 0)
            return error_errno(-errno, "read '%s'", path);
        if (length == 0)
            break;
        if (BIO_pending(bio) > FILE_BYTES_MAX || BIO_write(bio, chunk, (int)length) != length)
            return error_set(-ENOMEM, "read '%s': too large", path);
    }
    OPENSSL_cleanse(chunk, sizeof chunk);
    *ret_bio = take_ptr(bio);
    return 0;
}

void tls_chain_clear(struct tls_chain *chain)
{
    X509_free(chain->leaf);
    sk_X509_pop_free(chain->rest, X509_free);
    *chain = (struct tls_chain){0};
}

/* The next certificate; NULL in *ret_certificate at the end of the file. */
static int next_certificate(const char *path, BIO *bio, X509 **ret_certificate)
{
    X509 *certificate = PEM_read_bio_X509(bio, NULL, no_pass_phrase, NULL);
    if (!certificate) {
        unsigned long error = ERR_peek_last_error();
        if (ERR_GET_LIB(error) != ERR_LIB_PEM || ERR_GET_REASON(error) != PEM_R_NO_START_LINE)
            return tls_library_failure("read the certificate in '%s'", path);
        ERR_clear_error();
    }
    *ret_certificate = certificate;
    return 0;
}

int tls_read_chain(const char *path, struct tls_chain *ret_chain)
{
    BIO *bio cleanup(tls_scope_bio) = NULL;
    int r = read_file(path, false, &bio);
    if (r < 0)
        return r;
    struct tls_chain chain cleanup(tls_chain_clear) = {.rest = sk_X509_new_null()};
    if (!chain.rest)
        return error_set(-ENOMEM, "read '%s': out of memory", path);
    if ((r = next_certificate(path, bio, &chain.leaf)) < 0)
        return r;
    if (!chain.leaf)
        return error_set(-EINVAL, "'%s' holds no PEM certificate", path);
    for (;;) {
        X509 *certificate cleanup(tls_scope_x509) = NULL;
        if ((r = next_certificate(path, bio, &certificate)) < 0)
            return r;
        if (!certificate)
            break;
        if (!sk_X509_push(chain.rest, certificate))
            return error_set(-ENOMEM, "read '%s': out of memory", path);
        certificate = NULL;
    }
    *ret_chain = chain;
    chain = (struct tls_chain){0};
    return 0;
}

static void scope_store(X509_STORE **store)
{
    X509_STORE_free(*store);
}

int tls_read_ca(const char *path, X509_STORE **ret_store, X509 **ret_first)
{
    struct tls_chain chain cleanup(tls_chain_clear) = {0};
    int r = tls_read_chain(path, &chain);
    if (r < 0)
        return r;
    X509_STORE *store cleanup(scope_store) = X509_STORE_new();
    if (!store)
        return error_set(-ENOMEM, "CA file '%s': out of memory", path);
    for (int i = -1; i < sk_X509_num(chain.rest); i++) {
        X509 *certificate = i < 0 ? chain.leaf : sk_X509_value(chain.rest, i);
        /* A host's certificate here would be trusted as it stands, whoever holds its key. */
        if (X509_check_ca(certificate) != 1)
            return error_set(-EINVAL, "CA file '%s': certificate %d is no CA certificate", path, i + 2);
        if (X509_cmp_current_time(X509_get0_notAfter(certificate)) < 0)
            return error_set(-EKEYEXPIRED, "CA file '%s': certificate %d has expired", path, i + 2);
        if (!X509_STORE_add_cert(store, certificate))
            return tls_library_failure("CA file '%s'", path);
    }
    /* The configured CA is trusted as such, also when another CA has signed it. */
    X509_STORE_set_flags(store, X509_V_FLAG_PARTIAL_CHAIN);
    if (ret_first) {
        X509_up_ref(chain.leaf);
        *ret_first = chain.leaf;
    }
    *ret_store = take_ptr(store);
    return 0;
}

int tls_read_key(const char *path, EVP_PKEY **ret_key)
{
    BIO *bio cleanup(tls_scope_bio) = NULL;
    int r = read_file(path, true, &bio);
    if (r < 0)
        return r;
    EVP_PKEY *key = PEM_read_bio_PrivateKey(bio, NULL, no_pass_phrase, NULL);
    if (!key)
        return tls_library_failure("read the private key in '%s' (PEM without a pass phrase expected)", path);
    *ret_key = key;
    return 0;
}

static void scope_store_ctx(X509_STORE_CTX **ctx)
{
    X509_STORE_CTX_free(*ctx);
}

int tls_check_chain(const char *path, const struct tls_chain *chain, X509_STORE *store, const char *ca_path)
{
    /* A host is the server of one session and, after a takeover, the client of the next. */
    static const struct {
        int purpose;
        const char *text;
    } uses[] = {{X509_PURPOSE_SSL_SERVER, "server"}, {X509_PURPOSE_SSL_CLIENT, "client"}};
    for (size_t i = 0; i < array_length(uses); i++) {
        X509_STORE_CTX *ctx cleanup(scope_store_ctx) = X509_STORE_CTX_new();
        if (!ctx || !X509_STORE_CTX_init(ctx, store, chain->leaf, chain->rest) ||
            !X509_STORE_CTX_set_purpose(ctx, uses[i].purpose))
            return tls_library_failure("certificate '%s'", path);
        if (X509_verify_cert(ctx) == 1)
            continue;
        int reason = X509_STORE_CTX_get_error(ctx);
        ERR_clear_error();
        return error_set(reason == X509_V_ERR_CERT_HAS_EXPIRED ? -EKEYEXPIRED : -EACCES,
                         "certificate '%s' is not good as a %s under the CA '%s': %s", path, uses[i].text,
                         ca_path, X509_verify_cert_error_string(reason));
    }
    return 0;
}

int tls_check_name(const char *name)
{
    size_t length = name ? strlen(name) : 0;
    if (length == 0 || length > 253)
        return error_set(-EINVAL, "a host's certificate name has 1 to 253 characters, not %zu", length);
    bool letter = false;
    for (size_t i = 0; i < length; i++) {
        char c = name[i];
        bool alphabetic = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
        letter |= alphabetic;
        bool edge = i == 0 || i + 1 == length || name[i - 1] == '.';
        if (!alphabetic && !(c >= '0' && c <= '9') && !(!edge && (c == '-' || c == '_' || c == '.')))
            return error_set(-EINVAL, "'%s' is no DNS name: character %zu", name, i + 1);
    }
    if (!letter)
        return error_set(-EINVAL, "'%s' is no DNS name (an address cannot be one)", name);
    return 0;
}
