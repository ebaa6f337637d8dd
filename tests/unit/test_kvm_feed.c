/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/unit.h"

#include "vmm/kvm/feed.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#define DISK_BYTES (8ull << 20)
#define BIG        (2 * FEED_PIECE + 4096) /* three pieces */

static void test_check(void **state)
{
    (void)state;
    static const struct feed_record good[] = {
        {.op = FEED_WRITE, .offset = DISK_BYTES - 512, .bytes = 512},
        {.op = FEED_WRITE, .bytes = FEED_PIECE},
        {.op = FEED_ZERO, .bytes = DISK_BYTES},
        {.op = FEED_DISCARD, .offset = 512, .bytes = DISK_BYTES - 512},
        {.op = FEED_LOST, .bytes = FEED_TEXT_MAX},
        {.op = FEED_LOST},
    };
    static const struct feed_record bad[] = {
        {.op = FEED_OPS, .bytes = 512},
        {.op = UINT32_MAX, .bytes = 512},
        {.op = FEED_WRITE, .unused = 1, .bytes = 512},
        {.op = FEED_WRITE},
        {.op = FEED_WRITE, .bytes = FEED_PIECE + 512},
        {.op = FEED_WRITE, .bytes = 100},
        {.op = FEED_WRITE, .offset = 100, .bytes = 512},
        {.op = FEED_WRITE, .offset = DISK_BYTES, .bytes = 512},
        {.op = FEED_WRITE, .offset = UINT64_MAX - 511, .bytes = 512},
        {.op = FEED_ZERO, .offset = 512, .bytes = DISK_BYTES},
        {.op = FEED_DISCARD, .bytes = UINT64_MAX - 511},
        {.op = FEED_LOST, .bytes = FEED_TEXT_MAX + 1},
    };
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_int_equal(feed_check(&good[i], DISK_BYTES), 0);
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_int_equal(feed_check(&bad[i], DISK_BYTES), -EBADMSG);
}

/* An engine that keeps what it hears, and hangs up after `patience` changes. */
struct engine {
    int fd;
    unsigned patience, heard;
    uint8_t *disk;
    int end; /* of feed_hear() */
    char lost[FEED_TEXT_MAX + 1];
    pthread_t thread;
};

static void *hear(void *argument)
{
    struct engine *engine = argument;
    struct feed_record record;
    uint8_t *data = malloc(FEED_PIECE);
    while ((engine->end = feed_hear(engine->fd, DISK_BYTES, &record, data)) > 0) {
        if (record.op == FEED_LOST) {
            strcpy(engine->lost, (char *)data);
            continue;
        }
        engine->heard++;
        if (record.op == FEED_WRITE)
            memcpy(engine->disk + record.offset, data, record.bytes);
        else
            memset(engine->disk + record.offset, 0, record.bytes);
        if (engine->heard > engine->patience || feed_answer(engine->fd) < 0)
            break;
    }
    free(data);
    close(engine->fd);
    return NULL;
}

static int start(struct engine *engine, unsigned patience)
{
    int pair[2];
    assert_int_equal(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    *engine = (struct engine){.fd = pair[0], .patience = patience, .disk = calloc(1, DISK_BYTES)};
    assert_int_equal(pthread_create(&engine->thread, NULL, hear, engine), 0);
    return pair[1];
}

static void finish(struct engine *engine, int fd)
{
    close(fd);
    pthread_join(engine->thread, NULL);
    free(engine->disk);
}

static void test_told(void **state)
{
    (void)state;
    struct engine engine;
    int fd = start(&engine, 100);
    uint8_t *data = malloc(BIG);
    for (size_t i = 0; i < BIG; i++)
        data[i] = (uint8_t)(i * 7 + i / 4096);
    assert_int_equal(feed_tell(fd, FEED_WRITE, 512, BIG, data), 0);
    assert_int_equal(engine.heard, 3);
    assert_memory_equal(engine.disk + 512, data, BIG);
    assert_int_equal(feed_tell(fd, FEED_ZERO, 1024, DISK_BYTES - 1024, NULL), 0); /* in one piece */
    assert_int_equal(feed_tell(fd, FEED_DISCARD, 0, 512, NULL), 0);
    assert_int_equal(engine.heard, 5);
    assert_memory_equal(engine.disk + 512, data, 512);
    assert_int_equal(engine.disk[1024], 0);
    assert_int_equal(feed_tell_lost(fd, "the file system is full"), 0);
    free(data);
    close(fd);
    pthread_join(engine.thread, NULL);
    assert_int_equal(engine.end, 0);
    assert_string_equal(engine.lost, "the file system is full");
    free(engine.disk);
}

/* Whoever waits for an engine that hangs up hears of it at once. */
static void test_engine_gone(void **state)
{
    (void)state;
    struct engine engine;
    int fd = start(&engine, 1);
    uint8_t *data = calloc(1, BIG);
    assert_int_equal(feed_tell(fd, FEED_WRITE, 0, 4096, data), 0);
    assert_int_equal(feed_tell(fd, FEED_WRITE, 0, 4096, data), -ECONNRESET);
    assert_int_equal(feed_tell(fd, FEED_WRITE, 0, BIG, data), -EPIPE);
    assert_int_equal(feed_tell_lost(fd, "too late"), -EPIPE);
    free(data);
    finish(&engine, fd);
}

/* A VMM that lies, or dies within a record. */
static void test_vmm_lies(void **state)
{
    (void)state;
    static const struct feed_record beyond = {.op = FEED_ZERO, .offset = DISK_BYTES, .bytes = 512};
    static const struct feed_record cut = {.op = FEED_WRITE, .bytes = 4096};
    static const struct {
        const void *bytes;
        size_t count;
    } sent[] = {{&beyond, sizeof beyond}, {&cut, sizeof cut}, {&cut, 5}};
    for (size_t i = 0; i < sizeof sent / sizeof *sent; i++) {
        struct engine engine;
        int fd = start(&engine, 100);
        assert_int_equal(write(fd, sent[i].bytes, sent[i].count), sent[i].count);
        finish(&engine, fd);
        assert_int_equal(engine.end, -EBADMSG);
        assert_int_equal(engine.heard, 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_check),
        cmocka_unit_test(test_told),
        cmocka_unit_test(test_engine_gone),
        cmocka_unit_test(test_vmm_lies),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
