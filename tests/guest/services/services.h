/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_TESTS_GUEST_SERVICES_H
#define UNDERSTUDY_TESTS_GUEST_SERVICES_H

#include "guest.h"

#include <netinet/in.h>

/*
 * The guest with real servers: the test guest (../guest.h) with a root file system, a disk for data, a
 * network and programs. README.md in this folder describes its kernel parameters and its output.
 */

#define ROLES_MAX 5
#define ROLE_NAME 16

struct service_options {
    char roles[ROLES_MAX][ROLE_NAME]; /* us.role */
    unsigned role_count;
    char root[64], data[64]; /* us.root, us.data: block devices; empty: none */
    struct in_addr ip;       /* us.ip; 0: no network */
    unsigned prefix;         /* its length */
    struct sockaddr_in peer; /* us.peer: where the counter's datagrams go; port 0: nowhere */
    unsigned port;           /* us.port: TCP port that streams the counter */
};

/* place.c: the world that programs find. */
/* Mount root and data, and live there from now on. */
void place_mount(const struct service_options *options);
void place_network(const struct service_options *options);
/* Nobody types and nothing rotates in a test guest: without this, servers wait for randomness. */
void place_entropy(void);

/* output.c: the counter as the network sees it. */
void output_start(const struct service_options *options);
/* To everybody who listens; never waits. */
void output_tell(uint64_t counter);

/* shell.c: commands that come over the second serial port. Does not return. */
void shell_run(void) __attribute__((noreturn));

#endif
