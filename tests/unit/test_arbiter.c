/* SPDX-License-Identifier: Apache-2.0 */
#include "tests/unit/arbiter_kit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static char directory[32], path[64], specification[80];
static const uint8_t other_uuid[16] = {9};

static void test_one_wins(void **state)
{
    (void)state;
    check_one_wins();
}

/* Many processes, one winner each time. */
static void test_race(void **state)
{
    (void)state;
    enum { RACERS = 6, ROUNDS = 30 };
    int results[2];
    assert_int_equal(pipe(results), 0);
    pid_t children[RACERS];
    for (int i = 0; i < RACERS; i++) {
        children[i] = fork();
        assert_true(children[i] >= 0);
        if (children[i] > 0)
            continue;
        char name[16];
        struct arbiter *own;
        snprintf(name, sizeof name, "racer%d", i);
        if (arbiter_open(&own, specification, NULL, uuid, name) < 0)
            _exit(1);
        own->timeout_ms = 5000; /* locks are not fair, and disks may be slow */
        for (uint64_t generation = 1; generation <= ROUNDS; generation++) {
            uint64_t now;
            int r = arbiter_swap(own, generation, generation + 1, &now);
            uint8_t won = (uint8_t)(generation - 1);
            if (r < 0 || (r == ARBITER_RESULT_WON && write(results[1], &won, 1) != 1))
                _exit(1);
        }
        arbiter_close(own);
        _exit(0);
    }
    close(results[1]);
    for (int i = 0; i < RACERS; i++) {
        int status;
        assert_int_equal(waitpid(children[i], &status, 0), children[i]);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    unsigned wins[ROUNDS] = {0};
    uint8_t won;
    while (read(results[0], &won, 1) == 1)
        wins[won]++;
    close(results[0]);
    for (int i = 0; i < ROUNDS; i++)
        assert_true(wins[i] <= 1);
    assert_int_equal(wins[ROUNDS - 1], 1);
}

static void test_wait_is_bounded(void **state)
{
    (void)state;
    uint64_t now;
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    assert_int_equal(flock(fd, LOCK_EX), 0);
    alpha->timeout_ms = 20;
    assert_int_equal(swap(alpha, 2, 3, &now), -ETIMEDOUT);
    assert_int_equal(now, 99);
    assert_text_has(path, "locked");
    char owner[ARBITER_OWNER_MAX];
    assert_int_equal(arbiter_read(alpha, &now, owner), -ETIMEDOUT);
    assert_int_equal(now, 99);
    close(fd);
    assert_int_equal(swap(alpha, 2, 3, &now), ARBITER_RESULT_WON);
}

static void test_damage(void **state)
{
    (void)state;
    uint64_t now;
    char owner[ARBITER_OWNER_MAX];
    static const char *const bad[] = {"x", "{}", "{\"generation\": 1}"};
    for (unsigned i = 0; i < 3; i++)
        for (int padded = 0; padded < 2; padded++) {
            FILE *file = fopen(path, "w");
            fprintf(file, "%-*s", padded ? 512 : 1, bad[i]);
            fclose(file);
            assert_int_equal(swap(alpha, 1, 2, &now), -EBADMSG);
            assert_text_has(path);
            assert_int_equal(arbiter_read(alpha, &now, owner), -EBADMSG);
            assert_text_has(path);
            assert_int_equal(now, 99);
        }
    unlink(path);
    struct arbiter *stranger;
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(arbiter_open(&stranger, specification, NULL, other_uuid, "alpha"), 0);
    assert_int_equal(swap(stranger, 2, 3, &now), -EBADMSG);
    assert_text_has("the register of machine 01020300-");
    arbiter_close(stranger);
    assert_int_equal(truncate(path, 600), 0);
    assert_int_equal(swap(alpha, 2, 3, &now), -EBADMSG);
}

static void test_out_of_reach(void **state)
{
    (void)state;
    uint64_t now;
    struct arbiter *arbiter;
    assert_int_equal(arbiter_open(&arbiter, "file:/nonexistent/register", NULL, uuid, "alpha"), 0);
    assert_int_equal(swap(arbiter, 1, 2, &now), -ENOENT);
    assert_text_has("/nonexistent/register");
    char owner[ARBITER_OWNER_MAX];
    assert_int_equal(arbiter_read(arbiter, &now, owner), -ENOENT);
    assert_text_has("/nonexistent/register: directory");
    arbiter_close(arbiter);
}

static void test_open(void **state)
{
    (void)state;
    struct arbiter *arbiter = NULL;
    uint64_t now;
    assert_int_equal(arbiter_open(&arbiter, "none", NULL, uuid, "alpha"), 0);
    assert_int_equal(swap(arbiter, 4, 5, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 5);
    arbiter_close(arbiter);
    arbiter_close(NULL);
    arbiter = NULL;
    static const char *const bad[] = {"", "file:", "file:relative", "etcd", "None"};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(arbiter_open(&arbiter, bad[i], NULL, uuid, "alpha"), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, "none", NULL, uuid, ""), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, "none", NULL, uuid, "a\"b"), -EINVAL);
    assert_null(arbiter);
}

static int make(void **state)
{
    (void)state;
    strcpy(directory, "/tmp/test_arbiter.XXXXXX");
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/register", directory);
    snprintf(specification, sizeof specification, "file:%s", path);
    return open_both(specification, NULL);
}

static int unmake(void **state)
{
    (void)state;
    close_both();
    unlink(path);
    return rmdir(directory);
}

#define unit(test) cmocka_unit_test_setup_teardown(test, make, unmake)

int main(void)
{
    const struct CMUnitTest tests[] = {
        unit(test_one_wins), unit(test_race),         unit(test_wait_is_bounded),
        unit(test_damage),   unit(test_out_of_reach), unit(test_open),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
