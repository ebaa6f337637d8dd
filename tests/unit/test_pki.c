/* SPDX-License-Identifier: Apache-2.0 */
#include "base/scope.h"
#include "tests/unit/certificates.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

static struct certificates set;

static X509 *load(const char *name)
{
    FILE *file = fopen(certificates_path(&set, name, "crt"), "r");
    assert_non_null(file);
    X509 *certificate = PEM_read_X509(file, NULL, NULL, NULL);
    fclose(file);
    assert_non_null(certificate);
    return certificate;
}

static mode_t mode_of(const char *path)
{
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    return status.st_mode & 07777;
}

static void a_ca_may_sign_and_nothing_else(void **state)
{
    (void)state;
    X509 *ca = load("ca");
    assert_int_equal(X509_check_ca(ca), 1);
    assert_int_equal(X509_get_pathlen(ca), 0);
    assert_int_equal(X509_get_key_usage(ca), KU_KEY_CERT_SIGN | KU_CRL_SIGN);
    assert_int_equal(X509_get_version(ca), X509_VERSION_3);
    assert_true(EVP_PKEY_is_a(X509_get0_pubkey(ca), "EC"));
    assert_int_equal(X509_self_signed(ca, 1), 1);
    X509_free(ca);
}

static void a_host_is_server_and_client(void **state)
{
    (void)state;
    X509 *host = load("primary");
    assert_int_equal(X509_check_ca(host), 0);
    assert_int_equal(X509_check_purpose(host, X509_PURPOSE_SSL_SERVER, 0), 1);
    assert_int_equal(X509_check_purpose(host, X509_PURPOSE_SSL_CLIENT, 0), 1);
    assert_int_equal(X509_get_extended_key_usage(host), XKU_SSL_SERVER | XKU_SSL_CLIENT);
    assert_int_equal(X509_check_host(host, "primary", 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL), 1);
    assert_int_equal(X509_check_host(host, "standby", 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, NULL), 0);
    X509_free(host);
}

static void serial_numbers_differ(void **state)
{
    (void)state;
    X509 *a = load("primary"), *b = load("standby");
    assert_int_not_equal(ASN1_INTEGER_cmp(X509_get0_serialNumber(a), X509_get0_serialNumber(b)), 0);
    X509_free(a);
    X509_free(b);
}

static void keys_are_private(void **state)
{
    (void)state;
    assert_int_equal(mode_of(certificates_path(&set, "ca", "key")), 0600);
    assert_int_equal(mode_of(certificates_path(&set, "primary", "key")), 0600);
    assert_int_equal(mode_of(certificates_path(&set, "primary", "crt")), 0644);
}

