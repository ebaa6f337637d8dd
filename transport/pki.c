/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/pki.h"

#include "base/error.h"
#include "base/scope.h"
#include "transport/tls_internal.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/rand.h>
#include <openssl/x509v3.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>

#define CLOCK_SKEW_S 300
#define DAY_S        86400

/* ------------------------------------------------------------------ files */

static int write_all(int fd, const char *bytes, size_t length)
{
    while (length) {
        ssize_t written = write(fd, bytes, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written < 0)
            return -errno;
        bytes += written;
        length -= (size_t)written;
    }
    return 0;
}

static int sync_directory_of(const char *path)
{
    char directory[PATH_MAX];
    const char *slash = strrchr(path, '/');
    if (!slash)
        strcpy(directory, ".");
    else
        snprintf(directory, sizeof directory, "%.*s", (int)(slash - path) + 1, path);
    cleanup_close int fd = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    return fd < 0 || fsync(fd) < 0 ? -errno : 0;
}

/*
 * A new file, whole or not at all: link(2) gives the finished temporary its name only if that is free, which
 * rename(2) would not ask.
 */
static int write_new(const char *path, BIO *content, mode_t mode)
{
    char temporary[PATH_MAX];
    if (snprintf(temporary, sizeof temporary, "%s.XXXXXX", path) >= (int)sizeof temporary)
        return error_set(-ENAMETOOLONG, "write '%.100s...': the name is too long", path);
    cleanup_close int fd = mkostemp(temporary, O_CLOEXEC); /* mode 0600 from the start */
    if (fd < 0)
        return error_errno(-errno, "write '%s'", path);
    char *bytes;
    long length = BIO_get_mem_data(content, &bytes);
    int r = write_all(fd, bytes, (size_t)length);
    if (r == 0 && fchmod(fd, mode) < 0)
        r = -errno;
    if (r == 0 && fsync(fd) < 0)
        r = -errno;
    if (r == 0 && link(temporary, path) < 0)
        r = -errno;
    unlink(temporary);
    if (r == -EEXIST)
        return error_set(r, "'%s' exists already and is not overwritten", path);
    if (r == 0)
        r = sync_directory_of(path);
    return r < 0 ? error_errno(r, "write '%s'", path) : 0;
}

static int write_pair(X509 *certificate, const char *certificate_path, EVP_PKEY *key, const char *key_path)
{
    BIO *certificate_pem cleanup(tls_scope_bio) = BIO_new(BIO_s_mem());
    BIO *key_pem cleanup(tls_scope_bio) = BIO_new(BIO_s_secmem());
    if (!certificate_pem || !key_pem || !PEM_write_bio_X509(certificate_pem, certificate) ||
        !PEM_write_bio_PKCS8PrivateKey(key_pem, key, NULL, NULL, 0, NULL, NULL))
        return tls_library_failure("encode '%s'", certificate_path);
    /* Seen now rather than after the key was written; write_new() is what guarantees it. */
    if (access(certificate_path, F_OK) == 0)
        return error_set(-EEXIST, "'%s' exists already and is not overwritten", certificate_path);
    int r = write_new(key_path, key_pem, 0600);
    if (r < 0)
        return r;
    if ((r = write_new(certificate_path, certificate_pem, 0644)) < 0)
        unlink(key_path);
    return r;
}

/* ------------------------------------------------------------------ certificates */

static int add_extension(X509 *certificate, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX ctx;
    X509V3_set_ctx_nodb(&ctx);
    X509V3_set_ctx(&ctx, issuer, certificate, NULL, NULL, 0);
    X509_EXTENSION *extension = X509V3_EXT_conf_nid(NULL, &ctx, nid, value);
    int added = extension ? X509_add_ext(certificate, extension, -1) : 0;
    X509_EXTENSION_free(extension);
    return added ? 0 : tls_library_failure("extension %s", OBJ_nid2sn(nid));
}

static int set_serial(X509 *certificate)
{
    /* 127 random bits, positive and not zero: RFC 5280, 4.1.2.2. */
    unsigned char bytes[16];
    if (RAND_bytes(bytes, sizeof bytes) != 1)
        return tls_library_failure("serial number");
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    BIGNUM *number = BN_bin2bn(bytes, sizeof bytes, NULL);
    bool set = number && BN_to_ASN1_INTEGER(number, X509_get_serialNumber(certificate));
    BN_free(number);
    return set ? 0 : tls_library_failure("serial number");
}

