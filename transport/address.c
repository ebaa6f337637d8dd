/* SPDX-License-Identifier: Apache-2.0 */
#include "transport/lane_internal.h"

#include "base/scope.h"

#include <errno.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>

#define BACKLOG 64

void lane_address_text(const struct sockaddr *address, char *text, size_t room)
{
    char host[64], port[8];
    socklen_t length =
        address->sa_family == AF_INET6 ? sizeof(struct sockaddr_in6) : sizeof(struct sockaddr_in);
    if (getnameinfo(address, length, host, sizeof host, port, sizeof port, NI_NUMERICHOST | NI_NUMERICSERV))
        snprintf(text, room, "an unknown address");
    else
        snprintf(text, room, address->sa_family == AF_INET6 ? "[%s]:%s" : "%s:%s", host, port);
}

static void scope_addrinfo(struct addrinfo **list)
{
    if (*list)
        freeaddrinfo(*list);
}

int lane_resolve(const char *address, struct sockaddr_storage *ret_address, socklen_t *ret_length)
{
    char copy[128];
    if (strlen(address) >= sizeof copy)
        return error_set(-EINVAL, "address '%.100s...' is too long", address);
    strcpy(copy, address);

    char *host = copy, *port;
    if (copy[0] == '[') {
        host = copy + 1;
        char *end = strchr(host, ']');
        if (!end || end[1] != ':')
            return error_set(-EINVAL, "address '%s': [ADDRESS]:PORT expected", address);
        *end = 0;
        port = end + 2;
    } else {
        port = strrchr(copy, ':');
        if (!port || memchr(copy, ':', (size_t)(port - copy)))
            return error_set(-EINVAL, "address '%s': ADDRESS:PORT or [ADDRESS]:PORT expected", address);
        *port++ = 0;
    }
    size_t digits = strspn(port, "0123456789");
    if (digits == 0 || digits > 5 || port[digits] || strtoul(port, NULL, 10) > 65535)
        return error_set(-EINVAL, "address '%s': '%s' is no port", address, port);

    struct addrinfo hints = {.ai_flags = AI_NUMERICHOST | AI_NUMERICSERV, .ai_socktype = SOCK_STREAM};
    struct addrinfo *found cleanup(scope_addrinfo) = NULL;
    int failure = getaddrinfo(host, port, &hints, &found);
    if (failure || !found)
        return error_set(-EINVAL, "address '%s': '%s' is no numeric address", address, host);
    memcpy(ret_address, found->ai_addr, found->ai_addrlen);
    *ret_length = found->ai_addrlen;
    return 0;
}

int lane_listen(const char *address, int *ret_fd)
{
    struct sockaddr_storage where = {0};
    socklen_t length;
    int r = lane_resolve(address, &where, &length);
    if (r < 0)
        return r;
    cleanup_close int fd = socket(where.ss_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0)
        return error_errno(-errno, "listen on %s: socket", address);
    int one = 1;
    if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one) < 0 ||
        bind(fd, (struct sockaddr *)&where, length) < 0 || listen(fd, BACKLOG) < 0)
        return error_errno(-errno, "listen on %s", address);
    *ret_fd = take_fd(&fd);
    return 0;
}
