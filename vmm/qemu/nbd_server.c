/* SPDX-License-Identifier: Apache-2.0 */
/*
 * Why a server of our own, and not nbdkit with a plugin: the data of a write go straight into the epoch's
 * log, in the process that sends the epoch; a reply is held back where that slows a guest which writes faster
 * than the link carries; the line between two epochs needs no message to anybody; and there is no helper that
 * can die. What is needed for that is the small part of NBD that QEMU's mirror uses, towards a QEMU that is
 * trusted with the guest anyway; its bytes are checked all the same.
 *
 *     server  "NBDMAGIC" "IHAVEOPT" flags          client  flags
 *     client  "IHAVEOPT" option length data        server  magic option reply length data   ... until GO
 *     client  magic flags command cookie offset length [data]
 *     server  magic error cookie                                                            ... until DISC
 *
 * All integers are big-endian.
 */
#include "vmm/qemu/nbd_server.h"

#include "base/error.h"
#include "base/scope.h"

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define GREETING      UINT64_C(0x4e42444d41474943) /* "NBDMAGIC" */
#define OPTION_MAGIC  UINT64_C(0x49484156454f5054) /* "IHAVEOPT" */
#define REPLY_MAGIC   UINT64_C(0x0003e889045565a9)
#define REQUEST_MAGIC 0x25609513u
#define ANSWER_MAGIC  0x67446698u

#define FIXED_NEWSTYLE 1u
#define NO_ZEROES      2u

/* Transmission flags: has flags, flush, FUA, trim, write zeroes. */
#define DISK_FLAGS (1u | 1u << 2 | 1u << 3 | 1u << 5 | 1u << 6)

#define OPTION_DATA_MAX 4096u
#define OPTIONS_MAX     64u /* a client that asks more has lost its way */
#define WRITE_MAX       (1u << 20)

enum { OPT_EXPORT_NAME = 1, OPT_ABORT = 2, OPT_INFO = 6, OPT_GO = 7 };
enum { REP_ACK = 1, REP_INFO = 3 };
#define REP_UNSUPPORTED (UINT32_C(1) << 31 | 1)
enum { INFO_EXPORT = 0, INFO_BLOCK_SIZE = 3 };
enum { CMD_READ = 0, CMD_WRITE = 1, CMD_DISC = 2, CMD_FLUSH = 3, CMD_TRIM = 4, CMD_WRITE_ZEROES = 6 };
enum { ERROR_INVALID = 22 };

struct option {
    uint64_t magic;
    uint32_t number, length;
} __attribute__((packed));

struct reply {
    uint64_t magic;
    uint32_t option, type, length;
} __attribute__((packed));

struct request {
    uint32_t magic;
    uint16_t flags, command;
    uint64_t cookie, offset;
    uint32_t length;
} __attribute__((packed));
static_assert(sizeof(struct request) == 28, "NBD request");

struct answer {
    uint32_t magic, error;
    uint64_t cookie;
} __attribute__((packed));
static_assert(sizeof(struct answer) == 16, "NBD simple reply");

static int take(const struct nbd_server *server, void *to, size_t bytes)
{
    uint8_t *at = to;
    while (bytes) {
        ssize_t got = recv(server->fd, at, bytes, MSG_WAITALL);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return error_set(got < 0 ? -errno : -ECONNRESET, "QEMU's mirror hung up");
        at += got;
        bytes -= (size_t)got;
    }
    return 0;
}

static int put(const struct nbd_server *server, const void *from, size_t bytes)
{
    const uint8_t *at = from;
    while (bytes) {
        ssize_t sent = send(server->fd, at, bytes, MSG_NOSIGNAL);
        if (sent < 0 && errno == EINTR)
            continue;
        if (sent < 0)
            return error_errno(-errno, "answer to QEMU's mirror");
        at += sent;
        bytes -= (size_t)sent;
    }
    return 0;
}

/* --- negotiation --- */

static int reply(const struct nbd_server *server, uint32_t option, uint32_t type, const void *data,
                 size_t length)
{
    struct reply head = {htobe64(REPLY_MAGIC), htobe32(option), htobe32(type), htobe32((uint32_t)length)};
    int r = put(server, &head, sizeof head);
    return r == 0 && length ? put(server, data, length) : r;
}

static int tell_export(const struct nbd_server *server, uint32_t option)
{
    struct {
        uint16_t type;
        uint64_t bytes;
        uint16_t flags;
    } __attribute__((packed)) export = {htobe16(INFO_EXPORT), htobe64(server->bytes), htobe16(DISK_FLAGS)};
    struct {
        uint16_t type;
        uint32_t minimum, preferred, maximum;
    } __attribute__((packed))
    sizes = {htobe16(INFO_BLOCK_SIZE), htobe32(VMM_DISK_SECTOR), htobe32(4096), htobe32(WRITE_MAX)};
    int r = reply(server, option, REP_INFO, &export, sizeof export);
    if (r == 0)
        r = reply(server, option, REP_INFO, &sizes, sizeof sizes);
    return r == 0 ? reply(server, option, REP_ACK, NULL, 0) : r;
}

