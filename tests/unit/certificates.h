/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_UNIT_CERTIFICATES_H
#define UNDERSTUDY_TESTS_UNIT_CERTIFICATES_H

#include "base/error.h"
#include "transport/pki.h"

#include <ftw.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

/*
 * A directory of certificates for the tests of the transport: CA.crt and CA.key, NAME.crt and NAME.key. Any
 * failure ends the test program: there is nothing to test without them.
 */

struct certificates {
    char directory[64];
};

static inline const char *certificates_path(const struct certificates *set, const char *name,
                                            const char *suffix)
{
    static _Thread_local char paths[8][128];
    static _Thread_local unsigned next;
    char *path = paths[next++ % 8];
    snprintf(path, sizeof paths[0], "%s/%s.%s", set->directory, name, suffix);
    return path;
}

static inline void certificates_must(int r)
{
    if (r < 0) {
        fprintf(stderr, "certificates for the test: %s\n", error_text());
        exit(1);
    }
}

static inline void certificates_ca(const struct certificates *set, const char *name)
{
    struct pki_request request = {.name = name};
    certificates_must(
        pki_make_ca(&request, certificates_path(set, name, "crt"), certificates_path(set, name, "key")));
}

/* `file` and DNS name may differ; `age_days` ago it became valid, for `days`. */
static inline void certificates_host(const struct certificates *set, const char *ca, const char *file,
                                     const char *name, unsigned age_days, unsigned days)
{
    struct pki_request request = {
        .name = name, .days = days, .not_before = age_days ? time(NULL) - age_days * 86400ll : 0};
    certificates_must(pki_make_host(&request, certificates_path(set, ca, "crt"),
                                    certificates_path(set, ca, "key"), certificates_path(set, file, "crt"),
                                    certificates_path(set, file, "key")));
}

static inline struct tls_files certificates_files(const struct certificates *set, const char *ca,
                                                  const char *host, const char *peer_name)
{
    return (struct tls_files){.ca = certificates_path(set, ca, "crt"),
                              .certificate = certificates_path(set, host, "crt"),
                              .key = certificates_path(set, host, "key"),
                              .peer_name = peer_name};
}

/* CAs "ca" and "other"; hosts "primary" and "standby" under "ca", "stranger" (named primary) under "other".
 */
static inline void certificates_make(struct certificates *set)
{
    snprintf(set->directory, sizeof set->directory, "/tmp/understudy-test-XXXXXX");
    if (!mkdtemp(set->directory)) {
        perror("mkdtemp");
        exit(1);
    }
    certificates_ca(set, "ca");
    certificates_ca(set, "other");
    certificates_host(set, "ca", "primary", "primary", 0, 0);
    certificates_host(set, "ca", "standby", "standby", 0, 0);
    certificates_host(set, "other", "stranger", "primary", 0, 0);
}

static inline int certificates_unlink(const char *path, const struct stat *status, int type, struct FTW *walk)
{
    (void)status;
    (void)type;
    (void)walk;
    return remove(path);
}

static inline void certificates_remove(const struct certificates *set)
{
    nftw(set->directory, certificates_unlink, 8, FTW_DEPTH | FTW_PHYS);
}

#endif
