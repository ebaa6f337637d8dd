/* SPDX-License-Identifier: Apache-2.0 */
#include "base/fault.h"
#include "replicator/store.h"
#include "tests/unit/unit.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static char directory[] = "/tmp/test_store.XXXXXX";
static char path[64], fresh[80];
static const uint8_t uuid[16] = {1, 2, 3}, other[16] = {9};

static void put(const char *text)
{
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    fputs(text, file);
    assert_int_equal(fclose(file), 0);
}

static void test_round_trip(void **state)
{
    (void)state;
    struct store_state got = {99, true};
    assert_int_equal(store_read(path, uuid, &got), 0);
    assert_int_equal(got.generation, 0);
    assert_false(got.active);
    const struct store_state states[] = {{1, true}, {2, false}, {INT64_MAX, true}, {0, false}};
    for (unsigned i = 0; i < 4; i++) {
        assert_int_equal(store_write(path, uuid, &states[i]), 0);
        assert_int_equal(store_read(path, uuid, &got), 0);
        assert_int_equal(got.generation, states[i].generation);
        assert_int_equal(got.active, states[i].active);
    }
    struct stat status;
    assert_int_equal(stat(path, &status), 0);
    assert_int_equal(status.st_mode & 07777, 0600);
    assert_int_equal(access(fresh, F_OK), -1);
    assert_int_equal(store_write(path, uuid, &(struct store_state){UINT64_MAX, true}), -ERANGE);
}

static void test_other_machine(void **state)
{
    (void)state;
    struct store_state got = {99, true};
    assert_int_equal(store_write(path, uuid, &(struct store_state){4, true}), 0);
    assert_int_equal(store_read(path, other, &got), -EBADMSG);
    assert_text_has(path, "of machine 01020300-", "not of 09000000-");
    assert_int_equal(got.generation, 99);
}

static void test_damage(void **state)
{
    (void)state;
#define UUID "\"uuid\": \"01020300-0000-0000-0000-000000000000\""
    static const char *const bad[] = {
        "",
        "{",
        "{" UUID ", \"generation\": 3}",
        "{" UUID ", \"generation\": \"3\", \"active\": true}",
        "{" UUID ", \"generation\": -3, \"active\": true}",
        "{" UUID ", \"generation\": 3.5, \"active\": true}",
        "{" UUID ", \"generation\": 99999999999999999999, \"active\": true}",
        "{" UUID ", \"generation\": 0, \"active\": true}",
        "{" UUID ", \"generation\": 3, \"active\": true, \"more\": 1}",
        "{" UUID ", \"generation\": 3, \"generation\": 4, \"active\": true}",
        "{" UUID ", \"generation\": 3, \"active\": true} {}",
    };
    for (unsigned i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct store_state got = {99, true};
        put(bad[i]);
        assert_int_equal(store_read(path, uuid, &got), -EBADMSG);
        assert_text_has(path, "damaged");
        assert_int_equal(got.generation, 99);
    }
    static char large[8000];
    memset(large, ' ', sizeof large - 1);
    put(large);
    struct store_state got;
    assert_int_equal(store_read(path, uuid, &got), -EBADMSG);
    assert_text_has("longer than");
}

static void test_failure_keeps_the_old(void **state)
{
    (void)state;
    struct store_state got;
    assert_int_equal(store_write(path, uuid, &(struct store_state){7, true}), 0);
    assert_int_equal(fault_arm("generation-store=error"), 0);
    assert_int_equal(store_write(path, uuid, &(struct store_state){8, false}), -EIO);
    assert_text_has(path, "generation-store");
    assert_int_equal(store_read(path, uuid, &got), 0);
    assert_int_equal(got.generation, 7);
    assert_true(got.active);
    /* What the failure left behind is no obstacle. */
    assert_int_equal(store_write(path, uuid, &(struct store_state){8, false}), 0);
    assert_int_equal(store_write("/nonexistent/x", uuid, &(struct store_state){8, false}), -ENOENT);
    /* Nobody makes us write elsewhere. */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(symlink("/tmp/elsewhere", fresh), 0);
    assert_int_equal(store_write(path, uuid, &(struct store_state){9, false}), -ELOOP);
}

/* In place, where nothing but data has to reach the disk; what is not of our making is replaced. */
static void test_in_place(void **state)
{
    (void)state;
    struct store_state got;
    struct stat before, after;
    put("{" UUID ", \"generation\": 3, \"active\": true}\n");
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(store_write(path, uuid, &(struct store_state){4, true}), 0);
    assert_int_equal(stat(path, &after), 0);
    assert_true(after.st_ino != before.st_ino && after.st_size <= 512);
    assert_int_equal(store_write(path, uuid, &(struct store_state){INT64_MAX, false}), 0);
    assert_int_equal(stat(path, &before), 0);
    assert_int_equal(before.st_ino, after.st_ino);
    assert_int_equal(before.st_size, after.st_size);
    assert_int_equal(store_write(path, uuid, &(struct store_state){5, true}), 0);
    assert_int_equal(store_read(path, uuid, &got), 0);
    assert_int_equal(got.generation, 5);
    assert_true(got.active);
}

static int make(void **state)
{
    (void)state;
    static char template[] = "/tmp/test_store.XXXXXX";
    strcpy(directory, template);
    if (!mkdtemp(directory))
        return -1;
    snprintf(path, sizeof path, "%s/web.alpha.state", directory);
    snprintf(fresh, sizeof fresh, "%s.new", path);
    return 0;
}

static int unmake(void **state)
{
    (void)state;
    unlink(path);
    unlink(fresh);
    return rmdir(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_round_trip, make, unmake),
        cmocka_unit_test_setup_teardown(test_other_machine, make, unmake),
        cmocka_unit_test_setup_teardown(test_damage, make, unmake),
        cmocka_unit_test_setup_teardown(test_failure_keeps_the_old, make, unmake),
        cmocka_unit_test_setup_teardown(test_in_place, make, unmake),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
