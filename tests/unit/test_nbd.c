/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "base/scope.h"
#include "vmm/qemu/nbd_server.h"

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/time.h>

/*
 * A client that says, word for word, what QEMU's mirror says to our NBD server, and what no client should.
 */
#define DISK_BYTES UINT64_C(0x300000)
#define WRITE_MAX  (1u << 20)

enum { EXPORT_NAME = 1, ABORT = 2, LIST = 3, INFO = 6, GO = 7 };
enum { READ = 0, WRITE = 1, DISCONNECT = 2, FLUSH = 3, TRIM = 4, WRITE_ZEROES = 6 };

static struct {
    int fd; /* the client's */
    struct nbd_server server;
    pthread_t thread;
    int result;
    char why[ERROR_TEXT_MAX];
    struct {
        enum vmm_disk_op op;
        uint64_t offset, bytes;
        uint8_t first, last;
    } seen[8];
    unsigned changes;
} t;

static void on_change(void *ctx, enum vmm_disk_op op, uint64_t offset, uint64_t bytes, const void *data)
{
    assert_ptr_equal(ctx, &t);
    assert_true(t.changes < 8 && (op == VMM_DISK_WRITE) == (data != NULL));
    t.seen[t.changes].op = op;
    t.seen[t.changes].offset = offset;
    t.seen[t.changes].bytes = bytes;
    t.seen[t.changes].first = data ? *(const uint8_t *)data : 0;
    t.seen[t.changes++].last = data ? ((const uint8_t *)data)[bytes - 1] : 0;
}

static void *serve(void *argument)
{
    t.result = nbd_serve(&t.server);
    snprintf(t.why, sizeof t.why, "%s", t.result < 0 ? error_text() : "");
    shutdown(t.server.fd, SHUT_RDWR);
    return argument;
}

