/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_REPLICATOR_ARBITER_BACKEND_H
#define UNDERSTUDY_REPLICATOR_ARBITER_BACKEND_H

#include "replicator/arbiter.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What an arbiter's back end is made of. Internal to arbiter*.c and etcd*.c. */

#define ARBITER_RECORD_MAX 256 /* a record as text */

/* The register's content: a JSON object of uuid, generation and owner. */
struct arbiter_record {
    uint64_t generation; /* 0: there is no register yet */
    char owner[ARBITER_OWNER_MAX];
};

struct arbiter {
    const struct arbiter_ops *ops;
    unsigned timeout_ms; /* for one swap; the back end's own */
    char uuid[37];
    char owner[ARBITER_OWNER_MAX];
};

struct arbiter_ops {
    /* As arbiter_swap(), which has checked the generations. */
    int (*swap)(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation);
    /* As arbiter_read(). */
    int (*read)(struct arbiter *arbiter, struct arbiter_record *ret_record);
    /* Frees the whole back end. */
    void (*close)(struct arbiter *arbiter);
};

/* Each gives an arbiter without uuid and owner; arbiter_open() fills those in. */
int arbiter_file_open(struct arbiter **ret_arbiter, const char *path);
int arbiter_etcd_open(struct arbiter **ret_arbiter, const struct etcd_config *config);

/* The text's length. */
size_t arbiter_record_print(const struct arbiter *arbiter, uint64_t generation,
                            char ret_text[ARBITER_RECORD_MAX]);
/* -EBADMSG: damaged, or another machine's. White space around the object is fine. */
int arbiter_record_parse(const struct arbiter *arbiter, const char *text, size_t length,
                         struct arbiter_record *ret_record);

/* May a register with this content be swapped by who comes from `from`? */
bool arbiter_is_free(const struct arbiter *arbiter, const struct arbiter_record *record, uint64_t from);
/* To what, if at least `to` is wanted. */
uint64_t arbiter_next(const struct arbiter_record *record, uint64_t to);

#endif
