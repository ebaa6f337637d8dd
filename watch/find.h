/* SPDX-License-Identifier: Apache-2.0 */
#ifndef UNDERSTUDY_WATCH_FIND_H
#define UNDERSTUDY_WATCH_FIND_H

#include <stdbool.h>
#include <sys/un.h>

/* The daemons of this host, by their control sockets. */

#define FIND_MAX      256 /* daemons on one host */
#define FIND_PATH_MAX sizeof((struct sockaddr_un *)0)->sun_path
#define FIND_RUN_DIR                                                                                         \
    "/run/understudy" /* where daemons put them, unless their configuration says otherwise                   \
                       */

struct find_list {
    unsigned count;
    bool more; /* there are more than FIND_MAX */
    char paths[FIND_MAX][FIND_PATH_MAX];
};

/* The sockets "*.sock" of `directory`, by name. One that does not exist holds none. */
int find_sockets(const char *directory, struct find_list *ret_list);

/* The sockets that the daemons of these configurations have on this host (`host`: which [host] we are, NULL:
 * by the host's name). */
int find_configured(char *const configs[], unsigned count, const char *host, struct find_list *ret_list);

/* What is behind the last slash. */
const char *find_name(const char *path);

#endif
