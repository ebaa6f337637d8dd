/* SPDX-License-Identifier: Apache-2.0 */
#include "replicator/arbiter.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#define WAIT_MS 5000

static char directory[32], path[64], specification[80];
static const uint8_t uuid[16] = {1, 2, 3}, other_uuid[16] = {9};
static struct arbiter *alpha, *beta;

static int swap(struct arbiter *arbiter, uint64_t from, uint64_t to, uint64_t *ret_generation)
{
    *ret_generation = 99;
    return arbiter_swap(arbiter, from, to, WAIT_MS, ret_generation);
}

static void test_one_wins(void **state)
{
    (void)state;
    uint64_t now;
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 2);
    assert_int_equal(swap(beta, 1, 2, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 2);
    /* The answer was lost, we ask again. */
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    /* Who knows the present generation may go on from there. */
    assert_int_equal(swap(beta, 2, 3, &now), ARBITER_RESULT_WON);
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 3);
    assert_int_equal(swap(alpha, 2, 4, &now), ARBITER_RESULT_LOST);
    /* A register that is behind: generations grew without it. */
    assert_int_equal(swap(alpha, 7, 8, &now), ARBITER_RESULT_WON);
    assert_int_equal(swap(beta, 7, 8, &now), ARBITER_RESULT_LOST);
    assert_int_equal(now, 8);
    assert_int_equal(swap(alpha, 8, 8, &now), -EINVAL);
    assert_int_equal(swap(alpha, 8, UINT64_MAX, &now), -EINVAL);
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
        if (arbiter_open(&own, specification, uuid, name) < 0)
            _exit(1);
        for (uint64_t generation = 1; generation <= ROUNDS; generation++) {
            uint64_t now;
            int r = arbiter_swap(own, generation, generation + 1, WAIT_MS, &now);
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
    now = 99;
    assert_int_equal(arbiter_swap(alpha, 2, 3, 20, &now), -ETIMEDOUT);
    assert_int_equal(now, 99);
    assert_text_has(path, "locked");
    close(fd);
    assert_int_equal(swap(alpha, 2, 3, &now), ARBITER_RESULT_WON);
}

static void test_damage(void **state)
{
    (void)state;
    uint64_t now;
    static const char *const bad[] = {"x", "{}", "{\"generation\": 1}"};
    for (unsigned i = 0; i < 3; i++)
        for (int padded = 0; padded < 2; padded++) {
            FILE *file = fopen(path, "w");
            fprintf(file, "%-*s", padded ? 512 : 1, bad[i]);
            fclose(file);
            assert_int_equal(swap(alpha, 1, 2, &now), -EBADMSG);
            assert_text_has(path);
            assert_int_equal(now, 99);
        }
    unlink(path);
    struct arbiter *stranger;
    assert_int_equal(swap(alpha, 1, 2, &now), ARBITER_RESULT_WON);
    assert_int_equal(arbiter_open(&stranger, specification, other_uuid, "alpha"), 0);
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
    assert_int_equal(arbiter_open(&arbiter, "file:/nonexistent/register", uuid, "alpha"), 0);
    assert_int_equal(swap(arbiter, 1, 2, &now), -ENOENT);
    assert_text_has("/nonexistent/register");
    arbiter_close(arbiter);
}

static void test_open(void **state)
{
    (void)state;
    struct arbiter *arbiter = NULL;
    uint64_t now;
    assert_int_equal(arbiter_open(&arbiter, "none", uuid, "alpha"), 0);
    assert_int_equal(swap(arbiter, 4, 5, &now), ARBITER_RESULT_WON);
    assert_int_equal(now, 5);
    arbiter_close(arbiter);
    arbiter_close(NULL);
    arbiter = NULL;
    static const char *const bad[] = {"", "file:", "file:relative", "etcd:x", "None"};
    for (unsigned i = 0; i < 5; i++)
        assert_int_equal(arbiter_open(&arbiter, bad[i], uuid, "alpha"), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, "none", uuid, ""), -EINVAL);
    assert_int_equal(arbiter_open(&arbiter, "none", uuid, "a\"b"), -EINVAL);
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
    return arbiter_open(&alpha, specification, uuid, "alpha") < 0 ||
           arbiter_open(&beta, specification, uuid, "beta") < 0;
}

static int unmake(void **state)
{
    (void)state;
    arbiter_close(alpha);
    arbiter_close(beta);
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