static void nothing_is_overwritten(void **state)
{
    (void)state;
    struct pki_request request = {.name = "primary"};
    struct stat before, after;
    assert_int_equal(stat(certificates_path(&set, "primary", "key"), &before), 0);
    /* The key is there. */
    assert_int_equal(
        pki_make_host(&request, certificates_path(&set, "ca", "crt"), certificates_path(&set, "ca", "key"),
                      certificates_path(&set, "fresh", "crt"), certificates_path(&set, "primary", "key")),
        -EEXIST);
    assert_text_has("primary.key", "exists already");
    assert_int_equal(access(certificates_path(&set, "fresh", "crt"), F_OK), -1);
    /* The certificate is there: no key is left behind either. */
    assert_int_equal(
        pki_make_host(&request, certificates_path(&set, "ca", "crt"), certificates_path(&set, "ca", "key"),
                      certificates_path(&set, "primary", "crt"), certificates_path(&set, "fresh", "key")),
        -EEXIST);
    assert_int_equal(access(certificates_path(&set, "fresh", "key"), F_OK), -1);
    assert_int_equal(stat(certificates_path(&set, "primary", "key"), &after), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(before.st_mtim.tv_nsec, after.st_mtim.tv_nsec);
}

static void a_directory_that_is_not_there_is_named(void **state)
{
    (void)state;
    struct pki_request request = {.name = "ca"};
    assert_int_equal(pki_make_ca(&request, "/nonexistent/ca.crt", "/nonexistent/ca.key"), -ENOENT);
    assert_text_has("/nonexistent/ca.key", "No such file");
}

static void bad_requests(void **state)
{
    (void)state;
    static const char *const names[] = {"",         ".example.org", "*.example.org", "a..b", "-a", "a-",
                                        "10.0.0.1", "a,b",          "a b",           "a\nb", "a.", "DNS:x"};
    for (size_t i = 0; i < array_length(names); i++) {
        struct pki_request request = {.name = names[i]};
        assert_int_equal(pki_make_host(&request, certificates_path(&set, "ca", "crt"),
                                       certificates_path(&set, "ca", "key"),
                                       certificates_path(&set, "bad", "crt"),
                                       certificates_path(&set, "bad", "key")),
                         -EINVAL);
    }
    struct pki_request request = {.name = "x", .days = PKI_DAYS_MAX + 1};
    assert_int_equal(
        pki_make_ca(&request, certificates_path(&set, "bad", "crt"), certificates_path(&set, "bad", "key")),
        -EINVAL);
    /* The key of another CA. */
    request.days = 0;
    assert_int_equal(
        pki_make_host(&request, certificates_path(&set, "ca", "crt"), certificates_path(&set, "other", "key"),
                      certificates_path(&set, "bad", "crt"), certificates_path(&set, "bad", "key")),
        -EINVAL);
    assert_text_has("does not fit");
    /* A host's certificate cannot sign another's. */
    assert_int_equal(pki_make_host(&request, certificates_path(&set, "primary", "crt"),
                                   certificates_path(&set, "primary", "key"),
                                   certificates_path(&set, "bad", "crt"),
                                   certificates_path(&set, "bad", "key")),
                     -EINVAL);
    assert_text_has("no CA certificate");
    assert_int_equal(access(certificates_path(&set, "bad", "key"), F_OK), -1);
}

static void long_names_work(void **state)
{
    (void)state;
    char name[200];
    memset(name, 'a', sizeof name - 1);
    name[60] = name[120] = name[180] = '.';
    name[sizeof name - 1] = 0;
    certificates_host(&set, "ca", "long", name, 0, 0);
    struct tls_files files = certificates_files(&set, "ca", "long", NULL);
    struct pki_report report;
    assert_int_equal(pki_check(&files, name, &report), 0);
    assert_string_equal(report.names, name);
}

static void check_accepts_and_describes(void **state)
{
    (void)state;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    struct pki_report report;
    assert_int_equal(pki_check(&files, "primary", &report), 0);
    assert_string_equal(report.subject, "CN = primary");
    assert_string_equal(report.ca, "CN = ca");
    assert_string_equal(report.names, "primary");
    assert_string_equal(report.key, "EC P-256");
    assert_in_range(report.days_left, PKI_HOST_DAYS - 2, PKI_HOST_DAYS);
    assert_true(report.not_before < time(NULL) && report.ca_not_after > report.not_after);
}

static void check_refuses(void **state)
{
    (void)state;
    struct pki_report report;
    struct tls_files files = certificates_files(&set, "ca", "primary", "standby");
    assert_int_equal(pki_check(&files, "standby", &report), -EACCES);
    assert_text_has("'standby'", "carries: primary");

    files = certificates_files(&set, "other", "primary", NULL);
    assert_int_equal(pki_check(&files, NULL, &report), -EACCES);
    assert_text_has("primary.crt", "other.crt");

    files = certificates_files(&set, "ca", "primary", NULL);
    files.key = certificates_path(&set, "standby", "key");
    assert_int_equal(pki_check(&files, NULL, &report), -EINVAL);
    assert_text_has("does not fit");

    certificates_host(&set, "ca", "old", "primary", 10, 5);
    files = certificates_files(&set, "ca", "old", NULL);
    assert_int_equal(pki_check(&files, NULL, &report), -EKEYEXPIRED);
    assert_text_has("old.crt", "expired");
    assert_in_range(-report.days_left, 4, 6);

    files = certificates_files(&set, "ca", "primary", NULL);
    files.ca = certificates_path(&set, "primary", "crt");
    assert_int_equal(pki_check(&files, NULL, &report), -EINVAL);
    assert_text_has("no CA certificate");
}

static void a_host_ends_with_its_ca(void **state)
{
    (void)state;
    struct pki_request request = {.name = "short", .days = 30};
    assert_int_equal(pki_make_ca(&request, certificates_path(&set, "short", "crt"),
                                 certificates_path(&set, "short", "key")),
                     0);
    certificates_host(&set, "short", "under-short", "primary", 0, 0);
    struct tls_files files = certificates_files(&set, "short", "under-short", NULL);
    struct pki_report report;
    assert_int_equal(pki_check(&files, NULL, &report), 0);
    assert_true(report.not_after == report.ca_not_after);
    assert_in_range(report.days_left, 28, 30);
}

int main(void)
{
    certificates_make(&set);
    static const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_ca_may_sign_and_nothing_else),
        cmocka_unit_test(a_host_is_server_and_client),
        cmocka_unit_test(serial_numbers_differ),
        cmocka_unit_test(keys_are_private),
        cmocka_unit_test(nothing_is_overwritten),
        cmocka_unit_test(a_directory_that_is_not_there_is_named),
        cmocka_unit_test(bad_requests),
        cmocka_unit_test(long_names_work),
        cmocka_unit_test(check_accepts_and_describes),
        cmocka_unit_test(check_refuses),
        cmocka_unit_test(a_host_ends_with_its_ca),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    certificates_remove(&set);
    return failed;
}
