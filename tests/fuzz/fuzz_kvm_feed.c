/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/fuzz/fuzz.h"

#include "base/error.h"
#include "vmm/kvm/feed.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/*
 * A VMM that its guest has taken over, as the engine hears it. Properties: every change lies within the disk,
 * in whole sectors; the feed ends when the VMM hangs up, with words if that is within a record.
 *
 * Input: sectors of the disk, in 64ths; all that is sent before the VMM hangs up.
 */
#define INPUT_MAX 100000u /* what the socket's buffer takes */

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static char heard[FEED_PIECE];
    struct feed_record record;
    int pair[2], r;
    if (size == 0 || size > INPUT_MAX)
        return 0;
    uint64_t disk_bytes = (1 + (uint64_t)data[0]) * 64 * VMM_DISK_SECTOR;
    fuzz_require(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) == 0);
    fuzz_require(write(pair[1], data + 1, size - 1) == (ssize_t)size - 1);
    shutdown(pair[1], SHUT_WR);
    error_clear();
    while ((r = feed_hear(pair[0], disk_bytes, &record, heard)) > 0) {
        if (record.op == FEED_LOST) {
            fuzz_require(strlen(heard) <= FEED_TEXT_MAX);
            continue;
        }
        fuzz_require(record.op < FEED_LOST && record.bytes > 0);
        fuzz_require(record.bytes % VMM_DISK_SECTOR == 0 && record.offset % VMM_DISK_SECTOR == 0);
        fuzz_require(record.offset < disk_bytes && record.bytes <= disk_bytes - record.offset);
        feed_answer(pair[0]);
    }
    fuzz_require(r == 0 || (r == -EBADMSG && strcmp(error_text(), "no error was recorded")));
    close(pair[0]);
    close(pair[1]);
    return 0;
}

size_t fuzz_seed(unsigned index, uint8_t *to)
{
    static const struct feed_record first[] = {{.op = FEED_WRITE, .offset = 1024, .bytes = 512},
                                               {.op = FEED_ZERO, .bytes = 32768},
                                               {.op = FEED_DISCARD, .offset = 512, .bytes = 512},
                                               {.op = FEED_LOST, .bytes = 5}};
    if (index >= sizeof first / sizeof *first)
        return 0;
    const struct feed_record then = {.op = FEED_WRITE, .offset = 0, .bytes = 1024};
    size_t at = 1, body = first[index].op == FEED_WRITE ? 512 : first[index].op == FEED_LOST ? 5 : 0;
    to[0] = 0;
    memcpy(to + at, &first[index], sizeof first[index]);
    at += sizeof first[index];
    memset(to + at, 'd', body);
    at += body;
    memcpy(to + at, &then, sizeof then);
    memset(to + at + sizeof then, 'e', 1024);
    return at + sizeof then + 1024;
}