static int begin(const struct pki_request *request, unsigned days_default, EVP_PKEY **ret_key,
                 X509 **ret_certificate)
{
    unsigned days = request->days ? request->days : days_default;
    if (days > PKI_DAYS_MAX)
        return error_set(-EINVAL, "%u days are more than %u", days, PKI_DAYS_MAX);
    time_t from = request->not_before ? (time_t)request->not_before : time(NULL) - CLOCK_SKEW_S;

    EVP_PKEY *key cleanup(tls_scope_key) = EVP_EC_gen("P-256");
    X509 *certificate cleanup(tls_scope_x509) = X509_new();
    if (!key || !certificate || !X509_set_version(certificate, X509_VERSION_3) ||
        !X509_set_pubkey(certificate, key) ||
        !X509_time_adj_ex(X509_getm_notBefore(certificate), 0, 0, &from) ||
        !X509_time_adj_ex(X509_getm_notAfter(certificate), (int)days, 0, &from))
        return tls_library_failure("make the certificate of '%s'", request->name);
    int r = set_serial(certificate);
    if (r < 0)
        return r;
    /* A common name has at most 64 characters; the DNS name in subjectAltName is what counts. */
    char common[65];
    snprintf(common, sizeof common, "%s", request->name);
    if (!X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_UTF8,
                                    (const unsigned char *)common, -1, -1, 0))
        return tls_library_failure("make the certificate of '%s'", request->name);
    *ret_key = take_ptr(key);
    *ret_certificate = take_ptr(certificate);
    return 0;
}

int pki_make_ca(const struct pki_request *request, const char *ca_path, const char *ca_key_path)
{
    size_t length = strlen(request->name);
    if (length == 0 || length > 64)
        return error_set(-EINVAL, "a CA's name has 1 to 64 characters, not %zu", length);
    EVP_PKEY *key cleanup(tls_scope_key) = NULL;
    X509 *ca cleanup(tls_scope_x509) = NULL;
    int r = begin(request, PKI_CA_DAYS, &key, &ca);
    if (r < 0)
        return r;
    if (!X509_set_issuer_name(ca, X509_get_subject_name(ca)))
        return tls_library_failure("CA certificate");
    if ((r = add_extension(ca, ca, NID_basic_constraints, "critical,CA:TRUE,pathlen:0")) < 0 ||
        (r = add_extension(ca, ca, NID_key_usage, "critical,keyCertSign,cRLSign")) < 0 ||
        (r = add_extension(ca, ca, NID_subject_key_identifier, "hash")) < 0 ||
        (r = add_extension(ca, ca, NID_authority_key_identifier, "keyid:always")) < 0)
        return r;
    if (!X509_sign(ca, key, EVP_sha256()))
        return tls_library_failure("sign the CA certificate");
    return write_pair(ca, ca_path, key, ca_key_path);
}

static void scope_store(X509_STORE **store)
{
    X509_STORE_free(*store);
}

int pki_make_host(const struct pki_request *request, const char *ca_path, const char *ca_key_path,
                  const char *certificate_path, const char *key_path)
{
    X509_STORE *store cleanup(scope_store) = NULL;
    X509 *ca cleanup(tls_scope_x509) = NULL, *host cleanup(tls_scope_x509) = NULL;
    EVP_PKEY *ca_key cleanup(tls_scope_key) = NULL, *key cleanup(tls_scope_key) = NULL;
    int r = tls_check_name(request->name);
    if (r < 0 || (r = tls_read_ca(ca_path, &store, &ca)) < 0 || (r = tls_read_key(ca_key_path, &ca_key)) < 0)
        return r;
    if (X509_check_private_key(ca, ca_key) != 1) {
        ERR_clear_error();
        return error_set(-EINVAL, "CA key '%s' does not fit CA certificate '%s'", ca_key_path, ca_path);
    }
    if ((r = begin(request, PKI_HOST_DAYS, &key, &host)) < 0)
        return r;
    if (ASN1_TIME_compare(X509_get0_notAfter(host), X509_get0_notAfter(ca)) > 0 &&
        !X509_set1_notAfter(host, X509_get0_notAfter(ca)))
        return tls_library_failure("certificate of '%s'", request->name);
    char names[300];
    snprintf(names, sizeof names, "DNS:%s", request->name);
    if (!X509_set_issuer_name(host, X509_get_subject_name(ca)))
        return tls_library_failure("certificate of '%s'", request->name);
    if ((r = add_extension(host, ca, NID_basic_constraints, "critical,CA:FALSE")) < 0 ||
        (r = add_extension(host, ca, NID_key_usage, "critical,digitalSignature")) < 0 ||
        (r = add_extension(host, ca, NID_ext_key_usage, "serverAuth,clientAuth")) < 0 ||
        (r = add_extension(host, ca, NID_subject_alt_name, names)) < 0 ||
        (r = add_extension(host, ca, NID_subject_key_identifier, "hash")) < 0 ||
        (r = add_extension(host, ca, NID_authority_key_identifier, "keyid:always")) < 0)
        return r;
    /* SHA-256 fits P-256 and RSA keys; an Ed25519 CA brings its own hash. */
    bool own_hash = EVP_PKEY_is_a(ca_key, "ED25519") || EVP_PKEY_is_a(ca_key, "ED448");
    if (!X509_sign(host, ca_key, own_hash ? NULL : EVP_sha256()))
        return tls_library_failure("sign the certificate of '%s'", request->name);
    return write_pair(host, certificate_path, key, key_path);
}