static int set_up(void **state)
{
    int pair[2];
    (void)state;
    memset(&t, 0, sizeof t);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair) < 0)
        return -1;
    struct timeval limit = {.tv_sec = 10};
    setsockopt(pair[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    t.fd = pair[0];
    t.server = (struct nbd_server){.fd = pair[1], .bytes = DISK_BYTES, .change = on_change, .ctx = &t};
    return pthread_create(&t.thread, NULL, serve, NULL);
}

/* The server has ended, as it should: 0, or the errno. */
static void ends_with(int result)
{
    pthread_join(t.thread, NULL);
    t.thread = 0;
    if (t.result != result)
        print_error("%s\n", t.why);
    assert_int_equal(t.result, result);
}

static int tear_down(void **state)
{
    (void)state;
    shutdown(t.fd, SHUT_RDWR);
    if (t.thread)
        pthread_join(t.thread, NULL);
    close(t.fd);
    close(t.server.fd);
    return 0;
}

/* --- what is said --- */

static void say(const void *bytes, size_t length)
{
    assert_int_equal(send(t.fd, bytes, length, MSG_NOSIGNAL), length);
}

static void say_be(unsigned bytes, uint64_t value)
{
    uint8_t out[8];
    for (unsigned i = 0; i < bytes; i++)
        out[i] = (uint8_t)(value >> (8 * (bytes - 1 - i)));
    say(out, bytes);
}

static uint64_t hear_be(unsigned bytes)
{
    uint8_t in[8];
    uint64_t value = 0;
    assert_int_equal(recv(t.fd, in, bytes, MSG_WAITALL), bytes);
    for (unsigned i = 0; i < bytes; i++)
        value = value << 8 | in[i];
    return value;
}

static void greet(uint32_t flags)
{
    assert_int_equal(hear_be(8), 0x4e42444d41474943);
    assert_int_equal(hear_be(8), 0x49484156454f5054);
    assert_int_equal(hear_be(2), 3);
    say_be(4, flags);
}

static void say_option(uint32_t number, const void *data, uint32_t length)
{
    say_be(8, 0x49484156454f5054);
    say_be(4, number);
    say_be(4, length);
    if (length)
        say(data, length);
}

/* The reply's type; its data of `length` bytes follow. */
static uint32_t hear_reply(uint32_t option, uint32_t *ret_length)
{
    assert_int_equal(hear_be(8), 0x0003e889045565a9);
    assert_int_equal(hear_be(4), option);
    uint32_t type = (uint32_t)hear_be(4);
    *ret_length = (uint32_t)hear_be(4);
    return type;
}

static void hear_export(uint32_t option)
{
    uint32_t length;
    assert_int_equal(hear_reply(option, &length), 3);
    assert_int_equal(length, 12);
    assert_int_equal(hear_be(2), 0); /* NBD_INFO_EXPORT */
    assert_int_equal(hear_be(8), DISK_BYTES);
    assert_int_equal(hear_be(2), 0x6d); /* flags, flush, FUA, trim, zeroes; not read-only */
    assert_int_equal(hear_reply(option, &length), 3);
    assert_int_equal(length, 14);
    assert_int_equal(hear_be(2), 3); /* NBD_INFO_BLOCK_SIZE */
    assert_int_equal(hear_be(4), VMM_DISK_SECTOR);
    hear_be(4);
    assert_int_equal(hear_be(4), WRITE_MAX);
    assert_int_equal(hear_reply(option, &length), 1);
    assert_int_equal(length, 0);
}

static void connect_by_go(void)
{
    greet(3);
    say_option(GO, "\0\0\0\0\0\0", 6);
    hear_export(GO);
}

static void say_request(uint16_t command, uint64_t cookie, uint64_t offset, uint32_t length)
{
    say_be(4, 0x25609513);
    say_be(2, 0);
    say_be(2, command);
    say_be(8, cookie);
    say_be(8, offset);
    say_be(4, length);
}

static void hear_answer(uint64_t cookie, uint32_t error)
{
    assert_int_equal(hear_be(4), 0x67446698);
    assert_int_equal(hear_be(4), error);
    assert_int_equal(hear_be(8), cookie);
}

static void write_at(uint64_t cookie, uint64_t offset, uint32_t length, uint8_t first, uint8_t last)
{
    uint8_t *data cleanup_free = calloc(1, length + 1);
    data[0] = first;
    data[length ? length - 1 : 0] = last;
    say_request(WRITE, cookie, offset, length);
    if (length)
        say(data, length);
}

static void saw(unsigned index, enum vmm_disk_op op, uint64_t offset, uint64_t bytes)
{
    assert_true(index < t.changes);
    assert_int_equal(t.seen[index].op, op);
    assert_int_equal(t.seen[index].offset, offset);
    assert_int_equal(t.seen[index].bytes, bytes);
}

/* --- negotiation --- */

static void test_go(void **state)
{
    uint32_t length;
    (void)state;
    greet(3);
    say_option(8, "\0\0\0\0", 4); /* structured replies: QEMU asks, and goes on without */
    assert_int_equal(hear_reply(8, &length), UINT32_C(0x80000001));
    assert_int_equal(length, 0);
    say_option(LIST, NULL, 0);
    assert_int_equal(hear_reply(LIST, &length), UINT32_C(0x80000001));
    say_option(INFO, "\0\0\0\0\0\0", 6); /* and stays in the negotiation */
    hear_export(INFO);
    say_option(GO, "\0\0\0\0\0\0", 6);
    hear_export(GO);
    say_request(FLUSH, 1, 0, 0);
    hear_answer(1, 0);
    say_request(DISCONNECT, 2, 0, 0);
    ends_with(0);
    assert_int_equal(t.changes, 0);
}

static void test_export_name(void **state)
{
    (void)state;
    greet(3); /* no zeroes */
    say_option(EXPORT_NAME, "understudy", 10);
    assert_int_equal(hear_be(8), DISK_BYTES);
    assert_int_equal(hear_be(2), 0x6d);
    say_request(FLUSH, 7, 0, 0);
    hear_answer(7, 0);
}

static void test_export_name_with_zeroes(void **state)
{
    (void)state;
    greet(1);
    say_option(EXPORT_NAME, "understudy", 10);
    assert_int_equal(hear_be(8), DISK_BYTES);
    assert_int_equal(hear_be(2), 0x6d);
    for (unsigned i = 0; i < 31; i++)
        assert_int_equal(hear_be(4), 0);
    say_request(FLUSH, 7, 0, 0);
    hear_answer(7, 0);
}

static void test_abort(void **state)
{
    uint32_t length;
    (void)state;
    greet(3);
    say_option(ABORT, NULL, 0);
    assert_int_equal(hear_reply(ABORT, &length), 1);
    ends_with(0);
}

static void test_unknown_client_flags(void **state)
{
    (void)state;
    greet(7);
    ends_with(-EPROTO);
}

static void test_oldstyle_client(void **state)
{
    (void)state;
    greet(0);
    ends_with(-EPROTO);
}

static void test_option_magic(void **state)
{
    (void)state;
    greet(3);
    say_be(8, 0x49484156454f5055);
    say_be(8, 0);
    ends_with(-EPROTO);
}

static void test_option_too_long(void **state)
{
    (void)state;
    greet(3);
    say_be(8, 0x49484156454f5054);
    say_be(4, LIST);
    say_be(4, 4097);
    ends_with(-EPROTO);
}

static void test_longest_option(void **state)
{
    uint32_t length;
    static const uint8_t data[4096];
    (void)state;
    greet(3);
    say_option(LIST, data, sizeof data);
    assert_int_equal(hear_reply(LIST, &length), UINT32_C(0x80000001));
}

static void test_flood_of_options(void **state)
{
    uint32_t length;
    (void)state;
    greet(3);
    for (unsigned i = 0; i < 64; i++) {
        say_option(LIST, NULL, 0);
        assert_int_equal(hear_reply(LIST, &length), UINT32_C(0x80000001));
    }
    ends_with(-EPROTO);
    assert_non_null(strstr(t.why, "64"));
}

/* --- transmission --- */

static void test_write(void **state)
{
    (void)state;
    connect_by_go();
    write_at(1, 512, 512, 0xa1, 0xa2);
    hear_answer(1, 0);
    write_at(UINT64_MAX, DISK_BYTES - WRITE_MAX, WRITE_MAX, 0xb1, 0xb2); /* the largest, to the last sector */
    hear_answer(UINT64_MAX, 0);
    assert_int_equal(t.changes, 2);
    saw(0, VMM_DISK_WRITE, 512, 512);
    saw(1, VMM_DISK_WRITE, DISK_BYTES - WRITE_MAX, WRITE_MAX);
    assert_int_equal(t.seen[0].first, 0xa1);
    assert_int_equal(t.seen[0].last, 0xa2);
    assert_int_equal(t.seen[1].first, 0xb1);
    assert_int_equal(t.seen[1].last, 0xb2);
}

static void test_zeroes_and_trim(void **state)
{
    (void)state;
    connect_by_go();
    say_request(WRITE_ZEROES, 1, 0, (uint32_t)DISK_BYTES); /* without data it may be of any length */
    hear_answer(1, 0);
    say_request(TRIM, 2, 4096, 8192);
    hear_answer(2, 0);
    assert_int_equal(t.changes, 2);
    saw(0, VMM_DISK_ZERO, 0, DISK_BYTES);
    saw(1, VMM_DISK_DISCARD, 4096, 8192);
}

static void test_pipelined(void **state)
{
    (void)state;
    connect_by_go();
    write_at(1, 0, 512, 1, 1);
    say_request(TRIM, 2, 0, 512);
    write_at(3, 0, 512, 2, 2);
    for (uint64_t cookie = 1; cookie <= 3; cookie++)
        hear_answer(cookie, 0);
    saw(0, VMM_DISK_WRITE, 0, 512);
    saw(1, VMM_DISK_DISCARD, 0, 512);
    saw(2, VMM_DISK_WRITE, 0, 512);
}

/* What lies outside is refused, changes nothing, and does not end the connection: the data were taken. */
static void test_out_of_bounds(void **state)
{
    static const struct {
        uint64_t offset;
        uint32_t length;
    } bad[] = {{DISK_BYTES, 512},
               {DISK_BYTES - 512, 1024},
               {UINT64_MAX - 511, 512},
               {UINT64_MAX - 511, 1024},
               {UINT64_MAX, 512},
               {1, 512},
               {0, 511},
               {0, 1},
               {0, 0},
               {UINT64_C(1) << 63, 1 << 19}};
    uint64_t cookie = 0;
    (void)state;
    connect_by_go();
    for (size_t i = 0; i < array_length(bad); i++) {
        write_at(++cookie, bad[i].offset, bad[i].length, 1, 1);
        hear_answer(cookie, 22);
        say_request(WRITE_ZEROES, ++cookie, bad[i].offset, bad[i].length);
        hear_answer(cookie, 22);
        say_request(TRIM, ++cookie, bad[i].offset, bad[i].length);
        hear_answer(cookie, 22);
    }
    say_request(WRITE_ZEROES, ++cookie, 512, UINT32_MAX & ~511u);
    hear_answer(cookie, 22);
    say_request(READ, ++cookie, 0, 512);
    hear_answer(cookie, 22);
    say_request(99, ++cookie, 0, 512);
    hear_answer(cookie, 22);
    assert_int_equal(t.changes, 0);
    write_at(++cookie, 0, 512, 1, 1);
    hear_answer(cookie, 0);
    assert_int_equal(t.changes, 1);
}

static void test_oversized_write(void **state)
{
    (void)state;
    connect_by_go();
    say_request(WRITE, 1, 0, WRITE_MAX + 512);
    ends_with(-EPROTO);
    assert_int_equal(t.changes, 0);
}

static void test_request_magic(void **state)
{
    (void)state;
    connect_by_go();
    say_be(4, 0x25609514);
    say_be(8, 0);
    say_be(8, 0);
    say_be(8, 0);
    ends_with(-EPROTO);
}

/* Half a write is no write. */
static void test_hangs_up_within_a_write(void **state)
{
    (void)state;
    connect_by_go();
    say_request(WRITE, 1, 0, 4096);
    say("half", 4);
    shutdown(t.fd, SHUT_RDWR);
    ends_with(-ECONNRESET);
    assert_int_equal(t.changes, 0);
}

#define test(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {
        test(test_go),
        test(test_export_name),
        test(test_export_name_with_zeroes),
        test(test_abort),
        test(test_unknown_client_flags),
        test(test_oldstyle_client),
        test(test_option_magic),
        test(test_option_too_long),
        test(test_longest_option),
        test(test_flood_of_options),
        test(test_write),
        test(test_zeroes_and_trim),
        test(test_pipelined),
        test(test_out_of_bounds),
        test(test_oversized_write),
        test(test_request_magic),
        test(test_hangs_up_within_a_write),
    };
    return cmocka_run_group_tests_name("nbd", tests, NULL, NULL);
}
