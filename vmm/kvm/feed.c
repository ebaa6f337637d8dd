/* SPDX-License-Identifier: Apache-2.0 */
#include "vmm/kvm/feed.h"

#include "base/clock.h"
#include "base/error.h"

#include <errno.h>
#include <poll.h>
#include <string.h>
#include <sys/socket.h>

int feed_check(const struct feed_record *record, uint64_t disk_bytes)
{
    uint64_t most = record->op == FEED_LOST    ? FEED_TEXT_MAX
                    : record->op == FEED_WRITE ? FEED_PIECE
                                               : disk_bytes;
    if (record->op >= FEED_OPS || record->unused)
        return error_set(-EBADMSG, "feed: operation %u is not known", record->op);
    if (record->bytes > most)
        return error_set(-EBADMSG, "feed: operation %u with %llu bytes", record->op,
                         (unsigned long long)record->bytes);
    if (record->op == FEED_LOST)
        return 0;
    if (record->bytes == 0 || record->bytes % VMM_DISK_SECTOR || record->offset % VMM_DISK_SECTOR ||
        record->bytes > disk_bytes || record->offset > disk_bytes - record->bytes)
        return error_set(-EBADMSG, "feed: a change of %llu bytes at %llu of a disk of %llu",
                         (unsigned long long)record->bytes, (unsigned long long)record->offset,
                         (unsigned long long)disk_bytes);
    return 0;
}

/* Until the socket is ready for `events`; UINT64_MAX: however long it takes. */
static int wait_until(int fd, short events, uint64_t deadline_ns)
{
    struct pollfd ready = {.fd = fd, .events = events};
    for (;;) {
        int ms = -1;
        if (deadline_ns != UINT64_MAX) {
            uint64_t now_ns = clock_now_ns();
            ms = now_ns < deadline_ns ? (int)((deadline_ns - now_ns) / NS_PER_MS) + 1 : 0;
        }
        int r = poll(&ready, 1, ms);
        if (r > 0)
            return 0;
        if (r == 0)
            return error_set(-ETIMEDOUT, "feed: the other side stands still for %d ms", FEED_ANSWER_MS);
        if (errno != EINTR)
            return error_errno(-errno, "feed");
    }
}

static int put(int fd, const void *from, size_t bytes, uint64_t deadline_ns)
{
    for (const char *at = from; bytes;) {
        struct iovec part = {.iov_base = (void *)(uintptr_t)at, .iov_len = bytes};
        struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
        ssize_t done = sendmsg(fd, &head, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (done >= 0) {
            at += done;
            bytes -= (size_t)done;
        } else if (errno == EAGAIN) {
            int r = wait_until(fd, POLLOUT, deadline_ns);
            if (r < 0)
                return r;
        } else if (errno != EINTR) {
            return error_errno(-errno, "feed");
        }
    }
    return 0;
}

/* 1; 0: it had ended before the first byte. */
static int take(int fd, void *to, size_t bytes, uint64_t deadline_ns)
{
    size_t had = 0;
    while (had < bytes) {
        struct iovec part = {.iov_base = (char *)to + had, .iov_len = bytes - had};
        struct msghdr head = {.msg_iov = &part, .msg_iovlen = 1};
        ssize_t done = recvmsg(fd, &head, MSG_DONTWAIT);
        if (done > 0) {
            had += (size_t)done;
        } else if (done == 0) {
            return had ? error_set(-EBADMSG, "feed: it ends within a record") : 0;
        } else if (errno == EAGAIN) {
            int r = wait_until(fd, POLLIN, deadline_ns);
            if (r < 0)
                return r;
        } else if (errno != EINTR) {
            return error_errno(-errno, "feed");
        }
    }
    return 1;
}

static int tell_piece(int fd, enum feed_op op, uint64_t offset, uint64_t bytes, const void *data)
{
    const struct feed_record record = {.op = op, .offset = offset, .bytes = bytes};
    uint64_t deadline_ns = clock_now_ns() + FEED_ANSWER_MS * NS_PER_MS;
    char answer;
    int r = put(fd, &record, sizeof record, deadline_ns);
    if (r == 0 && data)
        r = put(fd, data, (size_t)bytes, deadline_ns);
    if (r < 0)
        return r;
    r = take(fd, &answer, sizeof answer, deadline_ns);
    return r == 0 ? error_set(-ECONNRESET, "feed: the engine hung up") : r < 0 ? r : 0;
}

int feed_tell(int fd, enum feed_op op, uint64_t offset, uint64_t bytes, const void *data)
{
    const char *from = data;
    int r = 0;
    for (uint64_t at = 0, piece; r == 0 && at < bytes; at += piece) {
        piece = data && bytes - at > FEED_PIECE ? FEED_PIECE : bytes - at;
        r = tell_piece(fd, op, offset + at, piece, data ? from + at : NULL);
    }
    return r;
}

int feed_tell_lost(int fd, const char *why)
{
    const struct feed_record record = {.op = FEED_LOST, .bytes = strnlen(why, FEED_TEXT_MAX)};
    uint64_t deadline_ns = clock_now_ns() + FEED_ANSWER_MS * NS_PER_MS;
    int r = put(fd, &record, sizeof record, deadline_ns);
    return r < 0 ? r : put(fd, why, (size_t)record.bytes, deadline_ns);
}

int feed_hear(int fd, uint64_t disk_bytes, struct feed_record *ret_record, void *data)
{
    struct feed_record record;
    int r = take(fd, &record, sizeof record, UINT64_MAX);
    if (r <= 0)
        return r;
    r = feed_check(&record, disk_bytes);
    if (r < 0)
        return r;
    size_t follows = record.op == FEED_WRITE || record.op == FEED_LOST ? (size_t)record.bytes : 0;
    if (follows && (r = take(fd, data, follows, UINT64_MAX)) <= 0)
        return r < 0 ? r : error_set(-EBADMSG, "feed: it ends within a record");
    if (record.op == FEED_LOST)
        ((char *)data)[follows] = '\0';
    *ret_record = record;
    return 1;
}

int feed_answer(int fd)
{
    const char done = 0;
    return put(fd, &done, sizeof done, UINT64_MAX);
}
