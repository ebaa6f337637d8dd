/* SPDX-License-Identifier: Apache-2.0 */
#include "services.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * Each value lies in the announced page before it is sent, so whoever outside has seen it has seen something
 * that a machine at its last checkpoint must know. A value that a socket has no room for is left out there,
 * and a line is never cut: what a client got is always a growing list of whole values.
 */

#define CLIENTS_MAX 8
#define LINE_BYTES  32

struct client {
    int fd; /* 0: free */
    char rest[LINE_BYTES];
    size_t rest_bytes; /* of a line that the socket took in part */
};

static struct {
    struct sockaddr_in peer;
    int udp, listener;
    struct client clients[CLIENTS_MAX];
} output = {.udp = -1, .listener = -1};

void output_start(const struct service_options *options)
{
    if (options->peer.sin_port) {
        output.peer = options->peer;
        output.udp = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
        if (output.udp < 0)
            fatal("socket: %s", strerror(errno));
    }
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options->port)};
    output.listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (output.listener < 0 || bind(output.listener, (struct sockaddr *)&address, sizeof address) < 0 ||
        listen(output.listener, CLIENTS_MAX) < 0)
        fatal("TCP port %u: %s", options->port, strerror(errno));
    say("ready counter");
}

static void welcome(void)
{
    int fd = accept4(output.listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (!output.clients[i].fd) {
            output.clients[i] = (struct client){.fd = fd};
            return;
        }
    close(fd);
}

static void tell_client(struct client *client, const char *line, size_t bytes)
{
    bool begun = client->rest_bytes > 0;
    if (!begun) {
        memcpy(client->rest, line, bytes);
        client->rest_bytes = bytes;
    }
    ssize_t put = send(client->fd, client->rest, client->rest_bytes, MSG_NOSIGNAL);
    if (put > 0) {
        client->rest_bytes -= (size_t)put;
        memmove(client->rest, client->rest + put, client->rest_bytes);
    } else if (put < 0 && (errno == EAGAIN || errno == EINTR)) {
        if (!begun) /* not a byte of it went out: the next one is newer */
            client->rest_bytes = 0;
    } else {
        close(client->fd);
        *client = (struct client){0};
    }
}

void output_tell(uint64_t counter)
{
    if (output.listener < 0)
        return;
    char line[LINE_BYTES];
    size_t bytes = (size_t)snprintf(line, sizeof line, "counter %lu\n", counter);
    if (output.udp >= 0) /* a datagram that cannot be sent now is no loss: the next one is newer */
        (void)!sendto(output.udp, line, bytes, 0, (struct sockaddr *)&output.peer, sizeof output.peer);
    if (counter % 16 == 0)
        welcome();
    for (unsigned i = 0; i < CLIENTS_MAX; i++)
        if (output.clients[i].fd)
            tell_client(&output.clients[i], line, bytes);
}