static int tell_old_way(const struct nbd_server *server, bool zeroes)
{
    struct {
        uint64_t bytes;
        uint16_t flags;
        uint8_t zeroes[124];
    } __attribute__((packed)) export = {.bytes = htobe64(server->bytes), .flags = htobe16(DISK_FLAGS)};
    return put(server, &export, zeroes ? sizeof export : offsetof(typeof(export), zeroes));
}

/* Returns 1 when the client has chosen its export, 0 when it left. */
static int negotiate(const struct nbd_server *server)
{
    struct {
        uint64_t greeting, magic;
        uint16_t flags;
    } __attribute__((packed))
    hello = {htobe64(GREETING), htobe64(OPTION_MAGIC), htobe16(FIXED_NEWSTYLE | NO_ZEROES)};
    uint32_t flags;
    uint8_t data[OPTION_DATA_MAX];
    int r = put(server, &hello, sizeof hello);
    if (r == 0)
        r = take(server, &flags, sizeof flags);
    if (r < 0)
        return r;
    flags = be32toh(flags);
    if (!(flags & FIXED_NEWSTYLE) || flags & ~(FIXED_NEWSTYLE | NO_ZEROES))
        return error_set(-EPROTO, "NBD: client's flags are 0x%x", flags);
    for (unsigned i = 0; i < OPTIONS_MAX; i++) {
        struct option option;
        r = take(server, &option, sizeof option);
        if (r < 0)
            return r;
        uint32_t number = be32toh(option.number), length = be32toh(option.length);
        if (be64toh(option.magic) != OPTION_MAGIC || length > sizeof data)
            return error_set(-EPROTO, "NBD: option %u of %u bytes, at most %u are taken", number, length,
                             OPTION_DATA_MAX);
        r = take(server, data, length);
        if (r < 0)
            return r;
        switch (number) {
        case OPT_EXPORT_NAME:
            r = tell_old_way(server, !(flags & NO_ZEROES));
            return r < 0 ? r : 1;
        case OPT_ABORT:
            reply(server, number, REP_ACK, NULL, 0);
            return 0;
        case OPT_INFO:
        case OPT_GO:
            r = tell_export(server, number);
            if (r < 0 || number == OPT_GO)
                return r < 0 ? r : 1;
            break;
        default:
            r = reply(server, number, REP_UNSUPPORTED, NULL, 0);
        }
        if (r < 0)
            return r;
    }
    return error_set(-EPROTO, "NBD: more than %u options", OPTIONS_MAX);
}

/* --- transmission --- */

static bool within(const struct nbd_server *server, uint64_t offset, uint64_t length)
{
    return length && offset % VMM_DISK_SECTOR == 0 && length % VMM_DISK_SECTOR == 0 &&
           offset <= server->bytes && length <= server->bytes - offset;
}

/* Returns 1 to go on, 0 after a farewell. */
static int serve_one(const struct nbd_server *server, uint8_t *buffer)
{
    struct request request;
    int r = take(server, &request, sizeof request);
    if (r < 0)
        return r;
    uint64_t offset = be64toh(request.offset);
    uint32_t length = be32toh(request.length), error = 0;
    uint16_t command = be16toh(request.command);
    if (be32toh(request.magic) != REQUEST_MAGIC)
        return error_set(-EPROTO, "NBD: a request begins with 0x%08x", be32toh(request.magic));
    switch (command) {
    case CMD_WRITE:
        if (length > WRITE_MAX)
            return error_set(-EPROTO, "NBD: a write of %u bytes, at most %u are taken", length, WRITE_MAX);
        r = take(server, buffer, length);
        if (r < 0)
            return r;
        if (within(server, offset, length))
            server->change(server->ctx, VMM_DISK_WRITE, offset, length, buffer);
        else
            error = ERROR_INVALID;
        break;
    case CMD_WRITE_ZEROES:
    case CMD_TRIM:
        if (within(server, offset, length))
            server->change(server->ctx, command == CMD_TRIM ? VMM_DISK_DISCARD : VMM_DISK_ZERO, offset,
                           length, NULL);
        else
            error = ERROR_INVALID;
        break;
    case CMD_FLUSH:
        /* What survives this host is decided by epochs, not by flushes: see docs/disks.md. */
        break;
    case CMD_DISC:
        return 0;
    default: /* reads too: a mirror that copies only what is written asks for none */
        error = ERROR_INVALID;
    }
    struct answer answer = {htobe32(ANSWER_MAGIC), htobe32(error), request.cookie};
    r = put(server, &answer, sizeof answer);
    return r < 0 ? r : 1;
}

int nbd_serve(const struct nbd_server *server)
{
    uint8_t *buffer cleanup_free = malloc(WRITE_MAX);
    if (!buffer)
        return error_set(-ENOMEM, "NBD: no memory");
    int r = negotiate(server);
    while (r > 0)
        r = serve_one(server, buffer);
    return r;
}
