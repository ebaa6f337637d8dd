/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TRANSPORT_PKI_H
#define UNDERSTUDY_TRANSPORT_PKI_H

#include "transport/tls.h"

#include <stdint.h>

/*
 * A small certificate authority for those who have none: `understudy pki`. X.509 v3 (RFC 5280), ECDSA on
 * P-256 with SHA-256, random serial numbers. Whoever has a CA uses that; the lanes ask only what tls.h says.
 *
 * Files are PEM, keys without pass phrase and with mode 0600. Each file appears whole or not at all, and one
 * that exists is never overwritten (-EEXIST). The key is written before its certificate, and is removed again
 * if the certificate cannot be written.
 */

#define PKI_CA_DAYS   3650
#define PKI_HOST_DAYS 825
#define PKI_DAYS_MAX  36500

struct pki_request {
    const char *name;   /* CA: its common name, 1 to 64 characters; host: its DNS name */
    unsigned days;      /* 0: the default above */
    int64_t not_before; /* Unix time; 0: five minutes ago, as the hosts' clocks may differ */
};

/* A self-signed CA that may sign hosts' certificates and no further CAs. */
int pki_make_ca(const struct pki_request *request, const char *ca_path, const char *ca_key_path);

/* A certificate with the DNS name as subjectAltName, good as server and as client, signed by the CA. It ends
 * no later than the CA does. */
int pki_make_host(const struct pki_request *request, const char *ca_path, const char *ca_key_path,
                  const char *certificate_path, const char *key_path);

struct pki_report {
    char ca[256], subject[256];                  /* distinguished names, printable */
    char names[512];                             /* DNS names of the certificate, separated by ", " */
    char key[64];                                /* "EC P-256", "RSA 3072" */
    int64_t not_before, not_after, ca_not_after; /* Unix time */
    int64_t days_left; /* whole days until the first of the two ends; the check fails below 0 */
};

/*
 * Check a host's files as the lanes would, and that its own certificate carries `own_name` (NULL: any).
 * files->peer_name may be NULL here. Returns 0 or a negative errno with the reason; the report is filled as
 * far as the files could be read even when something is wrong with them.
 */
int pki_check(const struct tls_files *files, const char *own_name, struct pki_report *ret_report);

#endif
