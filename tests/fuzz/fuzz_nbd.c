/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "base/scope.h"
#include "vmm/qemu/nbd_server.h"

#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

/*
 * A QEMU that its guest has taken over, as our NBD server meets it. Properties: every change lies within the
 * disk, in whole sectors, with data where there must be some; the server ends when the client hangs up, and
 * then with words, unless it was told farewell.
 *
 * Input: sectors of the disk, where to cut what the client sends; then all that it sends before it hangs up.
 */
struct client {
    int fd;
    size_t cut;
    const uint8_t *bytes;
    size_t length;
};

struct seen {
    uint64_t disk_bytes, changes, sum;
};

static void on_change(void *ctx, enum vmm_disk_op op, uint64_t offset, uint64_t bytes, const void *data)
{
    struct seen *seen = ctx;
    fuzz_require(op == VMM_DISK_WRITE || op == VMM_DISK_ZERO || op == VMM_DISK_DISCARD);
    fuzz_require((op == VMM_DISK_WRITE) == (data != NULL));
    fuzz_require(bytes > 0 && bytes % VMM_DISK_SECTOR == 0 && offset % VMM_DISK_SECTOR == 0);
    fuzz_require(offset <= seen->disk_bytes && bytes <= seen->disk_bytes - offset);
    for (uint64_t i = 0; data && i < bytes; i++) /* so that a sanitizer sees each byte read */
        seen->sum += ((const uint8_t *)data)[i];
    seen->changes++;
}

static void send_all(int fd, const uint8_t *bytes, size_t length)
{
    while (length) {
        ssize_t put = send(fd, bytes, length, MSG_NOSIGNAL);
        if (put <= 0)
            return; /* the server has hung up */
        bytes += put;
        length -= (size_t)put;
    }
}

static void *say(void *argument)
{
    const struct client *client = argument;
    send_all(client->fd, client->bytes, client->cut);
    send_all(client->fd, client->bytes + client->cut, client->length - client->cut);
    shutdown(client->fd, SHUT_WR);
    return NULL;
}

/* A server that waits until its answers are read would wait for ever otherwise. */
static void *listen_to(void *argument)
{
    char ignored[4096];
    while (recv(*(const int *)argument, ignored, sizeof ignored, 0) > 0)
        ;
    return NULL;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct fuzz_input input = {data, size};
    struct seen seen = {.disk_bytes = fuzz_take(&input, 3) * VMM_DISK_SECTOR};
    size_t cut = (size_t)fuzz_take(&input, 2);
    int pair[2];
    fuzz_require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    struct client client = {pair[0], cut < input.left ? cut : input.left, input.bytes, input.left};
    struct nbd_server server = {.fd = pair[1], .bytes = seen.disk_bytes, .change = on_change, .ctx = &seen};
    pthread_t speaker, listener;
    fuzz_require(pthread_create(&speaker, NULL, say, &client) == 0);
    fuzz_require(pthread_create(&listener, NULL, listen_to, &pair[0]) == 0);
    error_clear();
    int r = nbd_serve(&server);
    fuzz_require(r == 0 || r == -ECONNRESET || r == -EPROTO);
    fuzz_require(r == 0 || strcmp(error_text(), "no error was recorded") != 0);
    shutdown(pair[1], SHUT_RDWR);
    pthread_join(speaker, NULL);
    pthread_join(listener, NULL);
    close(pair[0]);
    close(pair[1]);
    return 0;
}

/* --- seeds --- */

struct writer {
    uint8_t *at;
};

static void put_be(struct writer *to, unsigned bytes, uint64_t value)
{
    for (unsigned i = 0; i < bytes; i++)
        *to->at++ = (uint8_t)(value >> (8 * (bytes - 1 - i)));
}

static void put_option(struct writer *to, uint32_t number, uint32_t length)
{
    put_be(to, 8, 0x49484156454f5054);
    put_be(to, 4, number);
    put_be(to, 4, length);
    for (uint32_t i = 0; i < length; i++)
        put_be(to, 1, 0);
}

static void put_request(struct writer *to, uint16_t command, uint64_t offset, uint32_t length)
{
    put_be(to, 4, 0x25609513);
    put_be(to, 2, 0);
    put_be(to, 2, command);
    put_be(to, 8, offset + command);
    put_be(to, 8, offset);
    put_be(to, 4, length);
    for (uint32_t i = 0; command == 1 && i < length; i++)
        put_be(to, 1, i);
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    enum { EXPORT_NAME = 1, ABORT = 2, LIST = 3, INFO = 6, GO = 7, STRUCTURED = 8 };
    enum { READ = 0, WRITE = 1, DISCONNECT = 2, FLUSH = 3, TRIM = 4, WRITE_ZEROES = 6 };
    struct writer writer = {to + 5};
    if (index >= 8)
        return 0;
    memcpy(to, "\x00\x08\x00\x20\x00", 5); /* 2048 sectors */
    put_be(&writer, 4, index % 2 ? 1 : 3);
    if (index >= 2)
        put_option(&writer, STRUCTURED, 0);
    if (index >= 4)
        put_option(&writer, LIST, 100);
    if (index == 6)
        put_option(&writer, INFO, 6);
    if (index == 7)
        put_option(&writer, ABORT, 0);
    put_option(&writer, index % 2 ? EXPORT_NAME : GO, 10);
    put_request(&writer, WRITE, 512 * index, 512);
    put_request(&writer, WRITE_ZEROES, 1 << 19, 1 << 19); /* to the last sector */
    put_request(&writer, TRIM, 4096, 8192);
    put_request(&writer, FLUSH, 0, 0);
    if (index >= 4)
        put_request(&writer, WRITE, (1 << 20) - 4096, 4096);
    if (index >= 5)
        put_request(&writer, READ, 0, 512);
    if (index % 3)
        put_request(&writer, DISCONNECT, 0, 0);
    return (size_t)(writer.at - to);
}