/* ------------------------------------------------------------------ check */

static int64_t unix_time(const ASN1_TIME *when)
{
    struct tm broken;
    return ASN1_TIME_to_tm(when, &broken) ? (int64_t)timegm(&broken) : 0;
}

static void describe_name(const X509_NAME *name, char *text, size_t room)
{
    BIO *bio cleanup(tls_scope_bio) = BIO_new(BIO_s_mem());
    if (!bio || X509_NAME_print_ex(bio, name, 0, XN_FLAG_ONELINE & ~ASN1_STRFLGS_ESC_MSB) < 0)
        return;
    char *bytes;
    long length = BIO_get_mem_data(bio, &bytes);
    snprintf(text, room, "%.*s", (int)length, bytes);
}

static void describe_names(X509 *certificate, char *text, size_t room)
{
    GENERAL_NAMES *names = X509_get_ext_d2i(certificate, NID_subject_alt_name, NULL, NULL);
    size_t used = 0;
    for (int i = 0; i < sk_GENERAL_NAME_num(names); i++) {
        const GENERAL_NAME *name = sk_GENERAL_NAME_value(names, i);
        if (name->type != GEN_DNS)
            continue;
        /* What is no DNS name (an embedded NUL, say) cannot match one, and is not shown. */
        char copy[256];
        int length = ASN1_STRING_length(name->d.dNSName);
        snprintf(copy, sizeof copy, "%.*s", length, (const char *)ASN1_STRING_get0_data(name->d.dNSName));
        if ((int)strlen(copy) != length || tls_check_name(copy) < 0)
            continue;
        int added = snprintf(text + used, room - used, "%s%s", used ? ", " : "", copy);
        if (added < 0 || (size_t)added >= room - used)
            break;
        used += (size_t)added;
    }
    GENERAL_NAMES_free(names);
}

static void describe_key(X509 *certificate, char *text, size_t room)
{
    EVP_PKEY *key = X509_get0_pubkey(certificate);
    char group[32];
    if (!key)
        return;
    if (EVP_PKEY_is_a(key, "EC") && EVP_PKEY_get_group_name(key, group, sizeof group, NULL))
        snprintf(text, room, "EC %s", strcmp(group, "prime256v1") ? group : "P-256");
    else
        snprintf(text, room, "%s %d", EVP_PKEY_get0_type_name(key), EVP_PKEY_get_bits(key));
}

int pki_check(const struct tls_files *files, const char *own_name, struct pki_report *ret_report)
{
    *ret_report = (struct pki_report){0};
    X509_STORE *store cleanup(scope_store) = NULL;
    X509 *ca cleanup(tls_scope_x509) = NULL;
    EVP_PKEY *key cleanup(tls_scope_key) = NULL;
    struct tls_chain chain cleanup(tls_chain_clear) = {0};
    int r = tls_read_chain(files->certificate, &chain);
    if (r < 0)
        return r;
    describe_name(X509_get_subject_name(chain.leaf), ret_report->subject, sizeof ret_report->subject);
    describe_names(chain.leaf, ret_report->names, sizeof ret_report->names);
    describe_key(chain.leaf, ret_report->key, sizeof ret_report->key);
    ret_report->not_before = unix_time(X509_get0_notBefore(chain.leaf));
    ret_report->not_after = unix_time(X509_get0_notAfter(chain.leaf));

    if ((r = tls_read_ca(files->ca, &store, &ca)) < 0)
        return r;
    describe_name(X509_get_subject_name(ca), ret_report->ca, sizeof ret_report->ca);
    ret_report->ca_not_after = unix_time(X509_get0_notAfter(ca));
    int64_t end =
        ret_report->not_after < ret_report->ca_not_after ? ret_report->not_after : ret_report->ca_not_after;
    ret_report->days_left = (end - (int64_t)time(NULL)) / DAY_S;

    if ((r = tls_check_chain(files->certificate, &chain, store, files->ca)) < 0 ||
        (r = tls_read_key(files->key, &key)) < 0)
        return r;
    if (X509_check_private_key(chain.leaf, key) != 1) {
        ERR_clear_error();
        return error_set(-EINVAL, "private key '%s' does not fit certificate '%s'", files->key,
                         files->certificate);
    }
    if (files->peer_name && (r = tls_check_name(files->peer_name)) < 0)
        return error_add(r, "name of the peer");
    if (!own_name)
        return 0;
    if ((r = tls_check_name(own_name)) < 0)
        return r;
    if (X509_check_host(chain.leaf, own_name, 0,
                        X509_CHECK_FLAG_NO_WILDCARDS | X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL) != 1)
        return error_set(-EACCES, "certificate '%s' does not carry the name '%s' (it carries: %s)",
                         files->certificate, own_name, ret_report->names[0] ? ret_report->names : "none");
    return 0;
}
